"""Manners at the door: keys, origins, hosts, bodies that are too large, too slow or cut."""

import json
import socket
import time

import pytest

from intone.serve.gate import is_loopback

BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
KEY = "a-long-secret"


@pytest.fixture(scope="module")
def strict(server):
    """The same engine with a key, an allowed origin, small bodies and little patience."""
    with server.beside(
        api_key=KEY, cors_origin=("https://chat.example",), max_body_mib=0.01, client_timeout_s=0.4
    ) as found:
        yield found


def sent(server, content: bytes, *, close=False) -> bytes:
    """What comes back for bytes on a connection of their own, until the server closes it; close: we stop first."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(content)
        if close:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


def head(*, length=None, headers=(), path="/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {KEY}"]
    lines += [f"Content-Length: {length}"] if length is not None else []
    return "\r\n".join([*lines, *headers, "", ""]).encode()


def test_only_the_right_key_opens_the_api(strict):
    for headers in ({}, {"Authorization": KEY}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"},
                    {"Authorization": "Bearer ü".encode("latin-1")}):  # fmt: skip
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/api/runs")):
            answer = strict.http.request(method, path, headers=headers)
            assert answer.status_code == 401, (headers, path)
            assert answer.json()["error"]["code"] == "invalid_api_key"
    with strict.openai(api_key=KEY) as client:
        assert client.models.list().data[0].id == "tiny/sft"
    for path in ("/health", "/version", "/metrics", "/openapi.json"):
        assert strict.http.get(path).status_code == 200


def test_pages_of_other_places_need_leave(strict):
    def ask(origin):
        headers = {"Origin": origin, "Authorization": f"Bearer {KEY}"}
        return strict.http.post("/v1/chat/completions", json=BODY, headers=headers)

    assert ask("https://evil.example").status_code == 403
    assert ask(strict.url).status_code == 200, "our own pages"
    allowed = ask("https://chat.example")
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://chat.example")
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for origin, status in (("https://chat.example", 200), ("https://evil.example", 400)):
        answer = strict.http.options("/v1/chat/completions", headers={"Origin": origin, **asked})
        assert answer.status_code == status


def test_a_web_page_cannot_reach_us_by_a_name_of_its_own(strict):
    for host, status in (
        ("evil.example", 421), ("evil.example:80", 421), ("localhost:1", 200), ("[::1]:8000", 200), ("10.0.0.1", 200),
    ):  # fmt: skip
        assert strict.http.get("/health", headers={"Host": host}).status_code == status, host


def test_every_answer_has_an_id(strict):
    assert strict.http.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = strict.http.post("/v1/models", headers={"X-Request-Id": "no spaces, please"}).headers["x-request-id"]
    assert len(made) == 24 and made.isalnum()


def test_a_large_body_is_refused_with_and_without_a_length(strict):
    large = json.dumps({**BODY, "user": "x" * 20_000}).encode()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    for content in (large, iter([large[:9000], large[9000:]])):
        answer = strict.http.post("/v1/chat/completions", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert strict.http.post("/v1/chat/completions", json=BODY, headers=headers).status_code == 200


def test_a_client_that_waits_for_our_word_is_refused_before_it_sends(strict):
    answer = sent(strict, head(length=10**12, headers=["Expect: 100-continue"]))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_refused(strict):
    began_s = time.monotonic()
    assert sent(strict, head(length=50) + b'{"messages"').startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began_s < 10


def test_a_cut_body_harms_nobody(strict):
    sent(strict, head(length=50) + b'{"messages"', close=True)
    assert strict.http.get("/health").status_code == 200


def test_what_is_not_http_is_refused(strict):
    assert sent(strict, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert sent(strict, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_half_a_head_does_not_hold_a_connection(strict, monkeypatch):
    monkeypatch.setattr("intone.serve.listening.HEADERS_S", 0.2)
    assert sent(strict, b"GET /health HTTP/1.1\r\nHost:") == b""
    host, port = strict.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        found = b""
        while not found.endswith(b"}"):
            found += connection.recv(65536)
        connection.sendall(b"GET /health HT")
        assert connection.recv(65536) == b"", "the second of a kept connection"


def test_no_key_and_no_prompt_is_said_on_stderr(strict, capfd):
    headers = {"Authorization": f"Bearer {KEY}"}
    strict.http.post("/v1/chat/completions", json={**BODY, "my-secret-words": 1}, headers=headers)
    strict.http.post("/v1/chat/completions", json=BODY, headers={"Authorization": "Bearer my-secret-words"})
    sent(strict, b"GET my-secret-words\r\n\r\n")
    said = capfd.readouterr()
    assert "secret" not in said.err + said.out


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("192.168.0.7", False), ("x", False)],
)
def test_which_hosts_only_this_machine_reaches(host, expected):
    assert is_loopback(host) is expected
