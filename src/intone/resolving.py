"""How defaults, presets, earlier runs and flags become the settings of a verb, and where each value came from"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from intone.config import ModelConfig, Preset, model_config
from intone.errors import UserError, unknown_name
from intone.fields import Checked, check_value, kind, shown
from intone.log import table
from intone.mixture import absolute_word

Origin = Literal["default", "preset", "from", "flag", "measured", "cached"]
OPEN_REASON = "settled for this machine at the start"  # of "auto" until it is
S = TypeVar("S", bound=Checked)


@dataclass(frozen=True)
class Resolved:
    """One setting after resolution: its value, the layer that gave it, and why."""

    value: Any
    origin: Origin
    reason: str


@dataclass(frozen=True)
class Layer:
    """Values of one origin, in the order default < preset < from < flag."""

    origin: Origin
    reason: str
    values: Mapping[str, Any]


def resolve(cls: type[S], layers: Sequence[Layer]) -> tuple[S, dict[str, Resolved]]:
    """Defaults overlaid with the layers, the later the stronger -> (settings, where each value came from).

    Raises UserError for a name the class does not have (with the nearest), and for a value of the wrong kind.
    """
    resolved: dict[str, Resolved] = {}
    for name, entry in named_fields(cls).items():
        if entry.default is not dataclasses.MISSING:
            reason = OPEN_REASON if entry.default == "auto" else "default"
            resolved[name] = Resolved(entry.default, "default", reason)
    for layer in layers:
        for name, value in checked_values(cls, layer.values).items():
            resolved[name] = Resolved(value, layer.origin, layer.reason)
    missing = [name for name in named_fields(cls) if name not in resolved]
    if missing:
        raise UserError(
            f"{missing[0]} is missing", value=missing[0], fix=f"give {kind(named_fields(cls)[missing[0]].type)}"
        )
    settings = cls(**{name: entry.value for name, entry in resolved.items()})
    return settings, {name: resolved[name] for name in named_fields(cls)}


def named_fields(cls: type[Checked]) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a settings class in the order people see them: its own before the shared ones."""
    shared = {entry.name for base in cls.__mro__[1:] if issubclass(base, Checked) for entry in dataclasses.fields(base)}
    entries = dataclasses.fields(cls)
    own_first = [e for e in entries if e.name not in shared] + [
        e for e in entries if e.name in shared and e.name != "json"
    ]
    return {e.name: e for e in [*own_first, *(e for e in entries if e.name == "json")]}


def checked_values(cls: type[Checked], values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with lists as tuples, every name and kind checked. Raises UserError."""
    fields = named_fields(cls)
    checked = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown_name("setting", name, fields)
        value = tuple(value) if isinstance(value, list) else value
        check_value(fields[name], value)
        checked[name] = value
    return checked


def inherited(cls: type[Checked], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of an earlier run that `--from RUN` hands on to this verb."""
    fields = named_fields(cls)
    return {name: value for name, value in values.items() if name in fields and fields[name].metadata.get("inherit")}


def as_json(settings: Checked) -> dict[str, Any]:
    """Every setting as JSON holds it: tuples become lists."""
    values = {name: getattr(settings, name) for name in named_fields(type(settings))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def is_free(entry: dataclasses.Field[Any]) -> bool:
    """Whether a run may go on with another value of this setting."""
    return bool(entry.metadata.get("aside") or entry.metadata.get("movable"))


def identity(settings: Checked) -> dict[str, Any]:
    """The settings that make two runs the same run, as JSON; paths that exist are absolute.

    Equal identities: the same command given again goes on with the unfinished run.
    """
    fields = named_fields(type(settings))
    kept = {name: value for name, value in as_json(settings).items() if not is_free(fields[name])}
    return {
        name: [absolute_word(word) for word in value] if isinstance(value, list) else value
        for name, value in kept.items()
    }


def preset_rows(preset: Preset) -> dict[str, Resolved]:
    """What the architecture preset decides, for the table of `--show`."""
    config = model_config(preset, depth=1, vocab_size=1, context=1)
    shape = {"vocab_size", "context", "depth", "width", "num_heads", "num_kv_heads", "head_width"}
    names = [entry.name for entry in dataclasses.fields(ModelConfig) if entry.name not in shape]
    return {name: Resolved(getattr(config, name), "preset", f"architecture {preset}") for name in names}


def show_table(resolved: Mapping[str, Resolved], likely: Mapping[str, Any]) -> str:
    """One line per setting: name, value, origin, and the reason where it says more. likely: what auto will become."""
    rows = []
    for name, entry in resolved.items():
        value, reason = shown(entry.value), "" if entry.reason == entry.origin else entry.reason
        if entry.value == "auto" and not isinstance(likely.get(name), Mapping | None):
            value = f"auto: {shown(likely[name])}"
        rows.append([name, value, entry.origin, reason])
    return table(rows, header=["setting", "value", "origin", "reason"], left=4)
