"""A small Hugging Face hub on this machine, with faults on request; what the tests of public sets talk to."""

import contextlib
import hashlib
import io
import json
import re
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = 3  # entries of a listing that come at a time; the hub gives 1,000


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. at: bytes of the answer that are still right."""

    kind: str  # status | drop | stall | corrupt | whole (the range that was asked for is ignored)
    at: int = 0
    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Hub:
    """Repositories with their files, faults that are waiting for a path, and what was asked."""

    files: dict[str, dict[str, bytes]]
    address: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (path, range)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    released: threading.Event = field(default_factory=threading.Event)

    def break_next(self, name: str, *faults: Fault) -> None:
        """The next requests for a file, or for "listing", meet these faults, one after the other."""
        self.faults[name].extend(faults)

    def ranges(self, name: str) -> list[str | None]:
        """The ranges that were asked of a file, None for all of it."""
        return [asked for path, asked in self.asked if path.startswith("/cdn/") and path.endswith(name)]


@contextlib.contextmanager
def serve(files: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """A hub with these repositories until the end of the block."""
    hub = Hub(files)

    class Handler(_Handler):
        the_hub = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    the_hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.the_hub.asked.append((path, self.headers.get("Range")))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/revision/main)?", path):
                self._listing(found[1], lambda files: {"id": found[1], "sha": COMMIT})
            elif found := re.fullmatch(rf"/api/datasets/([^/]+/[^/]+)/tree/{COMMIT}(/.*)?", path):
                page = int(parse_qs(address.query).get("page", ["0"])[0])
                self._tree(found[1], (found[2] or "/")[1:], page)
            elif found := re.fullmatch(rf"/datasets/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path):
                self._answer(302, b"", {"Location": f"{self.the_hub.address}/cdn/{found[1]}/{found[2]}"})
            elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
                self._file(found[1], found[2])
            else:
                self._answer(404, b"not here")

    def _listing(self, repo: str, of: Any, headers: dict[str, str] | None = None) -> None:
        if self._broken("listing"):
            return
        files = self.the_hub.files.get(repo)
        if files is None:
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        else:
            self._answer(200, json.dumps(of(files)).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _tree(self, repo: str, folder: str, page: int) -> None:
        names = sorted(self.the_hub.files.get(repo, {}))
        inside = [name for name in names if name.rpartition("/")[0] == folder]
        chosen = inside[page * PAGE : (page + 1) * PAGE]
        headers = {}
        if (page + 1) * PAGE < len(inside):
            path = urlsplit(self.path).path
            headers["Link"] = f'<{self.the_hub.address}{path}?page={page + 1}>; rel="next"'
        self._listing(repo, lambda files: [_entry(name, files[name]) for name in chosen], headers)

    def _file(self, repo: str, name: str) -> None:
        content = self.the_hub.files.get(repo, {}).get(name)
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        fault = self._next_fault(name)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = int(asked[1]) if asked and not (fault and fault.kind == "whole") else 0
        if first > 0 and first >= len(content):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        headers = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if first else {}
        self._answer(206 if first else 200, content[first:], headers, fault)

    def _next_fault(self, name: str) -> Fault | None:
        waiting = self.the_hub.faults[name.rpartition("/")[2]]
        return waiting.popleft() if waiting else None

    def _broken(self, name: str) -> bool:
        fault = self._next_fault(name)
        if fault is not None:
            self._answer(200, b"{}" * 9, {}, fault)
        return fault is not None

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        if fault is not None and fault.kind == "status":
            status, body, headers = fault.status, b"", dict(fault.headers)
            fault = None
        if fault is not None and fault.kind == "corrupt":
            body = body[: fault.at] + bytes([body[fault.at] ^ 1]) + body[fault.at + 1 :]
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.kind in ("drop", "stall"):
            self.wfile.write(body[: fault.at])
            self.wfile.flush()
            if fault.kind == "stall":
                self.the_hub.released.wait()
            self.close_connection = True
            return
        self.wfile.write(body)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it: large ones with their SHA-256, the others with git's hash alone."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git}
    if name.endswith(".parquet"):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry


def parquet(columns: dict[str, Any]) -> bytes:
    """A parquet file of these columns, compressed as those of the public sets."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd", row_group_size=100)
    return sink.getvalue()


def stories(first: int, count: int) -> bytes:
    """A parquet file of short texts that differ from each other."""
    texts = [
        f"Story {n}: the cat number {n * 7919 % 1009} sat on mat {n % 13} and slept. " * 3
        for n in range(first, first + count)
    ]
    return parquet({"text": texts})


def talks(first: int, count: int) -> bytes:
    """A parquet file of conversations, one with a system message."""
    rows = []
    for n in range(first, first + count):
        turns = [
            {"content": f"Where is cat {n}?", "role": "user"},
            {"content": f"On mat {n % 13}.", "role": "assistant"},
        ]
        rows.append(([{"content": "Be short.", "role": "system"}] if n % 9 == 0 else []) + turns)
    return parquet({"messages": rows, "source": ["made"] * count})


def all_sets() -> dict[str, dict[str, bytes]]:
    """The public sets in small: the same names and columns, a few hundred rows."""
    shards = {f"shard_{n:05d}.parquet": stories(200 * n, 200) for n in range(5)}
    return {
        "karpathy/climbmix-400b-shuffle": {**shards, "README.md": b"# climbmix", ".gitattributes": b"*"},
        "karpathy/fineweb-edu-100b-shuffle": dict(shards),
        "roneneldan/TinyStories": {
            **{f"data/train-0000{n}-of-00004-2d5a1467fff1081b.parquet": stories(300 * n, 300) for n in range(4)},
            "data/validation-00000-of-00001-869c898b519ad725.parquet": stories(9000, 60),
            "TinyStories-train.txt": b"not this one",
            "README.md": b"# TinyStories",
        },
        "HuggingFaceTB/smol-smoltalk": {
            **{f"data/train-0000{n}-of-00004.parquet": talks(300 * n, 300) for n in range(4)},
            "data/test-00000-of-00001.parquet": talks(9000, 60),
        },
    }
