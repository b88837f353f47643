"""Measures a GPU in short calls: `python -m intone.bench.gpu --out DIR --suite NAME[,NAME] --minutes 9`.

DIR gets rows.jsonl (one measured value a line, written as soon as it is known), log.txt and facts.json, nothing else:
a call may be cut at any moment, and the next one with the same DIR goes on behind what is there. Each suite runs in
a process of its own; one that crashes, hangs or lacks its input does not keep the others from running. Needs only
torch, triton, numpy, tokenizers, tiktoken, safetensors and pyarrow. To measure again, name another DIR. In a copy of
a checkout the variable INTONE_CODE names the revision that the rows carry.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import intone
from intone.bench.gpu_suites import SUITES
from intone.bench.gpu_suites.bench import ROWS
from intone.bench.gpu_suites.run import DONE, NO_INPUT, PART
from intone.bench.rows import FACTS, code_revision
from intone.child import PACKAGE_PARENT, START
from intone.errors import EXIT_BAD_INPUT, EXIT_CHECK_FAILED, EXIT_DONE, UserError, unknown_name
from intone.hardware import Facts, environment, load_facts
from intone.log import human_duration
from intone.paths import read_json, read_lines, write_json
from intone.records import FORMAT

COMMAND = "python -m intone.bench.gpu"
LOG, FACTS_FILE = "log.txt", "facts.json"
RESERVE_S = 10.0  # of a call: stopping a suite and writing the last files
GRACE_S = 3.0  # from the end of its time to the end of a suite
STATES = {DONE: "done", NO_INPUT: "no input", PART: "part"}


@dataclass(frozen=True)
class Asked:
    """One call."""

    out: Path
    suites: tuple[str, ...]
    minutes: float
    device: str
    data: str | None
    nanochat: str | None
    nanochat_python: str

    def command(self, suite: str) -> str:
        """What makes a suite's rows again; paths of this machine stand as their names."""
        words = [COMMAND, "--out DIR", f"--suite {suite}"]
        words += ["--device cpu"] if self.device == "cpu" else []
        words += [f"--{name} {name.upper()}" for name in SUITES[suite].uses if getattr(self, name) is not None]
        return " ".join(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the suites -> 0; 1 where one of them failed; 2 where the call itself cannot be."""
    try:
        asked = parse(argv)
        facts = load_facts()
        check_device(asked, facts)
    except UserError as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    asked.out.mkdir(parents=True, exist_ok=True)
    cut_torn_line(asked.out / ROWS)
    with open(asked.out / LOG, "a", encoding="utf-8") as log:
        states = run_suites(asked, facts, Log(log))
    return EXIT_CHECK_FAILED if "failed" in states.values() else EXIT_DONE


def parse(argv: Sequence[str] | None) -> Asked:
    """The flags. Raises UserError for a suite or an input that does not exist."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    about = "\n".join(f"{name}: {suite.about} (about {suite.minutes:g} min)" for name, suite in SUITES.items())
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--suite", default="all", metavar="NAME[,NAME]", help=f"all, or some of:\n{about}")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole call; what does not fit is left out")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: tiny shapes, to try the suites")
    parser.add_argument("--data", help="texts of your own, for suites that train on real ones")
    parser.add_argument("--nanochat", help="a checkout of nanochat at 92d63d4, to compare with")
    parser.add_argument("--nanochat-python", default=sys.executable, help="the Python that can import it")
    words = parser.parse_args(argv)
    names = list(SUITES) if words.suite == "all" else words.suite.split(",")
    for name in names:
        if name not in SUITES:
            raise unknown_name("suite", name, SUITES)
    for flag in ("data", "nanochat"):
        place = getattr(words, flag)
        if place is not None and not Path(place).exists():
            raise UserError(f"--{flag} {place} does not exist", value=place)
    if words.minutes <= 0:
        raise UserError(f"--minutes is {words.minutes:g}, it must be above 0", value=words.minutes)
    paths = {flag: str(Path(p).absolute()) if (p := getattr(words, flag)) else None for flag in ("data", "nanochat")}
    in_order = tuple(name for name in SUITES if name in names)
    return Asked(
        words.out.absolute(), in_order, words.minutes, words.device, paths["data"], paths["nanochat"],
        words.nanochat_python,
    )  # fmt: skip


def check_device(asked: Asked, facts: Facts) -> None:
    """Raises UserError where a GPU is asked for and there is none that torch can use."""
    if asked.device == "cuda" and facts.device != "cuda":
        raise UserError(
            f"torch {facts.torch_version} finds no CUDA device here",
            value=facts.device,
            fix="--device cpu runs every suite with tiny shapes, to see that it works",
        )


