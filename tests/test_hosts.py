"""Two machines, played by two network namespaces with a cable between them: torchrun on each, one training."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from intone import jobs
from intone.records import read_outcome
from tests.test_team import FIRST, WHOLE
from tests.tiny_jobs import ENVIRONMENT, losses, write_job

NETWORK = "10.213.77"  # of nobody else, we hope: it exists only between the two
CABLE = ("intone-a", "intone-b")
WAIT_S = 90.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, str]]]:
    """(namespace, address) of two machines that reach each other and nothing else."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (Debian: iproute2) to make network namespaces with")
    names = [f"{end}-{os.getpid()}" for end in CABLE]
    made = []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            ip("link", "add", CABLE[0], "netns", names[0], "type", "veth", "peer", "name", CABLE[1], "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces for this user or on this system: {error.stderr.strip()}")
        for number, (name, end) in enumerate(zip(names, CABLE, strict=True), 1):
            ip("-n", name, "addr", "add", f"{NETWORK}.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [(name, f"{NETWORK}.{number}") for number, name in enumerate(names, 1)]
    finally:
        for name in made:
            ip("netns", "del", name)


def start_host(folder, host: tuple[str, str], end: str, *, is_first: bool) -> subprocess.Popen[str]:
    """The line of docs/many-devices.md on one of two hosts.

    The two share their host name, unlike real ones: so it is said which is the first, and what each is called.
    """
    name, address = host
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{NETWORK}.1:29400", "--rdzv-id", "intone",
        "--rdzv-conf", f"is_host={int(is_first)}", "--local-addr", address, "-m", "intone.worker", str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": end, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["ip", "netns", "exec", name, *torchrun], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


@pytest.mark.long
def test_two_hosts_give_the_losses_of_one_process(tiny_job, tmp_path, hosts):
    changes = {"steps": 9, "save_every_s": 1e9}
    together = write_job(tmp_path / "together", tiny_job, **changes)
    alone = write_job(tmp_path / "alone", tiny_job, **changes)
    machines = [
        start_host(together, host, end, is_first=number == 0)
        for number, (host, end) in enumerate(zip(hosts, CABLE, strict=True))
    ]
    try:
        assert jobs.start(alone, ENVIRONMENT).wait().outcome == "done"
        said = [machine.communicate(timeout=WAIT_S)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
            machine.wait()
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(said)
    assert read_outcome(together).outcome == "done"
    found, expected = ([loss for _, loss in losses(folder)] for folder in (together, alone))
    assert len(found) == 9
    assert found[0] == pytest.approx(expected[0], rel=FIRST)
    assert found == pytest.approx(expected, rel=WHOLE)
    assert len(list((together / "checkpoints").glob("step_000009/optimizer.rank*"))) == 2
