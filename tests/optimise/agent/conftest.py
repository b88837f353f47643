"""A model by script: a local server that speaks the OpenAI protocol and answers from a list."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class ScriptedServer:
    """Answers chat completions with the given replies in order; what was asked is kept. An int is an HTTP status."""

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                script.asked.append(body)
                reply = script.replies.pop(0) if script.replies else act("done", summary="s", why="w")
                status, answer = 200, completion(reply)
                if isinstance(reply, int):
                    status, answer = reply, {"error": {"message": f"status {reply}", "type": "x", "param": None}}
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def completion(reply: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply}
    return {
        "id": "c", "object": "chat.completion", "created": 0, "model": "scripted",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100},
    }  # fmt: skip


def act(tool: str, **fields: Any) -> str:
    return f"I think so.\n```json\n{json.dumps({'tool': tool, **fields})}\n```"


PLAN = act("plan", decided="a", tasks="b", files="c", risks="d", tests="e", gates="f", effect="g")


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    pytest.importorskip("openai", reason="the openai client is not installed")
    server = ScriptedServer()
    yield server
    server.close()
