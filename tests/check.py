"""Everything a change must pass, in one command: `python -m tests.check`; with --long the long tests too."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS: dict[str, list[str]] = {
    "ruff": ["-m", "ruff", "check", "."],
    "map": ["-m", "tests.make_map", "--check"],
    "mypy": ["-m", "mypy"],
    # whole files side by side: most tests wait for processes of their own
    "pytest": ["-m", "pytest", "-q", "--durations=10", "-n", "2", "--dist", "loadfile"],
}
BESIDE = "mypy"  # runs while the tests do, which leave a good part of two cores unused; its output comes after theirs


def main() -> int:
    """Runs every step, also after a failed one; a table of results at the end; exit 1 where one failed."""
    if "--long" in sys.argv[1:]:
        os.environ["INTONE_LONG"] = "1"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, ["src", os.environ.get("PYTHONPATH")]))}
    # images often set it; each of the tests' processes would compile our modules anew, 0.3 s of the 3 s that it starts
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    rows = []

    def run(name: str, output: int | None = None) -> None:
        began = time.monotonic()
        words = [sys.executable, *STEPS[name]]
        done = subprocess.run(words, cwd=REPOSITORY, env=environment, stdout=output, stderr=output, check=False)
        rows.append((name, done.returncode, time.monotonic() - began))

    with tempfile.TemporaryFile("w+") as output:
        beside = threading.Thread(target=run, args=(BESIDE, output.fileno()))
        beside.start()
        for name in [name for name in STEPS if name != BESIDE]:
            print(f"== {name}", flush=True)
            run(name)
        beside.join()
        output.seek(0)
        print(f"== {BESIDE}\n{output.read()}", flush=True)
    words = [f"{name:<8} {'FAILED' if code else 'passed':<8} {seconds:7.1f} s" for name, code, seconds in rows]
    print("\n".join(words), flush=True)
    return 1 if any(code for _, code, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
