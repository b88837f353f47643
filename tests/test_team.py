"""Training in a team: 2 and 3 processes do what 1 does, keep a share of the optimizer, go on as any other number."""

import dataclasses

import pytest
import torch

from intone.dist import World
from intone.errors import RankLost, UserError
from intone.model.checkpoint import newest_checkpoint
from intone.team import ALONE, Team, telling_of_others
from tests.team_ranks import run_teams
from tests.tiny_jobs import CONFIG, SEGMENT, losses, make_data, replace, write_job

STEPS = 9
ROWS = 5  # of a step: neither 2 nor 3 divide it
# float32 sums in another order, a few 1e-7 of the loss at first (CONTRACTS); Muon and many steps make them grow
FIRST, WHOLE = 1e-6, 1e-4
WIDE = replace(CONFIG, depth=3, mlp_ratio=1)  # 15 matrices of one shape and tables of three sizes


@pytest.fixture(scope="module")
def teams(tmp_path_factory):
    """The folders of one job trained by 1, 2, 3, and by 1, 2, 3 and 1 in turn; and what the ranks said."""
    place = tmp_path_factory.mktemp("teams")
    job = replace(make_data(place), model=WIDE)
    folders = {}
    scenarios = []

    def plan(name, *parts, segment=SEGMENT, full_disk_of=None, **changes):
        (place / name).mkdir(exist_ok=True)
        changes = {"steps": STEPS, "save_every_s": 1e9, "rows_per_step": ROWS, "samples": (), **changes}
        folders[name] = write_job(place / name, job, segment, **changes)
        for size, stop in parts:
            scenario = {"folder": str(place / name), "size": size, "stop_after": stop, "full_disk_of": full_disk_of}
            scenarios.append(scenario)

    plan("one", (1, None))
    plan("two", (2, None))
    plan("three", (3, None))
    plan("in turn", (1, 2), (2, 3), (3, 2), (1, None))
    plan("two rows for three", (3, None), rows_per_step=2, steps=3)
    plan("two rows for one", (1, None), rows_per_step=2, steps=3)
    plan("full disk", (2, 2))
    plan("full disk", (2, None), full_disk_of=1)
    said = run_teams(scenarios, place)
    names = ["one", "two", "three", *["in turn"] * 4, "two rows for three", "two rows for one"]
    names += ["full disk", "full disk"]
    return folders, list(zip(names, said, strict=True))


def assert_close(folder, reference):
    found, expected = losses(folder), losses(reference)
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert found[0][1] == pytest.approx(expected[0][1], rel=FIRST)
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=WHOLE)


@pytest.mark.parametrize("name", ["two", "three"])
def test_more_processes_give_the_losses_and_the_weights_of_one(teams, name):
    folders, said = teams
    assert {rank["outcome"] for entry, ranks in said if entry == name for rank in ranks} == {"done"}
    assert_close(folders[name], folders["one"])
    expected, found = (newest_checkpoint(folders[entry])[0].weights for entry in ("one", name))
    for key, value in expected.items():  # single numbers move further where their gradient is mostly rounding
        assert (found[key] - value).norm() <= 1e-3 * value.norm() + 1e-6, key


def test_a_run_goes_on_with_another_number_of_processes_as_if_nothing_was(teams):
    folders, said = teams
    assert [ranks[0]["step"] for name, ranks in said if name == "in turn"] == [2, 5, 7, STEPS]
    assert [ranks[0]["outcome"] for name, ranks in said if name == "in turn"] == ["stopped"] * 3 + ["done"]
    assert_close(folders["in turn"], folders["one"])


def test_fewer_rows_than_processes_are_learned_once(teams):
    folders, _ = teams
    assert_close(folders["two rows for three"], folders["two rows for one"])


def test_every_process_keeps_its_share_of_the_optimizer(teams):
    folders, said = teams
    alone = next(ranks[0]["optimizer_bytes"] for name, ranks in said if name == "one")
    for name, size in (("two", 2), ("three", 3)):
        shares = [rank["optimizer_bytes"] for entry, ranks in said if entry == name for rank in ranks]
        assert sum(shares) == pytest.approx(alone, abs=64)  # every one has the number of steps
        assert max(shares) < 1.1 * alone / size
        save = newest_checkpoint(folders[name])[0]
        files = sorted(path.name for path in save.folder.glob("optimizer*"))
        assert files == [f"optimizer.rank{rank}.safetensors" for rank in range(size)]


def test_a_save_of_a_team_reads_back_whole(teams):
    folders, _ = teams
    one, three = (newest_checkpoint(folders[name])[0].optimizer for name in ("one", "three"))
    assert one.keys() == three.keys()
    for name, value in one.items():
        whole = three[name].reshape(value.shape).float()
        assert (whole - value).norm() <= 1e-2 * value.float().norm() + 1e-7, name


def test_a_disk_that_is_full_for_one_ends_all_and_the_save_before_stays(teams):
    folders, said = teams
    assert said[-1][1] == [{"error": "RankLost"}, {"error": "DiskFull"}]
    save, problems = newest_checkpoint(folders["full disk"])
    assert (save.step, problems) == (2, [])
    assert [path.name for path in (folders["full disk"] / "checkpoints").iterdir()] == ["step_000002"]


def test_one_process_alone_needs_nobody():
    assert ALONE.sums(3, 4) == (3, 4)
    assert ALONE.anyone(False, True) == (False, True)
    assert ALONE.main_says({"a": 1}) == {"a": 1}
    tensor = torch.ones(2)
    ALONE.sum_(tensor)
    ALONE.spread_([tensor])
    assert tensor.tolist() == [1, 1]
    with pytest.raises(ZeroDivisionError), ALONE.all_or_none():
        raise ZeroDivisionError


def test_what_torch_says_of_a_lost_process_is_told_apart_from_memory_that_ran_out():
    with pytest.raises(RankLost, match="ended or did not answer .Connection closed by peer.$"), telling_of_others():
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError, match="allocate"), telling_of_others():
        raise RuntimeError("can't allocate memory: you tried to allocate 64 bytes")


def test_a_device_without_a_way_to_talk_is_refused():
    with pytest.raises(UserError, match="cannot train together on device mps"):
        Team.join(dataclasses.replace(World(), size=2, local_size=2), torch.device("mps"))
