"""A tiny pipeline at the case study's starting point: conversations to train on, and a model to generate with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tiny_jobs import SEGMENT, write_job

from intone.config import TrainJob, model_config
from intone.data.chat import Message
from intone.data.shards import write_token_set
from intone.data.tokenizer import Tokenizer
from intone.hardware import Facts
from intone.model.checkpoint import save_checkpoint
from intone.model.gpt import GPT
from intone.optimise.stages.target import Target, with_worker
from intone.paths import write_json

# a model whose tokens cost more late than early without a cache: one block, but a long context
CONFIG = model_config("modern", depth=1, vocab_size=265, context=1024)
START = "intone.bench.casestudy_start"
FACTS = Facts(
    fingerprint="cd" * 8, torch_version="2.13.0+cpu", libc="glibc 2.36", cores_logical=2, cores_physical=1,
    busy_cores=0.0, device="cpu", memory_bytes=2**33, memory_available_bytes=2**33, fp32_flops_per_s=50e9,
    copy_bytes_per_s=5e9,
)  # fmt: skip


@pytest.fixture
def facts() -> Facts:
    """A machine without a compiler, whose one core leaves no other number of threads to try."""
    return FACTS


@pytest.fixture(scope="session")
def start_folder(tmp_path_factory: pytest.TempPathFactory, tiny_job: TrainJob) -> Path:
    """train/ and generate/ of the pipeline: 4 rows at a time, PyTorch's operations, one thread."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = Tokenizer.load(Path(tiny_job.tokenizer))
    talks = [
        [Message("user", "how?"), Message("assistant", f"{n} fly " * (1 + n % 4))] for n in range(1500)
    ]
    write_token_set(folder / "set", talks, tokenizer, kind="conversations")
    job = replace(
        tiny_job, stage="sft", data=(str(folder / "set"),), val=None, keep=0, steps=1000, context=64, rows_per_step=16,
        model=replace(CONFIG, context=64),
    )  # fmt: skip
    (folder / "train").mkdir()
    write_job(folder / "train", job, replace(SEGMENT, device_batch=4, threads=1))
    model = GPT(CONFIG)
    model.init_weights(seed=0)
    with torch.no_grad():  # a head of zeros, as a model starts with, would make all tokens equal
        model.head.weight.normal_(generator=torch.Generator().manual_seed(3))
    save_checkpoint(
        folder / "weights", 1, model=CONFIG, weights=model.state_dict(), optimizer={}, state={},
        tokenizer_hash=tokenizer.hash,
    )  # fmt: skip
    sampling = {"max_tokens": 8, "min_tokens": 8, "temperature": 0.0, "tools": False, "logprobs": False}
    write_json(folder / "generate" / "config.json", {
        "format": 1, "job": "generate", "from": str(folder / "weights"), "tokenizer": tiny_job.tokenizer,
        "prompts": [[n + 1] * 9 for n in range(4)], "dtype": "fp32", "device": "cpu", "threads": 1,
        "sampling": sampling, "engine": {"num_guesses": 0},
    })  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def start(start_folder: Path) -> Target:
    """The pipeline with all faults of the case study's starting point, and the switches that mend three of them."""
    return with_worker(Target(start_folder), START)
