"""A generate job behind HTTP: `python -m intone.optimise.stages.served FOLDER --live` starts and asks `intone serve`.

Blocks are answered by the server: all requests of a block at once, as streams, timed until the last has ended. Without
--live the job is done by our worker with the same settings of the engine, which is what gates look at.
"""

import contextlib
import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from intone import worker
from intone.blocks import Exchange, whole_number
from intone.child import PACKAGE_PARENT, die_with_parent
from intone.errors import UserError
from intone.jobs import LIVE
from intone.paths import read_json
from intone.prove.live import EXEC
from intone.records import Outcome

MODULE = "intone.optimise.stages.served"
COMMAND = ("requests", "restart")
TIMEOUT_S = 600.0
QUIT_S = 10.0


def main(argv: Sequence[str]) -> int:
    """Runs the job in the folder of argv, behind HTTP with --live -> exit code."""
    if LIVE not in argv:
        return worker.main(list(argv))
    die_with_parent()
    exchange = Exchange.on_standard_streams()
    try:
        live_serving(Path(argv[0]), exchange)
    except UserError as error:
        exchange.fail(Outcome("bad_input", None, error.message, error.fix))
        return 2
    return 0


def live_serving(folder: Path, exchange: Exchange) -> None:
    """The job's prompts as requests to a server, block by block on command. Raises UserError."""
    config = read_json(folder / "config.json")
    begin_s = time.perf_counter()
    with server(config, folder) as url:
        first_s = time.perf_counter() - begin_s
        bodies = [body_of(prompt, config["sampling"]) for prompt in config["prompts"]]
        warm_s = answered(url, bodies)["seconds"]
        exchange.ready(first_s, warm_s, {"dtype": config.get("dtype"), "threads": config.get("threads"), "url": url})
        turn, number = itertools.cycle(bodies), 0
        for block in exchange.blocks(COMMAND):
            if block.get("restart"):
                turn, number = itertools.cycle(bodies), 0
            count = whole_number(block, "requests", len(bodies))
            exchange.answer({"first_request": number, **answered(url, list(itertools.islice(turn, count)))})
            number += count


@contextlib.contextmanager
def server(config: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """The address of a server with the job's settings, ended at the end. Raises UserError where it does not start."""
    words = [sys.executable, "-P", "-m", "intone", "serve", "--from", str(config["from"]), "--port", "0", "--json"]
    words += ["--device", str(config.get("device", "cpu")), "--dtype", str(config.get("dtype", "fp32"))]
    slots = config.get("engine", {}).get("num_slots")
    words += ["--num-slots", str(slots)] if slots is not None else []
    env = dict(os.environ)
    if config.get("threads"):
        env["OMP_NUM_THREADS"] = str(config["threads"])
    with open(folder / "serve.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", EXEC, str(PACKAGE_PARENT), str(os.getpid()), *words], env=env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    try:
        assert process.stdout is not None, "it has a pipe"
        line = process.stdout.readline()
        answer = json.loads(line) if line.strip() else {}
        if "url" not in answer.get("result", {}):
            last = (folder / "serve.log").read_text(errors="replace").strip().splitlines()
            raise UserError(f"the server did not start: {last[-1] if last else 'it said nothing'}", fix="see its log")
        yield str(answer["result"]["url"])
    finally:
        process.terminate()
        try:
            process.wait(QUIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def body_of(prompt: Sequence[int], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """A request for a stream with the job's sampling."""
    passed = ("max_tokens", "min_tokens", "temperature", "top_k", "seed", "n")
    asked = {name: sampling[name] for name in passed if sampling.get(name) is not None}
    return {"prompt": list(prompt), "stream": True, "stream_options": {"include_usage": True}, **asked}


def answered(url: str, bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All requests at once -> the measured part of a block's answer; first_token_s: median. Raises UserError."""
    begin_s = time.perf_counter()
    with ThreadPoolExecutor(max_workers=len(bodies)) as pool:
        found = list(pool.map(lambda body: one_answer(url, body), bodies))
    return {
        "requests": len(bodies), "seconds": time.perf_counter() - begin_s, "tokens": sum(tokens for tokens, _ in found),
        "first_token_s": statistics.median(first_s for _, first_s in found),
    }  # fmt: skip


def one_answer(url: str, body: Mapping[str, Any]) -> tuple[int, float]:
    """(new tokens, seconds to the first event) of one stream, read to its end. Raises UserError."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=TIMEOUT_S)
    first_s: float | None = None
    tokens: int | None = None
    begin_s = time.perf_counter()
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise UserError(f"the server answered {response.status}: {response.read(300).decode(errors='replace')}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            first_s = time.perf_counter() - begin_s if first_s is None else first_s
            event = json.loads(line[6:])
            if event.get("usage"):
                tokens = int(event["usage"]["completion_tokens"])
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"a stream broke off: {error}") from error
    finally:
        connection.close()
    if tokens is None or first_s is None:
        raise UserError("a stream ended without saying how many tokens it had")
    return tokens, first_s


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
