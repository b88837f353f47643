"""What a person writes behind --data: names, paths and weights, told apart before anything is read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from intone.errors import UserError

STARTER = "starter"
PUBLIC = ("climbmix", "fineweb-edu", "smoltalk", "tinystories")
NAMED = (STARTER, *PUBLIC)  # also where a file or folder of that name exists: ./tinystories means the folder
WEIGHTED = re.compile(r"(?P<name>.+):(?P<weight>[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|nan|[-+]?inf)", re.IGNORECASE)


@dataclass(frozen=True)
class Ingredient:
    """One name or path of a mixture, with the weight that was written behind it."""

    name: str  # a word of NAMED, or a file, folder or glob as it was written
    weight: float | None = None

    @property
    def is_named(self) -> bool:
        return self.name in NAMED


@dataclass(frozen=True)
class Portion:
    """What is read as one set: a named set, or files and folders together."""

    names: tuple[str, ...]
    share: float  # of the tokens, 0..1; all portions of a mixture add up to 1

    @property
    def name(self) -> str | None:
        """The word of NAMED that this portion is; None for files."""
        return self.names[0] if self.names[0] in NAMED else None

    @property
    def label(self) -> str:
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} and {len(self.names) - 1} more"


@dataclass(frozen=True)
class Mixture:
    """All portions, and what should be said about their shares where they are not what was written."""

    portions: tuple[Portion, ...]
    note: str | None = None


def parse_mixture(words: Sequence[str]) -> Mixture:
    """Words of --data -> portions with their shares of the tokens.

    A word is NAME, PATH, either with :WEIGHT behind it, or several of these with commas between. What exists on
    disk as it is written is a path, whatever colons and commas it holds. Weights are shares of tokens; where they
    do not add up to 1 they are divided by their sum. Without weights all files are one portion, by their size, and
    named sets and that portion have equal shares.
    Raises UserError for an empty name, a name given twice, weights on some names only, or one that is not above 0.
    """
    ingredients = [ingredient for word in words for ingredient in read_word(word)]
    if not ingredients:
        known = ", ".join(NAMED)
        raise UserError("no data is named", value=list(words), fix=f"name a file, a folder or one of {known}")
    names = [ingredient.name for ingredient in ingredients if ingredient.is_named or ingredient.weight is not None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice", value=twice, fix="name it once, with its whole weight")
    weights = [ingredient.weight for ingredient in ingredients]
    if all(weight is None for weight in weights):
        return _unweighted([ingredient.name for ingredient in ingredients])
    bare = next((ingredient.name for ingredient in ingredients if ingredient.weight is None), None)
    if bare is not None:
        raise UserError(f"{bare} has no weight while others have one", value=bare, fix=f"for example {bare}:0.5")
    return _weighted(ingredients)


def absolute_word(word: str) -> str:
    """The same word with every path that exists made absolute, so that it means the same from everywhere."""
    try:
        ingredients = read_word(word)
    except UserError:
        return word
    return ",".join(_absolute(ingredient) for ingredient in ingredients)


def read_word(word: str) -> list[Ingredient]:
    """The ingredients that one word of the command line names. Raises UserError for an empty one."""
    if not word.strip():
        raise UserError("an empty path was given", value=word, fix="name a file or a folder with text")
    pieces = word.split(",")
    ingredients = []
    begin = 0
    while begin < len(pieces):
        # the longest stretch that exists as one path; a comma inside a name is rare, but it must not be cut
        ends = range(len(pieces), begin + 1, -1)
        end = next((end for end in ends if _exists(",".join(pieces[begin:end]))), begin + 1)
        ingredients.append(_ingredient(",".join(pieces[begin:end]), word))
        begin = end
    return ingredients


def _ingredient(text: str, word: str) -> Ingredient:
    if not text.strip():
        raise UserError(
            f"{word!r} has an empty name between its commas", value=word, fix="write NAME:WEIGHT,NAME:WEIGHT"
        )
    found = WEIGHTED.fullmatch(text)
    if text in NAMED or found is None or Path(text).expanduser().exists():
        return Ingredient(text)
    weight = float(found["weight"])
    if not 0 < weight < float("inf"):
        raise UserError(f"the weight of {found['name']} is {found['weight']}", value=weight, fix="use a number above 0")
    return Ingredient(found["name"], weight)


def _exists(text: str) -> bool:
    found = WEIGHTED.fullmatch(text)
    return any(Path(part).expanduser().exists() for part in (text, found["name"] if found else "") if part)


def _unweighted(names: Sequence[str]) -> Mixture:
    files = tuple(name for name in names if name not in NAMED)
    groups = [(name,) for name in names if name in NAMED] + ([files] if files else [])
    portions = tuple(Portion(group, 1 / len(groups)) for group in groups)
    if len(groups) == 1:
        return Mixture(portions)
    example = ",".join(f"{portion.names[0]}:{portion.share:.2g}" for portion in portions)
    return Mixture(portions, f"no weights are given: {_shares(portions)} of the tokens; others: --data {example}")


def _weighted(ingredients: Sequence[Ingredient]) -> Mixture:
    weights = [ingredient.weight or 0.0 for ingredient in ingredients]
    total = sum(weights)
    portions = tuple(
        Portion((ingredient.name,), weight / total) for ingredient, weight in zip(ingredients, weights, strict=True)
    )
    if abs(total - 1) < 1e-6:
        return Mixture(portions)
    return Mixture(portions, f"the weights add up to {total:g}, not to 1: {_shares(portions)} of the tokens")


def _shares(portions: Sequence[Portion]) -> str:
    return ", ".join(f"{portion.label} {100 * portion.share:.3g}%" for portion in portions)


def _absolute(ingredient: Ingredient) -> str:
    path = Path(ingredient.name).expanduser()
    name = ingredient.name
    if not ingredient.is_named and path.exists():
        name = str(path.absolute())
    return name if ingredient.weight is None else f"{name}:{ingredient.weight:g}"
