"""A generation behind HTTP: streams are read to their end and counted, and every way to fail says what happened."""

import http.server
import json
import threading

import pytest
from tests.tiny_jobs import write_job

from intone.errors import UserError
from intone.optimise.stages.served import MODULE, answered, body_of
from intone.optimise.stages.target import Target
from intone.paths import read_json

PIECES = ['data: {"choices": []}', "data: {}", 'data: {"usage": {"completion_tokens": 7}}', "data: [DONE]"]


@pytest.fixture
def url_of():
    """url_of(status, lines) -> the address of a server that answers so; what it was asked is in url_of.asked."""
    servers = []
    asked = []

    def start(status=200, lines=PIECES):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()
                self.wfile.write("".join(f"{line}\n\n" for line in lines).encode())

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    start.asked = asked
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_all_requests_go_out_at_once_and_their_tokens_are_counted(url_of):
    sampling = {"max_tokens": 7, "min_tokens": 7, "temperature": 0.0, "tools": False, "logprobs": False}
    found = answered(url_of(), [body_of([n, 2], sampling) for n in range(5)])
    assert (found["requests"], found["tokens"]) == (5, 35)
    assert 0 < found["first_token_s"] <= found["seconds"]
    assert sorted(body["prompt"] for body in url_of.asked) == [[n, 2] for n in range(5)]
    assert all(body["stream"] and body["min_tokens"] == 7 and "tools" not in body for body in url_of.asked)


@pytest.mark.parametrize(
    ("status", "lines", "message"),
    [(503, ["no room"], "answered 503: no room"), (200, PIECES[:2], "without saying how many tokens"),
     (200, ["data: {broken"], "broke off")],
)  # fmt: skip
def test_a_stream_that_fails_says_how(url_of, status, lines, message):
    with pytest.raises(UserError, match=message):
        answered(url_of(status, lines), [body_of([1], {})])


@pytest.mark.long
def test_a_real_server_answers_blocks(start_folder, tiny_job, tmp_path):
    job = read_json(start_folder / "train" / "config.json")
    (tmp_path / "stage").mkdir()
    stage = write_job(tmp_path / "stage", tiny_job)
    model = read_json(next((start_folder / "weights" / "checkpoints").iterdir()) / "manifest.json")["model"]
    (stage / "checkpoints").symlink_to(start_folder / "weights" / "checkpoints")
    (stage / "config.json").write_text(json.dumps(job | {"model": model, "context": model["context"]}))
    target = Target(start_folder, MODULE)
    with target.child("generate", {"generate": {"from": str(stage)}}, tmp_path / "live", name="served") as child:
        assert child.wait_ready().first_s > 0
        found = child.block(requests=3)
    assert (found["requests"], found["tokens"]) == (3, 24)
