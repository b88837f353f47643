import io
import json
import sys

import pytest
import torch

from intone.config import model_config
from intone.data.chat import SPECIALS, Message
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.engine.engine import Engine
from intone.engine.requests import Request
from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE, EXIT_STOPPED, UserError
from intone.serve.partners import EnginePartner
from intone.serve.terminal import answer_once, chat_loop, piped_prompt
from intone.settings import ChatSettings

TOKENIZER = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)


def ids_of(text):
    """Ids of a text in which <|names|> are special tokens."""
    for name in SPECIALS:
        text = text.replace(name, f"\0{name}\0")
    pieces = [piece for piece in text.split("\0") if piece]
    return [i for piece in pieces for i in ([TOKENIZER.special(piece)] if piece in SPECIALS else piece.encode())]


class Replying:
    """A decoder that answers the last message by a table, in an engine of one slot; prompts: what it was asked."""

    def __init__(self, replies, *, context):
        self.config = model_config("classic", depth=1, vocab_size=265, context=context, head_width=64)
        self.dtype = torch.float32
        self.replies, self.text, self.prompts = replies, [], []

    def logits(self, batch):
        start = int(batch.positions[0])
        self.text = [*self.text[:start], *batch.ids.tolist()]
        if start == 0:
            self.prompts.append(TOKENIZER.decode(self.text))
        if not len(batch.wanted):
            return torch.zeros(0, 265)  # a part of a prompt
        asked, said = self.parts()
        reply = ids_of(self.replies[asked] + "<|assistant_end|>")
        following = reply[min(len(said), len(reply) - 1)]
        return torch.nn.functional.one_hot(torch.tensor([following]), 265).float() * 50

    def parts(self):
        """The last message, and the ids of its answer that are there."""
        answer_start = len(self.text) - self.text[::-1].index(TOKENIZER.special("<|assistant_start|>"))
        asked = TOKENIZER.decode(self.text[:answer_start]).rsplit("<|user_start|>", 1)[1]
        return asked.removesuffix("<|user_end|><|assistant_start|>"), self.text[answer_start:]


@pytest.fixture
def engine_of():
    engines = []

    def make(replies, context=400):
        model = Replying(replies, context=context)
        engines.append(Engine(model, TOKENIZER, num_slots=1, share_prefixes=False))
        return engines[-1], model

    yield make
    for engine in engines:
        engine.close()


def talk(engine, lines, *, out=None, **settings):
    """Types lines (KeyboardInterrupt among them: Ctrl-C at the prompt), then Ctrl-D -> (exit code, answers)."""
    typed = iter(lines)
    out = io.StringIO() if out is None else out

    def read(prompt):
        line = next(typed, None)
        if line is None:
            raise EOFError
        if isinstance(line, type):
            raise line
        return line

    partner, asked = EnginePartner(engine, TOKENIZER), ChatSettings(**{"temperature": 0, **settings})
    code = chat_loop(partner, settings=asked, read=read, out=out)
    return code, out.getvalue()


def once(engine, prompt, *, out=None, **settings):
    settings = ChatSettings(**{"temperature": 0, **settings})
    return answer_once(EnginePartner(engine, TOKENIZER), prompt, settings=settings, out=out)


class StopsAfter(io.StringIO):
    """A terminal at which Ctrl-C is pressed when this text has been written."""

    def __init__(self, text):
        super().__init__()
        self.stop_text = text

    def write(self, text):
        super().write(text)
        if self.stop_text and self.stop_text in self.getvalue():
            self.stop_text = None
            raise KeyboardInterrupt
        return len(text)


CALL = "it is <|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>42"


def test_answers_go_to_stdout_and_the_conversation_is_remembered_with_its_tool_calls(engine_of, capsys):
    engine, model = engine_of({"hi": "hello 😀", "6*7?": CALL, "bye": "see you"})
    assert talk(engine, ["hi", "", "  6*7?  ", "bye"]) == (EXIT_DONE, "hello 😀\nit is 42\nsee you\n")
    turn = "<|user_start|>{}<|user_end|><|assistant_start|>"
    first = "<|bos|>" + turn.format("hi")
    second = first + "hello 😀<|assistant_end|>" + turn.format("6*7?")
    assert model.prompts == [first, second, second + CALL + "<|assistant_end|>" + turn.format("bye")]
    assert capsys.readouterr().out == ""


def test_commands_change_the_conversation_and_the_settings(engine_of, capsys):
    engine, model = engine_of({"hi": "hello", "bye": "see you"})
    lines = ["hi", "/new", "bye", "/set temperature 0.5", "/set top-k 3", "/set top-k none", "hi", "/help"]
    lines += ["/quit", "never"]
    assert talk(engine, lines) == (EXIT_DONE, "hello\nsee you\nhello\n")
    assert "hello" not in model.prompts[1] and "see you" in model.prompts[2]
    said = capsys.readouterr().err
    for words in ("forgot the conversation", "temperature is 0.5 now", "top-k is 3 now", "top-k is none now"):
        assert words in said
    for command in ("/help", "/new", "/retry", "/system [TEXT]", "/set [NAME VALUE]", "/save FILE", "/quit"):
        assert command in said


