"""Tiny models to serve: a run on disk with random weights, and an engine that follows a script."""

import dataclasses
import time
from pathlib import Path

import torch

from intone.config import OptimConfig, ScheduleConfig, TrainJob, model_config
from intone.data.chat import SPECIALS, Message, render_prompt
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.engine.engine import Engine
from intone.model.checkpoint import list_checkpoints, save_checkpoint, saved_step
from intone.model.gpt import GPT
from intone.paths import write_json
from intone.records import Choice, Choices, Outcome, Segment, write_choices, write_outcome
from intone.runs import Place, create_run, find_stage, with_state
from intone.serve.loading import Opened

CONTEXT = 256
TOKENIZER = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
CONFIG = model_config("modern", depth=1, vocab_size=265, context=CONTEXT)
SEGMENT = Segment(0, device_batch=1, compiled=False, dtype="fp32", attention="sdpa", reason="test", threads=1)


def make_run(name: str, *, seed: int = 0, step: int = 9, config=CONFIG, tokenizer: Tokenizer = TOKENIZER) -> Path:
    """A run with one finished stage, sft, under INTONE_HOME, whose weights are random -> its job folder."""
    run = create_run({}, verb="train", stages=["sft"], name=name)
    folder = run.stage_folder("sft")
    folder.mkdir()
    tokenizer.save(folder / "tokenizer")
    job = TrainJob(
        stage="sft", model=config, tokenizer=str(folder / "tokenizer"), tokenizer_hash=tokenizer.hash, data=("none",),
        val=None, context=config.context, steps=step, rows_per_step=1, optim=OptimConfig(), schedule=ScheduleConfig(),
        seed=7, eval_tokens=config.context, save_every_s=60.0,
    )  # fmt: skip
    write_json(folder / "config.json", job.as_json())
    environment = {"OMP_NUM_THREADS": "1"}
    write_choices(folder, Choices({"device": Choice("cpu", "test", "default")}, (SEGMENT,), {}, environment))
    save_weights(folder, seed=seed, step=step, config=config, tokenizer=tokenizer)
    write_outcome(folder, Outcome("done", step))
    with_state(run, "done")
    return folder


def save_weights(folder: Path, *, seed: int, step: int, config=CONFIG, tokenizer: Tokenizer = TOKENIZER) -> None:
    """One more save of a job, with random weights."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(value.shape, generator=generator) * 0.1 for name, value in model.state_dict().items()
    }
    save_checkpoint(
        folder, step, model=config, weights=weights, optimizer={}, state={}, tokenizer_hash=tokenizer.hash
    )


def ids_of(text: str) -> list[int]:
    """Ids of a text in which <|names|> are special tokens."""
    for name in SPECIALS:
        text = text.replace(name, f"\0{name}\0")
    pieces = [piece for piece in text.split("\0") if piece]
    return [i for piece in pieces for i in ([TOKENIZER.special(piece)] if piece in SPECIALS else piece.encode())]


QUESTION = "?"


class Scripted:
    """A decoder that answers the one-message conversation QUESTION with a script, whatever it is fed."""

    def __init__(self, script: str) -> None:
        self.config = dataclasses.replace(CONFIG, context=CONTEXT)
        self.dtype = torch.float32
        self.script = torch.tensor([*ids_of(script), *[TOKENIZER.special("<|assistant_end|>")] * CONTEXT])
        self.prompt_length = len(render_prompt([Message("user", QUESTION)], TOKENIZER))

    def logits(self, batch):
        place = (batch.positions[batch.wanted] + 1 - self.prompt_length).clamp(min=0)
        return torch.nn.functional.one_hot(self.script[place], self.config.vocab_size).float() * 50


def open_scripted(run: str, script: str, folder: str, **engine) -> Opened:
    """The loader of a scripted engine; folder: where its tokenizer is put."""
    TOKENIZER.save(Path(folder) / "tokenizer")
    place = Place(Path(folder), run, None)
    return Opened(Engine(Scripted(script), TOKENIZER, **engine), TOKENIZER, place, 0, str(Path(folder) / "tokenizer"))


class Slow(Scripted):
    """A decoder that says x for ever and takes its time for every step."""

    def __init__(self, step_s: float) -> None:
        super().__init__("x" * CONTEXT)
        self.step_s = step_s

    def logits(self, batch):
        time.sleep(self.step_s)
        return super().logits(batch)


def open_slow(run: str, step_s: float, folder: str, **engine) -> Opened:
    """The loader of a slow engine."""
    TOKENIZER.save(Path(folder) / "tokenizer")
    place = Place(Path(folder), run, None)
    return Opened(Engine(Slow(step_s), TOKENIZER, **engine), TOKENIZER, place, 0, str(Path(folder) / "tokenizer"))


class Replying:
    """A decoder that answers the last message by a table, one conversation at a time, a token every token_s."""

    def __init__(self, replies: dict[str, str], token_s: float) -> None:
        self.config = dataclasses.replace(CONFIG, context=8 * CONTEXT)
        self.dtype = torch.float32
        self.replies, self.token_s, self.text = replies, token_s, []

    def logits(self, batch):
        start = int(batch.positions[0])
        self.text = [*self.text[:start], *batch.ids.tolist()]
        if not len(batch.wanted):
            return torch.zeros(0, self.config.vocab_size)  # a part of a prompt
        time.sleep(self.token_s)  # what a real model takes
        begin = len(self.text) - self.text[::-1].index(TOKENIZER.special("<|assistant_start|>"))
        asked = TOKENIZER.decode(self.text[:begin]).rsplit("<|user_start|>", 1)[1]
        asked = asked.removesuffix("<|user_end|><|assistant_start|>")
        reply = ids_of(self.replies.get(asked, f"You said: {asked}") + "<|assistant_end|>")
        token = reply[min(len(self.text) - begin, len(reply) - 1)]
        return torch.nn.functional.one_hot(torch.tensor([token]), self.config.vocab_size).float() * 50


def open_replying(run: str, replies: dict[str, str], token_s: float) -> Opened:
    """The loader of a table of replies in place of the weights of a run that make_run() made."""
    place = find_stage(run)
    engine = Engine(Replying(replies, token_s), TOKENIZER, num_slots=1, share_prefixes=False)
    step = saved_step(list_checkpoints(place.folder)[-1])
    return Opened(engine, TOKENIZER, place, step, str(place.folder / "tokenizer"))
