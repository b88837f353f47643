"""A new option of sampling for our engine: a field of a request, a filter on logits, and its tests."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from intone.errors import UserError
from intone.optimise.planner.document import Decision, FeaturePlan
from intone.optimise.planner.templates.template import Template, Written, create, place_of, replace_once

REQUESTS = "src/intone/engine/requests.py"
ADJUST = "src/intone/engine/adjust.py"
ASKED = re.compile(r"sampl|decod|filter|\btop[- _]|tail[- _]free|typical|min[- _]p|penalt|temperature", re.I)


@dataclass(frozen=True)
class Sampler:
    """A filter that the templates know. body: what computes `kept` from weights (B, V), the probabilities of a row at
    its temperature, logits (B, V) and value (B, 1)."""

    field: str  # of a request, and of the module
    words: str  # how a person asks for it
    off: float
    high: float
    example: float
    strict: float  # leaves out much even of a flat distribution, for a test
    says: str
    source: str
    body: str
    reference: str  # plain Python over a list p of one row's probabilities and its logits x -> set of ids


SORTED_NOTE = "# equal tokens share one fate: what is kept is said by a bound, not by an order\n"
SAMPLERS = (
    Sampler(
        "top_a", r"top[- _]?a\b", 0.0, 1.0, 0.3, 1.0,
        "a token is kept if its probability is at least top_a times the square of the likeliest one's",
        "BlinkDL 2021, RWKV-LM, 'top-a sampling'",
        "    highest = weights.amax(-1, keepdim=True)\n    kept = weights >= value * highest * highest\n",
        "    return {i for i, one in enumerate(p) if one >= value * max(p) ** 2}\n",
    ),
    Sampler(
        "top_n_sigma", r"top[- _]?n[- _]?(sigma|σ)", 0.0, 100.0, 1.0, 0.5,
        "a token is kept if its logit is within top_n_sigma standard deviations of the largest one",
        "Tang et al. 2024, 'Top-nσ: Not All Logits Are You Need'",
        "    # a logit of -inf is no token: it counts neither for the mean nor for the deviation\n"
        "    real = logits.isfinite()\n    count = real.sum(-1, keepdim=True).clamp(min=1)\n"
        "    mean = logits.masked_fill(~real, 0.0).sum(-1, keepdim=True) / count\n"
        "    spread = ((logits - mean).masked_fill(~real, 0.0) ** 2).sum(-1, keepdim=True).div(count).sqrt()\n"
        "    kept = logits >= logits.amax(-1, keepdim=True) - value * spread\n",
        "    mean = sum(x) / len(x)\n    sigma = (sum((one - mean) ** 2 for one in x) / len(x)) ** 0.5\n"
        "    return {i for i, one in enumerate(x) if one >= max(x) - value * sigma}\n",
    ),
    Sampler(
        "typical_p", r"typical([- _]?p)?\b", 1.0, 1.0, 0.5, 0.1,
        "tokens are kept whose surprise is nearest to the expected one, until they have typical_p of the probability",
        "Meister et al. 2022, 'Locally Typical Sampling'",
        "    surprise = -weights.clamp(min=torch.finfo(weights.dtype).tiny).log()\n"
        "    expected = (weights * surprise).sum(-1, keepdim=True)\n"
        "    distance = (surprise - expected).abs()\n"
        "    ordered, order = distance.sort(-1)\n    share = weights.gather(-1, order).cumsum(-1)\n"
        "    last = (share < value).sum(-1, keepdim=True).clamp(max=weights.shape[-1] - 1)\n    " + SORTED_NOTE +
        "    kept = distance <= ordered.gather(-1, last)\n",
        "    h = -sum(one * math.log(one) for one in p)\n    far = [abs(-math.log(one) - h) for one in p]\n"
        "    share, bound = 0.0, 0.0\n    for i in sorted(range(len(p)), key=lambda i: far[i]):\n"
        "        share, bound = share + p[i], far[i]\n        if share >= value:\n            break\n"
        "    return {i for i in range(len(p)) if far[i] <= bound}\n",
    ),
    Sampler(
        "tail_free", r"tail[- _]?free|\btfs\b", 1.0, 1.0, 0.6, 0.1,
        "tokens are cut off where the curve of sorted probabilities has tail_free of its curvature behind it",
        "Phénix and Egan 2019, 'Tail Free Sampling'",
        "    ordered = weights.sort(-1, descending=True).values\n"
        "    bends = ordered.diff(dim=-1).diff(dim=-1).abs()\n"
        "    total = bends.sum(-1, keepdim=True)\n"
        "    # the last token in front of the tail; a straight line has no tail\n"
        "    last = (bends.cumsum(-1) <= value * total).sum(-1, keepdim=True).clamp(max=weights.shape[-1] - 1)\n"
        "    last = torch.where(total > 0, last, weights.shape[-1] - 1)\n    " + SORTED_NOTE +
        "    kept = weights >= ordered.gather(-1, last)\n",
        "    q = sorted(p, reverse=True)\n    d = [b - a for a, b in zip(q, q[1:], strict=False)]\n"
        "    bends = [abs(b - a) for a, b in zip(d, d[1:], strict=False)]\n    share, last = 0.0, 0\n"
        "    for one in bends:\n"
        "        share += one\n        if share > value * sum(bends):\n            break\n        last += 1\n"
        "    return {i for i, one in enumerate(p) if one >= q[last]}\n",
    ),
)  # fmt: skip
# names that people use for what our engine has under a name of its own
KNOWN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def match(text: str, root: Path) -> Template | None:
    """The template for a text that asks for one of SAMPLERS. Raises UserError where the engine has it already."""
    if not ASKED.search(text) or not (root / REQUESTS).is_file():
        return None
    fields = (root / REQUESTS).read_text(encoding="utf-8")
    for sampler in SAMPLERS:
        if re.search(sampler.words, text, re.I) and not has_field(fields, sampler.field):
            return Template(plan_of(sampler, text, root), partial(write, sampler=sampler))
    for name in [*KNOWN, *(sampler.field for sampler in SAMPLERS)]:
        if re.search(r"\b" + name.replace("_", "[- _]?") + r"\b", text, re.I) and has_field(fields, name):
            raise UserError(
                f"the engine has {name} already: {place_of(root, REQUESTS, f'    {name}: ')}", value=text,
                fix="intone plan without a text lists what is missing",
            )  # fmt: skip
    return None


def has_field(text: str, name: str) -> bool:
    return re.search(rf"^    {name}: ", text, re.M) is not None


def plan_of(sampler: Sampler, text: str, root: Path) -> FeaturePlan:
    name = sampler.field
    return FeaturePlan(
        text=text, root=str(root), kind="sampler",
        read=(
            place_of(root, REQUESTS, "    min_p: "), place_of(root, REQUESTS, "def has_penalties"),
            place_of(root, ADJUST, "def adjusted"), place_of(root, "src/intone/engine/runner.py", "adjuster.adjusted"),
            place_of(root, "src/intone/engine/scheduler.py", "has_penalties"),
        ),
        decided=(
            Decision("What does the option mean?", sampler.says, f"Source: {sampler.source}"),
            Decision("Which value switches it off?", f"{sampler.off:g}, the default", "Old requests give the same"),
            Decision("Where in the order of filters?", "after penalties, biases and forms, before top_k",
                     "The adjuster sees every row with its request; the draw itself keeps its fast paths"),
            Decision("At which temperature?", "the request's own", "The filters behind it see the same probabilities"),
            Decision("What at temperature 0?", "nothing", "The likeliest token is taken, and a filter could remove it"),
            Decision("Does guessing ahead still work?", "yes", "The filter looks at one row's logits alone"),
            Decision("Is it offered over HTTP?", "not by this change", "OpenAI's API has no such field"),
        ),
        tasks=(
            f"add Request.{name}, checked and documented", f"write engine/{name}.py: the filter on logits (B, V)",
            "let the adjuster apply it to the rows that ask for it, and to no others", "test it against plain Python",
        ),
        files=(REQUESTS, ADJUST, f"src/intone/engine/{name}.py", f"tests/engine/test_{name}.py"),
        interfaces=(
            f"Request({name}={sampler.example:g})",
            f"intone.engine.{name}.filtered(logits (B, V), temperatures, values) -> (B, V), -inf where left out",
        ),
        risks=("rows that ask for it cost a softmax over the vocabulary (and a sort, where the option needs one)",
               "a batch's other rows must not change: a test compares them bit by bit"),
        tests=(f"tests/engine/test_{name}.py", "tests/engine/test_requests.py", "tests/engine/test_sample.py"),
        gates=("G2 the tests", "G5 answers without the option are token by token what they were"),
        effect="answers that ask for it change in kind; speed without it is unchanged, with it not measured yet",
    )  # fmt: skip


def write(root: Path, sampler: Sampler) -> Written:
    """Makes the change in a copy of our code base. Raises UserError where the code is not as known."""
    name = sampler.field
    replace_once(
        root, REQUESTS, "    min_tokens: int = 0\n", f"    min_tokens: int = 0\n    {name}: float = {sampler.off!r}\n"
    )
    replace_once(
        root, REQUESTS, "    logit_bias is added, -inf excludes a token.",
        f"    {name} {sampler.off:g} leaves nothing out; else {wrapped(sampler.says)};\n"
        "    it comes before the filters and does nothing at temperature 0.\n"
        "    logit_bias is added, -inf excludes a token.",
    )  # fmt: skip
    check = (
        f'        _check_number("{name}", self.{name}, low=0.0, high={sampler.high!r},'
        f' fix="{sampler.off:g} leaves nothing out")\n'
    )
    replace_once(
        root,
        REQUESTS,
        "        tool_names(self.tools)\n        if",
        check + "        tool_names(self.tools)\n        if",
    )
    if sampler.off == 1.0:  # a share: none of it would leave no token
        replace_once(
            root, REQUESTS, "        if self.repetition_penalty == 0:",
            f"        if self.{name} == 0:\n"
            f'            raise UserError("{name} 0 keeps no token", value=0, fix="1 leaves nothing out")\n'
            "        if self.repetition_penalty == 0:",
        )  # fmt: skip
    replace_once(
        root, ADJUST, "from intone.engine.rows import Row\n",
        f"from intone.engine import {name}\nfrom intone.engine.rows import Row\n",
    )  # fmt: skip
    replace_once(
        root, ADJUST, "        if not penalised and not biased and not masks:\n",
        f"        requests = [row.group.request for row in rows]\n"
        f"        asked = [i for i, one in enumerate(requests) if one.{name} != {sampler.off!r}]\n"
        "        narrowed = [i for i in asked if requests[i].temperature > 0]\n"
        "        if not penalised and not biased and not masks and not narrowed:\n",
    )  # fmt: skip
    replace_once(
        root, ADJUST, "            logits[i].masked_fill_(torch.from_numpy(~mask).to(self._device), -torch.inf)\n"
        "        return logits\n",
        "            logits[i].masked_fill_(torch.from_numpy(~mask).to(self._device), -torch.inf)\n"
        "        if narrowed:\n"
        "            index = torch.tensor(narrowed, device=self._device)\n"
        "            temperatures = [requests[i].temperature for i in narrowed]\n"
        f"            values = [requests[i].{name} for i in narrowed]\n"
        f"            logits[index] = {name}.filtered(logits[index], temperatures, values)\n"
        "        return logits\n",
    )  # fmt: skip
    # an option that looks at logits alone needs no probabilities
    weights = WEIGHTS if "weights" in sampler.body else ""
    plain = PLAIN_LIST if re.search(r"\bp\b", sampler.reference) else ""
    create(root, f"src/intone/engine/{name}.py", MODULE.format(name=name, says=wrapped(sampler.says),
                                                              source=sampler.source,
                                                              body=weights + sampler.body))  # fmt: skip
    math = "import math\n\n" if "math." in sampler.reference else ""
    ours = sorted(["from intone.engine.engine import Engine", f"from intone.engine.{name} import filtered",
                   "from intone.engine.requests import Request", "from intone.errors import UserError"])  # fmt: skip
    create(root, f"tests/engine/test_{name}.py", TESTS.replace("IMPORTS", "\n".join(ours)).replace("NAME", name)
           .replace("import pytest\n", f"{math}import pytest\n", 1)
           .replace("OFF", repr(sampler.off))
           .replace("HIGH", f"{sampler.high + 0.5:g}").replace("EXAMPLE", repr(sampler.example))
           .replace("STRICT", repr(sampler.strict))
           .replace("REFERENCE", (plain + sampler.reference).rstrip("\n")))  # fmt: skip
    tests = (f"tests/engine/test_{name}.py", "tests/engine/test_requests.py", "tests/engine/test_sample.py")
    why = f"{sampler.says[0].upper()}{sampler.says[1:]}\n({sampler.source})."
    return Written(f"Add {name} to the options of sampling", why, tests)


def wrapped(text: str) -> str:
    """The text on lines of a docstring."""
    half = text.rfind(" ", 0, 78)
    return text if len(text) < 80 else f"{text[:half]}\n    {text[half + 1 :]}"


WEIGHTS = """    scale = torch.tensor(temperatures, dtype=logits.dtype, device=logits.device)[:, None]
    weights = ((logits - logits.amax(-1, keepdim=True)) / scale).softmax(-1)