def test_an_answer_has_a_word_where_the_model_would_say_nothing_unless_that_is_asked_for(engine_of):
    engine, _ = engine_of({"asdf": "", "hi": "hello"})
    assert talk(engine, ["asdf", "hi", "/set min-tokens 0", "asdf"]) == (EXIT_DONE, "\0\nhello\n\n")
    assert (once(engine, "asdf"), once(engine, "asdf", min_tokens=0)) == ("\0", "")


@pytest.mark.parametrize(
    "line, words",
    [
        ("/quti", "unknown command '/quti'\n  fix: did you mean '/quit'?"),
        ("/zzzzz", "known: /help, /model, /new, /quit, /retry, /save, /set, /system"),
        ("/set temperature warm", "'warm' is not a number"),
        ("/set temperature", "'' is not a number"),
        ("/set temperature -1", "-1"),
        ("/set temperature nan", "nan"),
        ("/set top-k 0", "0"),
        ("/set top-k 2.5", "'2.5' is not a whole number"),
        ("/set min-tokens 300", "min_tokens 300 is more than max_tokens 256\n  fix: use a min_tokens of 256 or less"),
        ("/set min-tokens -1", "min_tokens is -1"),
        ("/set python maybe", "'maybe' is neither yes nor no\n  fix: /set python yes"),
        ("/set warmth 3", "unknown setting 'warmth'"),
        ("/new now", "/new stands alone, without 'now'"),
        ("/retry", "there is nothing to answer again"),
        ("/save", "/save needs the name of a file"),
        ("/model other", "this chat has one model"),
    ],
)
def test_wrong_commands_are_explained_and_change_nothing(engine_of, capsys, line, words):
    engine, _ = engine_of({"hi": "hello"})
    assert talk(engine, [line, "hi"]) == (EXIT_DONE, "hello\n")
    said = capsys.readouterr().err
    assert words in said and " now" not in said


def test_an_interrupt_stops_the_answer_and_keeps_its_beginning(engine_of):
    engine, model = engine_of({"hi": "hello there", "and?": "more"})
    code, said = talk(engine, ["hi", "and?"], out=StopsAfter("hello"))
    assert (code, said) == (EXIT_DONE, "hello\nmore\n")
    assert "<|assistant_start|>hello<|assistant_end|><|user_start|>and?" in model.prompts[1]


def test_an_interrupt_at_the_prompt_leaves_only_after_another_one(engine_of, capsys):
    engine, _ = engine_of({"hi": "hello"})
    lines = [KeyboardInterrupt, "hi", KeyboardInterrupt, KeyboardInterrupt, "never"]
    assert talk(engine, lines) == (EXIT_STOPPED, "hello\n")
    assert "Ctrl-C again, or /quit, to leave" in capsys.readouterr().err
    assert talk(engine, ["hi", KeyboardInterrupt], out=StopsAfter("he")) == (EXIT_STOPPED, "he\n")


def test_a_conversation_that_outgrows_the_context_forgets_its_oldest_turns_and_says_so(engine_of, capsys):
    engine, model = engine_of({"first question": "a", "second question": "b", "third": "c", "x" * 90: "d"}, context=60)
    code, said = talk(engine, ["first question", "second question", "third", "x" * 90, "third"])
    assert (code, said) == (EXIT_DONE, "a\nb\nc\nc\n")
    assert "first" in model.prompts[1] and "first" not in model.prompts[2] and "second" in model.prompts[2]
    assert "second" in model.prompts[3], "a message that does not fit leaves the conversation as it was"
    errors = capsys.readouterr().err
    assert "(forgot the oldest 2 messages: the context holds 60 tokens)" in errors
    assert "94 tokens do not fit into the context of 60 with an answer" in errors


def test_an_answer_that_reaches_its_limit_is_marked(engine_of, capsys):
    engine, _ = engine_of({"hi": "hello there"})
    assert talk(engine, ["hi"], max_tokens=5) == (EXIT_DONE, "hello\n")
    assert "the answer was cut here" in capsys.readouterr().err


def test_a_model_that_fails_ends_the_chat_with_its_reason(engine_of, capsys):
    engine, _ = engine_of({})
    assert talk(engine, ["hi", "never"]) == (EXIT_CHECK_FAILED, "")
    assert "the model failed: 'hi'" in capsys.readouterr().err


RUN = "it is <|python_start|>sum(range(10))<|python_end|><|output_start|>45<|output_end|>45"


def test_python_runs_only_where_the_person_allows_it(engine_of, capsys):
    engine, _ = engine_of({"sum?": RUN})
    if (reason := engine.tools()["python"]) != "on":
        pytest.skip(f"Python is {reason}")
    handle = engine.submit(Request([Message("user", "sum?")], temperature=0, tools=["calculator", "python"]))
    assert [(call.name, call.output) for call in handle.result()[0].tool_calls] == [("python", "45")]
    assert once(engine, "sum?", python=True) == "it is 45"
    completion = engine.generate([Request([Message("user", "sum?")], temperature=0)])[0][0]
    assert [(call.name, call.output) for call in completion.tool_calls] == [("calculator", None)]


