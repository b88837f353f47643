"""A new preset of our model, for --preset NAME: one that is there with some values changed."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

from intone.config import ModelConfig, model_config
from intone.errors import UserError, unknown_name
from intone.optimise.planner.document import Decision, FeaturePlan
from intone.optimise.planner.templates.template import Template, Written, create, place_of, replace_once

CONFIG = "src/intone/config.py"
ASKED = re.compile(r"\bpreset\b|\btraining config\b|\bmodel config\b", re.I)
NAMED = re.compile(r"(?:preset|config)\s+(?:called\s+|named\s+)?[\"'`]?([a-z][a-z0-9_-]*)", re.I)
VALUE = re.compile(r"\b([a-z_]+)\s*=\s*([^\s,;]+)")
# what every preset gets from elsewhere: the tokenizer and the size that a run asks for
OF_A_RUN = ("vocab_size", "context", "depth", "width", "num_heads", "num_kv_heads", "head_width")
EXAMPLE = 'intone plan "add a training preset lean: classic with rope_base=50000"'


def match(text: str, root: Path) -> Template | None:
    """The template for a text that asks for a preset. Raises UserError where it lacks a name or values."""
    if not (ASKED.search(text) and (root / CONFIG).is_file()):
        return None
    named = NAMED.search(text)
    if named is None or named[1] in ("for", "with", "of", "and", "to"):
        raise UserError("the preset has no name", value=text, fix=EXAMPLE)
    name = named[1].lower()
    known = presets_of(root)
    if name in known:
        raise UserError(f"there is a preset {name} already: {place_of(root, CONFIG, 'Preset = Literal')}", value=name,
                        fix="choose another name")  # fmt: skip
    values = values_in(text)
    if not values:
        raise UserError(f"the text says nothing that preset {name} does differently", value=text, fix=EXAMPLE)
    rest = text[named.end() :]
    base = next((one for one in known if re.search(rf"\b{one}\b", rest)), known[0])
    return Template(plan_of(text, root, name, base, values), lambda folder: write(folder, name, base, values))


def presets_of(root: Path) -> list[str]:
    """The names of the presets that the code has. Raises UserError where they do not stand where they should."""
    found = re.search(r"^Preset = Literal\[(.*)\]$", (root / CONFIG).read_text(encoding="utf-8"), re.M)
    if found is None:
        raise UserError(f"{CONFIG} does not say which presets there are", value=CONFIG, fix="use --model")
    return [str(ast.literal_eval(word.strip())) for word in found[1].split(",")]


def values_in(text: str) -> dict[str, Any]:
    """name=value pairs of a model's settings. Raises UserError for an unknown name or a value of another kind."""
    fields = {entry.name: entry for entry in dataclasses.fields(ModelConfig) if entry.name not in OF_A_RUN}
    usual = model_config("modern", depth=2, vocab_size=300, context=64)
    values = {}
    for name, word in VALUE.findall(text):
        if name not in fields:
            raise unknown_name("setting of a preset", name, fields)
        known = getattr(usual, name)
        values[name] = read_value(name, word, known)
    try:
        dataclasses.replace(usual, **values)
    except (ValueError, AssertionError) as problem:
        raise UserError(f"no model has these values together: {problem}", value=str(values)) from problem
    return values


def read_value(name: str, word: str, known: Any) -> Any:
    """A word as a value of the kind that a setting has. Raises UserError."""
    wanted = type(known) if known is not None else int
    try:
        if wanted is bool:
            return {"true": True, "on": True, "false": False, "off": False}[word.lower()]
        return wanted(word.replace("_", "")) if wanted in (int, float) else str(word.strip("\"'"))
    except (ValueError, KeyError):
        raise UserError(
            f"{name}={word} is no {wanted.__name__}", value=word, fix=f"for example {name}={known}"
        ) from None


