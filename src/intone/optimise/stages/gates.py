"""The gates for changes of our own stages: short trainings by the target's worker, texts and samples that it writes"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intone import jobs
from intone.data.tokenizer import Tokenizer
from intone.engine.requests import Completion, Usage
from intone.engine.text import Specials
from intone.hardware import Facts
from intone.optimise.stages.generation import first_tokens, plain_model, random_prompts, written
from intone.optimise.stages.target import Part, State, Target
from intone.prove.gates import answers, chain, decode, parity, recipe, resume, sampling, sealed, training
from intone.prove.gates.result import Gate, GateReport, GateResult, NotJudged, Threshold, run_gates
from intone.prove.trial import Side

GREEDY_NAME = "greedy texts"
ORIGIN = "measured on right code, see the gate on cached decoding (prove/gates/decode.py)"


@dataclass
class StageGates:
    """The gates of one round. The reference of the training is computed once: what is right does not change in it.

    quick: what passed gates as a change passes them as the whole too where it is the same state, without another run.
    """

    target: Target
    facts: Facts
    scratch: Path
    _stack: contextlib.ExitStack
    quick: bool = False
    _reference: training.Reference | None = None
    _right: answers.Reference | None = None  # in its place for a stage that learns from its own answers
    _judged: list[tuple[Part, State, GateReport]] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, target: Target, facts: Facts, scratch: Path, *, quick: bool = False
    ) -> Iterator["StageGates"]:
        """Use it in a with statement: trials are kept below scratch until its end."""
        scratch.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            yield cls(target, facts, scratch, stack, quick)

    def judge(self, part: Part, before: State, after: State, *, whole: bool = False) -> GateReport:
        """What the gates say of a part as changed. whole: everything that was kept, with resuming and fresh runs."""
        known = self._known(part, after) if whole and self.quick else ()
        names = {result.name for result in known}
        with jobs.trial_folder(self.scratch) as folder:
            if part == "train":
                gates = self._training(before, after, folder, whole=whole)
            else:
                gates = self._generation(after, folder)
            found = run_gates(gate for gate in gates if gate.name not in names)
        found = GateReport((*known, *found.results), found.not_run)
        self._judged.append((part, after, found))
        return found

    def _known(self, part: Part, state: State) -> tuple[GateResult, ...]:
        """What passed when this very state was judged. The recipe is another question: it is held against before."""
        found = [report for other, judged, report in self._judged if (other, judged) == (part, state)]
        return tuple(
            result for report in found[-1:] for result in report.results
            if result.passed and result.name not in (recipe.NAME, sealed.NAME)
        )  # fmt: skip

    # --- training -------------------------------------------------------------------------------------------------

    def _training(self, before: State, after: State, folder: Path, *, whole: bool) -> list[Gate[Any]]:
        baseline, candidate = self._side(before, folder / "before"), self._side(after, folder / "after")
        seal = sealed.seal([*sealed.harness(), *sealed.inputs_of(baseline.folder), *sealed.inputs_of(candidate.folder)])
        gates: list[Gate[Any]] = [
            recipe.gate(baseline.folder, candidate.folder),
            chain.memory_gate(candidate, folder, self.facts),
        ]
        if self.target.writes:
            gates += answers.gates(self._right_answers, candidate, folder)
        else:
            cost_s = training.TRIAL_COST_S * 4
            gates.append(Gate(parity.NAME, cost_s, lambda: self._losses(candidate, folder), lambda found: found))
        if whole:
            # a step whose answers all agree has the loss 0 whatever the seed: losses do not tell runs of answers apart
            gates += [] if self.target.writes else [chain.fresh_gate(candidate, folder)]
            gates.append(resume.gate(candidate, folder))
        return [*gates, sealed.gate(seal)]

    def _losses(self, candidate: Side, folder: Path) -> GateResult:
        """The candidate's losses and gradients against our own worker's in eager fp32."""
        if self._reference is None:
            self._reference = self._stack.enter_context(training.reference(self._plain(), self.scratch))
        right = self._reference
        if right.gradients is None:
            raise NotJudged("the plain training in fp32 did not end well", "make `intone train` run first")
        found = training.against(right, candidate, folder)
        return training.judge_against(right, found, dtype=training.first_segment(candidate)[0].dtype)

    def _right_answers(self) -> answers.Reference:
        if self._right is None:
            self._right = answers.reference(self._plain(), self.scratch)
        return self._right

    def _plain(self) -> Side:
        """The job as it was at the start by our own worker, whatever worker the target has: what is right."""
        return Side.of(Target(self.target.folder).write("train", {}, self.scratch / "reference"))

    def _side(self, state: State, folder: Path) -> Side:
        """The training as changed: a job folder, and how copies of it are run."""
        self.target.write("train", state, folder)
        env, name = self.target.variables("train", state), self.target.switch_file

        def run(copy: Path) -> Any:
            if name:
                (copy / name).write_bytes((folder / name).read_bytes())
            return self.target.run(copy, env)

        return Side(folder, run)

    # --- generation -----------------------------------------------------------------------------------------------

    def _generation(self, after: State, folder: Path) -> list[Gate[Any]]:
        config = self.target.generation({})
        paths = [Path(config["from"]), Path(config["tokenizer"])]
        seal = sealed.seal([*sealed.harness(), *paths])
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            self.target.generation(after).get("dtype", "fp32")
        ]  # fmt: skip
        return [
            Gate(GREEDY_NAME, 5.0, lambda: greedy_texts(self.target, after, folder), lambda found: judge_greedy(
                found, dtype=dtype
            )),
            Gate(sampling.NAME, 4.0, lambda: samples_of(self.target, after, folder), sampling.judge),
            sealed.gate(seal),
        ]  # fmt: skip


def greedy_texts(target: Target, state: State, folder: Path) -> list[decode.Text]:
    """Greedy texts of the generation's worker against the plain model in fp32, over every boundary of a cache.

    They may not end early, so that all have their length: what would end one is excluded on both sides. An engine may
    draw it as the last token all the same, which is left out.
    """
    model = plain_model(target)
    ends = Specials.of(Tokenizer.load(Path(target.generation({})["tokenizer"]))).ends
    context, new = model.config.context, decode.NEW_TOKENS
    lengths = [length for length in decode.prompt_lengths(model.config, context=context) if length + new <= context]
    prompts = random_prompts(target, lengths, seed=1)
    greedy = {"temperature": 0.0, "max_tokens": new, "min_tokens": new, "tools": False, "logprobs": False}
    found = written(target, state, folder / "greedy", prompts, greedy)
    return [
        decode.compared(model, prompt, Completion(
            0, ids[:-1], "", [None] * (len(ids) - 1), "length", Usage(len(prompt), len(ids)), [], 0
        ), excluded=ends)
        for prompt, (ids,) in zip(prompts, found, strict=True)
    ]  # fmt: skip


def judge_greedy(texts: Sequence[decode.Text], *, dtype: torch.dtype) -> GateResult:
    """Every token is the plain model's likeliest, or as likely within rounding of the dtype."""
    tolerance = decode.TOLERANCE[dtype]
    name = str(dtype).removeprefix("torch.")
    threshold = Threshold(
        f"every greedy token is the plain fp32 model's likeliest, ties within {tolerance:g} nats aside ({name})", ORIGIN
    )
    num_tokens = sum(len(text.behind) for text in texts)
    if not num_tokens:
        raise NotJudged("no text has a new token", "give prompts that leave room in the context")
    ties = sum(lead <= tolerance for text in texts for lead in text.lead)
    worst = max(behind for text in texts for behind in text.behind)
    evidence = {
        "texts": len(texts), "tokens": num_tokens, "ties": ties, "largest_behind_nats": worst,
        "other_tokens": sum(behind > 0 for text in texts for behind in text.behind),
    }  # fmt: skip
    for text in texts:
        for place, behind in enumerate(text.behind):
            if not behind <= tolerance or math.isnan(behind):
                reason = (
                    f"token {place + 1} after a prompt of {text.prompt_tokens} is {behind:.3g} nats less likely than"
                    " the plain model's choice"
                )
                fix = "take the change back, and look at what is stored and masked at that position"
                return GateResult(GREEDY_NAME, False, reason, threshold, evidence, fix=fix)
    if ties > decode.MAX_TIES * num_tokens:
        reason = f"{ties} of {num_tokens} choices are ties: this model's logits are too equal to show a fault"
        return GateResult(GREEDY_NAME, None, reason, threshold, evidence, fix="train the model first")
    reason = f"{num_tokens} tokens of {len(texts)} texts are the plain model's, {ties} ties"
    return GateResult(GREEDY_NAME, True, reason, threshold, evidence)


def samples_of(target: Target, state: State, folder: Path) -> sampling.FirstTokens:
    """First tokens of many samples, and of greedy ones of one prompt, by the generation's worker."""
    found = first_tokens(target, state, folder)
    prompt = random_prompts(target, [5], seed=2)[0]
    cold = {"temperature": 0.0, "max_tokens": 1, "n": 3, "tools": False, "logprobs": False}
    (same,) = written(target, state, folder / "cold", [prompt], cold)
    return sampling.FirstTokens(
        np.asarray(found.probabilities), (found.tokens,), tuple(ids[0] for ids in same), found.temperature
    )