"""
PLAIN_LIST = "    p = torch.tensor(x, dtype=torch.float64).div(temperature).softmax(-1).tolist()\n"

MODULE = '''"""The option {name} of sampling, as a filter on logits."""

from collections.abc import Sequence

import torch
from torch import Tensor


def filtered(logits: Tensor, temperatures: Sequence[float], values: Sequence[float]) -> Tensor:
    """logits (B, V) with -inf where a row leaves a token out; temperatures > 0 and values of {name}, B of each.

    {says}.
    Source: {source}.
    The likeliest token is kept where nothing else would be.
    """
    value = torch.tensor(values, dtype=logits.dtype, device=logits.device)[:, None]
{body}    kept |= (logits == logits.amax(-1, keepdim=True)) & ~kept.any(-1, keepdim=True)
    return logits.masked_fill(~kept, -torch.inf)
'''

TESTS = '''"""NAME leaves out what its definition leaves out, in the rows that ask for it and in no other."""

import pytest
import torch

IMPORTS


def kept_plainly(x, temperature, value):
    """The definition in plain Python, over one row's logits -> set of ids."""
REFERENCE


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.9])
def test_it_keeps_what_the_definition_keeps(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 61, generator=generator, dtype=torch.float64) * 3
    found = filtered(logits, [temperature] * 5, [EXAMPLE] * 5)
    left_out = 0
    for row, kept in zip(logits.tolist(), found.isfinite(), strict=True):
        ids = set(kept.nonzero()[:, 0].tolist())
        assert ids == kept_plainly(row, temperature, EXAMPLE)
        left_out += 61 - len(ids)
    assert left_out > 0
    assert torch.equal(found[found.isfinite()], logits[found.isfinite()])


