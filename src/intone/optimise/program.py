"""Somebody else's program as a target: run under the probe to look at it, or block by block to measure it."""

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intone.child import PACKAGE_PARENT
from intone.errors import UserError
from intone.hardware import Facts
from intone.log import human_duration, say
from intone.optimise.late import late_signals, rank_files, shortened, with_ranks
from intone.optimise.signals import Kind, Line, Signals
from intone.optimise.trace import Profile, read_profile
from intone.paths import write_json
from intone.prove.gates.physical import max_known
from intone.prove.live import LineChild
from intone.prove.measure import Side

PROBE = Path(__file__).parent / "probe"
WARM_STEPS = 5  # guess: allocator, caches and compiling are over after them in every loop we have seen
LOOKED_STEPS = 30  # 30 steps of 30 ms give the sampler 180 looks; of long steps fewer are needed, see enough_steps
TIMEOUT_S = 600.0
PROFILED_STEPS = 2  # by the probe
MAX_LINES = 12  # of the program that a report names
EARLY, LATE = 64, 512  # positions at which the time of a token is compared


@dataclass(frozen=True)
class Program:
    """A command, as a person would type it, in its folder. env: variables laid over ours."""

    words: tuple[str, ...]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def environment(self, plan: Path) -> dict[str, str]:
        """Ours, theirs, and the probe in front of PYTHONPATH."""
        inherited = {name: value for name, value in os.environ.items() if name != "INTONE_PROBE"}
        path = [str(PROBE)]
        given = self.env.get("PYTHONPATH", inherited.get("PYTHONPATH", ""))
        path += [part for part in given.split(os.pathsep) if part and Path(part) != PACKAGE_PARENT]
        return {**inherited, **self.env, "PYTHONPATH": os.pathsep.join(path), "INTONE_PROBE": str(plan)}

    @property
    def text(self) -> str:
        return " ".join(self.words)


def check_program(words: Sequence[str], folder: Path) -> Program:
    """The program of a command line. Raises UserError where it cannot be run, or runs a Python that ignores us."""
    if not words:
        raise UserError("no program was given", fix="write it behind --: intone optimise -- python train.py")
    if shutil.which(words[0], path=os.environ.get("PATH")) is None and not (folder / words[0]).exists():
        raise UserError(f"{words[0]} was not found", value=words[0], fix="give the program as you would start it")
    if Path(words[0]).name.startswith("python"):
        for word in words[1:]:
            if not word.startswith("-") or word == "-m":
                break
            hidden = [letter for letter in "ISE" if not word.startswith("--") and letter in word]
            if hidden:
                raise UserError(
                    f"python -{hidden[0]} keeps the probe out", value=word, fix=f"start it without -{hidden[0]}"
                )
        script = next((word for word in words[1:] if word.endswith(".py")), None)
        if script is not None and "-m" not in words[: words.index(script)] and not (folder / script).exists():
            raise UserError(f"there is no {script} in {folder}", value=script, fix="start it from its own folder")
    return Program(tuple(words), folder)


# --- looking ---------------------------------------------------------------------------------------------------------


