"""`intone tune`: the curve of a stage measured here, remembered; and what fits by the model of memory alone."""

import contextlib
import io
import json
import re

import pytest

from intone import cli, tuning
from intone.config import model_config
from intone.hardware import Facts
from intone.tune import engine
from intone.tune.memory import worker_bytes
from intone.tune.trace import Worst
from intone.tuning import parse_size
from tests.tiny_jobs import make_data, write_job

GIB = 2**30
FLAGS = [
    "--depth", "1", "--context", "32", "--vocab-size", "300", "--batch-tokens", "512", "--dtype", "fp32",
    "--threads", "1", "--kernels", "torch", "--compile", "off", "--minutes", "0.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What `intone tune base --json` says, and the second time what people read, in a home of its own."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"Ship {n} sails past island {n * 7 % 31}. " * 5}) + "\n" for n in range(200))
    )
    words = ["tune", "base", *FLAGS, "--data", str(folder / "text.jsonl")]
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTONE_HOME", str(folder / "home"))
        for more in (["--json"], []):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert cli.main([*words, *more]) == 0
            said.append(out.getvalue())
    return json.loads(said[0].splitlines()[-1])["result"], said[1]


@pytest.mark.long
def test_a_stage_is_tuned_by_measurement_and_every_choice_has_a_reason(answers):
    first, _ = answers
    choices, search = first["choices"], first["search"]
    assert choices["device_batch"]["origin"] == "measured"
    assert choices["device_batch"]["value"] == search["rows"] == first["fallbacks"][0]
    assert first["segment"]["device_batch"] == search["rows"]
    assert all(entry["reason"] for entry in choices.values())
    assert search["num_out_of_memory"] == 0
    measured = [size for size in search["curve"] if size["how"] == "measured"]
    assert len(measured) >= 2 and {size["rows"] for size in measured} >= {1}
    assert first["tokens_per_step"] == 512 and first["tokens_per_s"] > 0


@pytest.mark.long
def test_the_second_time_people_read_the_same_curve_and_that_it_was_remembered(answers):
    first, text = answers
    assert re.search(r"micro-batch +passes +tokens/s +memory growth +% of best", text)
    assert "left on the table:" in text and "next: intone train base" in text
    assert f"{first['search']['rows']}* " in text
    assert re.search(r"device_batch +\d+ .*\(measured .* ago\)", text)


@pytest.fixture
def known_machine(home, monkeypatch):
    """A machine that needs not be measured."""
    monkeypatch.setattr(tuning, "load_facts", lambda: Facts("ab" * 8, device="cpu", memory_available_bytes=7 * GIB))


def test_a_dry_run_says_what_fits_without_running_anything(known_machine, capsys):
    words = ["tune", "base", "--depth", "12", "--dry-run", "--memory", "24GiB", "--json"]
    assert cli.main(words) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    assert result["fits"] is True and result["memory_bytes"] == 24 * GIB
    fitting = [row["device_batch"] for row in result["curve"] if row["fits"]]
    assert max(fitting) == result["largest_device_batch"]
    needs = [row["bytes"] for row in result["curve"]]
    assert needs == sorted(needs)
    assert cli.main([*words[:3], "48", *words[4:]]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["result"]["fits"] is False


def test_on_this_cpu_a_dry_run_traces_the_step_of_our_kernels(known_machine, capsys, monkeypatch):
    asked = []

    def traced(config, rows, **how):
        asked.append((rows, how))
        return [Worst(100 * 2**20 + 2**20 * number, 50 * 2**20, 3 * 2**20) for number in rows]

    monkeypatch.setattr(tuning, "traced", traced)
    monkeypatch.setattr(tuning, "kernels_obstacle", lambda *_: None)
    words = ["tune", "base", "--depth", "2", "--vocab-size", "300", "--context", "256", "--device", "cpu", "--dry-run"]
    assert cli.main([*words, "--batch-tokens", "4096", "--memory", "1GiB", "--dtype", "fp32", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    assert asked == [([4, 8], {"dtype": "fp32", "kernels": "native"})] and "by a trace" in result["model"]
    config = model_config("modern", depth=2, vocab_size=300, context=256)
    needs = {row["device_batch"]: row["bytes"] for row in result["curve"]}
    assert needs[16] == sum(worker_bytes(config, 116 * 2**20, 3 * 2**20))
    monkeypatch.setattr(tuning, "kernels_obstacle", lambda *_: "no compiler")
    assert cli.main([*words, "--dtype", "fp32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["result"]["model"] == "by arithmetic"


@pytest.mark.parametrize(("text", "size"), [("24GiB", 24 * GIB), ("80 GB", 80 * 10**9), ("512mib", GIB // 2)])
def test_sizes_are_read_with_their_units(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("words", [["--memory", "lots", "--dry-run"], ["--memory", "24GiB"], ["--dry-run"]])
def test_a_dry_run_that_cannot_be_says_what_to_write(words, known_machine, capsys):
    depth = ["--depth", "4"] if "--memory" in words else []
    assert cli.main(["tune", "base", *depth, *words]) == 2
    assert "fix:" in capsys.readouterr().err


def test_an_engine_is_measured_once_for_a_run_and_people_read_what_lost(known_machine, tmp_path, monkeypatch, capsys):
    folder, asked = write_job(tmp_path / "base", make_data(tmp_path)), []

    def measured(config, tokenizer, device, dtype, weights):
        asked.append((config.context, device, dtype, weights))
        twice = [[0.002] * 3, [0.001] * 3]
        return {
            name: engine.Seen([[0.002] * 3, [0.001] * 3, *[[0.004] * 3] * more], [0.0] * (2 + more),
                              [None] * (2 + more), 1e-4, again=1, again_s=twice)
            for name, more in (("num_slots", 2), ("prompt_tokens", 1))
        }  # fmt: skip

    monkeypatch.setattr(engine, "asked_child", measured)
    words = ["tune", "infer", "--from", str(folder)]
    assert cli.main([*words, "--json"]) == 0
    choices = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]["choices"]
    assert {name: entry["value"] for name, entry in choices.items()} == {"num_slots": 16, "prompt_tokens": 256}
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert asked == [(32, "cpu", "fp32", "auto")]
    assert "num_slots: not 64: 16 are 2.00x as fast" in text and "num_slots: not 128: 0.50x as fast as 64" in text
    assert re.search(r"prompt_tokens +256 .*\(measured .* ago\)", text)

