"""The kernels of a step: what they compute in Triton's interpreter, and its compiler; both need their own process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton")
@pytest.mark.parametrize(("cases", "interprets"), [("step_kernel_cases.py", "1"), ("step_kernel_builds.py", "0")])
def test_kernels_compute_what_the_decoder_does_and_are_built_for_a_gpu(cases, interprets, tmp_path):
    # triton asks when it is imported, and other tests may have done that
    environment = {**os.environ, "TRITON_INTERPRET": interprets, "TRITON_CACHE_DIR": str(tmp_path)}
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / cases)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
