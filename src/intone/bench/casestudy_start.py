"""The case study's starting point: our own pipeline with five faults on purpose, each of which can be switched off.

Two of them are settings of a plan (start_choices); the other three are planted in a worker of their own,
`python -m intone.bench.casestudy_start FOLDER [--live]`, as FOLDER/faults.json says. Only bench and tests start it.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from intone import worker
from intone.child import PACKAGE_PARENT
from intone.config import strict
from intone.data.loader import Batch
from intone.errors import UserError
from intone.jobs import LIVE
from intone.paths import read_json, write_json
from intone.prove.live import LineChild
from intone.records import Choices, Outcome, read_outcome

MODULE = "intone.bench.casestudy_start"
FAULTS_FILE = "faults.json"
DEVICE_BATCH = 4  # of SFT at the commit that the case study began from


@dataclass(frozen=True)
class Faults:
    """What is wrong at the starting point; False: that one is mended."""

    small_batch: bool = True  # 4 rows at a time, whatever the device could take
    eager: bool = True  # no compiled code and none of our kernels: PyTorch's operations one by one
    padded_rows: bool = True  # one conversation a row, filled up to the longest of the rows that go together
    no_cache: bool = True  # every new token computes the whole text again, one text at a time
    copied_first_token: bool = True  # all samples of a request begin with the first one's first token

    @classmethod
    def named(cls, *names: str) -> "Faults":
        """Only these. Raises UserError for a name that is none."""
        return cls.from_json({entry.name: False for entry in dataclasses.fields(cls)} | dict.fromkeys(names, True))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Faults":
        faults: Faults = strict(cls, value, "fault")
        return faults


NONE = Faults.named()
# what this worker answers to --switches: the planted faults, as optimise.stages asks for them
SWITCHES: dict[str, Any] = {
    "file": FAULTS_FILE,
    "switches": [
        {"name": "padded_rows", "part": "train", "detector": "D16", "now": True, "mended": False,
         "title": "Pack conversations into rows",
         "hypothesis": "rows filled up to the longest of their batch compute positions that teach nothing",
         "risk": "conversations share a row: the document mask must keep them apart"},
        {"name": "no_cache", "part": "generate", "detector": "D8", "now": True, "mended": False,
         "title": "Generate with the engine and its key-value cache",
         "hypothesis": "every new token computes the whole text again, one text at a time",
         "risk": "what is cached must be what would be computed"},
        {"name": "copied_first_token", "part": "generate", "detector": "D22", "now": True, "mended": False,
         "title": "Draw every sample's first token by itself",
         "hypothesis": "the first sample's first token is handed to all samples of its request",
         "risk": "none: other samples are what was asked for"},
    ],
}  # fmt: skip


# --- settings of a plan ---------------------------------------------------------------------------------------------


def start_choices(choices: Choices, faults: Faults = Faults()) -> Choices:
    """The plan with the two faults that are settings; dtype, threads and environment stay, and so does the recipe."""
    segments = choices.segments
    if faults.small_batch:
        segments = tuple(replace(segment, device_batch=DEVICE_BATCH) for segment in segments)
    if faults.eager:
        segments = tuple(
            replace(
                segment, compiled=False, kernels="torch", attention="sdpa", head_pieces=1,
                reason="the case study's start",
            )  # fmt: skip
            for segment in segments
        )
    return replace(choices, segments=segments, fallbacks={})


def plain_memory(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of a worker whose C library gets memory as it does by itself, as the published script's did."""
    return {
        name: value for name, value in variables.items() if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }


# --- planted --------------------------------------------------------------------------------------------------------


