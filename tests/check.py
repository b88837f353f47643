"""Everything a change must pass, in one command: `python -m tests.check`; with --long the long tests too."""

import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS: dict[str, list[str]] = {
    "ruff": ["-m", "ruff", "check", "."],
    "mypy": ["-m", "mypy"],
    "layers": ["-m", "pytest", "-q", "--no-header", "tests/test_layers.py"],
    "map": ["-m", "tests.make_map", "--check"],
    # whole files side by side: most tests wait for processes of their own
    "pytest": ["-m", "pytest", "-q", "--durations=10", "-n", "2", "--dist", "loadfile",
               "--ignore=tests/test_layers.py"],
}


def main() -> int:
    """Runs every step, also after a failed one; a table of results at the end; exit 1 where one failed."""
    if "--long" in sys.argv[1:]:
        os.environ["INTONE_LONG"] = "1"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, ["src", os.environ.get("PYTHONPATH")]))}
    rows = []
    for name, arguments in STEPS.items():
        print(f"== {name}", flush=True)
        began = time.monotonic()
        code = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, env=environment, check=False).returncode
        rows.append((name, "passed" if code == 0 else "FAILED", time.monotonic() - began))
    print("\n" + "\n".join(f"{name:<8} {word:<8} {seconds:7.1f} s" for name, word, seconds in rows), flush=True)
    return 1 if any(word == "FAILED" for _, word, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
