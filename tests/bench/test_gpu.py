"""Measuring a GPU, tried out on a CPU: every suite's code runs, nothing is lost, nothing stops the others."""

import io
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import psutil
import pytest
import torch
from tests.tiny_jobs import wait_for

from intone.bench import gpu
from intone.bench.gpu import cut_torn_line, main, short_name
from intone.bench.gpu_suites import SUITES, Suite
from intone.bench.gpu_suites.bench import GROUP_S, NUM_GROUPS, Bench, time_groups
from intone.bench.gpu_suites.decode import covered
from intone.bench.gpu_suites.facts import SHAPES, both_ways, masks
from intone.bench.gpu_suites.synthetic import synthetic_documents, synthetic_tokenizer
from intone.bench.rows import code_revision
from intone.errors import UserError
from intone.hardware import load_facts, read_system
from intone.model.attention import attend
from intone.paths import read_json
from intone.records import read_results

PLANTED = '''
"""Suites that go wrong in every way there is."""
import os, subprocess, sys, time
from intone.bench.gpu_suites.bench import MissingInput

def good(bench):
    if bench.may("a thing", "planted.good", seconds=0.0):
        bench.row("planted.good", 2.0, "s", n=5, low=1.0, high=3.0)

def late(bench):
    bench.may("a long thing", "planted.late", seconds=1e6)
    bench.left_out.append("for lack of time")

def hungry(bench):
    raise MissingInput("give --data")

def crash(bench):
    bench.row("planted.before_crash", 1.0, "s", n=1)
    os.kill(os.getpid(), 11)

def raises(bench):
    raise ZeroDivisionError("planted")

def hang(bench):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    bench.row("planted.pids", float(child.pid), "pid", n=1, baseline=str(os.getpid()))
    time.sleep(600)
'''


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Puts the suites above in place of ours; returns a function that runs bench.gpu with them."""
    (tmp_path / "planted_suites.py").write_text(PLANTED)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    names = ("raises", "crash", "hungry", "late", "good")
    monkeypatch.setattr(gpu, "SUITES", {name: Suite(f"planted_suites:{name}", 0.1, name) for name in names})
    return lambda *words: main(["--out", str(tmp_path / "out"), "--device", "cpu", *words])


def states(out):
    return {name: suite["state"] for name, suite in read_json(out / "facts.json")["suites"].items()}


# --- ours -----------------------------------------------------------------------------------------------------------


QUICK = "smoke,facts,train,decode"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The quick suites on tiny shapes, in one call; those of generation and of the case study have their own tests."""
    out = tmp_path_factory.mktemp("gpu") / "out"
    words = ["--out", str(out), "--device", "cpu", "--minutes", "20", "--suite", QUICK]
    assert main(words) == 0, (out / "log.txt").read_text()
    return out


@pytest.mark.long
def test_the_decode_suite_runs_on_a_cpu_and_a_second_call_measures_nothing_again(tmp_path, home):
    words = ["--out", str(tmp_path / "out"), "--device", "cpu", "--suite", "decode"]
    assert main(words) == 0, (tmp_path / "out" / "log.txt").read_text()
    assert states(tmp_path / "out") == {"decode": "done"}
    before = (tmp_path / "out" / "rows.jsonl").read_bytes()
    assert main(words) == 0
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == before


@pytest.mark.long
def test_every_suite_runs_on_a_cpu_and_leaves_three_files(measured):
    assert sorted(path.name for path in measured.iterdir()) == ["facts.json", "log.txt", "rows.jsonl"]
    assert states(measured) == {"smoke": "done", "facts": "done", "train": "part", "decode": "done"}
    rows = {row.id: row for row in read_results(measured / "rows.jsonl")}
    assert all(name.startswith("tiny.") for name in rows), "rows of tiny shapes must not look like measurements"
    assert rows["tiny.smoke.checks"].value == 1.0
    assert {"tiny.facts.copy_bytes_per_s", "tiny.facts.products.bf16_64", "tiny.decode.d2.b3.tokens_per_s"} <= set(rows)
    assert "tiny.facts.attention.2x16.documents.math_ms" in rows
    assert [name[5:] for name in rows if "train" in name] == [
        "train.d1.b2.eager.tokens_per_s", "train.d1.b2.eager.peak_gib",
        "train.d1.b4.eager.tokens_per_s", "train.d1.b4.eager.peak_gib",
    ]  # fmt: skip
    assert rows["tiny.smoke.checks"].command == "python -m intone.bench.gpu --out DIR --suite smoke --device cpu"
    assert rows["tiny.smoke.checks"].machine["cores_physical"] >= 1


