"""What a code base has and lacks is found in its syntax, with the place where it stands."""

import pytest

from intone.cli import main
from intone.optimise.planner.catalogue import chances_in
from intone.optimise.scan.run import scan_texts

UNCACHED = """import torch
class GPT:
    def generate(self, idx, num, temperature=1.0):
        for _ in range(num):
            logits = self(idx)[:, -1, :] / temperature
            idx_next = torch.multinomial(torch.softmax(logits, dim=-1), num_samples=1)
            idx = torch.cat((idx, idx_next), dim=1)
        return idx
"""
CACHED = """import torch
def generate(model, ids, num, top_k, unread_seed, seed=0):
    cache = model.new_cache()
    logits = model(ids, kv_cache=cache)
    for _ in range(num):
        values = logits[:, -1, :].topk(top_k).values
        token = torch.multinomial(torch.softmax(logits[:, -1, :], dim=-1), num_samples=1)
        logits = model(token, kv_cache=cache)
    return token
"""
TRAIN = """import torch
def train(model, optimizer, batches):
    for batch in batches:
        loss = model(batch)
        loss.backward()
        CLIP
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), "model.pt")
"""


def found(**texts: str):
    return {one.name: one for one in chances_in(scan_texts({f"{name}.py": text for name, text in texts.items()}))}


def test_a_path_without_a_cache_is_named_and_one_with_a_cache_is_not():
    chances = found(a=UNCACHED, b=CACHED)
    missing, present = chances["kv-cache:GPT.generate"], chances["kv-cache:generate"]
    assert (missing.state, missing.evidence[0].split(" ")[0]) == ("missing", "a.py:5")
    assert missing.factor == pytest.approx((100 * 100 + 99 * 100 / 2) / 199)
    assert (present.state, present.factor) == ("present", None)


def test_options_of_sampling_are_parameters_that_somebody_reads():
    chances = found(b=CACHED)
    states = {name: chances[f"sampling:{name}"].state for name in ("temperature", "top-k", "seed", "min-p")}
    assert states == {"temperature": "missing", "top-k": "present", "seed": "partly", "min-p": "missing"}
    assert chances["sampling:seed"].evidence == ("b.py:2 seed is never read",)


@pytest.mark.parametrize(
    ("line", "state"), [("pass", "missing"), ("torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)", "present")]
)
def test_a_training_loop_has_or_lacks_clipping(line: str, state: str):
    chance = found(t=TRAIN.replace("CLIP", line))["grad-clip"]
    assert chance.state == state
    assert chance.evidence[0].startswith("t.py:5" if state == "missing" else "t.py:6")


def test_a_checkpoint_that_is_written_in_place_is_no_atomic_one():
    assert found(t=TRAIN.replace("CLIP", "pass"))["atomic-checkpoint"].state == "partly"


def test_what_is_missing_and_bounded_comes_first_and_unrecognised_code_is_not_judged():
    assert next(iter(found(a=UNCACHED, t=TRAIN.replace("CLIP", "pass")))) == "kv-cache:GPT.generate"
    assert {one.state for one in found(a="x = 1\n").values()} == {"not seen"}


def test_the_list_is_for_people_and_machines_and_one_of_it_is_planned(tmp_path, home, capsys):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "model.py").write_text(UNCACHED)
    assert main(["plan", str(tmp_path / "code")]) == 0
    out = capsys.readouterr().out
    assert "kv-cache:GPT.generate" in out and "model.py:5" in out and "<= 75x tokens" in out
    assert main(["plan", str(tmp_path / "code"), "--choose", "kv-cache"]) == 0
    assert "model.py:5" in (home / "optimise" / "plans" / "plan-1" / "plan.md").read_text()
    assert main(["plan", str(tmp_path / "code"), "--choose", "sampling:temperature"]) == 2
    assert "is there" in capsys.readouterr().err
