"""Workers of a generation in threads of this process: the real worker's code without the seconds that a start takes."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from intone.bench.casestudy_start import FAULTS_FILE, Faults, planted
from intone.blocks import Exchange
from intone.engine.job import generate_job
from intone.engine.live import live_generation
from intone.paths import read_json
from intone.prove.live import Ready
from intone.records import Outcome

# what is planted is planted for the whole process: one engine after the other is opened
OPENING = threading.Lock()


class ThreadChild:
    """A live generation with its faults planted, spoken to as prove.live.LineChild is."""

    pid = os.getpid()

    def __init__(self, folder: Path) -> None:
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        self._out = os.fdopen(self._to, "w", encoding="utf-8")
        self._in = os.fdopen(self._from, encoding="utf-8")
        self._exchange = Exchange(os.fdopen(commands, encoding="utf-8"), os.fdopen(answers, "w", encoding="utf-8"))
        OPENING.acquire()
        self._stack = planted(faults_of(folder))
        self._stack.__enter__()
        self._thread = threading.Thread(target=live_generation, args=(folder, self._exchange), daemon=True)
        self._thread.start()

    def wait_ready(self) -> Ready:
        try:
            answer = json.loads(self._in.readline())
        finally:
            self._stack.__exit__(None, None, None)
            OPENING.release()
        return Ready(answer["first_s"], answer["warm_s"], answer["facts"])

    def block(self, **command: Any) -> dict[str, Any]:
        self._say({"do": "block", **command})
        found: dict[str, Any] = json.loads(self._in.readline())
        return found

    def _say(self, value: dict[str, Any]) -> None:
        self._out.write(json.dumps(value) + "\n")
        self._out.flush()

    def close(self) -> None:
        self._say({"do": "quit"})
        self._thread.join()

    def __enter__(self) -> "ThreadChild":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_here(folder: Path) -> Outcome:
    """A generate job with its faults planted, run to its end."""
    with OPENING, planted(faults_of(folder)):
        from intone.engine import job

        assert job.open_engine is not None, "generate_job looks it up at its call"
        return generate_job(folder, read_json(folder / "config.json"))


def faults_of(folder: Path) -> Faults:
    return Faults.from_json(read_json(folder / FAULTS_FILE))