def test_python_that_is_off_says_so_in_the_chat(engine_of, capsys, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    engine, _ = engine_of({"hi": "hello"})
    reason = "it needs the system call filter of Linux, this is darwin"
    assert engine.tools() == {"calculator": "on", "python": f"off: {reason}"}
    assert talk(engine, ["hi"], python=True) == (EXIT_DONE, "")
    assert "the Python tool is off on this machine: " + reason in capsys.readouterr().err
    assert talk(engine, ["hi"]) == (EXIT_DONE, "hello\n")


def test_a_message_of_many_lines_goes_on_after_a_backslash_or_between_fences(engine_of):
    engine, _ = engine_of({"one\ntwo": "2", "a\n\nb": "b"})
    assert talk(engine, ["one\\", "two", '"""a', "", 'b"""', '"""one', "two", '"""']) == (EXIT_DONE, "2\nb\n2\n")


def test_retry_answers_the_last_message_in_the_same_place(engine_of):
    engine, model = engine_of({"hi": "hello", "bye": "see you"})
    assert talk(engine, ["hi", "bye", "/retry"]) == (EXIT_DONE, "hello\nsee you\nsee you\n")
    assert model.prompts[2] == model.prompts[1]


def test_a_retry_that_fails_keeps_the_answer_before(engine_of, monkeypatch):
    engine, model = engine_of({"hi": "hello", "bye": "see you"})
    asked = EnginePartner.answer

    def failing(self, messages, settings, *, seed):
        if seed == 1:
            raise UserError("no answer")
        return asked(self, messages, settings, seed=seed)

    monkeypatch.setattr(EnginePartner, "answer", failing)
    assert talk(engine, ["hi", "/retry", "bye"]) == (EXIT_DONE, "hello\n")
    monkeypatch.undo()
    assert talk(engine, ["hi", "/retry", "bye"]) == (EXIT_DONE, "hello\nhello\nsee you\n")
    assert model.prompts[-1].count("hi<|user_end|>") == 1, "one question has one answer"


def test_the_system_text_stands_before_the_first_message_of_every_prompt(engine_of):
    replies = {"hi": "hello", "be kind\n\nhi": "dear", "be kind\n\nbye": "farewell", "bye": "see you"}
    engine, model = engine_of(replies)
    lines = ["/system be kind", "hi", "bye", "/system", "/new", "hi"]
    assert talk(engine, lines) == (EXIT_DONE, "dear\nsee you\nhello\n")
    assert model.prompts[1].startswith("<|bos|><|user_start|>be kind\n\nhi<|user_end|>")
    assert once(engine, "hi", system="be kind") == "dear"


def test_a_conversation_is_saved_as_openai_messages_and_no_file_is_overwritten(engine_of, tmp_path, capsys):
    engine, _ = engine_of({"short\n\n6*7?": CALL})
    path = tmp_path / "talk.json"
    talk(engine, ["/system short", "6*7?", f"/save {path}", f"/save {path}"])
    said = capsys.readouterr().err
    assert f"{path} exists already" in said and "(calculator: 6*7 = 42)" in said
    function = {"name": "calculator", "arguments": '{"input": "6*7"}'}
    call = {"id": "call_0", "type": "function", "function": function}
    assert json.loads(path.read_text())["messages"] == [
        {"role": "system", "content": "short"},
        {"role": "user", "content": "6*7?"},
        {"role": "assistant", "content": "it is ", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0", "content": "42"},
        {"role": "assistant", "content": "42"},
    ]


def test_one_prompt_is_answered_once(engine_of):
    engine, model = engine_of({"6*7?": CALL})
    out = io.StringIO()
    assert once(engine, "6*7?", out=out) == "it is 42"
    assert out.getvalue() == "it is 42\n"
    assert once(engine, "6*7?") == "it is 42"
    assert model.prompts[0] == model.prompts[1] == "<|bos|><|user_start|>6*7?<|user_end|><|assistant_start|>"
    with pytest.raises(UserError, match="do not fit into the context"):
        once(engine, "x" * 400)
    with pytest.raises(RuntimeError, match="unknown"):
        once(engine, "unknown")


def test_an_interrupt_while_answering_once_stops_the_engine_and_goes_on_up(engine_of):
    engine, _ = engine_of({"hi": "hello there"})
    with pytest.raises(KeyboardInterrupt):
        once(engine, "hi", out=StopsAfter("he"))
    assert once(engine, "hi") == "hello there"


def test_piped_text_is_a_prompt_and_blank_text_an_error():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert piped_prompt(Terminal("ignored")) is None
    assert piped_prompt(io.StringIO(" what is\nthis? \n")) == "what is\nthis?"
    with pytest.raises(UserError, match="nothing was piped in"):
        piped_prompt(io.StringIO(" \n"))