def look_at(
    program: Program, scratch: Path, *, warm: int = WARM_STEPS, steps: int = LOOKED_STEPS,
    timeout_s: float = TIMEOUT_S, facts: Facts | None = None,
) -> tuple[Signals, dict[str, Any]]:  # fmt: skip
    """(signals, everything that the probe wrote) of a short run. Raises UserError where nothing was learned.

    The program is ended once enough steps were seen; what it prints goes to scratch/program.log. facts: of this
    machine, without which nobody can say how near its limit the program is.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    out, plan, log = scratch / "probe.json", scratch / "plan.json", scratch / "program.log"
    for path in (out, *rank_files(out)):
        path.unlink(missing_ok=True)
    asked: dict[str, Any] = {"mode": "analyse", "out": str(out), "warm": warm, "steps": steps}
    write_json(plan, asked if facts is None else {**asked, "swaps": swaps_of(facts)})
    say(f"running {program.text}, {warm} + {steps} steps at most, output in {log}")
    code, seconds = run_to_log(program, plan, log, timeout_s)
    found = with_ranks(json.loads(out.read_text()), out) if out.exists() else None
    if found is None or "error" in found:
        raise nothing_learned(program, found, code, seconds, log, timeout_s)
    trace = Path(found["trace"]) if found.get("trace") else None
    profile = read_profile(trace) if trace is not None and trace.exists() else None
    signals = signals_of(found, profile, program.folder, facts)
    if signals.num_steps == 0 and signals.late_over_early is None:
        raise UserError(
            f"{program.words[0]} ran for {human_duration(seconds)} without an optimizer step of PyTorch and without a"
            " model called token by token", value=program.text,
            fix="give a program that trains with torch.optim, or generates; its output is in " + str(log),
        )  # fmt: skip
    return signals, found


def run_to_log(program: Program, plan: Path, log: Path, timeout_s: float) -> tuple[int | None, float]:
    """(exit code, seconds) of the program; None: it was ended after timeout_s. With all that it started."""
    begin_s = time.monotonic()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            program.words, cwd=program.folder, env=program.environment(plan), stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_all(process)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left behind when it ended by itself
    return code, time.monotonic() - begin_s


def end_all(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and everything that it started, also what has a session of its own (torchrun's workers)."""
    import psutil  # here: modules of a bare image import this one, and run no foreign program

    started: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in started:
        with contextlib.suppress(psutil.Error):
            child.kill()
    process.wait()


def nothing_learned(
    program: Program, found: Mapping[str, Any] | None, code: int | None, seconds: float, log: Path, timeout_s: float
) -> UserError:
    """Why there is no evidence, in the program's own last words where it has any."""
    if found is not None:
        return UserError(str(found["error"]), value=program.text, fix="use a newer torch in the program's environment")
    text = log.read_text(errors="replace").strip()
    last = f": {text.splitlines()[-1][:200]}" if text else ""
    if code is None:
        return UserError(
            f"{program.text} had not done enough steps after {human_duration(timeout_s)}", value=program.text,
            fix="give it a smaller model or batch, so that it does some 30 steps in that time",
        )  # fmt: skip
    if code != 0:
        return UserError(
            f"{program.text} ended with exit code {code} after {human_duration(seconds)}{last}", value=program.text,
            fix=f"make it run by itself first; its output is in {log}",
        )  # fmt: skip
    return UserError(
        f"{program.text} ended without ever importing torch under our eyes{last}", value=program.text,
        fix="give the command that starts Python itself; -I, -S and -E keep the probe out",
    )  # fmt: skip


