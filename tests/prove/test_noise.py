"""The machine's signals: read from made-up and real machines, and judged from recorded ones."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from intone.prove import noise
from intone.prove.noise import Disturbance, Signals, Watch, disturbances, most_lost, summary
from intone.system import allowed_cpus

# recorded on two cores while one thread trained for half a second: before and after, nobody else at work
QUIET = (
    Signals(100.0, 5000.00, 27.18, 310.00, None, None, 0.0, None, 573e-6),
    Signals(100.5, 5000.51, 27.18, 310.50, None, None, 0.0, None, 575e-6),
)


def with_after(**changes):
    return (QUIET[0], replace(QUIET[1], **changes))


def kinds(*blocks, num_cpus=2):
    return [entry.kind for entry in disturbances(blocks, num_cpus)]


def test_a_quiet_machine_disturbs_nothing():
    assert kinds(QUIET, QUIET, QUIET, QUIET) == []


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        (dict(used_s=5001.0), "load", "other programs used 1.0 of 2 cores"),
        (dict(stolen_s=27.28), "steal", "the host took 10% of the processor time for others"),
        (dict(calibration_s=640e-6), "clock", "the processor's speed moved by 12%"),
        (dict(memory_wait_s=0.1), "memory", "memory was short"),
    ],
)
def test_what_interferes_is_named_with_its_size(changes, kind, words):
    (found,) = disturbances([with_after(**changes)], 2)
    assert (found.kind, found.words) == (kind, words)
    assert found.size > 1


@pytest.mark.parametrize(
    ("first", "last", "kind"),
    [
        (dict(throttled=7), dict(throttled=8), "heat"),
        (dict(quota_wait_s=1.0), dict(quota_wait_s=1.1), "quota"),
        (dict(mhz=3600.0), dict(mhz=3100.0), "clock"),
        (dict(gpu_throttled=False), dict(gpu_throttled=True), "GPU heat"),
    ],
)
def test_what_only_some_machines_tell_counts_too(first, last, kind):
    assert kinds((replace(QUIET[0], **first), replace(QUIET[1], **last))) == [kind]


def test_a_gpus_clock_is_compared_between_the_ends_of_blocks_where_it_was_at_work():
    def block(before, after):
        return replace(QUIET[0], gpu_mhz=before), replace(QUIET[1], gpu_mhz=after)

    assert kinds(block(300.0, 1980.0), block(1100.0, 1965.0)) == []
    assert kinds(block(300.0, 1980.0), block(1980.0, 1500.0)) == ["GPU clock"]


def test_a_gpu_that_is_slower_under_one_sides_load_disturbs_nothing_as_long_as_it_is_steady():
    def block(mhz):
        return QUIET[0], replace(QUIET[1], gpu_mhz=mhz, gpu_throttled=mhz < 1900)

    blocks = [block(1980.0), block(1500.0), block(1520.0), block(1970.0)]
    assert disturbances(blocks, 2, ["light", "heavy", "heavy", "light"]) == []
    (found,) = disturbances(blocks, 2, ["light", "heavy", "light", "heavy"])
    assert found.words == "the GPU's clock moved by 31%"
    steady, moved = [blocks[1], blocks[2]], [blocks[0], blocks[1]]
    others = -math.log1p(-0.02)  # as recorded: other programs had a hundredth of a second in half a one
    assert most_lost(steady, [blocks[0], blocks[3]]) == pytest.approx(math.log(1520 / 1500) + others)
    assert most_lost(moved, [blocks[0], blocks[3]]) == pytest.approx(math.log(1980 / 1500) + others)


def test_a_drift_between_the_blocks_of_a_round_is_seen():
    slower = tuple(replace(look, calibration_s=look.calibration_s * 1.1) for look in QUIET)
    assert kinds(QUIET, slower) == ["clock"]


def test_the_same_load_is_less_on_a_machine_of_many_cores():
    assert kinds(with_after(used_s=5001.0), num_cpus=2) == ["load"]
    assert kinds(with_after(used_s=5001.0), num_cpus=64) == []


def test_what_a_system_does_not_tell_is_not_held_against_it():
    unknown = Signals(1.0, None, None, 0.0, None, None, None, None, 1e-3)
    assert kinds((unknown, replace(unknown, at_s=1.5))) == []


def test_the_summary_names_the_most_frequent_at_its_worst():
    little, much = Disturbance("load", "a little", 1.1), Disturbance("load", "much", 6.0)
    heat = Disturbance("heat", "hot", 9.0)
    assert summary([[little], [], [much, heat], [little]]) == "much in 3 of 4 rounds"
    assert summary([[], []]) == ""


# --- reading ----------------------------------------------------------------------------------------


def test_a_made_up_machine_is_read(tmp_path):
    cpu = min(allowed_cpus())
    other = max(allowed_cpus()) + 1
    pid = os.getpid()
    files = {
        "proc/stat": f"cpu 9 9 9 9\ncpu{cpu} 100 20 30 4000 50 6 7 80 9 9\ncpu{other} 1 1 1 1 1 1 1 1\nintr 5\n",
        f"proc/{pid}/stat": f"{pid} (a (b) c) S 1 1 1 0 -1 4194560 1 2 3 4 150 50 25 75 20 0 1 0 1 1 1",
        "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=9\n",
        "proc/self/cgroup": "0::/box\n",
        "sys/fs/cgroup/box/cpu.stat": "usage_usec 7\nnr_throttled 3\nthrottled_usec 1500000\n",
        f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count": "4\n",
        f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq": "3600000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    seen = Watch([], root=tmp_path).look()
    assert (seen.used_s, seen.stolen_s, seen.own_s) == (1.63, 0.8, 3.0)
    assert (seen.throttled, seen.quota_wait_s, seen.memory_wait_s, seen.mhz) == (4, 1.5, 2.5, 3600.0)
    assert (seen.gpu_mhz, seen.gpu_throttled) == (None, None)
    assert 1e-5 < seen.calibration_s < 1


def test_a_machine_that_tells_nothing_is_unknown(tmp_path):
    seen = Watch([], root=tmp_path).look()
    assert (seen.used_s, seen.stolen_s, seen.own_s, seen.throttled, seen.mhz) == (None, None, 0.0, None, None)


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="only Linux tells who used the processor")
def test_a_neighbour_is_told_from_the_measured_process():
    """Two processes that work for a third of a second of processor time each; only one of them is ours."""
    code = "import time\ninput()\nwhile time.process_time() < 0.35: pass\nprint()\ninput()"
    ours, theirs = (
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    watch = Watch([ours.pid])
    before = watch.look()
    for process in (ours, theirs):
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
    after = watch.look()
    for process in (ours, theirs):
        process.communicate("\n")
    assert 0.28 <= after.own_s - before.own_s <= 0.5
    assert after.used_s - before.used_s >= after.own_s - before.own_s + 0.25
    elapsed = replace(after, at_s=before.at_s + 0.7)
    assert "load" in kinds((replace(before, calibration_s=1.0), replace(elapsed, calibration_s=1.0)))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["1980, 0x0000000000000001"], (1980.0, False)),
        (["1410, 0x0000000000000060"], (1410.0, True)),
        (["1980, [N/A]"], (1980.0, None)),
        ([], (None, None)),
    ],
)
def test_a_gpus_clock_and_its_reasons_are_read_from_its_driver(monkeypatch, lines, expected):
    monkeypatch.setattr(noise, "ask_nvidia", lambda *words: lines)
    assert noise.gpu_clock() == expected
