"""The bench of serving: its clients against a real server, small."""

import asyncio
import contextlib
import json

import pytest
from tests.serve.conftest import served_home, server  # noqa: F401  fixtures

# ruff: noqa: F811  a fixture's name is its parameter's
from intone.bench import serve
from intone.bench.serve_cases import Case, Cases, accepts, post
from intone.bench.serve_client import load, usage_of
from intone.bench.serve_hostile import Found, Picture, hostile, leaks
from intone.bench.serve_settings import BenchServeSettings
from intone.errors import UserError

NUM_REQUESTS = 300


def test_hostile_requests_get_the_status_that_is_right_and_leave_nothing_behind(server, monkeypatch):
    monkeypatch.setattr("intone.bench.serve_hostile.SETTLED", 100)
    monkeypatch.setattr("intone.bench.serve_hostile.SETTLE_S", 5.0)
    with server.beside(client_timeout_s=2.0, max_body_mib=0.25) as careful:
        found = asyncio.run(hostile(careful.url, NUM_REQUESTS, seed=1, pid=careful.pid))
    assert (found.wrong, found.leaks) == ([], [])
    said = dict(reversed(part.split(" ", 1)) for part in found.lines[0].split(", "))
    assert sum(int(count) for count in said.values()) == NUM_REQUESTS
    assert {"good", "good stream", "wrong kind", "leaves", "no HTTP"} <= set(said)


def test_an_answer_with_another_status_is_found(server, monkeypatch):
    monkeypatch.setattr(Cases, "next", lambda self: Case("odd", post("/v1/completions", {}), (200,)))
    monkeypatch.setattr("intone.bench.serve_hostile.SETTLE_S", 1.0)
    found = asyncio.run(hostile(server.url, 3, seed=1, pid=server.pid))
    assert len(found.wrong) == 3 and "odd: 400, not (200,)" in found.wrong[0]


def test_what_is_left_is_found():
    before = Picture(100 << 20, 20, 30, 4, 0.0, 0)
    assert leaks(before, before) == []
    assert leaks(before, Picture(149 << 20, 19, 30, 4, 0.0, 0)) == []
    after = Picture(151 << 20, 21, 31, 5, 0.01, 1)
    names = ["memory", "threads", "descriptors", "tasks", "held pages share", "running"]
    assert [said.split(":")[0].split(" grew")[0] for said in leaks(before, after)] == names


def test_the_same_seed_draws_the_same_cases(server):
    document = server.http.get("/openapi.json").json()
    first, again, other = (Cases(document, seed) for seed in (3, 3, 4))
    drawn = [[cases.next() for _ in range(50)] for cases in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 3}, 3, True),
        ({"type": "integer", "minimum": 1, "maximum": 3}, 4, False),
        ({"type": "integer"}, True, False),
        ({"type": "number", "exclusiveMinimum": 0}, 0, False),
        ({"anyOf": [{"type": "string", "minLength": 1}, {"type": "null"}]}, "", False),
        ({"anyOf": [{"type": "string", "minLength": 1}, {"type": "null"}]}, None, True),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, [1, 2], True),
        ({"type": "array", "items": {"type": "integer"}}, [1, "x"], False),
        ({"$ref": "#/x/A"}, {"a": 1}, True),
        ({"$ref": "#/x/A"}, {"b": 1}, False),
        ({"$ref": "#/x/A"}, {"a": 1, "b": 1}, False),
        ({"enum": ["x"]}, "y", False),
    ],
)
def test_what_a_schema_accepts(schema, value, expected):
    known = {"A": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
                   "additionalProperties": False}}  # fmt: skip
    assert accepts(schema, value, known) is expected


def test_many_streams_are_counted(server):
    bodies = [
        {"messages": [{"role": "user", "content": f"{number}?"}], "max_tokens": 12, "min_tokens": 12, "stream": True,
         "stream_options": {"include_usage": True}}
        for number in range(12)
    ]  # fmt: skip
    found = load(server.url, bodies, timeout_s=60)
    assert (found["tokens"], found["problems"], len(found["first_s"])) == (144, [], 12)
    assert len(found["gaps_s"]) >= 12 and min(found["gaps_s"]) >= 0
    refused = load(server.url, [{"messages": []}], timeout_s=60)
    assert refused["tokens"] == 0 and "400" in refused["problems"][0]


def test_a_stream_that_broke_off_is_a_problem():
    whole = b'HTTP/1.1 200 OK\r\n\r\ndata: {"usage":{"prompt_tokens":3,"completion_tokens":7,"total_tokens":10}}\n\n'
    assert usage_of(whole + b"data: [DONE]\n\n") == 7
    assert "broke off" in usage_of(whole)


def test_the_rate_over_http_is_a_share_of_the_engines_own(server, monkeypatch, tmp_path):
    from intone import hardware

    def facts():
        return hardware.load_facts(measure=lambda _: {"device": "cpu"})

    monkeypatch.setattr(serve, "load_facts", facts)
    monkeypatch.setattr("intone.bench.rows.load_facts", facts)
    monkeypatch.setattr(serve, "serving", lambda _run: contextlib.nullcontext(server.url))
    settings = BenchServeSettings(parts=("streams",), from_run="tiny", streams=8, tokens=16, rounds=1)
    row, lines, _ = serve.streams_part(settings)
    assert row is None, "only 256 streams make a row"
    assert "99th percentile" in lines[0] and "first event" in lines[1]


def test_a_leak_or_a_wrong_status_fails_the_command(monkeypatch, tmp_path):
    async def found(*_args, **_settings):
        return Found(["good: 500, not (200,)"], [], ["3 good"])

    monkeypatch.setattr(serve, "hostile", found)
    monkeypatch.setattr(serve, "serving", lambda *_: contextlib.nullcontext("http://nowhere:1"))
    monkeypatch.setattr(serve, "random_stage", lambda *_args, **_settings: "x")
    monkeypatch.setattr("intone.bench.rows.machine_facts", lambda: {})
    monkeypatch.setattr("intone.bench.basics.machine_facts", lambda: {})
    out = tmp_path / "rows.jsonl"
    answer = serve.bench_serve(BenchServeSettings(parts=("hostile",), out=str(out)), {})
    assert (answer.exit, answer.outcome) == (1, "error")
    assert json.loads(out.read_text())["value"] == 1


def test_a_run_and_random_weights_contradict_each_other():
    with pytest.raises(UserError, match="--random-depth 3"):
        BenchServeSettings(from_run="x", random_depth=3)
