"""Processes that train as teams of 1, 2, 3, one scenario after the other: importing torch once pays for all of them.

`python -m tests.team_ranks RANK SCENARIOS.json`: what torchrun would have put into the environment stands in the file.
"""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY


def run_teams(scenarios: list[dict[str, Any]], folder: Path, *, seconds: float = 120.0) -> list[list[dict[str, Any]]]:
    """Runs them in order -> what each rank says after each. A scenario: {folder, size, stop_after, full_disk_of}.

    What a rank says: {outcome, step, optimizer_bytes}, or {error: the name of its type}, which only the last may.
    full_disk_of: the rank for which there is no room to save.
    """
    ports = [free_port() for _ in scenarios]
    plan = [{**scenario, "port": port} for scenario, port in zip(scenarios, ports, strict=True)]
    (folder / "scenarios.json").write_text(json.dumps(plan))
    most = max(scenario["size"] for scenario in scenarios)
    command = [sys.executable, "-m", "tests.team_ranks"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "scenarios.json")], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        for rank in range(most)
    ]
    try:
        answers = [rank.communicate(timeout=seconds)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert all(rank.returncode == 0 for rank in ranks), [rank.returncode for rank in ranks]
    said = [[json.loads(line) for line in answer.splitlines()] for answer in answers]
    return [
        [said[rank][number] for rank in range(scenario["size"])] for number, scenario in enumerate(scenarios)
    ]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def no_room(path: Path, tensors: Any) -> None:
    """In place of what writes the files of a save."""
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def main(rank: int, scenarios: list[dict[str, Any]]) -> None:
    """Takes part in those scenarios that have a place for this rank."""
    import torch

    from intone.dist import World
    from intone.model import checkpoint
    from intone.train.loop import Trainer, join_team

    torch.set_num_threads(1)
    for scenario in scenarios:
        size = scenario["size"]
        if rank >= size:
            print(json.dumps(None), flush=True)
            continue
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(scenario["port"]),
            GLOO_SOCKET_IFNAME="lo",
        )  # fmt: skip
        folder = Path(scenario["folder"])
        left = [scenario.get("stop_after") or sys.maxsize]

        def stop(left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] <= 0

        team = join_team(folder, World(rank, size, rank, size))
        trainer = Trainer(folder, stop, team=team)
        if scenario.get("full_disk_of") == rank:
            checkpoint._save_tensors = no_room
        try:
            outcome = trainer.run()
        except Exception as error:
            print(json.dumps({"error": type(error).__name__}), flush=True)
            os._exit(0)  # as a worker ends: nobody waits for the others
        team.close()
        state = trainer.optimizer.state_tensors()
        said = {
            "outcome": outcome.outcome,
            "step": outcome.step,
            "optimizer_bytes": sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
        }
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