def short_name(facts: Facts, device: str) -> str:
    """How ids of this machine begin: h200 for "NVIDIA H200", rtx4090 for "NVIDIA GeForce RTX 4090"; tiny without."""
    if device == "cpu":
        return "tiny"
    words = (facts.gpu_name or "gpu").lower().replace("-", " ").split()
    words = [word for word in words if word not in ("nvidia", "geforce", "tesla", "amd", "instinct")]
    if words[:1] == ["rtx"]:
        return "".join(words[:2])
    return words[0] if words else "gpu"


class Log:
    """Lines for log.txt and for whoever watches, each with the seconds since the call began."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._began_s = time.monotonic()

    def __call__(self, line: str) -> None:
        line = f"{time.monotonic() - self._began_s:7.1f}  {line}"
        print(line, file=self._file, flush=True)
        print(line, file=sys.stderr, flush=True)


def run_suites(asked: Asked, facts: Facts, log: Log) -> dict[str, str]:
    """Runs one suite after the other while there is time -> their states, which are also in facts.json."""
    end_s = time.monotonic() + 60 * asked.minutes - RESERVE_S
    code = code_revision()
    machine = {name: getattr(facts, name) for name in FACTS if getattr(facts, name) is not None}
    kept = read_facts(asked.out)
    states: dict[str, str] = {}
    log(f"intone {intone.__version__}, code {code}, {facts.gpu_name or facts.cpu_name}, {asked.minutes:g} minutes")
    for name in asked.suites:
        before = kept.get(name, {})
        if before.get("state") == "done" and before.get("code") == code:
            log(f"{name}: done before")
            states[name] = "done"
            continue
        left_s = end_s - time.monotonic()
        if left_s <= GRACE_S:
            states[name] = "no time"
            log(f"{name}: no time left")
            continue
        log(f"{name}: {SUITES[name].about}")
        question = {
            "suite": name, "target": SUITES[name].target, "out": str(asked.out), "device": asked.device,
            "prefix": short_name(facts, asked.device), "command": asked.command(name), "machine": machine,
            "machine_folder": str(facts.folder), "code": code, "seconds": left_s,
            "environment": {key: item.value for key, item in environment(facts).items()},
            "data": asked.data, "nanochat": asked.nanochat, "nanochat_python": asked.nanochat_python,
        }  # fmt: skip
        began_s = time.monotonic()
        states[name] = ask(question, left_s, log)
        seconds = time.monotonic() - began_s
        log(f"{name}: {states[name]} after {human_duration(seconds)}")
        kept[name] = {"state": states[name], "seconds": round(seconds, 1), "code": code}
        write_facts(asked.out, facts, kept, code)
    write_facts(asked.out, facts, kept, code)
    log(", ".join(f"{name} {state}" for name, state in states.items()) + f"; {num_rows(asked.out)} rows in {ROWS}")
    return states


def ask(question: Mapping[str, Any], seconds: float, log: Log) -> str:
    """Runs a suite's process, its words into the log -> done, part, no input, failed or cut."""
    search = [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, **question["environment"], "INTONE_PARENT": str(os.getpid())}
    variables["PYTHONPATH"] = os.pathsep.join(part for part in search if part)
    variables["PYTHONUNBUFFERED"] = "1"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", START, "intone.bench.gpu_suites.run"], env=variables, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None, "a suite's process has pipes"
    reader = threading.Thread(target=copy_lines, args=(process.stdout, log, question["suite"]), daemon=True)
    reader.start()
    try:
        process.stdin.write(json.dumps(question).encode())
        process.stdin.close()
        code: int | None = process.wait(seconds + GRACE_S)
    except subprocess.TimeoutExpired:
        code = None
    except BrokenPipeError:
        code = process.wait()
    finally:
        end_all(process)
    reader.join(GRACE_S)
    if code is None:
        return "cut"
    return STATES.get(code, "failed")


def end_all(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of a suite and of what it started, also where it has ended itself."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def copy_lines(stream: IO[bytes], log: Log, name: str) -> None:
    """A suite's output, line by line, until its end."""
    for line in stream:
        log(f"{name}: {line.decode(errors='replace').rstrip()}")


def read_facts(out: Path) -> dict[str, dict[str, Any]]:
    """The suites of an earlier call with the same DIR; none where the call was cut before it wrote them."""
    path = out / FACTS_FILE
    return dict(read_json(path)["suites"]) if path.exists() else {}


def write_facts(out: Path, facts: Facts, suites: Mapping[str, Any], code: str) -> None:
    """facts.json: the machine, the code, and how each suite ended."""
    content = {"intone": intone.__version__, "code": code, "machine": facts.as_json(), "suites": dict(suites)}
    write_json(out / FACTS_FILE, {"format": FORMAT, **content})


def cut_torn_line(path: Path) -> None:
    """Takes away a last line without its end, which a machine that went away may have left: rows are appended."""
    if path.exists():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))


def num_rows(out: Path) -> int:
    """How many values DIR holds."""
    return len(read_lines(out / ROWS))


if __name__ == "__main__":
    sys.exit(main())
