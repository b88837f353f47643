"""What /proc, /sys and control groups say, shown on made-up machines."""

from pathlib import Path

import pytest

from intone import system

MIB = 2**20


def machine(root: Path, files: dict[str, str]) -> Path:
    """A root folder with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_version_2_limits_are_the_tightest_of_all_levels(tmp_path):
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/job/task\n",
            "sys/fs/cgroup/job/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/job/task/cpu.max": "max 100000\n",
            "sys/fs/cgroup/job/memory.max": f"{700 * MIB}\n",
            "sys/fs/cgroup/job/memory.current": f"{300 * MIB}\n",
            "sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {100 * MIB}\n",
            "sys/fs/cgroup/job/task/memory.max": "max\n",
        },
    )
    limits = system.group_limits(root)
    assert limits == system.GroupLimits(1.5, 700 * MIB, 500 * MIB)


def test_version_1_limits_are_read(tmp_path):
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/box\n4:memory:/box\n0::/\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{900 * MIB}\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{950 * MIB}\n",
            "sys/fs/cgroup/memory/box/memory.stat": f"total_inactive_file {100 * MIB}\n",
        },
    )
    assert system.group_limits(root) == system.GroupLimits(3.0, 900 * MIB, 50 * MIB)


def test_a_container_that_sees_only_the_mount_of_its_group_still_finds_its_limit(tmp_path):
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/0123abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{512 * MIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{12 * MIB}\n",
        },
    )
    assert system.group_limits(root) == system.GroupLimits(None, 512 * MIB, 500 * MIB)


def test_a_memory_limit_near_infinity_is_no_limit(tmp_path):
    files = {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert system.group_limits(machine(tmp_path, files)) == system.GroupLimits(None, None, None)


def test_a_quota_of_minus_one_and_a_missing_proc_mean_no_limit(tmp_path):
    root = machine(
        tmp_path / "a",
        {
            "proc/self/cgroup": "5:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    nothing = system.GroupLimits(None, None, None)
    assert system.group_limits(root) == nothing
    assert system.group_limits(tmp_path / "b") == nothing


def test_memory_is_that_of_the_group_where_it_is_tighter_than_the_machine(tmp_path):
    root = machine(tmp_path, {"proc/meminfo": "MemTotal: 4096 kB\nMemFree: 9 kB\nMemAvailable: 2048 kB\n"})
    assert system.memory(root, system.GroupLimits(None, None, None)) == (4 * MIB, 2 * MIB)
    assert system.memory(root, system.GroupLimits(None, 3 * MIB, MIB)) == (3 * MIB, MIB)


def test_memory_that_nobody_tells_is_unknown_not_zero(tmp_path):
    assert system.memory(tmp_path) == (None, None)


def test_hyperthreads_of_one_core_count_once_and_a_quota_is_rounded_down(tmp_path):
    places = {0: (0, 0), 1: (0, 1), 2: (0, 0), 3: (0, 1), 4: (1, 0)}
    files = {}
    for cpu, (package, core) in places.items():
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"] = f"{package}\n"
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/core_id"] = f"{core}\n"
    root = machine(tmp_path, files)
    assert system.count_cores({0, 1, 2, 3, 4}, None, root) == (5, 3)
    assert system.count_cores({0, 2}, None, root) == (2, 1)
    assert system.count_cores({0, 1, 2, 3, 4}, 2.9, root) == (2, 2)
    assert system.count_cores({0, 1}, 0.4, root) == (1, 1)
    assert system.count_cores({7, 8, 9}, None, root) == (3, 3)  # no topology: every thread is a core


def test_processor_name_and_flags_come_from_cpuinfo(tmp_path):
    root = machine(
        tmp_path, {"proc/cpuinfo": "processor: 0\nmodel name\t: Chip 9 @ 2GHz\nflags\t\t: sse avx2 amx_bf16\n"}
    )
    assert system.processor(root) == ("Chip 9 @ 2GHz", {"sse", "avx2", "amx_bf16"})
    assert system.processor(tmp_path / "none")[1] is None


def test_busy_ticks_leave_out_idle_time_and_processors_that_are_not_ours(tmp_path):
    stat = "cpu  99 0 99 99 0 0 0 0 0 0\ncpu0 10 1 5 1000 7 0 2 0 0 0\ncpu1 400 0 0 0 0 0 0 0 0 0\n"
    root = machine(tmp_path, {"proc/stat": stat})
    assert system.busy_ticks({0}, root) == 18
    assert system.busy_ticks({0, 1}, root) == 418
    assert system.busy_ticks({5}, root) is None


def test_load_that_the_system_does_not_tell_is_unknown(tmp_path):
    assert system.busy_cores(0.0, root=tmp_path) is None


def test_gpus_are_those_of_the_drivers_list(tmp_path):
    assert system.gpu_names(tmp_path) == ()
    root = machine(tmp_path, {"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA Foo\nIRQ: 3\n"})
    assert system.gpu_names(root) == ("NVIDIA Foo",)


@pytest.mark.parametrize("lines", [["40000", "30000"], ["30000"]])
def test_free_gpu_memory_is_that_of_the_fullest_gpu(monkeypatch, lines):
    monkeypatch.setattr(system, "ask_nvidia", lambda *arguments: lines)
    assert system.gpu_free_bytes() == 30000 * MIB


def test_free_gpu_memory_is_unknown_where_the_driver_says_words(monkeypatch):
    monkeypatch.setattr(system, "ask_nvidia", lambda *arguments: ["[N/A]"])
    assert system.gpu_free_bytes() is None
