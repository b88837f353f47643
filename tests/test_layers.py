"""Imports go downward only, and what must start fast or run bare does not import more than it may."""

import ast
import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from intone.bench.gpu_suites import SUITES
from tests.layers import LAYERS, LAZY_DOORS, STRANGERS
from tests.make_map import SOURCE

LEVEL = {name: number for number, layer in enumerate(LAYERS) for name in layer}
# a bare GPU image has these and what they bring themselves
BARE = {"torch", "triton", "numpy", "tokenizers", "tiktoken", "safetensors", "pyarrow"}
HEAVY = ["torch", "numpy", "transformers", "tokenizers", "pyarrow", "matplotlib", "fastapi", "huggingface_hub"]


def test_every_import_goes_to_the_same_layer_or_a_lower_one():
    assert [line for path in sorted(SOURCE.rglob("*.py")) for line in upward(path, path.read_text())] == []


@pytest.mark.parametrize(
    ("place", "statement"),
    [
        ("model/gpt.py", "from intone.data.pack import pack"),
        ("worker.py", "import intone.tune.settle"),
        ("errors.py", "def f():\n    from intone import records"),
        ("train/loop.py", "def f():\n    def g():\n        import intone.jobs"),
        ("__init__.py", "from intone import cli"),
    ],
)
def test_an_upward_import_is_found_wherever_it_stands(place, statement):
    assert len(upward(SOURCE / place, statement)) == 1


@pytest.mark.parametrize(
    "statement", ["from intone import __version__", "import intone", "from intone.model import gpt"]
)
def test_a_downward_import_is_no_finding(statement):
    assert upward(SOURCE / "engine/engine.py", statement) == []


def test_every_import_of_our_own_is_absolute():
    relative = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in SOURCE.rglob("*.py")
        for node in imports(path.read_text())
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_only_the_command_line_imports_tyro():
    importers = {path.name for path in SOURCE.rglob("*.py") if "tyro" in imported_packages(path.read_text())}
    assert importers == {"cli.py"}


def upward(path: Path, source: str) -> list[str]:
    """One line for each import in the source that its layer forbids."""
    place = path.relative_to(SOURCE)
    own = place.parts[0] if len(place.parts) > 1 else place.stem
    found = []
    for node in imports(source):
        for target in targets(node):
            forbidden = LEVEL[target] > LEVEL[own] or (own, target) in STRANGERS
            if forbidden and (own, target) not in LAZY_DOORS:
                found.append(f"{place}:{node.lineno} imports {target}")
    return found


@functools.cache  # three tests look at every source: a second and a half each
def imports(source: str) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """Every import statement of a source, wherever it stands."""
    return tuple(node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom)))


def targets(node: ast.AST) -> set[str]:
    """The names under intone that an import statement reaches."""
    if isinstance(node, ast.Import):
        parts = [alias.name.split(".") for alias in node.names]
        return {part[1] if len(part) > 1 else "__init__" for part in parts if part[0] == "intone"}
    if isinstance(node, ast.ImportFrom) and node.module:
        parts = node.module.split(".")
        if parts == ["intone"]:
            return {alias.name if alias.name in LEVEL else "__init__" for alias in node.names}
        return {parts[1]} if parts[0] == "intone" else set()
    return set()


def imported_packages(source: str) -> set[str]:
    """Top names of everything a source imports."""
    names = set()
    for node in imports(source):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["run", "--show"],
        ["train", "base", "--show"],
        ["chat", "--show"],
        ["runs"],
        ["runs", "--json"],
        ["rnu"],
    ],
    ids=" ".join,
)
def test_what_only_reads_and_prints_imports_nothing_heavy(words):
    """In the home that all tests share: the forecast of `--show` measures the machine where nobody has."""
    code = f"""
import json, sys
from intone.cli import main
main({words!r})
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, intone, intone.runs, intone.hardware; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# prints {module: "imported", why it could not be, or nothing where its process crashed}
BLOCKER = """
import importlib, json, os, sys, traceback
allowed, loaded, modules = json.loads(sys.argv[1])
ALLOWED = {*allowed, *sys.stdlib_module_names, "intone"}

class Blocker:
    # refuses what our own code asks for; what torch and the others ask for themselves is their affair
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ALLOWED:
            return None
        frame = sys._getframe(1)
        while frame and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame and frame.f_globals.get("__name__", "").split(".")[0] == "intone":
            raise ImportError(f"{frame.f_globals['__name__']} imports {name}, which a bare image lacks")
        return None

sys.meta_path.insert(0, Blocker())
for module in loaded:
    importlib.import_module(module)
for name in [name for name in sys.modules if name.split(".")[0] not in {*ALLOWED, "__main__"}]:
    del sys.modules[name]  # what torch brought along is asked for anew

def outcome(module):
    try:
        importlib.import_module(module)
    except BaseException:
        return traceback.format_exc()
    return "imported"

found = {}
for module in modules:
    reading, writing = os.pipe()
    if not os.fork():
        os.write(writing, outcome(module).encode()[-4000:])
        os._exit(0)
    os.close(writing)
    with open(reading) as told:
        found[module] = told.read()
    os.wait()
print(json.dumps(found))
"""


BARE_MODULES = ["intone.worker", "intone.engine.engine", "intone.prove.measure", "intone.bench.gpu"]
BARE_MODULES += ["intone.bench.gpu_suites.run"]
BARE_MODULES += sorted({suite.target.partition(":")[0] for suite in SUITES.values()})


def imported_bare(allowed: Iterable[str], loaded: list[str], modules: list[str]) -> dict[str, str]:
    """What becomes of importing each of the modules in a process of its own that has only the allowed packages.

    loaded: packages that are imported once, before the processes part: torch takes most of the time.
    """
    words = [sys.executable, "-c", BLOCKER, json.dumps([sorted(allowed), loaded, modules])]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def bare() -> dict[str, str]:
    return imported_bare(BARE, ["torch"], [module for module in BARE_MODULES if exists(module)])


@pytest.mark.parametrize("module", BARE_MODULES)
def test_the_modules_for_a_bare_gpu_image_need_only_what_it_has(module, bare):
    if not exists(module):
        pytest.skip(f"{module} does not exist yet")
    assert bare[module] == "imported"


@pytest.mark.parametrize(
    ("allowed", "loaded", "module", "package"),
    [
        ((), (), "intone.data.tokenizer", "numpy"),
        (BARE - {"numpy"}, ("torch",), "intone.data.tokenizer", "numpy"),  # which torch imports itself
    ],
)
def test_the_blocker_blocks(allowed, loaded, module, package):
    found = imported_bare(allowed, list(loaded), [module])
    assert f"{package}, which a bare image lacks" in found[module]


def exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
