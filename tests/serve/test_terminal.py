import io
import sys

import pytest
import torch

from intone.config import model_config
from intone.data.chat import SPECIALS, Message
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.engine.engine import Engine
from intone.engine.requests import Request
from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE, EXIT_STOPPED, UserError
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
        return torch.nn.functional.one_hot(torch.tensor([reply[len(said)]]), 265).float() * 50

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

    code = chat_loop(engine, TOKENIZER, settings=ChatSettings(**{"temperature": 0, **settings}), read=read, out=out)
    return code, out.getvalue()


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
    lines = ["hi", "/clear", "bye", "/temperature 0.5", "/top-k 3", "/top-k none", "hi", "/help", "/quit", "never"]
    assert talk(engine, lines) == (EXIT_DONE, "hello\nsee you\nhello\n")
    assert "hello" not in model.prompts[1] and "see you" in model.prompts[2]
    said = capsys.readouterr().err
    for words in ("forgot the conversation", "temperature is 0.5 now", "top-k is 3 now", "top-k is none now"):
        assert words in said
    for command in ("/help", "/clear", "/temperature X", "/top-k N", "/quit"):
        assert command in said


@pytest.mark.parametrize(
    "line, words",
    [
        ("/quti", "unknown command '/quti'\n  fix: did you mean '/quit'?"),
        ("/zzzzz", "known: /clear, /help, /quit, /temperature, /top-k"),
        ("/temperature warm", "'warm' is not a number"),
        ("/temperature", "'' is not a number"),
        ("/temperature -1", "-1"),
        ("/temperature nan", "nan"),
        ("/top-k 0", "0"),
        ("/top-k 2.5", "'2.5' is not a number"),
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
    assert answer_once(engine, "sum?", settings=ChatSettings(temperature=0, python=True)) == "it is 45"
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


def test_one_prompt_is_answered_once(engine_of):
    engine, model = engine_of({"6*7?": CALL})
    out = io.StringIO()
    assert answer_once(engine, "6*7?", settings=ChatSettings(temperature=0), out=out) == "it is 42"
    assert out.getvalue() == "it is 42\n"
    assert answer_once(engine, "6*7?", settings=ChatSettings(temperature=0)) == "it is 42"
    assert model.prompts[0] == model.prompts[1] == "<|bos|><|user_start|>6*7?<|user_end|><|assistant_start|>"
    with pytest.raises(UserError, match="do not fit into the context"):
        answer_once(engine, "x" * 400, settings=ChatSettings())
    with pytest.raises(RuntimeError, match="unknown"):
        answer_once(engine, "unknown", settings=ChatSettings())


def test_an_interrupt_while_answering_once_stops_the_engine_and_goes_on_up(engine_of):
    engine, _ = engine_of({"hi": "hello there"})
    with pytest.raises(KeyboardInterrupt):
        answer_once(engine, "hi", settings=ChatSettings(temperature=0), out=StopsAfter("he"))
    assert answer_once(engine, "hi", settings=ChatSettings(temperature=0)) == "hello there"


def test_piped_text_is_a_prompt_and_blank_text_an_error():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert piped_prompt(Terminal("ignored")) is None
    assert piped_prompt(io.StringIO(" what is\nthis? \n")) == "what is\nthis?"
    with pytest.raises(UserError, match="nothing was piped in"):
        piped_prompt(io.StringIO(" \n"))
