"""What the command line says about itself."""

import re
import subprocess
import sys
import time

import pytest

import intone
from intone.cli import main, settings_class
from intone.fields import flag_of
from intone.resolving import named_fields
from intone.verbs import VERBS

HELP = """\
usage: intone VERB [flags]

Trains, measures and talks to small language models, fitted to this machine.

  run        text -> tokenizer -> base -> mid -> SFT -> evaluation
  train      one stage: base, mid, sft or rl
  chat       talk to a run, or to a server
  serve      a run behind an HTTP address: OpenAI's API, metrics, a page to chat
  eval       bits per byte and starter skills of a run
  bench      measure whether B is faster: A-settings -- B-settings; or a suite
  scan       what is wrong or slow in a PyTorch code base, and a plan to fix it
  tune       settle every auto of a stage here, and show why
  optimise   find what makes a stage of ours, or a program, slow; fix it; prove it
  plan       what a code base lacks; with a text, a plan for it and a tested change
  tokenizer  train or inspect a tokenizer
  data       check data, or tokenise it ahead of time
  import     a checkpoint of nanochat or transformers becomes a run
  export     a run as a folder for transformers, or as safetensors
  report     a page to look at and to show: of a run, or of measurements
  runs       what is on disk

intone VERB --help lists the flags of a verb; --json ends stdout with one line for machines.
First steps: intone run, then intone chat.
Exit codes: 0 done, 1 a check failed, 2 your input, 130 stopped.
"""


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]], ids=str)
def test_help_lists_every_verb_with_one_line(words, capsys):
    assert main(words) == 0
    assert capsys.readouterr() == (HELP, "")


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"intone {intone.__version__}\n"


# every verb, and every suite of one as the two words that it is called by
ENTRIES = VERBS | {f"{verb} {name}": suite for verb, entry in VERBS.items() for name, suite in entry.suites.items()}


@pytest.mark.parametrize("words", ENTRIES)
def test_the_help_of_a_verb_lists_its_flags_with_their_comments(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*words.split(), "--help"]) == 0
    out = capsys.readouterr().out
    cls = settings_class(ENTRIES[words])
    assert [flag_of(entry) for entry in named_fields(cls).values() if flag_of(entry) not in out] == []
    assert ENTRIES[words].summary in out
    assert [name for name in ENTRIES[words].suites if f"  {name}  " not in out] == []
    assert not re.search(r"default: (None|\)|\()", out)


@pytest.mark.parametrize("words", ENTRIES)
def test_every_verb_in_help_has_its_function(words):
    """Only what works stands in the table."""
    for target in filter(None, (ENTRIES[words].target, ENTRIES[words].forecast)):
        module, _, name = target.partition(":")
        assert callable(getattr(pytest.importorskip(module, reason=f"{module} does not exist yet"), name))


def test_help_answers_at_once():
    """Under 0.3 s as a command, interpreter start included; the fastest of five, since others share the machine."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "intone", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.3
