"""Under load and when things go wrong: full queues, leaving clients, time-outs, engines that die, and tools."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2
import openai
import pytest
from tests.serve.conftest import WAIT_S, running
from tests.serve.models import QUESTION, make_run, save_weights

from intone.errors import UserError
from intone.serve.listening import bind
from intone.serve.models import Models

HELLO = [{"role": "user", "content": "hello"}]
LONG = {"messages": HELLO, "min_tokens": 240, "stream": True}


def eventually(happened, what, *, within_s=WAIT_S):
    """Waits until happened() is true -> seconds that it took."""
    began_s = time.monotonic()
    while not happened():
        assert time.monotonic() - began_s < within_s, f"{what}: not within {within_s:g} s"
        time.sleep(0.002)  # between two looks at another process
    return time.monotonic() - began_s


@pytest.fixture(scope="module")
def small(served_home):
    """One slot, and room for two prompts behind it. Steps are made slow, so that a text is still being written."""
    loader = "tests.serve.models:open_slow"
    arguments = {"step_s": 0.01, "folder": str(served_home / "slow"), "num_slots": 1}
    models = Models("slow", loader=loader, arguments=arguments)
    with running(models, max_queue=2, max_queue_tokens=40, timeout_s=20.0) as found:
        yield found


def post(server, **settings):
    """Starts a stream and reads its first bytes -> the open answer."""
    request = server.http.build_request("POST", "/v1/chat/completions", json={**LONG, **settings})
    return server.http.send(request, stream=True)


def head_of(body):
    """The head of a chat request with this body."""
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x.localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()


def is_idle(server):
    stats = server.stats()
    return stats["num_running"] == stats["num_waiting"] == stats["held_bytes"] == 0


def test_more_than_may_wait_is_told_when_to_come_back(small):
    first = post(small)
    lines = first.iter_lines()
    next(lines)
    waiting = [threading.Thread(target=lambda: post(small, max_tokens=1, min_tokens=0).close()) for _ in range(2)]
    for thread in waiting:
        thread.start()
    eventually(lambda: small.server.admission.num_requests == 2, "two wait")
    refused = small.http.post("/v1/chat/completions", json={**LONG, "stream": False})
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    with small.openai() as client, pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="slow", messages=HELLO)
    first.close()
    for thread in waiting:
        thread.join(WAIT_S)
    eventually(lambda: is_idle(small), "all is free again")
    assert small.http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1}).status_code == 200


def test_what_could_never_wait_is_refused_for_good(small):
    for prompt, words in ((["a"] * 3, "3 prompts"), (["a" * 30, "b" * 30], "62 tokens")):
        answer = small.http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})
        assert answer.status_code == 400 and words in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_pages_of_a_client_that_leaves_are_free_at_once(small, stream):
    host, port = small.url.removeprefix("http://").split(":")
    body = json.dumps({**LONG, "stream": stream}).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head_of(body) + body)
        eventually(lambda: small.stats()["num_running"] == 1, "it runs")
    taken_s = eventually(lambda: is_idle(small), "its pages are free")
    assert taken_s < 0.1 + 0.2, "100 ms, and as much again twice for asking on a busy machine"


def test_a_client_that_leaves_while_it_waits_is_forgotten(small):
    first = post(small)
    next(first.iter_lines())
    with pytest.raises(httpx2.TimeoutException):
        small.http.post("/v1/chat/completions", json={**LONG, "stream": False}, timeout=0.3)
    eventually(lambda: small.server.admission.num_requests == 0, "nobody waits")
    first.close()
    eventually(lambda: is_idle(small), "all is free again")


def test_one_that_fails_harms_no_other(small):
    first = post(small, min_tokens=0, max_tokens=50)
    lines = first.iter_lines()
    next(lines)
    nothing_left = {"messages": HELLO, "structured_outputs": {"regex": "[0-9]{3}"}, "stop_token_ids": [999]}
    assert small.http.post("/v1/chat/completions", json=nothing_left).status_code == 400
    assert small.http.post("/v1/chat/completions", json={"messages": [], "x": 1}).status_code == 400
    rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"


def test_a_request_that_takes_too_long_ends(small):
    with small.beside(timeout_s=0.9, queue_timeout_s=0.3) as hasty:
        first = post(hasty)
        lines = first.iter_lines()
        next(lines)
        waiting = hasty.http.post("/v1/chat/completions", json={**LONG, "stream": False})
        assert (waiting.status_code, waiting.json()["error"]["code"]) == (503, "queue_timeout")
        events = [line.removeprefix("data: ") for line in lines if line]
        assert json.loads(events[-1])["error"]["code"] == "request_timeout", "the last word of the stream"
        whole = hasty.http.post("/v1/chat/completions", json={**LONG, "stream": False})
        assert (whole.status_code, whole.json()["error"]["code"]) == (503, "request_timeout")
        eventually(lambda: is_idle(small), "nothing is left of them")


def test_an_engine_that_died_is_said(small):
    """The last test of this server."""
    assert small.http.get("/health").json()["status"] == "ok"
    lines = post(small).iter_lines()
    next(lines)
    os.kill(small.server.models.default.link.pid, signal.SIGKILL)
    events = [line.removeprefix("data: ") for line in lines if line]
    assert json.loads(events[-1])["error"]["type"] == "service_unavailable"
    eventually(lambda: small.http.get("/health").status_code == 503, "it is noticed")
    answer = small.http.post("/v1/chat/completions", json={"messages": HELLO})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_stopped")
    assert small.http.get("/metrics").status_code == 200


def test_a_reader_that_stops_reading_is_ended(server):
    """Much text into a small window: the server neither waits for ever nor keeps it all in memory."""
    with server.beside(client_timeout_s=0.5) as hasty:
        host, port = hasty.url.removeprefix("http://").split(":")
        body = json.dumps({**LONG, "n": 128, "logprobs": True, "top_logprobs": 20}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.sendall(head_of(body) + body)
            eventually(lambda: server.stats()["num_running"] > 0, "it has begun")
            eventually(lambda: not hasty.listener.server_state.connections, "it is ended")
        eventually(lambda: is_idle(server), "its pages are free")


def test_tools_are_seen_as_messages(served_home):
    call = "it is <|python_start|>6*7<|python_end|>"
    script = f"{call}<|output_start|>42<|output_end|> 42"
    arguments = {"script": script, "folder": str(served_home / "tools")}
    models = Models("it", loader="tests.serve.models:open_scripted", arguments=arguments)
    messages = [{"role": "user", "content": QUESTION}]
    with running(models) as server, server.openai() as client:
        whole = client.chat.completions.create(model="tools", messages=messages, temperature=0).choices[0]
        assert whole.message.content == "it is  42" and whole.finish_reason == "stop"
        (called,) = whole.message.tool_calls
        assert (called.function.name, json.loads(called.function.arguments)) == ("calculator", {"input": "6*7"})
        (answered,) = whole.message.tool_messages
        assert (answered["role"], answered["tool_call_id"], answered["content"]) == ("tool", called.id, "42")
        chunks = list(client.chat.completions.create(model="tools", messages=messages, temperature=0, stream=True))
        deltas = [chunk.choices[0].delta for chunk in chunks]
        (place,) = [place for place, delta in enumerate(deltas) if delta.tool_calls]
        before = "".join(delta.content or "" for delta in deltas[:place])
        assert before == "it is ", "the call stands where the model wrote it"
        assert [delta.tool_messages[0]["content"] for delta in deltas if delta.tool_calls] == ["42"]
        off = client.chat.completions.create(
            model="tools", messages=messages, temperature=0, tool_choice="none", logprobs=True
        ).choices[0]
        assert off.message.tool_calls is None and off.message.content == "it is  42"
        assert b"".join(bytes(entry.bytes) for entry in off.logprobs.content) == b"it is  42", "no tool's words"
        history = [*messages, whole.message, {"role": "user", "content": "and?"}]
        client.chat.completions.create(model="tools", messages=history, max_tokens=1)
        parts = [
            *messages,
            {"role": "assistant", "content": "it is ", "tool_calls": [called.model_dump()]},
            {"role": "tool", "tool_call_id": called.id, "content": "42"},
            {"role": "assistant", "content": " 42"},
            {"role": "user", "content": "and?"},
        ]
        rendered = [client.chat.completions.create(model="tools", messages=parts, max_tokens=1).usage.prompt_tokens]
        assert rendered == [1 + 3 + 1 + (6 + 5 + 4 + 3 + 1) + 6 + 1]


@pytest.mark.long
def test_other_runs_are_loaded_when_somebody_asks_for_their_newest_save(server, served_home):
    folder = make_run("other", seed=1)
    ask = {"messages": HELLO, "temperature": 0, "max_tokens": 8}

    def said(model):
        answer = server.http.post("/v1/chat/completions", json={**ask, "model": model}).json()
        return answer["choices"][0]["message"]["content"]

    models = server.server.models
    loaded = server.call(models.load("other"))
    assert (loaded.model, loaded.step, loaded.context) == ("other/sft", 9, 256)
    assert [entry["id"] for entry in server.http.get("/v1/models").json()["data"]] == ["tiny/sft", "other/sft"]
    first = said("other/sft")
    assert first != said("tiny/sft")
    pid = models.find("other/sft").link.pid
    save_weights(folder, seed=2, step=12)
    assert server.call(models.load("other/sft")).step == 12
    assert models.find("other/sft").link.pid == pid, "the same engine with other weights"
    assert said("other/sft") != first
    make_run("third", seed=3)
    server.call(models.load("third"))
    assert [entry["id"] for entry in server.http.get("/v1/models").json()["data"]] == ["tiny/sft", "third/sft"]
    with pytest.raises(UserError, match="unknown run"):
        server.call(models.load("nothing"))


# --- the command ----------------------------------------------------------------------------------------------------


def started(*flags, run="tiny"):
    command = [sys.executable, "-m", "intone", "serve", "--from", run, "--device", "cpu", "--json", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_says_where_it_answers_drains_and_ends(served_home):
    process = started("--port", "0")
    found = json.loads(process.stdout.readline())
    assert (found["verb"], found["outcome"], found["result"]["model"]) == ("serve", "done", "tiny/sft")
    url = found["result"]["url"]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        extra = {"min_tokens": 240}
        stream = client.chat.completions.create(model="tiny/sft", messages=HELLO, stream=True, extra_body=extra)
        chunks = iter(stream)
        next(chunks)
        process.send_signal(signal.SIGTERM)
        rest = list(chunks)
    assert rest[-1].choices[0].finish_reason in ("length", "stop"), "what runs is finished"
    out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_taken_port_and_a_mistyped_run_are_said_before_anything_is_loaded(served_home):
    with bind("127.0.0.1", 0) as taken:
        process = started("--port", str(taken.getsockname()[1]))
        out, err = process.communicate(timeout=WAIT_S)
        assert process.returncode == 2 and "is taken" in err and "--port 0" in err
        assert json.loads(out)["outcome"] == "bad_input"
    process = started("--port", "0", run="tinny")
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2 and "did you mean 'tiny'" in err


def test_a_damaged_model_ends_the_command_with_what_is_wrong(served_home):
    folder = make_run("broken")
    next(folder.glob("checkpoints/*/model.safetensors")).write_bytes(b"x")
    process = started("--port", "0", run="broken")
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2 and "damaged" in err
    assert json.loads(out)["error"]["message"] in err


def test_nothing_of_the_web_is_imported_before_it_is_needed():
    code = "import sys, intone.cli, intone.serve.settings; print({'fastapi', 'uvicorn', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    code = "import sys, intone.serve.verb; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", "the process that speaks HTTP has no torch"
