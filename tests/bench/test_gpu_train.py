"""The comparison of training on a GPU: what it asks of nanochat's driver, what it makes of the answers and refuses."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from intone.bench.gpu_suites import train as suite
from intone.bench.gpu_suites.bench import Bench
from intone.bench.gpu_suites.train import (
    D12,
    D24,
    TINY,
    check_losses,
    check_models,
    command,
    compare,
    export_rows,
    make_job,
    train,
    write_mfu,
)
from intone.data.loader import Rows
from intone.data.shards import TokenSet
from intone.errors import UserError
from intone.model.cost import num_parameters
from intone.prove.live import Ready
from intone.records import read_results

# answers as nanochat's driver does, in no time: every block of ours seems to take a thousandth of its own
DRIVER = """
import json, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
say = lambda value: print(json.dumps(value), flush=True)
json.dump(words, open(sys.argv[sys.argv.index("--rows") + 1] + "/asked.json", "w"))
say({"ready": True, "first_s": 9.0, "warm_s": 1.0, "facts": {"parameters": {"total": PARAMETERS}}})
for line in sys.stdin:
    question = json.loads(line)
    if question["do"] == "quit":
        break
    steps = question["steps"]
    tokens = steps * int(words["--batch-tokens"])
    say({"steps": steps, "seconds": 1000.0 * steps, "tokens": tokens, "losses": [LOSS] * steps, "peak_bytes": 2**33})
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A bench on tiny shapes with a stand-in for the driver, whose loss is what it says."""
    total = num_parameters(TINY.model("a"))["total"]

    def make(loss=9.0):
        driver = tmp_path / "driver.py"
        driver.write_text(DRIVER.replace("PARAMETERS", str(total)).replace("LOSS", str(loss)))
        monkeypatch.setattr(suite, "DRIVER", driver)
        (tmp_path / "scratch").mkdir(exist_ok=True)
        return Bench(
            out=tmp_path, prefix="tiny", device="cpu", command="c", machine={}, machine_folder=tmp_path / "machine",
            code="x", end_s=time.monotonic() + 600, scratch=tmp_path / "scratch",
            environment={"OMP_NUM_THREADS": "1"}, nanochat=tmp_path, nanochat_python=sys.executable,
        )  # fmt: skip

    return make


def test_both_sides_are_measured_in_turns_on_the_same_rows(bench, tmp_path):
    compare(bench(), TINY, "a")
    found, peak = read_results(tmp_path / "rows.jsonl")
    assert (found.id, peak.id) == ("tiny.train.d1.vs_nanochat_a", "tiny.train.d1.peak_gib.vs_nanochat")
    assert found.value > 100  # its blocks took 1,000 s, ours less than 10
    assert found.low <= found.value <= found.high and found.n == TINY.rounds
    assert found.baseline == "nanochat 92d63d4, windows SSSL, 2 rows, one process a side, A B B A"
    assert 0 < peak.value < 1  # of 8 GiB
    folder = tmp_path / "scratch" / "rows-1"
    asked = json.loads((folder / "asked.json").read_text())
    numbers = {key: int(asked[f"--{key}"]) for key in ("depth", "context", "vocab-size", "head-width", "batch-tokens")}
    assert numbers == {"depth": 1, "context": 64, "vocab-size": 300, "head-width": 32, "batch-tokens": 256}
    assert len(np.load(folder / "ids.npy")) == 4 * (3 + 2 * TINY.rounds)  # warm steps and two blocks a round

    before = (tmp_path / "rows.jsonl").read_bytes()
    compare(bench(), TINY, "a")
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_the_second_way_has_full_attention_on_both_sides(bench):
    given = bench()
    words = command(given, TINY, "b", given.scratch)
    assert words[words.index("--window-pattern") + 1] == "L" == make_job(given, TINY, "b").model.window_pattern
    assert words[words.index("--device") + 1] == "cpu"


def test_mfu_is_counted_against_the_makers_number_and_left_out_where_there_is_none(bench, tmp_path, capsys):
    given = bench()
    write_mfu(given, TINY, [1.0, 2.0, 3.0])
    assert "MFU is unknown: no maker's number for this device" in capsys.readouterr().err
    given.machine = {"gpu_name": "NVIDIA H200"}
    write_mfu(given, D24, [99e3, 100e3, 102e3])
    [row] = read_results(tmp_path / "rows.jsonl")
    assert (row.id, row.baseline, row.n) == ("tiny.train.d24.mfu_bf16", "989 TFLOP/s", 3)
    # nanochat's count: 6 x (24 x 12 x 1536^2 + 32,768 x 1536) and 12 x 1536 x (18 x 512 + 6 x 2048)
    assert row.value == pytest.approx(100e3 * 4.775e9 / 989e12, rel=1e-3)
    assert row.low < row.value < row.high


def test_the_rows_of_the_other_side_are_those_of_ours(bench):
    given = bench()
    folder = export_rows(given, TINY)
    job = make_job(given, TINY, "a")
    ours = Rows([TokenSet.open(Path(job.data[0]))], job.context, job.seed).rows(8, 4)  # of the third step
    for name in ("ids", "targets"):
        assert np.array_equal(np.load(folder / f"{name}.npy")[8:12], getattr(ours, name))
    assert np.load(folder / "token_bytes.npy").shape == (300,)


@pytest.mark.long
def test_a_side_that_learns_worse_is_refused(bench, tmp_path):
    with pytest.raises(UserError, match="not the same training"):
        train(bench(loss=1.0))
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_driver_that_fails_is_quoted(bench, monkeypatch):
    given = bench()
    suite.DRIVER.write_text("import sys; sys.exit('planted failure')")
    with pytest.raises(UserError, match="nanochat ended with exit code 1: planted failure"):
        train(given)


@pytest.mark.parametrize(("ours", "theirs"), [(None, 3.0), (3.0, None), (3.31, 3.0)])
def test_losses_must_agree_within_a_tenth(ours, theirs):
    with pytest.raises(UserError):
        check_losses([{"losses": [ours]}], [{"losses": [theirs]}])
    check_losses([{"losses": [None, 3.29]}], [{"losses": [3.0]}])


def test_parameters_must_agree_within_a_hundredth():
    def ready(parameters):
        return Ready(1.0, 1.0, {"parameters": parameters})

    check_models(ready(1009), ready({"total": 1000}))
    with pytest.raises(UserError):
        check_models(ready(1011), ready({"total": 1000}))


@pytest.mark.parametrize(
    ("size", "parameters", "heads", "step_tokens"), [(D12, 286.3e6, 6, 524_288), (D24, 1384e6, 12, 524_288)]
)
def test_the_sizes_are_nanochats(size, parameters, heads, step_tokens):
    """Its parameters at depth 12 and 24, heads of 128, its windows of a quarter rounded up to 128 (reference)."""
    model = size.model("a")
    assert num_parameters(model)["total"] == pytest.approx(parameters, rel=2e-3)
    assert model.num_heads == heads and size.rows_per_step * size.context == step_tokens
    assert (model.window_pattern, size.model("b").window_pattern) == ("SSSL", "L")
    assert size.rows_per_step % size.micro_rows == 0
