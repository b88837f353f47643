"""docs/MAP.md from the first lines of the module docstrings: `python -m tests.make_map [--check]`."""

import ast
import functools
import sys
from pathlib import Path

from tests.layers import LAYERS

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = REPOSITORY / "src" / "intone"
MAP = REPOSITORY / "docs" / "MAP.md"
HEAD = """# Map

What every module is for, low to high: each imports only from its own line of tests/layers.py and from those above it.
Made from the first lines of the docstrings by `python -m tests.make_map`; a test compares.

```
src/intone/
"""


@functools.cache
def first_line(path: Path) -> str:
    """The first line of a module's docstring. Raises ValueError where it has none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path.relative_to(REPOSITORY)} has no docstring that says why it exists")
    return docstring.splitlines()[0].rstrip(".")


def entries(folder: Path, depth: int) -> list[tuple[str, str]]:
    """(indented name, first line) of a package's modules, then of its packages, by name."""
    rows = []
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            rows.append(("  " * depth + path.name, first_line(path)))
    for package in sorted(path.parent for path in folder.glob("*/__init__.py")):
        rows += [("  " * depth + package.name + "/", first_line(package / "__init__.py")), *entries(package, depth + 1)]
    return rows


def top_entries() -> list[tuple[str, str]]:
    """As entries, for src/intone itself in the order of the layers. Raises ValueError for a module without a layer."""
    rows = []
    placed = [name for layer in LAYERS for name in layer]
    for path in sorted(SOURCE.iterdir()):
        name = path.stem if path.suffix == ".py" else path.name
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and name not in placed:
            raise ValueError(f"{path.relative_to(REPOSITORY)} has no layer in tests/layers.py")
    for name in placed:
        module, package = SOURCE / f"{name}.py", SOURCE / name
        if module.exists():
            rows.append((f"  {name}.py", first_line(module)))
        elif (package / "__init__.py").exists():
            rows += [(f"  {name}/", first_line(package / "__init__.py")), *entries(package, 2)]
    return rows


def map_text() -> str:
    """The whole of docs/MAP.md."""
    rows = top_entries()
    width = max(len(name) for name, _ in rows)
    return HEAD + "".join(f"{name:<{width}}  {line}\n" for name, line in rows) + "```\n"


def main() -> int:
    """Writes the map, or with --check compares: exit 1 where it is old."""
    text = map_text()
    if "--check" in sys.argv[1:]:
        if MAP.exists() and MAP.read_text(encoding="utf-8") == text:
            return 0
        print("docs/MAP.md is not current: run python -m tests.make_map")
        return 1
    MAP.parent.mkdir(exist_ok=True)
    MAP.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