def signals_of(found: Mapping[str, Any], profile: Profile | None, folder: Path, facts: Facts | None = None) -> Signals:
    """The signals in what the probe wrote."""
    steady = found["ends_s"][found["warm"] - 1 : found["warm"] + found["steps"]]
    times = [b - a for a, b in zip(steady, steady[1:], strict=False)]
    parts, lines = split_time(found, folder)
    early, late = token_times(found["calls"])
    looks = found["looks"]
    rows = sum(look["rows"] for look in looks)
    positions = sum(look["rows"] * look["tokens"] for look in looks)
    hashes = [value for look in looks for value in look["hashes"]]
    syncs, memory = found["syncs"], found["memory"]
    on_device, swaps = found["facts"]["device"] != "cpu", found["swaps"]
    compiled = found["graphs"] > 0
    is_training = bool(times)
    # operators that a compiler made do not show up in a profile of a CPU: their time would look idle
    can_see = profile is not None and (profile.has_device_work or not compiled)
    step_s = statistics.median(times) if times else call_s(found["calls"])
    return Signals(
        kind="train" if is_training else "generate",
        device=found["facts"]["device"],
        step_s=step_s,
        step_spread=spread(times),
        drift=drift(times),
        num_steps=len(times),
        parts=parts,
        lines=lines,
        device_batch=max((look["rows"] for look in looks), default=None),
        micro_steps=found["backwards"] / max(1, len(times)) if times else None,
        elasticity=swaps.get("elasticity"),
        num_shapes=len({(look["rows"], look["tokens"]) for look in looks}) if looks else None,
        pad_share=sum(look["padded"] for look in looks) / positions if positions else None,
        ops_per_step=profile.num_ops / PROFILED_STEPS if profile is not None and can_see else None,
        idle_share=profile.idle_share if profile is not None and can_see else None,
        median_op_s=profile.median_op_s if profile is not None and can_see else None,
        compiled=compiled,
        recompiles=max(0, found["graphs"] - found["graphs_at_warm"]) if compiled and is_training else None,
        syncs_per_step=sum(syncs.values()) / len(times) if times and on_device else None,
        sync_place=max(syncs, key=lambda place: syncs[place]) if syncs else None,
        flop_share=flop_share(profile, step_s, facts) if can_see and is_training else None,
        matmul_dtypes=profile.product_dtypes if profile is not None else {},
        best_dtype="bf16" if "dtype_gain" in swaps else None,
        best_dtype_gain=swaps.get("dtype_gain"),
        threads=found["threads"],
        threads_gain=best_threads(swaps),
        peak_bytes=found["peak_bytes"],
        memory_kinds=memory_kinds(found),
        memory_bytes=memory.get("total") or (None if facts is None or on_device else facts.memory_bytes),
        logits_bytes=found["logits_bytes"] or None,
        reserved_bytes=memory.get("reserved"),
        allocated_bytes=memory.get("allocated"),
        alloc_retries=memory.get("retries"),
        late_over_early=late[1] / early[1] if early and late and early[1] > 0 else None,
        positions=(early[0], late[0]) if early and late else None,
        duplicate_rows=len(hashes) - len(set(hashes)) if rows > 1 else None,
        rows_looked_at=rows or None,
        **late_signals(found, step_s if is_training else None, len(times), folder),
        masked_rows=sum(look["masked"] for look in looks if "masked" in look) if looks else None,
        nonfinite_losses=sum(loss is None for _, loss in found["losses"]) if found["losses"] else None,
        notes=tuple(found["notes"]),
    )


def swaps_of(facts: Facts) -> dict[str, Any]:
    """What is swapped out and timed again at the end of a look: other numbers of threads, the faster format."""
    plain, narrow = max_known(facts, "fp32"), max_known(facts, "bf16")
    is_faster = narrow is not None and (plain is None or narrow > plain)
    return {"threads": sorted({1, facts.cores_physical}), "dtype": "bfloat16" if is_faster else None}


def best_threads(swaps: Mapping[str, Any]) -> tuple[int, float] | None:
    """The fastest other number of threads and its gain; None where none was tried."""
    found = [(int(count), float(gain)) for count, gain in swaps.get("threads", ())]
    return max(found, key=lambda pair: pair[1], default=None)


def flop_share(profile: Profile | None, step_s: float | None, facts: Facts | None) -> float | None:
    """Products a second over what this device is stated, or was measured, to do; None: unknown."""
    if profile is None or facts is None or not profile.product_flops or not profile.product_dtypes or not step_s:
        return None
    dtype = max(profile.product_dtypes, key=lambda name: profile.product_dtypes[name])
    most = facts.peak_flops_per_s if profile.has_device_work else max_known(facts, dtype)
    return profile.product_flops / PROFILED_STEPS / step_s / most if most else None


def memory_kinds(found: Mapping[str, Any]) -> dict[str, int]:
    """The peak by kind: what the optimizers hold is known, the rest is what lies between; nothing without training.

    On a CPU the process itself counts too: code is what it held when torch had been imported.
    """
    kinds: dict[str, int] = dict(found["memory_kinds"])
    peak = found["peak_bytes"]
    if not kinds.get("weights") or peak is None:
        return {}
    if found["facts"]["device"] == "cpu" and found["code_bytes"] is not None:
        kinds["code"] = found["code_bytes"]
    return {**kinds, "activations and the rest": max(0, peak - sum(kinds.values()))}


