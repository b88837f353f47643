"""The chat partner behind a URL, against servers of every temper, scripted request by request."""

import io
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from intone.cli import main
from intone.data.chat import Message, Part
from intone.errors import EXIT_DONE, UserError
from intone.serve import remote
from intone.serve.partners import Called, Ended, Forgot, Said, Waiting
from intone.serve.remote import ServerPartner, as_openai
from intone.serve.terminal import answer_once, chat_loop
from intone.settings import ChatSettings

HI = [Message("user", "hi")]
OURS = {"object": "list", "data": [{"id": "d4-1/sft", "owned_by": "intone", "context": 256}]}
THEIRS = {"data": [{"id": "big/model", "owned_by": "somebody"}]}


def delta(**fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def error(status, message, code=None, **headers):
    return status, {"error": {"message": message, "type": "x", "param": None, "code": code}}, headers


class Script:
    """A server that gives the answers it was told, one per request for a chat; asked: (path, headers, body) of each."""

    def __init__(self, models=OURS):
        self.models, self.answers, self.asked = models, [], []
        self.loading = []  # answered before the list of models is there
        script = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                script.asked.append((self.path, dict(self.headers), body))
                if self.path == "/v1/models" and script.loading:
                    self.say(*script.loading.pop())
                    return
                if self.path == "/v1/models" and script.models is not None:
                    self.say(200, script.models, {})
                    return
                found = script.answers.pop(0)
                if isinstance(found, tuple):
                    self.say(*found)
                    return
                self.send_response(200)
                self.end_headers()
                for chunk in found:
                    self.wfile.write(b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()))
                    self.wfile.write(b"\n\n")

            def say(self, status, value, headers):
                data = json.dumps(value).encode()
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name.replace("_", "-"), text)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def script():
    made = Script()
    yield made
    made.close()


def words(*texts):
    """A whole answer in pieces."""
    return [delta(role="assistant", content=""), *(delta(content=text) for text in texts), END, USAGE, b"[DONE]"]


def pieces(partner, messages=HI, **settings):
    return list(partner.answer(messages, ChatSettings(**settings), seed=5))


