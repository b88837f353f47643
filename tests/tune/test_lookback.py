"""A remembered micro-batch is looked at in its run's first steps, and forgotten where it no longer does what it did."""

from dataclasses import replace

import pytest
from tests.tiny_jobs import SEGMENT, write_job
from tests.tune.test_batch import Machine

from intone.records import Choice, StepRow, log_row, read_choices, write_choices
from intone.tune.lookback import STEPS, look_back
from intone.tune.settle_batch import as_choice

KEY = {"rows_per_step": 5}


@pytest.fixture
def looked(tmp_path, tiny_job, trials, facts, capsys):
    """looked(slower, larger, ...) -> (what a run's steps said, what is kept) of a micro-batch that was remembered."""
    search = replace(Machine(lambda rows: 0.3 + 0.01 * rows).search(5, 2**40), start_bytes=2**28)
    answer = as_choice(search, KEY)
    trials.record("device_batch", KEY, answer)
    folder = write_job(tmp_path / "job", tiny_job)

    def ask(slower=1.0, larger=1.0, *, origin="cached", steps=STEPS + 1, rows=search.rows):
        (folder / "log.jsonl").unlink(missing_ok=True)
        choices = read_choices(folder)
        settings = choices.settings | {"device_batch": replace(answer, origin=origin)}
        segments = (replace(SEGMENT, device_batch=rows),)
        write_choices(folder, replace(choices, settings=settings, segments=segments))
        peak = int(larger * (2**28 + search.predicted_bytes))
        for step in range(1, steps + 1):
            seconds = slower * search.step_s * (9 if step == 1 else 1 + 0.3 * (step % 3))
            log_row(folder / "log.jsonl", StepRow(step, step * 160, 3.0, 0.1, seconds, 0.0, 1.0, peak, 0))
        return look_back(folder, facts), trials.find("device_batch", KEY)

    return ask


def test_what_does_as_it_did_is_kept(looked):
    why, kept = looked(1.08, 1.08)
    assert why is None and kept.measured is not None


@pytest.mark.parametrize(
    ("slower", "larger", "words"), [(1.2, 1.0, "its fastest step took"), (1.0, 1.2, "it takes 0.")]
)
def test_what_is_slower_or_larger_is_forgotten_and_the_reason_is_kept(looked, slower, larger, words, capsys):
    why, kept = looked(slower, larger)
    assert words in why and "in the search" in why
    assert (kept.value, kept.measured) == (None, None) and words in kept.reason
    assert "searched again next time" in capsys.readouterr().err


@pytest.mark.parametrize("how", [{"origin": "measured"}, {"steps": 3}, {"rows": 1}])
def test_nothing_is_said_of_others(looked, how):
    why, kept = looked(5.0, **how)
    assert why is None and kept.measured is not None


def test_a_rule_has_nothing_to_forget(tmp_path, tiny_job, facts):
    folder = write_job(tmp_path / "job", tiny_job)
    choices = read_choices(folder)
    write_choices(folder, replace(choices, settings={"device_batch": Choice(3, "by rule", "default")}))
    assert look_back(folder, facts) is None