def padded_batches(batch: Batch, device_batch: int, *, padded: bool) -> list[Batch]:
    """The rows of a step as a loader without packing lays them out: a conversation (or document) a row.

    What is learned is the same, token by token. The conversations of the step are drawn in an order that depends on
    them alone, device_batch at a time, and filled up to the longest of those. padded (for compiled code, which knows
    one shape): up to the width of the packed rows, and with rows in which nothing is learned. Their documents are
    None: with one text a row there is nothing to keep apart, and plain causal attention is the fastest.
    """
    pieces = segments_of(batch)
    order = np.random.default_rng(zlib.crc32(batch.ids.tobytes())).permutation(len(pieces))
    pieces = [pieces[i] for i in order]
    found = []
    for begin in range(0, len(pieces), device_batch):
        group = pieces[begin : begin + device_batch]
        width = batch.ids.shape[1] if padded else max(len(ids) for ids, _ in group)
        shape = (device_batch if padded else len(group), width)
        # scan: ok[S23] the starting point of the case study is padded on purpose
        ids, targets = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        for row, (piece_ids, piece_targets) in enumerate(group):
            ids[row, : len(piece_ids)] = piece_ids
            targets[row, : len(piece_ids)] = piece_targets
        found.append(Batch(ids, targets, cast(np.ndarray, None)))  # see planted()
    return found


def segments_of(batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, targets) of every segment of packed rows in which something is learned, in their order."""
    pieces = []
    for ids, targets, documents in zip(batch.ids, batch.targets, batch.documents, strict=True):
        cuts = [0, *(np.flatnonzero(np.diff(documents)) + 1).tolist(), len(ids)]
        for begin, end in zip(cuts, cuts[1:], strict=False):
            if (targets[begin:end] >= 0).any():
                pieces.append((ids[begin:end], targets[begin:end]))
    return pieces


class StartEngine:
    """Generation as at the starting point: no cache, one text at a time. The part of Engine that jobs use.

    copied_first_token: as in faults.copied_first_token. Penalties, forms, tools and logprobs are not there:
    a request that asks for one raises UserError, except that tools are never called.
    """

    def __init__(self, model: Any, tokenizer: Any, *, copied_first_token: bool) -> None:
        from intone.engine.text import Specials

        self._model, self._tokenizer, self._copied = model, tokenizer, copied_first_token
        self._ends = Specials.of(tokenizer).ends
        self.settings = {"num_slots": (1, "one text at a time")}  # as Engine.settings

    def generate(self, requests: Sequence[Any], *, on_answer: Callable[[], None] | None = None) -> list[list[Any]]:
        """Answers one request after the other -> per request its n completions. on_answer: called after each."""
        found = []
        for request in requests:
            found.append(self._answer(request))
            if on_answer is not None:
                on_answer()
        return found

    def _answer(self, request: Any) -> list[Any]:
        check_plain(request)
        prompt = list(request.prompt)
        room = self._model.config.context - len(prompt)
        new = room if request.max_tokens is None else min(request.max_tokens, room)
        seed = 0 if request.seed is None else request.seed
        answers: list[Any] = []
        for number in range(request.n):
            forced = answers[0].ids[:1] if self._copied and answers else []
            answers.append(self._sample(request, prompt, forced, new, seed, number))
        return answers

    def _sample(self, request: Any, prompt: list[int], forced: list[int], new: int, seed: int, number: int) -> Any:
        """One sample; forced: tokens that it begins with, drawn or not."""
        from intone.engine.naive import generate_naive
        from intone.engine.requests import Completion, Usage

        is_fixed = request.min_tokens == request.max_tokens  # then it must not end, and nothing that ends it is drawn
        ids = list(forced)
        if len(ids) < new and not set(ids) & self._ends:
            ids += generate_naive(
                self._model, prompt + ids, max_tokens=new - len(ids), temperature=request.temperature,
                top_k=request.top_k, seed=seed, number=number,
                stop_ids=frozenset() if is_fixed else self._ends, excluded=self._ends if is_fixed else frozenset(),
            ).ids  # fmt: skip
        reason: Any = "stop" if ids and ids[-1] in self._ends else "length"
        text = self._tokenizer.decode(ids)
        return Completion(number, ids, text, [None] * len(ids), reason, Usage(len(prompt), len(ids)), [], seed)

    def close(self) -> None:
        """Nothing to do: it owns no thread."""

    def __enter__(self) -> "StartEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_plain(request: Any) -> None:
    """Raises UserError for what generation at the starting point cannot do."""
    if isinstance(request.prompt, str) or not all(isinstance(token, int) for token in request.prompt):
        raise UserError("the starting point takes prompts as token ids", value=str(request.prompt)[:50])
    if request.has_penalties or request.structured or request.stops or request.logit_bias or request.top_logprobs:
        raise UserError("the starting point draws tokens by temperature and top_k only")
    if request.top_p != 1 or request.min_p != 0:
        raise UserError("the starting point draws tokens by temperature and top_k only")


def copied(engine: Any) -> Any:
    """An engine that is right but for the first token of a request's samples, which is the first one's."""
    from intone.prove.gates.faults import copied_first_token

    right = engine.generate

    def generate(requests: Sequence[Any], **options: Any) -> list[list[Any]]:
        return copied_first_token(lambda asked: right(asked, **options))(requests)

    engine.generate = generate
    return engine


def start_engine(model: Any, tokenizer: Any, faults: Faults = Faults(), **options: Any) -> Any:
    """What answers requests at the starting point, or with some of its faults mended; options are Engine's."""
    from intone.engine.engine import Engine

    if faults.no_cache:
        return StartEngine(model, tokenizer, copied_first_token=faults.copied_first_token)
    engine = Engine(model, tokenizer, **options)
    return copied(engine) if faults.copied_first_token else engine


