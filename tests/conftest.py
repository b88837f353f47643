"""The surroundings of every test: a home of its own, no network, one compile cache per run of the tests."""

import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from intone.config import TrainJob

REPOSITORY = Path(__file__).resolve().parent.parent
SCRATCH = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Sets what must stand before torch is imported, here and in child processes."""
    scratch = Path(tempfile.mkdtemp(prefix="intone-tests-"))
    config.stash[SCRATCH] = scratch
    os.environ["INTONE_HOME"] = str(scratch / "home")
    # processes that run tests side by side share these with the one that started them: a build takes ten seconds
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch / "inductor"))
    os.environ.setdefault("INTONE_NATIVE", str(scratch / "native"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    if threading.current_thread() is threading.main_thread():
        # started in the background, or by a runner of tests, Python leaves Ctrl-C ignored, here and in child processes
        signal.signal(signal.SIGINT, signal.default_int_handler)
    source = str(REPOSITORY / "src")
    known = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [known])])
    if source not in sys.path:
        sys.path.insert(0, source)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leaves nothing behind."""
    shutil.rmtree(config.stash[SCRATCH], ignore_errors=True)


def pytest_collection() -> None:
    """All that is made from here on, modules and tests, stays: no collection need look at it, now or later."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the long tests unless they are asked for: by INTONE_LONG, or by naming their file."""
    named = any(".py" in word for word in config.invocation_params.args if not word.startswith("-"))
    if os.environ.get("INTONE_LONG") or named or config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An INTONE_HOME of this test alone."""
    folder = tmp_path / "home"
    monkeypatch.setenv("INTONE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_job(tmp_path_factory: pytest.TempPathFactory) -> "TrainJob":
    """A training job of nine steps, with its tokenizer and token sets on disk; see tests/tiny_jobs.py."""
    from tests.tiny_jobs import make_data

    return make_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real texts and references, or a skip with the reason."""
    folder = os.environ.get("INTONE_TEST_DATA")
    if not folder:
        pytest.skip("INTONE_TEST_DATA is not set: no real data here")
    return Path(folder)