def test_an_answer_comes_in_pieces_with_tool_calls_and_the_key_goes_along(script):
    function = {"name": "calculator", "arguments": '{"input": "6*7"}'}
    call = {"index": 0, "id": "c1", "type": "function", "function": function}
    output = {"role": "tool", "tool_call_id": "c1", "name": "calculator", "content": "42"}
    script.answers = [[delta(content="it is "), delta(tool_calls=[call], tool_messages=[output]), *words("42", "!")]]
    partner = ServerPartner(f"{script.url}/v1/", api_key="s3cret")
    assert (partner.about, partner.context) == (f"d4-1/sft at {script.url}", 256)
    assert pieces(partner, top_p=0.9) == [
        Said("it is "), Called("calculator", "6*7", "42"), Said("42"), Said("!"), Ended("stop", 2)
    ]  # fmt: skip
    path, headers, body = script.asked[-1]
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer s3cret")
    assert body == {
        "model": "d4-1/sft", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 256, "temperature": 0.6,
        "seed": 5, "top_p": 0.9, "top_k": 50, "min_tokens": 1, "builtin_tools": ["calculator"],
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_other_servers_get_only_what_openai_has_names_for(script):
    script.models, script.answers = THEIRS, [words("x")]
    pieces(ServerPartner(script.url))
    assert not {"top_k", "min_tokens", "builtin_tools"} & set(script.asked[-1][2])


def test_a_busy_server_is_asked_again_after_the_time_it_names(script):
    script.answers = [error(429, "full", Retry_After="0"), error(429, "full", Retry_After="0"), words("x")]
    wait = Waiting("the server is busy; trying again in 0 s (Ctrl-C gives up)")
    assert pieces(ServerPartner(script.url)) == [wait, wait, Said("x"), Ended("stop", 2)]
    script.answers = [error(429, "full", Retry_After="0")] * 9
    with pytest.raises(UserError, match="the server is busy: full"):
        pieces(ServerPartner(script.url))
    assert len(script.answers) == 4, "five tries"


def test_a_server_that_is_still_loading_is_waited_for(script, monkeypatch, capsys):
    monkeypatch.setattr(remote, "LOADING_POLL_S", 0.01)
    script.loading = [error(503, "the model is being loaded", "loading")] * 3
    script.answers = [words("x")]
    assert pieces(ServerPartner(script.url)) == [Said("x"), Ended("stop", 2)]
    assert script.loading == [] and capsys.readouterr().err.count("is loading its model; waiting") == 1
    monkeypatch.setattr(remote, "LOADING_S", 0.0)
    script.loading = [error(503, "the model is being loaded", "loading")] * 9
    with pytest.raises(UserError, match="the model is being loaded"):
        ServerPartner(script.url)


def test_a_conversation_that_is_too_long_loses_its_oldest_turns(script):
    talk = [Message("system", "s"), *(Message(role, str(n)) for n, role in enumerate(("user", "assistant") * 2))]
    full = error(400, "too long", "context_length_exceeded")
    script.answers = [full, full, words("x")]
    assert pieces(ServerPartner(script.url), [*talk, *HI])[0] == Forgot(4)
    assert [row["content"] for row in script.asked[-1][2]["messages"]] == ["s", "hi"]
    script.answers = [full]
    with pytest.raises(UserError, match="too long"):
        pieces(ServerPartner(script.url))


@pytest.mark.parametrize(
    "answer, said",
    [
        (error(400, "temperature is 9"), "the server refused: temperature is 9"),
        (error(500, "a fault"), "the server failed: a fault"),
        ((307, {}, {"Location": "http://example.invalid/"}), "sends on to another address"),
        ((200, [], {}), "the server broke the answer off"),
        ([delta(content="a"), b"no json"], "the server sent what is no answer"),
        ([delta(content="a"), {"error": {"message": "engine gone"}}], "broke the answer off: engine gone"),
        ([delta(content="a")], "the server broke the answer off"),
    ],
)
def test_what_goes_wrong_is_said_in_words(script, answer, said):
    script.answers = [answer]
    with pytest.raises(UserError, match=said):
        pieces(ServerPartner(script.url))


def test_a_key_that_is_missing_or_wrong_is_asked_for_and_never_shown(script, capsys):
    script.models, script.answers = None, [error(401, "no"), error(401, "no")]
    with pytest.raises(UserError, match="asks for a key\n  fix: set INTONE_API_KEY"):
        ServerPartner(script.url)
    assert main(["chat", "--url", script.url, "--api-key", "s3cret", "--prompt", "hi"]) == 2
    said = capsys.readouterr()
    assert "does not accept this key" in said.err and "s3cret" not in said.err + said.out


@pytest.mark.parametrize(
    "url, said",
    [
        ("127.0.0.1:8000", "is no address of a server"),
        ("ftp://host", "is no address of a server"),
        ("http://host:99999", "has no port that could be"),
        ("http://me:s3cret@host", "holds a name or password"),
        ("http://127.0.0.1:1", "no answer from http://127.0.0.1:1: "),
    ],
)
def test_an_address_that_cannot_be_is_refused_with_an_example(url, said):
    with pytest.raises(UserError, match=said) as caught:
        ServerPartner(url)
    assert "s3cret" not in str(caught.value)


def test_a_page_that_is_no_api_is_recognised(script):
    script.models = ["welcome"]
    with pytest.raises(UserError, match="does not answer as OpenAI's API does"):
        ServerPartner(script.url)


def test_a_run_that_the_server_does_not_hold_is_loaded_by_name(script):
    more = {"data": [*OURS["data"], {"id": "d8-1/base", "owned_by": "intone", "context": 512}]}

    class Loading(list):
        def pop(self, index):
            script.models = more
            return super().pop(index)

    script.answers = Loading([(200, {"model": "d8-1/base", "step": 7}, {})])
    partner = ServerPartner(script.url)
    partner.use("d8-1/base")
    assert script.asked[-2][0] == "/api/runs/d8-1/load?stage=base"
    assert (partner.context, partner.models()) == (512, ["d4-1/sft", "d8-1/base"])
    script.models = THEIRS
    with pytest.raises(UserError, match="unknown model 'big/mode'\n  fix: did you mean 'big/model'"):
        ServerPartner(script.url).use("big/mode")


def test_tool_calls_go_back_as_openai_messages():
    said = (Part("text", "a "), Part("call", "1+1"), Part("output", "2"), Part("call", "2+2"), Part("text", "b"))
    rows = as_openai(Message("assistant", said))
    assert [(row["role"], row["content"]) for row in rows] == [
        ("assistant", "a "), ("tool", "2"), ("assistant", ""), ("assistant", "b")
    ]  # fmt: skip
    assert [call["id"] for row in rows for call in row.get("tool_calls", ())] == ["call_0", "call_1"]
    assert rows[1]["tool_call_id"] == "call_0"


def test_the_loop_goes_on_after_an_answer_that_broke_and_keeps_what_came(script, capsys):
    script.answers = [[delta(content="half")], error(500, "a fault"), words("whole")]
    lines = iter(["one", "two", "three"])
    out = io.StringIO()

    def read(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    assert chat_loop(ServerPartner(script.url), settings=ChatSettings(), read=read, out=out) == EXIT_DONE
    assert out.getvalue() == "half\nwhole\n"
    said = capsys.readouterr().err
    assert "the server broke the answer off" in said and "the server failed: a fault" in said
    assert [row["content"] for row in script.asked[-1][2]["messages"]] == ["one", "half", "three"]


def test_stopping_an_answer_hangs_up(script):
    gone = threading.Event()

    class Endless:
        def __iter__(self):
            try:
                while True:
                    yield delta(content="x" * 1000)
            finally:
                gone.set()

    script.answers = [Endless()]
    answer = ServerPartner(script.url).answer(HI, ChatSettings(), seed=0)
    assert next(answer) == Said("x" * 1000)
    answer.close()
    assert gone.wait(30), "the server went on writing to nobody"


def test_one_answer_from_the_command_line_needs_no_torch(script):
    script.answers = [words("hel", "lo")]
    code = (
        "import sys; from intone.cli import main; "
        f"code = main(['chat', '--url', '{script.url}', '--json']); print('torch' in sys.modules, code)"
    )
    done = subprocess.run([sys.executable, "-c", code], input="hi\n", capture_output=True, text=True, timeout=60)
    line, end = done.stdout.splitlines()
    assert json.loads(line)["result"] == {"prompt": "hi", "answer": "hello"}, done.stderr
    assert end == "False 0"


def test_the_same_once(script):
    script.answers = [words("hel", "lo")]
    out = io.StringIO()
    assert answer_once(ServerPartner(script.url), "hi", settings=ChatSettings(system="be kind"), out=out) == "hello"
    assert out.getvalue() == "hello\n"
    assert script.asked[-1][2]["messages"][0] == {"role": "system", "content": "be kind"}
