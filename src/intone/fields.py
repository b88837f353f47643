"""How settings are declared, checked, and put in words: their bounds, flags, help and kinds"""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from intone.errors import UserError, nearest


def setting(
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    aside: bool = False,
    movable: bool = False,
    inherit: bool = False,
    positional: bool = False,
    flag: str | None = None,
) -> Any:
    """A field of a settings class, with what its type cannot say.

    least, most: bounds of a number, inclusive. aside: two runs that differ only here are the same run.
    movable: may be another one each time a run goes on.
    inherit: `--from RUN` hands it on. positional: a word without a flag. flag: its spelling where the name will not do.
    """
    metadata = dict(
        least=least, most=most, aside=aside, movable=movable, inherit=inherit, positional=positional, flag=flag
    )
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Every settings class checks its values, whichever way they came in. Raises UserError."""

    # print the result as JSON on the last line
    json: bool = setting(False, aside=True)
    # print every value with its origin and reason, and the choices of a run that is named, and stop
    show: bool = setting(False, aside=True)

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            check_value(entry, getattr(self, entry.name))


def check_value(entry: dataclasses.Field[Any], value: Any) -> None:
    """Raises UserError unless the value is of the field's kind and within its bounds."""
    if not _accepts(entry.type, value):
        words = words_of(entry.type)
        guess = nearest(value, words) if isinstance(value, str) else None
        raise UserError(
            f"{entry.name} {value!r} is not {kind(entry.type)}",
            value=value,
            fix=f"did you mean {guess!r}?" if guess else None,
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    least, most = entry.metadata.get("least"), entry.metadata.get("most")
    if least is not None and value < least:
        bound, fix = f"at least {least:g}", f"use {least:g} or more"
    elif most is not None and value > most:
        bound, fix = f"at most {most:g}", f"use {most:g} or less"
    else:
        return
    words = words_of(entry.type)
    raise UserError(f"{entry.name} is {value:g}, it must be {bound}", value=value, fix=", or ".join([fix, *words[:1]]))


def shown(value: Any) -> str:
    """A value as a person writes it: none for off, yes and no, lists with spaces."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value))
    return str(value)


def flag_of(entry: dataclasses.Field[Any]) -> str:
    """How a field is written on the command line: --device-batch, or STAGE where it stands without a flag."""
    if entry.metadata.get("positional"):
        return entry.name.upper()
    return "--" + (entry.metadata.get("flag") or entry.name.replace("_", "-"))


def kind(annotation: Any) -> str:
    """A type in words: "a number or auto", "one of fp32, bf16"."""
    words = words_of(annotation)
    kinds = {int: "a whole number", float: "a number", str: "a text", bool: "yes or no", types.NoneType: "none"}
    alternatives = [kinds[part] for part in _parts(annotation) if part in kinds and part is not types.NoneType]
    if typing.get_origin(annotation) is tuple:
        return f"a list, each {kind(typing.get_args(annotation)[0])}"
    if words:
        alternatives.append(words[0] if len(words) == 1 else f"one of {', '.join(words)}")
    if types.NoneType in _parts(annotation):
        alternatives.append("none")
    return " or ".join(alternatives)


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; a single type is its own only alternative."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def words_of(annotation: Any) -> list[str]:
    """The words that a setting of this type can be: auto, on, off."""
    parts = typing.get_args(annotation)[:1] if typing.get_origin(annotation) is tuple else _parts(annotation)
    return [word for part in parts if typing.get_origin(part) is Literal for word in typing.get_args(part)]


def _accepts(annotation: Any, value: Any) -> bool:
    for part in _parts(annotation):
        origin = typing.get_origin(part)
        if origin is Literal and isinstance(value, str) and value in typing.get_args(part):
            return True
        if origin is tuple and isinstance(value, tuple) and all(_accepts(typing.get_args(part)[0], v) for v in value):
            return True
        if part is types.NoneType and value is None:
            return True
        if part is bool and isinstance(value, bool):
            return True
        if part is str and isinstance(value, str) and value:
            return True
        if part in (int, float) and isinstance(value, int) and not isinstance(value, bool):
            return True
        if part is float and isinstance(value, float) and value == value and abs(value) != float("inf"):
            return True
    return False


def help_of(cls: type) -> dict[str, str]:
    """Field -> the comment above it, or at the end of its line, joined to one text; classes below included."""
    texts: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        source = textwrap.dedent(inspect.getsource(owner))
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
        comments = {token.start[0]: token.string.lstrip("# ") for token in tokens}
        alone = {token.start[0] for token in tokens if token.line.lstrip().startswith("#")}
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                first = node.lineno
                while first - 1 in alone:
                    first -= 1
                lines = [comments[n] for n in range(first, (node.end_lineno or node.lineno) + 1) if n in comments]
                texts[node.target.id] = " ".join(lines)
    return texts


def metavar(annotation: Any) -> str:
    """A type as `--help` shows it beside a flag: INT|auto, auto|on|off, TEXT."""
    kinds = {int: "INT", float: "FLOAT", str: "TEXT"}
    if typing.get_origin(annotation) is tuple:
        return metavar(typing.get_args(annotation)[0])
    names = [kinds[part] for part in _parts(annotation) if part in kinds]
    return "|".join([*names, *words_of(annotation), *(["none"] if type(None) in _parts(annotation) else [])])
