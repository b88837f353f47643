"""Recipe experiments: what a variant changes, and what it refuses."""

import pytest
from tests.tiny_jobs import make_data, write_job

from intone.bench import recipe
from intone.errors import UserError
from intone.paths import read_lines


def test_a_variant_changes_what_it_names_and_keeps_the_tokens(tmp_path):
    job = make_data(tmp_path)
    words = f"batch_tokens={3 * job.context},matrix_lr=0.05,warmup_steps=7,seed=5"
    changed = recipe.changed(job, recipe.parse(words), tokens=30 * job.context)
    assert (changed.rows_per_step, changed.steps, changed.seed) == (3, 10, 5)
    assert (changed.optim.matrix_lr, changed.schedule.warmup_steps) == (0.05, 7)
    assert changed.optim.head_lr == job.optim.head_lr
    assert changed.model == job.model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("matrix_rl=1", "matrix_rl"),
        ("matrix_lr=fast", "matrix_lr 'fast' is not a number"),
        ("matrix_lr", "matrix_lr ''"),
    ],
)
def test_a_name_or_value_that_is_none_is_an_error(words, message):
    with pytest.raises(UserError, match=message):
        recipe.parse(words)


@pytest.mark.long
def test_a_variant_is_trained_and_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INTONE_HOME", str(tmp_path / "home"))
    stage = tmp_path / "runs" / "tiny" / "base"
    stage.mkdir(parents=True)
    write_job(stage, make_data(tmp_path))
    out = tmp_path / "rows.txt"
    assert recipe.main(["--from", str(stage), "--tokens", "640", "--try", "matrix_lr=0.04", "--out", str(out)]) == 0
    (row,) = read_lines(out)
    assert (row["variant"], row["steps"], row["tokens"]) == ("matrix_lr=0.04", 4, 640)
    assert 0 < row["bpb"] < 20
    assert "matrix_lr=0.04" in capsys.readouterr().out
    assert list((tmp_path / "home" / "recipe").iterdir()) == []
