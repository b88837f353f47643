"""The process of one suite: `python -m intone.bench.gpu_suites.run`, asked by bench.gpu through stdin in JSON."""

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intone.bench.gpu_suites.bench import Bench, MissingInput
from intone.errors import UserError
from intone.log import say

# exit statuses, as bench.gpu reads them
DONE, FAILED, NO_INPUT, PART = 0, 1, 3, 4


def run_suite(question: Mapping[str, Any]) -> int:
    """Runs the suite that a question names -> exit status. Every other error ends the process with its traceback."""
    with tempfile.TemporaryDirectory(prefix="intone-bench-") as scratch:
        bench = Bench(
            out=Path(question["out"]), prefix=question["prefix"], device=question["device"],
            command=question["command"], machine=question["machine"],
            machine_folder=Path(question["machine_folder"]), code=question["code"],
            end_s=time.monotonic() + question["seconds"], scratch=Path(scratch), environment=question["environment"],
            data=_path(question["data"]), nanochat=_path(question["nanochat"]),
            nanochat_python=question["nanochat_python"],
        )  # fmt: skip
        module, _, name = question["target"].partition(":")
        try:
            getattr(importlib.import_module(module), name)(bench)
        except MissingInput as missing:
            say(str(missing))
            return NO_INPUT
        except UserError as error:
            say(str(error))
            return FAILED
    if bench.left_out:
        say("left out: " + "; ".join(bench.left_out))
        return PART
    return DONE


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


if __name__ == "__main__":
    sys.exit(run_suite(json.load(sys.stdin)))
