"""Many streams at once from one process, for measuring a server: `python -m intone.bench.serve_client`

Written on bare sockets, since a client's own work would be taken for the server's on a machine with few cores.
"""

import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from intone.child import die_with_parent

EVENT = b"data: "


@dataclass
class Stream:
    """One answer as it arrives."""

    connection: socket.socket
    received: bytearray = field(default_factory=bytearray)
    times_s: list[float] = field(default_factory=list)  # of arrivals that hold an event


def load(url: str, bodies: list[dict[str, Any]], *, timeout_s: float) -> dict[str, Any]:
    """Sends all bodies at once -> seconds until the last has ended, new tokens, gaps, times to the first event.

    Bodies must ask for streams with usage. gaps_s: between arrivals of one stream, after its first text, of all
    streams. problems: what went wrong, per stream.
    """
    host, port = url.removeprefix("http://").split(":")
    selector = selectors.DefaultSelector()
    begin_s = time.perf_counter()
    for body in bodies:
        content = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        head += "Content-Type: application/json\r\n"
        connection = socket.create_connection((host, int(port)), timeout=timeout_s)
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ, Stream(connection))
    ended: list[Stream] = []
    problems: list[str] = []
    while selector.get_map():
        ready = selector.select(timeout_s)
        if not ready:
            problems += [f"{len(selector.get_map())} streams said nothing for {timeout_s:g} s"]
            break
        for key, _ in ready:
            stream: Stream = key.data
            part = stream.connection.recv(1 << 16)
            stream.received += part
            if EVENT in part:
                stream.times_s.append(time.perf_counter())
            if not part:
                selector.unregister(stream.connection)
                stream.connection.close()
                ended.append(stream)
    seconds = time.perf_counter() - begin_s
    num_tokens, gaps_s, first_s = 0, [], []
    for stream in ended:
        found = usage_of(bytes(stream.received))
        if isinstance(found, str):
            problems.append(found)
            continue
        num_tokens += found
        first_s.append(stream.times_s[0] - begin_s)
        gaps_s += [after - before for before, after in zip(stream.times_s, stream.times_s[1:], strict=False)]
    return {"seconds": seconds, "tokens": num_tokens, "gaps_s": gaps_s, "first_s": first_s, "problems": problems}


def usage_of(answer: bytes) -> int | str:
    """New tokens by the usage of a complete stream, or what is wrong with it."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        return answer[:300].decode("utf-8", "replace")
    if b"data: [DONE]" not in body:
        return f"a stream broke off: {body[-300:].decode('utf-8', 'replace')}"
    last = body.rsplit(b'"usage":{', 1)[-1].split(b"}", 1)[0]
    return int(json.loads(b"{" + last.split(b',"prompt_tokens_details"', 1)[0] + b"}")["completion_tokens"])


def main() -> int:
    """Answers one question on stdin: {"url", "bodies", "timeout_s"}."""
    die_with_parent()
    asked = json.load(sys.stdin)
    print(json.dumps(load(asked["url"], asked["bodies"], timeout_s=asked["timeout_s"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