def split_time(found: Mapping[str, Any], folder: Path) -> tuple[dict[str, float], tuple[Line, ...]]:
    """(share by part, hottest own lines) of the sampled time."""
    whole = found["sampled_s"]
    if not whole:
        return {}, ()
    parts: dict[str, float] = {}
    lines: list[Line] = []
    for part, path, line, function, seconds in found["samples"]:
        share = seconds / whole
        parts[part] = parts.get(part, 0.0) + share
        if path:
            lines.append(Line(shortened(path, folder), line, function, part, share))
    parts["unexplained"] = max(0.0, 1.0 - sum(parts.values()))
    lines.sort(key=lambda entry: -entry.share)
    return parts, tuple(lines[:MAX_LINES])


def token_times(calls: Sequence[Sequence[float]]) -> tuple[tuple[int, float] | None, tuple[int, float] | None]:
    """(position, seconds) early and late in generation, where the model was called with a text that grew by one.

    A model with a cache is called with one token at a time: then the number of the call is the position.
    """
    longest: list[tuple[int, float]] = []
    current: list[tuple[int, float]] = []
    before = None
    for rows, tokens, seconds in calls:
        key = (rows, tokens)
        grows = before is not None and key[0] == before[0] and (key[1] == before[1] + 1 or key[1] == before[1] == 1)
        if not grows:
            current = []
        current.append((int(tokens) if tokens > 1 else len(current) + 1, seconds))
        if len(current) > len(longest):
            longest = current
        before = key
    if len(longest) < 48:
        return None, None
    span = 8  # calls whose median stands for a position

    def near(index: int) -> tuple[int, float]:
        chosen = longest[max(0, index - span // 2) : index + span // 2]
        return longest[index][0], statistics.median(seconds for _, seconds in chosen)

    first = min(range(len(longest)), key=lambda i: abs(longest[i][0] - EARLY))
    last = min(range(len(longest)), key=lambda i: abs(longest[i][0] - LATE))
    if longest[last][0] < 4 * longest[first][0]:
        first = min(span // 2, len(longest) - 1)
    return near(first), near(last)


def call_s(calls: Sequence[Sequence[float]]) -> float | None:
    """The median time of a call that writes tokens; None where there is none."""
    return statistics.median(call[2] for call in calls) if calls else None


def spread(times: Sequence[float]) -> float | None:
    if len(times) < 4:
        return None
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / middle if middle else None


def drift(times: Sequence[float]) -> float | None:
    third = len(times) // 3
    if third < 3:
        return None
    return statistics.median(times[-third:]) / statistics.median(times[:third]) - 1


# --- measuring -------------------------------------------------------------------------------------------------------


def program_side(
    name: str, program: Program, scratch: Path, *, warm: int = WARM_STEPS, kind: Kind = "train", size: int | None = None
) -> Side:
    """The program as a side of a comparison: every replicate a fresh process, in blocks of its own steps.

    kind generate: a step is a call of its model, which writes a token of every row; size: of all blocks. Steps at
    different places of a text are different work: both sides must have the same size, and do the same calls then.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    numbers = iter(range(1, 1_000_000))

    def start() -> LineChild:
        place = scratch / f"{name}-{next(numbers)}"
        place.mkdir()
        write_json(place / "program.json", {
            "words": list(program.words), "folder": str(program.folder), "env": dict(program.env), "warm": warm,
            "kind": kind,
        })  # fmt: skip
        words = [sys.executable, "-P", "-m", "intone.optimise.relay", str(place)]
        return LineChild(words, {"PYTHONPATH": str(PACKAGE_PARENT)}, name=name)

    return Side(name, start, count="steps", unit="steps" if kind == "train" else "tokens", size=size)


def block_calls(signals: Signals) -> int | None:
    """Calls of a generating program that take about half a second; None for one that trains."""
    if signals.kind != "generate" or not signals.step_s:
        return None
    return max(8, round(0.5 / signals.step_s))