def plan_of(text: str, root: Path, name: str, base: str, values: dict[str, Any]) -> FeaturePlan:
    shown = ", ".join(f"{key}={value!r}" for key, value in values.items())
    return FeaturePlan(
        text=text, root=str(root), kind="preset",
        read=(
            place_of(root, CONFIG, "Preset = Literal"), place_of(root, CONFIG, "def model_config"),
            place_of(root, "src/intone/settings.py", "    preset: Preset"),
            place_of(root, "src/intone/exchange/plain_folder.py", "preset="),
        ),
        decided=(
            Decision("What is it laid over?", base, "The text names it, or it is the first preset"),
            Decision("What is different?", shown, "The values that the text gives, and nothing else"),
            Decision("Which size?", "whatever a run asks for", "--depth, --context, --vocab-size stay flags"),
            Decision("Rates and schedule?", "the usual recipe", "It was tuned for the other presets: see risks"),
        ),
        tasks=(f"add {name} to the names of presets", "build its model", "test its values and that it learns"),
        files=(CONFIG, tests_file(name)),
        interfaces=(f"intone run --preset {name}", f'model_config("{name}", depth=..., vocab_size=..., context=...)'),
        risks=("learning rates were found for other models: a run may do worse with the same steps",
               "export to transformers knows classic alone and refuses the rest by name"),
        tests=(tests_file(name), "tests/test_config.py"),
        gates=("G1 other presets are what they were", "G2 the tests", "quality: bits per byte after equal tokens"),
        effect="another model under a name; whether it is better is not measured yet",
    )  # fmt: skip


def tests_file(name: str) -> str:
    return f"tests/test_preset_{name.replace('-', '_')}.py"


def write(root: Path, name: str, base: str, values: dict[str, Any]) -> Written:
    """Makes the change in a copy of our code base. Raises UserError where the code is not as known."""
    known = presets_of(root)
    old = ", ".join(f'"{one}"' for one in known)
    replace_once(root, CONFIG, f"Preset = Literal[{old}]\n", f'Preset = Literal[{old}, "{name}"]\n')
    replace_once(root, CONFIG, f'    raise unknown_name("preset", preset, ({old}))\n', (
        f'    if preset == "{name}":\n'
        f'        base = model_config("{base}", depth=depth, vocab_size=vocab_size, context=context,\n'
        "                            head_width=head_width, num_kv_heads=num_kv_heads)  # fmt: skip\n"
        f"        return dataclasses.replace(base, {pairs(values, '=')})\n"
        f'    raise unknown_name("preset", preset, ({old}, "{name}"))\n'
    ))  # fmt: skip
    replace_once(root, CONFIG, "and the two architecture presets", "and the architecture presets")
    quoted = "{" + ", ".join(f'"{key}": {shown(value)}' for key, value in values.items()) + "}"
    create(root, tests_file(name), TEST_MODULE.replace("NAME", name).replace("BASE", base)
           .replace("VALUES", quoted))  # fmt: skip
    return Written(f"Add the preset {name}", f"{base} with {pairs(values, ' ')}.",
                   (tests_file(name), "tests/test_config.py"))  # fmt: skip


def pairs(values: dict[str, Any], between: str) -> str:
    return ", ".join(f"{key}{between}{shown(value)}" for key, value in values.items())


def shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


TEST_MODULE = '''"""The preset NAME: BASE with some values changed, and a model that learns."""

import dataclasses

import torch

from intone.config import ModelConfig, model_config
from intone.model.gpt import GPT

CHANGED = VALUES
SHAPE = {"depth": 1, "vocab_size": 61, "context": 16}


def test_it_differs_from_its_base_in_these_values_alone():
    base = model_config("BASE", **SHAPE)
    assert model_config("NAME", **SHAPE) == dataclasses.replace(base, **CHANGED)
    assert {name: getattr(model_config("NAME", **SHAPE), name) for name in CHANGED} == CHANGED


def test_it_comes_back_from_disk():
    config = model_config("NAME", **SHAPE)
    assert ModelConfig.from_json(config.as_json()) == config


def test_it_learns_a_row_by_heart():
    model = GPT(model_config("NAME", **SHAPE))
    model.init_weights(0)
    model.compute_dtype = torch.float32
    ids = torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(8):
        loss_sum, count = model(ids[:, :-1], ids[:, 1:])
        (loss_sum / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss_sum.detach()) / float(count))
    assert losses[-1] < losses[0]
'''
