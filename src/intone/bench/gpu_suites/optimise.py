"""optimise on a GPU: the case study's starting point with its own model, which faults are found, what mending brings"""

import time

from intone.bench.casestudy_round import begin_round, faults_text, found_of, start_target, totals_of
from intone.bench.gpu_suites.bench import Bench
from intone.bench.gpu_suites.casestudy import make_kit, make_texts, shape_of
from intone.hardware import load_facts
from intone.log import say
from intone.optimise.stages.words import round_text

RESERVE_S = 90.0  # of the suite's time: measuring what was kept, once no further change is begun


def optimise(bench: Bench) -> None:
    """Rows optimise.PART, optimise.PART.mended and optimise.PART.without_CHANGE; each part is a round of its own."""
    shape = shape_of(bench)
    for part, of_ours, name in (("sft", "train", "optimise.sft"), ("inference", "generate", "optimise.inference")):
        if not bench.may(f"a round on the start's {part}", name, f"{name}.mended", seconds=170):
            continue
        kit = make_kit(bench, shape)
        target = start_target(bench.scratch / f"start-{part}", kit, make_texts(bench, shape, kit), [part])
        minutes = None if bench.is_tiny else max(1.0, (bench.end_s - time.monotonic() - RESERVE_S) / 60)
        measure = {"shape": (1, 5), "block_s": 0.05} if bench.is_tiny else {"quick": True}
        folder = bench.scratch / f"round-{part}"
        round_ = begin_round(folder, target, load_facts(), minutes=minutes, measure=measure)
        round_.run()
        for line in round_text(round_.ledger).splitlines():
            say(line)
        found = found_of(round_, [of_ours])
        for line in faults_text(found).splitlines():
            say(line)
        mended = sum(entry.entry is not None for entry in found)
        bench.row(f"{name}.mended", mended / len(found), "share", n=len(found))
        for what, interval, pairs in totals_of(round_):
            bench.row(f"optimise.{what}", interval.value, "x", low=interval.low, high=interval.high, n=pairs)
