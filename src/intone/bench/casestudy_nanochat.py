"""nanochat itself at the commit the case study began from, as a row of the tables: is our starting point like it?"""

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intone.bench.casestudy_rows import NANOCHAT, Way
from intone.bench.casestudy_start import DEVICE_BATCH, segments_of
from intone.config import ModelConfig, TrainJob
from intone.data.loader import Rows
from intone.data.shards import TokenSet
from intone.errors import UserError
from intone.paths import file_sha256, write_json
from intone.prove.live import LineChild
from intone.prove.measure import Side

DRIVER = Path(__file__).parent / "foreign" / "nanochat_casestudy.py"
REVISION = "01f5f10"
CLONE = f"git clone https://github.com/karpathy/nanochat && git -C nanochat checkout {REVISION}"
# SHA-256 of the files at that commit that are run, or whose loop the driver repeats
FILES = {
    "nanochat/gpt.py": "5f80522a31aa799813734f67793a42c455629b7c916685ba807281087c8e799b",
    "nanochat/adamw.py": "244aef1508ed51a8655d49a5f4fc226d548d257760aaa86b06f9038daf85f227",
    "nanochat/muon.py": "f0b36cb16b331be4c13cba75b6f9f0cc68709d863124948288005886c040fa80",
    "scripts/chat_sft.py": "bcc1b824b735254a1d8e2cb7189df4738ca0e0d77d3a346b3c4dd0329c2b21a4",
}
NUM_STEPS = 32  # optimizer steps whose conversations are handed over; they are gone through again and again
WORDS = f"nanochat {REVISION}"


@dataclass(frozen=True)
class Nanochat:
    """A checkout at that commit, the Python that can import it, and where its side computes."""

    path: Path
    python: str
    device: str
    environment: Mapping[str, str]  # of our own start too
    scratch: Path

    def side(self, model: ModelConfig, *words: str, unit: str, count: str, size: int | None = None) -> Side:
        """A side of a measurement: the driver on a model of this shape."""
        shape = {
            "depth": model.depth, "context": model.context, "vocab-size": model.vocab_size, "width": model.width,
            "heads": model.num_heads, "kv-heads": model.num_kv_heads,
        }  # fmt: skip
        argv = [self.python, str(DRIVER), "--nanochat", str(self.path), "--device", self.device, *words]
        argv += itertools.chain.from_iterable((f"--{name}", str(value)) for name, value in shape.items())
        return Side(NANOCHAT, lambda: LineChild(argv, self.environment, name=WORDS), count=count, unit=unit, size=size)

    def sft(self, job: TrainJob) -> Way:
        """Its chat_sft on the conversations of our steps."""
        path = self.scratch / "nanochat-steps.json"
        write_json(path, step_conversations(job, NUM_STEPS))
        side = self.side(job.model, "--steps", str(path), unit="supervised", count="steps")
        note = "its model, its optimizers and its batches of 4 conversations of the very same steps, uncompiled"
        return Way(NANOCHAT, WORDS, str(DEVICE_BATCH), side, note)

    def generation(self, model: ModelConfig, prompts: Sequence[Sequence[int]], new_tokens: int) -> Way:
        """Its GPT.generate on our prompts, one text at a time."""
        path = self.scratch / "nanochat-texts.json"
        write_json(path, {"prompts": [list(map(int, prompt)) for prompt in prompts], "new_tokens": new_tokens})
        side = self.side(model, "--texts", str(path), unit="tokens", count="requests", size=1)
        return Way(NANOCHAT, WORDS, "1", side, "its GPT.generate, which has no cache, one text at a time")


def find_nanochat(
    path: str, python: str, preset: str, *, device: str, environment: Mapping[str, str], scratch: Path
) -> Nanochat:
    """Raises UserError where path is no nanochat, is at another commit, or our model would be another one."""
    root = Path(path).expanduser().absolute()
    for name, digest in FILES.items():
        if not (root / name).is_file():
            raise UserError(f"{root} is no checkout of nanochat: {name} is missing", value=path, fix=CLONE)
        if file_sha256(root / name) != digest:
            raise UserError(f"{root} is not nanochat at {REVISION}: {name} differs", value=path, fix=CLONE)
    if preset != "classic":
        raise UserError(
            f"nanochat at {REVISION} has the architecture classic, this comparison would be with {preset}",
            value=preset, fix="use --preset classic",
        )  # fmt: skip
    return Nanochat(root, python, device, environment, scratch)


def step_conversations(job: TrainJob, num_steps: int) -> list[list[list[list[int]]]]:
    """Per optimizer step of the job its conversations as [ids, targets], in the order our starting point takes them."""
    sets = [TokenSet.open(Path(folder)) for folder in job.data]
    weights = list(job.weights) if job.weights else None
    rows = Rows(sets, job.context, job.seed, weights=weights, learn_all=job.learn_all)
    found = []
    for number in range(num_steps):
        batch = rows.rows(number * job.rows_per_step, job.rows_per_step)
        pieces: list[Any] = segments_of(batch)
        order = np.random.default_rng(zlib.crc32(batch.ids.tobytes())).permutation(len(pieces))
        found.append([[part.tolist() for part in pieces[i]] for i in order])
    return found