@contextlib.contextmanager
def planted(faults: Faults) -> Iterator[None]:
    """This process trains and generates with the faults that are no settings, inside the with block."""
    from intone.engine import job, live
    from intone.train import step

    def without_documents(real: Any, runner: Any, array: Any) -> Any:
        return None if array is None else real(runner, array)

    def open_engine(config: dict[str, Any]) -> Any:
        model, tokenizer, requests, options = job.open_model(config)
        return start_engine(model, tokenizer, faults, **options), requests

    with contextlib.ExitStack() as stack:
        if faults.padded_rows:
            upload = step.TrainStep._upload
            stack.enter_context(patched(step, "micro_batches", padded_batches))
            stack.enter_context(
                patched(step.TrainStep, "_upload", lambda runner, array: without_documents(upload, runner, array))
            )
        if faults.no_cache or faults.copied_first_token:
            for module in (job, live):
                stack.enter_context(patched(module, "open_engine", open_engine))
        yield


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """owner.name is value inside the with block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# --- the worker -----------------------------------------------------------------------------------------------------


def write_faults(folder: Path, faults: Faults) -> None:
    """What is planted when the job in this folder runs here."""
    write_json(folder / FAULTS_FILE, dataclasses.asdict(faults))


def command(folder: Path, *words: str) -> list[str]:
    """The words that run a job folder at the starting point; jobs that have no faults.json have all faults."""
    return [sys.executable, "-P", "-m", MODULE, str(folder), *words]


class StartChild(LineChild):
    """A live worker at the starting point, as prove.live.WorkerChild is one of the pipeline as it is."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None, *, name: str = "the start") -> None:
        super().__init__(command(folder, LIVE), {"PYTHONPATH": str(PACKAGE_PARENT), **(env or {})}, name=name)


def run_start(folder: Path, env: Mapping[str, str] | None = None) -> Outcome:
    """Runs a job folder to its end at the starting point -> how it ended. Its log is FOLDER/start.log."""
    search = [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, **(env or {}), "PYTHONPATH": os.pathsep.join(part for part in search if part)}
    (folder / "outcome.json").unlink(missing_ok=True)
    with open(folder / "start.log", "ab") as log:
        code = subprocess.run(command(folder), env=variables, stdout=log, stderr=log).returncode
    return read_outcome(folder) or Outcome("error", None, f"the worker ended with exit code {code}")


def main(argv: Sequence[str]) -> int:
    """The worker of a job folder with its faults planted -> the worker's exit code; or the faults, as switches."""
    if list(argv) == ["--switches"]:
        print(json.dumps(SWITCHES))
        return 0
    folder = Path(argv[0])
    path = folder / FAULTS_FILE
    faults = Faults.from_json(read_json(path)) if path.exists() else Faults()
    with planted(faults):
        return worker.main([str(folder), *argv[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