@pytest.mark.long
def test_the_log_has_what_every_suite_said(measured):
    log = (measured / "log.txt").read_text()
    assert "smoke: passed: and to the same weights and moments" in log
    assert "FAILED" not in log
    assert "decode: the idle share needs a GPU" in log
    assert "train: left out: the comparison with nanochat: give --nanochat CHECKOUT" in log


@pytest.mark.long
def test_a_second_call_measures_nothing_again(measured):
    before = (measured / "rows.jsonl").read_bytes()
    assert main(["--out", str(measured), "--device", "cpu", "--suite", "smoke,facts"]) == 0
    assert (measured / "rows.jsonl").read_bytes() == before
    assert (measured / "log.txt").read_text().count("smoke: done before") == 1


def test_the_whole_list_takes_six_calls_of_nine_minutes_or_fewer():
    assert sum(suite.minutes for suite in SUITES.values()) <= 6 * 9
    assert list(SUITES)[0] == "smoke"


# --- calls ----------------------------------------------------------------------------------------------------------


def test_a_suite_that_fails_crashes_or_lacks_its_input_does_not_stop_the_others(planted, tmp_path, capfd):
    assert planted() == 1
    out = tmp_path / "out"
    assert states(out) == {"raises": "failed", "crash": "failed", "hungry": "no input", "late": "part", "good": "done"}
    assert [row.id for row in read_results(out / "rows.jsonl")] == ["tiny.planted.before_crash", "tiny.planted.good"]
    said = capfd.readouterr().err
    assert "raises: ZeroDivisionError: planted" in said
    assert "hungry: give --data" in said
    assert said.splitlines()[-1].endswith("good done; 2 rows in rows.jsonl")


def test_a_later_call_goes_on_with_what_is_missing(planted, tmp_path):
    planted("--suite", "good,late")
    planted("--suite", "good,hungry")
    out = tmp_path / "out"
    assert states(out) == {"late": "part", "good": "done", "hungry": "no input"}
    assert len(read_results(out / "rows.jsonl")) == 1
    (out / "facts.json").unlink()  # a call that was cut leaves none: then the rows themselves tell
    planted("--suite", "good")
    assert len(read_results(out / "rows.jsonl")) == 1
    assert "good: a thing: known already" in (out / "log.txt").read_text()


def test_suites_run_in_the_order_of_their_value_whatever_the_order_asked(planted, tmp_path):
    planted("--suite", "good,raises")
    assert list(states(tmp_path / "out")) == ["raises", "good"]


def test_a_call_without_time_begins_nothing(planted, tmp_path):
    assert planted("--minutes", "0.1", "--suite", "good") == 0
    assert not (tmp_path / "out" / "rows.jsonl").exists()
    assert "good: no time left" in (tmp_path / "out" / "log.txt").read_text()


