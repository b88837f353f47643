"""A worker with a fault on purpose: `python -m intone.bench.planted FOLDER SHARE` takes SHARE longer for every step.

Only bench and tests start it, to see whether a measurement finds what is known to be there.
"""

import sys
import time
from pathlib import Path
from typing import Any

from intone import worker
from intone.jobs import LIVE
from intone.train.step import TrainStep


def slow_down(share: float) -> None:
    """Makes every training step of this process burn this share of its own time on top."""
    run = TrainStep.run

    def slower(self: TrainStep, *arguments: Any) -> Any:
        begin_s = time.perf_counter()
        result = run(self, *arguments)
        end_s = time.perf_counter()
        while time.perf_counter() - end_s < share * (end_s - begin_s):
            pass  # busy like work, not asleep: the processor must not clock down
        return result

    TrainStep.run = slower  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    slow_down(float(sys.argv[2]))
    sys.exit(worker.main([str(Path(sys.argv[1])), LIVE]))