def test_impossible_tokens_stay_impossible_and_one_token_is_left():
    logits = torch.full((1, 9), -torch.inf, dtype=torch.float64)
    logits[0, 4] = 2.0
    assert filtered(logits, [1.0], [EXAMPLE]).isfinite().nonzero().tolist() == [[0, 4]]


@pytest.mark.parametrize("value", [-0.1, HIGH, float("nan"), "x"])
def test_values_out_of_range_are_refused(value):
    with pytest.raises(UserError, match="NAME"):
        Request([1], NAME=value)


def test_a_row_without_it_draws_the_same_beside_one_with_it(random_model, byte_tokenizer):
    model = random_model(vocab_size=265, depth=1, scale=0.2)
    plain, narrow = (Request([5, 9, 17], 12, seed=3, temperature=1.0, NAME=value) for value in (OFF, STRICT))
    with Engine(model, byte_tokenizer) as engine:
        alone = engine.generate([plain])[0][0].ids
        together = [samples[0].ids for samples in engine.generate([plain, narrow])]
        asked = [Request([5, 9, 17], 12, temperature=0.0, NAME=value) for value in (OFF, STRICT)]
        greedy = [samples[0].ids for samples in engine.generate(asked)]
    assert together[0] == alone
    assert together[1] != alone  # the option is heard
    assert greedy[0] == greedy[1]
'''