def test_a_suite_that_hangs_is_cut_with_all_it_started(planted, tmp_path, monkeypatch):
    """The second half: the call itself is killed."""
    monkeypatch.setattr(gpu, "GRACE_S", 0.1)
    out = tmp_path / "out"
    out.mkdir()
    code = f"""
import sys
from intone.bench import gpu
from intone.bench.gpu_suites import Suite
gpu.SUITES = {{"hang": Suite("planted_suites:hang", 0.1, "hangs")}}
gpu.main(["--out", {str(out)!r}, "--device", "cpu"])
"""
    call = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    [row] = wait_for(lambda: (out / "rows.jsonl").exists() and read_results(out / "rows.jsonl"), "a row")
    call.send_signal(signal.SIGKILL)
    call.wait()
    wait_for(lambda: not is_running(int(row.baseline)), "the end of the suite")
    os.kill(int(row.value), signal.SIGKILL)  # what a suite starts by itself is its own affair; workers die with it

    question = {
        "suite": "hang", "target": "planted_suites:hang", "out": str(out), "prefix": "tiny", "device": "cpu",
        "command": "c", "machine": {}, "machine_folder": str(tmp_path), "code": "x", "seconds": 1.0, "environment": {},
        "data": None, "nanochat": None, "nanochat_python": None,
    }  # fmt: skip
    assert gpu.ask(question, 0.0, gpu.Log(io.StringIO())) == "cut"
    for row in read_results(out / "rows.jsonl")[1:]:
        wait_for(lambda pid=int(row.value): not is_running(pid), "the end of the suite's child")


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_torn_last_line_is_taken_away_before_the_next_row(tmp_path, planted):
    out = tmp_path / "out"
    planted("--suite", "crash")
    rows = out / "rows.jsonl"
    whole = rows.read_bytes()
    rows.write_bytes(whole + b'{"id": "torn", "val')
    planted("--suite", "good")
    assert rows.read_bytes().startswith(whole)
    assert [row.id for row in read_results(rows)] == ["tiny.planted.before_crash", "tiny.planted.good"]
    cut_torn_line(tmp_path / "missing")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "smok"], "unknown suite 'smok'\n  fix: did you mean 'smoke'?"),
        (["--minutes", "0"], "--minutes is 0, it must be above 0"),
        (["--nanochat", "/no/such/place"], "--nanochat /no/such/place does not exist"),
        (["--device", "cuda"], "finds no CUDA device here\n  fix: --device cpu runs every suite with tiny shapes"),
    ],
)
def test_a_call_that_cannot_be_says_why(words, said, tmp_path, capsys):
    if words[0] == "--device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("gpu_name", "device", "short"),
    [
        ("NVIDIA H200", "cuda", "h200"), ("NVIDIA H100 80GB HBM3", "cuda", "h100"), ("Tesla T4", "cuda", "t4"),
        ("NVIDIA GeForce RTX 4090", "cuda", "rtx4090"), ("NVIDIA A100-SXM4-80GB", "cuda", "a100"),
        (None, "cuda", "gpu"), ("NVIDIA H200", "cpu", "tiny"),
    ],
)  # fmt: skip
def test_ids_begin_with_the_short_name_of_the_device(gpu_name, device, short):
    facts = type(read_system())(fingerprint="x", gpu_name=gpu_name)
    assert short_name(facts, device) == short


def test_a_variable_names_the_revision_of_a_copy(monkeypatch):
    monkeypatch.setenv("INTONE_CODE", "abc123")
    assert code_revision() == "abc123"
    monkeypatch.setattr("intone.bench.rows.ROOT", os.path.sep)
    assert code_revision() == "abc123"
    monkeypatch.delenv("INTONE_CODE")
    assert code_revision() == "intone 0.1.0"


# --- tools of the suites --------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path, capsys):
    def make(prefix="h200", left_s=100.0):
        return Bench(
            out=tmp_path, prefix=prefix, device="cpu", command="c", machine={}, machine_folder=tmp_path, code="x",
            end_s=time.monotonic() + left_s, scratch=tmp_path,
        )  # fmt: skip

    return make


def test_what_does_not_fit_into_the_time_is_left_out_and_said(bench, capsys):
    suite = bench(left_s=50.0)
    assert suite.may("short", "a.b", seconds=40.0)
    assert not suite.may("long", "a.c", seconds=60.0)
    assert "long: left out, it takes about 1 min 0 s" in capsys.readouterr().err
    assert len(suite.left_out) == 1
    assert bench("tiny", left_s=0.0).may("long", "a.c", seconds=60.0)  # tiny shapes have no meaning, so no limit


def test_known_rows_are_measured_again_by_nobody(bench):
    suite = bench()
    suite.row("a.b", 1.0, "s", n=1)
    assert suite.has("a.b") and not suite.has("a.b", "a.c")
    assert not suite.may("thing", "a.b", seconds=0.0)
    assert not bench().may("thing", "a.b", seconds=0.0)  # another process reads the file
    assert bench("b200").may("thing", "a.b", seconds=0.0)


def test_a_value_that_is_no_measurement_is_refused(bench):
    with pytest.raises(UserError, match="is not a finite number"):
        bench().row("a.b", float("nan"), "s", n=1)


