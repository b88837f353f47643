"""Good and hostile requests mixed, each with the status it must get, and what is left in the server afterwards."""

import asyncio
import json
import re
from collections import Counter
from dataclasses import dataclass, field

import psutil

from intone.bench.serve_cases import LEFT, Case, Cases, get, post
from intone.log import say
from intone.peak import process_tree, resident

SETTLED = 1_000  # memory and counts are compared with what they were after so many requests
GROWTH_BYTES = 50 << 20
AT_ONCE = 16
TIMEOUT_S = 60.0
SETTLE_S = 20.0  # so long the last connections may take to be gone


@dataclass
class Found:
    """What came of all requests."""

    wrong: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Picture:
    """What the server holds."""

    resident_bytes: int
    threads: int
    descriptors: int
    tasks: int
    held_pages_share: float
    running: int


async def hostile(url: str, num_requests: int, *, seed: int, pid: int | None = None) -> Found:
    """Sends so many requests, some at a time, and looks at the server after SETTLED of them and at the end.

    pid: the server's process; found by its port where it is None.
    """
    found, counts = Found(), Counter[str]()
    document = json.loads((await _asked(url, get("/openapi.json")))[1])
    cases = Cases(document, seed)
    number_of = pid if pid is not None else _listening_on(int(url.rsplit(":", 1)[1]))
    before: Picture | None = None
    done = 0
    while done < num_requests:
        count = min(SETTLED, num_requests - done)
        await _all([cases.next() for _ in range(count)], url, found, counts)
        done += count
        picture = await _settled(url, number_of)
        say(f"{done:,} requests: {len(found.wrong)} wrong, {picture.resident_bytes / 2**20:,.0f} MiB")
        before = before or picture
    assert before is not None
    after = await _settled(url, number_of)
    found.leaks += leaks(before, after)
    status, body = await _asked(url, post("/v1/chat/completions", cases.chat()))
    if status != 200 or not json.loads(body)["choices"]:
        found.wrong.append(f"the next good request got {status}")
    grown = (after.resident_bytes - before.resident_bytes) / 2**20
    found.lines += [
        ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())),
        f"memory {grown:+.1f} MiB since the first {SETTLED:,}",
        f"{after.threads} threads, {after.descriptors} descriptors, {after.tasks} tasks at the end",
    ]
    return found


def leaks(before: Picture, after: Picture) -> list[str]:
    """What there is more of than before."""
    found = []
    if after.resident_bytes > before.resident_bytes + GROWTH_BYTES:
        grown = (after.resident_bytes - before.resident_bytes) / 2**20
        found.append(f"memory grew by {grown:,.0f} MiB since the first {SETTLED:,} requests")
    for name in ("threads", "descriptors", "tasks", "held_pages_share", "running"):
        old, new = getattr(before, name), getattr(after, name)
        if new > old:
            found.append(f"{name.replace('_', ' ')}: {new} after all requests, {old} after the first {SETTLED:,}")
    return found


async def _all(cases: list[Case], url: str, found: Found, counts: Counter[str]) -> None:
    """Runs cases, AT_ONCE at a time."""
    waiting = iter(cases)

    async def work() -> None:
        for case in waiting:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    status, problem = await _run(case, url)
            except TimeoutError:
                status, problem = "no answer", f"within {TIMEOUT_S:g} s"
            except OSError as error:
                status, problem = type(error).__name__, str(error)
            counts[case.name] += 1
            if status not in case.expected or problem:
                begin = case.content.partition(b"\r\n\r\n")[2][:200]
                found.wrong.append(f"{case.name}: {status}, not {case.expected}; {problem or ''} {begin!r}")

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def _run(case: Case, url: str) -> tuple[int | str, str | None]:
    """(status or LEFT, what is wrong with the answer beside it)."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(case.content)
        if case.then == "leave":
            await writer.drain()
            if case.leave_after:
                await reader.read(case.leave_after)
            writer.transport.abort()
            return LEFT, None
        if case.then == "half":
            writer.write_eof()
        answer = await (_crawled(reader) if case.then == "crawl" else reader.read())
    finally:
        writer.close()
    if not answer and case.then == "half":
        return LEFT, None
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    status: int | str = int(match[1]) if match else "no status"
    return status, _problem(case, status, answer)


async def _crawled(reader: asyncio.StreamReader) -> bytes:
    found = b""
    for _ in range(20):
        found += await reader.read(1)
        await asyncio.sleep(0.05)
    return found + await reader.read()


def _problem(case: Case, status: int | str, answer: bytes) -> str | None:
    head, _, body = answer.partition(b"\r\n\r\n")
    if case.name in ("good stream", "crawls"):
        return None if b"data: [DONE]" in body else "the stream broke off"
    if isinstance(status, int) and status >= 400 and case.name != "no HTTP":
        try:
            is_ours = set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        except (ValueError, KeyError, TypeError):
            is_ours = False
        return None if is_ours else "the error has another shape"
    return None


async def _asked(url: str, content: bytes) -> tuple[int, bytes]:
    """(status, body) of one request."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(content)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head[9:12]), body


def _listening_on(port: int) -> int:
    """The process that listens on a port of this machine: the server is a child of ours."""
    for child in psutil.Process().children(recursive=True):
        for connection in child.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                return child.pid
    raise AssertionError(f"nobody below us listens on {port}")


async def _settled(url: str, pid: int) -> Picture:
    """What the server holds when it has had time to let go: the picture does not change, or SETTLE_S have passed."""
    last: tuple[float, ...] | None = None
    loop = asyncio.get_running_loop()
    end_s = loop.time() + SETTLE_S
    while True:
        picture = await _picture(url, pid)
        counts = (picture.threads, picture.descriptors, picture.tasks, picture.running, picture.held_pages_share)
        if loop.time() > end_s or (picture.running == 0 and counts == last):
            return picture
        last = counts
        await asyncio.sleep(0.5)


async def _picture(url: str, pid: int) -> Picture:
    text = (await _asked(url, get("/metrics")))[1].decode()

    def number(name: str) -> float:
        match = re.search(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        assert match is not None, f"no {name} in the metrics"
        return float(match[1])

    tree = process_tree(pid)
    processes = [psutil.Process(entry) for entry in tree]
    return Picture(
        resident_bytes=sum(map(resident, tree)),
        threads=sum(process.num_threads() for process in processes),
        descriptors=sum(process.num_fds() for process in processes),
        tasks=int(number("intone:asyncio_tasks")),
        held_pages_share=number("vllm:kv_cache_usage_perc"),
        running=int(number("vllm:num_requests_running")),
    )
