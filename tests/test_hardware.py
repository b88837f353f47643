"""Facts about the machine: measured once, kept, and never made up."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from intone import hardware, system
from intone.child import ChildFailed
from intone.hardware import Facts, environment, load_facts, quiet

RATES = {
    "device": "cpu",
    "fp32_small_flops_per_s": 90e9,
    "fp32_flops_per_s": 100e9,
    "bf16_small_flops_per_s": 180e9,
    "bf16_flops_per_s": 1.234e12,
    "copy_bytes_per_s": 25e9,
}


class Measurer:
    """Counts how often the machine was measured."""

    def __init__(self, **rates):
        self.count = 0
        self.rates = RATES | rates

    def __call__(self, facts):
        self.count += 1
        return dict(self.rates)


@pytest.fixture
def still(home, monkeypatch):
    """A machine that nobody else uses, with an empty home."""
    monkeypatch.setattr(system, "busy_cores", lambda: 0.0)


def some_facts(**changes) -> Facts:
    known = Facts(
        fingerprint="f" * 16, torch_version="2.13.0", libc="glibc 2.36", cores_logical=4, cores_physical=3,
        busy_cores=0.0, cxx="/usr/bin/g++", cc="/usr/bin/gcc", python_header="/usr/include/Python.h", **RATES,
    )  # fmt: skip
    return dataclasses.replace(known, **changes)


def test_facts_are_measured_once_and_then_read(still):
    measurer = Measurer()
    first = load_facts(measure=measurer)
    second = load_facts(measure=measurer)
    assert measurer.count == 1
    assert first.bf16_flops_per_s == second.bf16_flops_per_s == 1.234e12
    assert first.measured_at == second.measured_at
    load_facts(again=True, measure=measurer)
    assert measurer.count == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 7'),
        lambda text: text.replace("100000000000.0", '"fast"'),
        lambda text: text.replace("100000000000.0", "Infinity"),
        lambda text: text.replace("100000000000.0", "-3"),
        lambda text: text.replace('"cpu"', '"abacus"'),
        lambda text: json.dumps({"format": 1, "facts": 3}),
        lambda text: json.dumps({"format": 1, "facts": {"device": "cpu"}}),
    ],
)
def test_a_damaged_facts_file_is_measured_again_and_the_file_is_whole_afterwards(still, capsys, damage):
    measurer = Measurer()
    path = load_facts(measure=measurer).folder / "facts.json"
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    facts = load_facts(measure=measurer)
    assert measurer.count == 2
    assert facts.fp32_flops_per_s == 100e9
    assert capsys.readouterr().err.count("measuring again") == 1
    load_facts(measure=measurer)
    assert measurer.count == 2


def test_a_failed_measurement_leaves_unknown_facts_and_is_not_kept(still, capsys):
    def fails(facts):
        raise ChildFailed("ended by SIGSEGV")

    facts = load_facts(measure=fails)
    assert facts.device is None and facts.fp32_flops_per_s is None
    assert "ended by SIGSEGV" in capsys.readouterr().err
    assert ["fp32 products, large", "unknown", "measured"] in facts.rows()
    measurer = Measurer()
    assert load_facts(measure=measurer).device == "cpu"
    assert measurer.count == 1


def test_facts_measured_on_a_busy_machine_are_measured_again_once_it_is_quiet(home, monkeypatch):
    measurer = Measurer()
    monkeypatch.setattr(system, "busy_cores", lambda: 1.7)
    load_facts(measure=measurer)
    assert load_facts(measure=measurer).measured_busy_cores == 1.7
    assert measurer.count == 1
    monkeypatch.setattr(system, "busy_cores", lambda: 0.1)
    load_facts(measure=measurer)
    load_facts(measure=measurer)
    assert measurer.count == 2


def test_another_torch_or_gpu_or_memory_size_is_another_machine():
    gib = 2**30
    known = ("Chip", (2, 2), 8 * gib, (), "2.13.0")
    others = [
        ("Chip 2", (2, 2), 8 * gib, (), "2.13.0"),
        ("Chip", (4, 2), 8 * gib, (), "2.13.0"),
        ("Chip", (2, 2), 16 * gib, (), "2.13.0"),
        ("Chip", (2, 2), 8 * gib, ("NVIDIA Foo",), "2.13.0"),
        ("Chip", (2, 2), 8 * gib, (), "2.11.0"),
        (None, (2, 2), None, (), None),
    ]
    prints = {hardware.machine_fingerprint(*machine) for machine in (known, *others)}
    assert len(prints) == 7
    rounded = ("Chip", (2, 2), 8 * gib + 1000, (), "2.13.0")  # the kernel's own share changes from boot to boot
    assert hardware.machine_fingerprint(*rounded) == hardware.machine_fingerprint(*known)


def test_reading_kept_facts_imports_no_torch(still):
    load_facts(measure=Measurer())
    code = (
        "import sys; from intone import hardware, system; system.busy_cores = lambda: 0.0\n"
        "facts = hardware.load_facts(); facts.rows(); hardware.environment(facts)\n"
        "print(facts.fp32_flops_per_s, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["100000000000.0", "False", "False"]


def test_the_child_measures_real_rates(still):
    facts = load_facts()
    assert facts.device in ("cpu", "cuda", "mps")
    assert 1e8 < facts.fp32_flops_per_s < 1e16
    assert 1e8 < facts.copy_bytes_per_s < 1e14


def test_only_one_process_measures_at_a_time(home):
    folder = home / "machine" / "x"
    code = f"from pathlib import Path; from intone.hardware import quiet; quiet(Path({str(folder)!r})); print('mine')"
    pipe = subprocess.PIPE
    with quiet(folder, "a comparison"):
        other = subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)
        said = other.stderr.readline()
        assert said.startswith(f"waiting for a comparison (process {os.getpid()}, since 20")
        assert said.endswith(" to end: one thing at a time is measured on this machine\n")
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.2)
    assert other.communicate(timeout=10)[0] == "mine\n"


def test_unknown_and_missing_facts_are_words_never_zero():
    facts = some_facts(
        memory_bytes=None, has_avx2=None, cxx=None, busy_cores=None, has_avx512=False, copy_bytes_per_s=None
    )
    rows = {label: value for label, value, _ in facts.rows()}
    assert rows["memory"] == "unknown"
    assert rows["AVX2"] == "unknown"
    assert rows["AVX-512"] == "no"
    assert rows["C++ compiler"] == "not found"
    assert rows["copy bandwidth"] == "unknown"
    assert rows["bf16 products, large"] == "1.23 TFLOP/s"
    assert rows["fp32 products, large"] == "100 GFLOP/s"
    assert facts.as_json()["memory_bytes"] == {"value": None, "source": "driver", "unit": "bytes"}


def test_a_machine_without_gpu_has_no_rows_about_one():
    assert not [label for label, _, _ in some_facts().rows() if "GPU" in label or "fp16" in label]
    with_gpu = some_facts(device="cuda", gpu_name="NVIDIA Foo", num_gpus=2).rows()
    assert ["GPU", "NVIDIA Foo", "driver"] in with_gpu
    assert ["peak 16-bit products", "unknown", "table"] in with_gpu


def test_data_sheet_peaks_are_known_by_exact_name_only(monkeypatch):
    monkeypatch.setattr(system, "gpu_free_bytes", lambda: None)
    kept = {"device": "cuda", "gpu_name": "NVIDIA H200"}
    assert hardware.completed(some_facts(), kept).peak_flops_per_s == 989e12
    laptop = {"device": "cuda", "gpu_name": "NVIDIA GeForce RTX 4090 Laptop GPU"}
    assert hardware.completed(some_facts(), laptop).peak_flops_per_s is None
    assert hardware.completed(some_facts(), {"device": "cpu"}).peak_flops_per_s is None


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({}, None),
        ({"cxx": None}, "torch.compile needs a C++ compiler: apt install g++ python3-dev"),
        ({"python_header": None}, "torch.compile needs the Python headers (Python.h): apt install g++ python3-dev"),
        ({"device": "cuda"}, "torch.compile needs triton: pip install triton"),
        ({"device": "cuda", "triton_version": "3.7"}, None),
        ({"torch_version": None}, "torch is not installed"),
    ],
)
def test_what_stands_in_the_way_of_compiling_is_named_with_its_fix(changes, obstacle):
    assert hardware.compile_obstacle(some_facts(**changes)) == obstacle


def test_environment_sets_the_allocator_on_glibc_only_and_gives_reasons():
    variables = environment(some_facts(), already={})
    assert variables["MALLOC_MMAP_MAX_"].value == "0"
    assert variables["MALLOC_TRIM_THRESHOLD_"].value == "17179869184"
    assert variables["OMP_NUM_THREADS"].value == "3"
    assert variables["TORCHINDUCTOR_CACHE_DIR"].value.endswith("/machine/ffffffffffffffff/inductor")
    assert all(variable.reason for variable in variables.values())
    assert not [name for name in environment(some_facts(libc="musl 1.2"), already={}) if name.startswith("MALLOC")]


def test_threads_wait_asleep_only_where_others_need_the_cores():
    assert "OMP_WAIT_POLICY" not in environment(some_facts(busy_cores=0.3), already={})
    assert "OMP_WAIT_POLICY" not in environment(some_facts(busy_cores=None), already={})
    assert environment(some_facts(busy_cores=0.9), already={})["OMP_WAIT_POLICY"].value == "PASSIVE"


def test_what_the_person_has_set_stays_except_the_chosen_threads():
    already = {"MALLOC_TOP_PAD_": "1", "OMP_NUM_THREADS": "64"}
    variables = environment(some_facts(), threads=2, already=already)
    assert "MALLOC_TOP_PAD_" not in variables
    assert variables["OMP_NUM_THREADS"].value == "2"


def test_the_fastest_measured_rate_counts_and_an_unknown_one_is_unknown(still):
    facts = load_facts(measure=Measurer())
    assert facts.fastest_flops_per_s == 1.234e12
    assert dataclasses.replace(facts, bf16_flops_per_s=None).fastest_flops_per_s == 100e9
    assert dataclasses.replace(facts, bf16_flops_per_s=None, fp32_flops_per_s=None).fastest_flops_per_s is None