def test_a_median_has_the_interval_of_its_order_statistics(bench, tmp_path):
    values = [9.0, 1.0, 5.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0]
    bench().median_row("a.b", values, "1/s", of=lambda seconds: 10 / seconds)
    [row] = read_results(tmp_path / "rows.jsonl")
    assert (row.value, row.low, row.high, row.n) == (10 / 5, 10 / 8, 10 / 2, NUM_GROUPS)
    # the chance that the true median of any distribution lies between the second and the eighth of nine
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.exponential(size=(20_000, 9)), axis=1)
    inside = (drawn[:, 1] <= np.log(2)) & (np.log(2) <= drawn[:, 7])
    assert inside.mean() == pytest.approx(0.961, abs=0.01)


def test_calls_are_timed_in_groups_that_are_long_against_the_clock():
    calls = []

    def work():
        calls.append(time.perf_counter())
        while time.perf_counter() < calls[-1] + 0.004:
            pass

    times = time_groups(work, lambda: None)
    assert len(times) == NUM_GROUPS
    assert 0.004 <= statistics.median(times) < 0.1
    count, rest = divmod(len(calls) - 2, NUM_GROUPS)
    assert rest == 0 and count * (calls[2] - calls[1]) > 0.5 * GROUP_S


@pytest.mark.parametrize(
    ("spans", "length"),
    [
        ([], 0), ([(0, 2), (5, 6)], 3), ([(0, 5), (1, 2)], 5), ([(3, 6), (0, 4)], 6), ([(0, 1), (0, 1)], 1),
    ],
)  # fmt: skip
def test_what_runs_at_the_same_time_counts_once(spans, length):
    assert covered(spans) == length


def test_the_timed_attention_is_ours():
    shape = SHAPES[True]["2x16"]
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 32, 16).requires_grad_() for _ in range(3))
    ways = dict(masks(shape, torch.device("cpu")))
    assert list(ways) == ["causal", "window", "documents"] and ways["causal"] is None
    assert ways["window"].shape == (1, 1, 32, 32) and ways["documents"].shape == (2, 1, 32, 32)
    assert not ways["documents"][0, 0, 12, 9]  # documents of ten tokens
    for mask in ways.values():
        both_ways(q, k, v, torch.ones_like(q), mask, "math")
        expected = attend(q, k, v, mask)
        with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]):
            found = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [265, 266, 300, 4096, 32_768])
def test_a_synthetic_tokenizer_has_exactly_the_entries_asked_for(vocab_size):
    tokenizer = synthetic_tokenizer(vocab_size)
    assert tokenizer.vocab_size == vocab_size
    assert len({tokenizer.decode_bytes([i]) for i in range(vocab_size)}) == vocab_size


def test_synthetic_text_has_the_tokens_asked_for_over_the_whole_vocabulary():
    tokenizer = synthetic_tokenizer(4096)
    texts = list(synthetic_documents(tokenizer, 60_000, mean_tokens=300, seed=0))
    ids = [tokenizer.encode(text) for text in texts]
    assert [len(i) for i in ids] == [len(text) for text in texts]  # each letter is one token, each space too
    assert 60_000 - len(texts) <= sum(map(len, ids)) < 66_000
    assert statistics.fmean(map(len, ids)) == pytest.approx(300, rel=0.2)
    counts = sorted(Counter(token for i in ids for token in i).values(), reverse=True)
    assert len(counts) > 2_500  # of about 3,700 letters
    assert counts[1] / counts[100] > 20  # few of them often
    assert texts == list(synthetic_documents(tokenizer, 60_000, mean_tokens=300, seed=0))
    assert next(synthetic_documents(synthetic_tokenizer(265), 10, mean_tokens=5, seed=0)).isascii()


@pytest.mark.parametrize("vocab_size", [200, 400_000])
def test_a_vocabulary_that_cannot_be_made_is_refused(vocab_size):
    with pytest.raises(UserError):
        synthetic_tokenizer(vocab_size)


@pytest.mark.long
def test_facts_of_this_machine_are_in_its_file(measured):
    content = read_json(measured / "facts.json")
    assert content["machine"]["cpu_name"]["value"] == load_facts().cpu_name
    assert content["code"] == code_revision()
