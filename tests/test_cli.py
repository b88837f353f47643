"""The command line: flags to settings, and one readable end for every command."""

import errno
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from intone import cli
from intone.errors import DiskFull, UserError
from intone.paths import disk_errors
from intone.records import Answer
from intone.resolving import identity
from intone.runs import create_run
from intone.settings import (
    ChatSettings,
    DataSettings,
    EvalSettings,
    ExportSettings,
    ImportSettings,
    RunSettings,
    TrainSettings,
)
from intone.verbs import VERBS
from tests.tiny_jobs import write_job

SEEN = {}


def remember(settings, origins):
    """A verb's function that keeps what it was given."""
    SEEN.update(settings=settings, origins=origins)
    return Answer({"bpb": 0.9}, "bpb 0.9", run="d3-1", path="/runs/d3-1")


@pytest.fixture
def verb(monkeypatch, home):
    """Every verb calls `remember`; the returned function puts another one in its place."""
    stand_in = types.ModuleType("stand_in")
    monkeypatch.setitem(sys.modules, "stand_in", stand_in)
    changed = {name: entry._replace(target="stand_in:called", forecast=None) for name, entry in VERBS.items()}
    monkeypatch.setattr(cli, "VERBS", changed)

    def use(function):
        stand_in.called = function

    SEEN.clear()
    use(remember)
    return use


def run(words, capsys):
    """(exit code, stdout, stderr) of a command line."""
    code = cli.main(words.split())
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run", RunSettings()),
        ("run --data a.txt b --minutes 0.5", RunSettings(data=("a.txt", "b"), minutes=0.5)),
        ("run --depth 3 --compile off", RunSettings(depth=3, compile="off")),
        ("run --device_batch=1,024 --eval-every none", RunSettings(device_batch=1024, eval_every=None)),
        ("run --depth auto --batch-tokens 32,768", RunSettings(batch_tokens=32768)),
        ("run --deterministic", RunSettings(deterministic=True)),
        ("run --name none --new", RunSettings(name="none", new=True)),
        ("train base --steps 20 --prepare", TrainSettings(stage="base", steps=20, prepare=True)),
        ("train --steps 20 base", TrainSettings(stage="base", steps=20)),
        ("chat --from d3-1/sft --top-k none", ChatSettings(from_run="d3-1/sft", top_k=None)),
        ("chat --no-tools --prompt=--hi", ChatSettings(tools=False, prompt="--hi")),
        ("chat --python", ChatSettings(python=True)),
        ("chat --min-tokens 0", ChatSettings(min_tokens=0)),
        ("eval d3-1 --tasks bpb --json", EvalSettings(run="d3-1", tasks=("bpb",), json=True)),
        ("eval --json d3-1", EvalSettings(run="d3-1", json=True)),
        ("data check a b", DataSettings(action="check", data=("a", "b"))),
        ("data prepare a --tokenizer t", DataSettings(action="prepare", data=("a",), tokenizer="t")),
        ("import a/b --step 7 --name x", ImportSettings(path="a/b", step=7, name="x")),
        ("export d3-1/sft --to out --force", ExportSettings(run="d3-1/sft", to="out", force=True)),
    ],
)  # fmt: skip
def test_words_become_settings(verb, capsys, words, expected):
    code, _, err = run(words, capsys)
    assert (code, err) == (0, "")
    assert SEEN["settings"] == expected


def test_flags_keep_their_origin_and_everything_else_its_default(verb, capsys):
    run("run --depth 3 --seed 1337", capsys)
    origins = SEEN["origins"]
    assert (origins["depth"].origin, origins["depth"].reason) == ("flag", "--depth")
    assert origins["seed"].origin == "flag"
    assert {name for name, entry in origins.items() if entry.origin != "default"} == {"depth", "seed"}


def test_train_from_a_run_takes_its_model_settings_below_the_flags(verb, capsys):
    create_run(identity(RunSettings(depth=5, context=96, device_batch=3)), verb="run", stages=("base",), name="first")
    run("train sft --from first --context 64", capsys)
    settings, origins = SEEN["settings"], SEEN["origins"]
    assert (settings.depth, settings.context, settings.device_batch) == (5, 64, "auto")
    assert (origins["depth"].origin, origins["depth"].reason) == ("from", "run first")
    assert origins["context"].origin == "flag"
    assert origins["from_run"].origin == "flag"


@pytest.mark.parametrize(
    ("words", "message", "fix"),
    [
        ("rnu", "unknown verb 'rnu'", "did you mean 'run'?"),
        ("run --mintes 3", "unknown flag --mintes of intone run", "did you mean --minutes?"),
        ("run --zzz", "unknown flag --zzz of intone run", "intone run --help lists the flags"),
        ("run --from x", "unknown flag --from of intone run", None),
        ("run --minutes x", "--minutes 'x' is not a number or auto", "see intone run --help"),
        ("run --minutes 0", "minutes is 0, it must be at least 0.05", "use 0.05 or more, or auto"),
        ("run --depth -1", "depth is -1, it must be at least 1", "use 1 or more, or auto"),
        ("run --depth 1.5", "--depth '1.5' is not a whole number or auto", "see intone run --help"),
        ("run --preset moden", "--preset 'moden' is not one of modern, classic", "did you mean 'modern'?"),
        ("run --compile=onn", "--compile 'onn' is not one of auto, on, off", "did you mean 'on'?"),
        ("run --batch-tokens 1000", "batch_tokens 1,000 is not a power of two", "use --batch-tokens 512 or 1024"),
        ("run --depth", "--depth needs a value: a whole number or auto", "see intone run --help"),
        ("run --no-new", "unknown flag --no-new of intone run", "did you mean --new?"),
        ("run --depth=it's", '--depth "it\'s" is not a whole number or auto', None),
        ("run --data", "--data needs at least one value", "see intone run --help"),
        ("run --seed 1 --seed 2", "--seed is given twice", "give it once; several values follow one flag"),
        ("run --show 3", "unexpected '3'", "see intone run --help"),
        ("run d3-1", "unexpected 'd3-1'", "see intone run --help"),
        ("run -- python x.py", "intone run takes no command after --", "leave out the --"),
        ("train", "STAGE is missing after intone train", "STAGE is one of base, mid, sft, rl"),
        ("export d3-1", "--to is missing after intone export", "--to is a text: folder to write"),
        (
            "import --step 3", "PATH is missing after intone import",
            "PATH is a text: folder of a nanochat checkpoint, of transformers' NanoChatForCausalLM, or an export of "
            "intone",
        ),
        ("data check", "DATA is missing after intone data check", "name files, folders or public sets"),
        ("train bse", "STAGE 'bse' is not one of base, mid, sft, rl", "did you mean 'base'?"),
        ("train sft", "train sft needs a run to start from", "add --from RUN; `intone runs` lists them"),
        ("train sft --from d9-9", "there is no run under HOME/runs", "make one with intone run, or set INTONE_HOME"),
        ("eval a b", "unexpected 'b'", "see intone eval --help"),
        ("serve d3-1", "unexpected 'd3-1'", "a run is named with --from: intone serve --from d3-1"),
        ("serve --from d3-1 x", "unexpected 'x'", "see intone serve --help"),
        ("chat --model d3-1", "unknown flag --model of intone chat", "did you mean --from?"),
        ("eval --tasks bpb core", "--tasks 'core' is not one of bpb, starter", None),
        ("chat --temperature nan", "temperature nan is not a number", None),
    ],
)
def test_a_mistake_says_what_is_wrong_and_what_to_do(verb, capsys, home, words, message, fix):
    code, out, err = run(words, capsys)
    assert (code, out) == (2, "")
    lines = err.replace(str(home), "HOME").splitlines()
    assert lines[0] == f"intone {words.split()[0]}: {message}"
    assert fix is None or lines[1] == f"  fix: {fix}"
    assert "Traceback" not in err
    assert SEEN == {}


@pytest.mark.parametrize("words", ["rnu --json", "run --mintes 3 --json", "run --json --minutes x", "train --json"])
def test_with_json_a_mistake_is_the_last_line_of_stdout_too(verb, capsys, words):
    code, out, err = run(words, capsys)
    value = json.loads(out.splitlines()[-1])
    assert code == value["exit"] == 2
    assert list(value) == ["format", "verb", "outcome", "exit", "error"]
    assert (value["format"], value["verb"], value["outcome"]) == (1, words.split()[0], "bad_input")
    assert set(value["error"]) == {"message", "value", "fix"}
    assert value["error"]["message"] in err


def test_without_json_the_text_and_with_json_the_object_is_on_stdout(verb, capsys):
    assert run("run", capsys) == (0, "bpb 0.9\n", "")
    code, out, _ = run("run --json", capsys)
    assert (code, out.count("\n")) == (0, 1)
    assert json.loads(out) == {
        "format": 1, "verb": "run", "outcome": "done", "exit": 0, "run": "d3-1", "path": "/runs/d3-1",
        "result": {"bpb": 0.9},
    }  # fmt: skip


def test_a_result_that_is_not_done_has_its_outcome_exit_and_error(verb, capsys):
    error = UserError("out of memory", fix="use --depth 3").as_json()
    verb(lambda *_: Answer({"minutes": 1.5}, run="d9-1", outcome="out_of_memory", exit=1, error=error))
    code, out, _ = run("run --json", capsys)
    value = json.loads(out)
    assert (code, value["outcome"], value["exit"], value["run"]) == (1, "out_of_memory", 1, "d9-1")
    assert value["result"] == {"minutes": 1.5}
    assert value["error"]["fix"] == "use --depth 3"


def raising(error):
    def function(*_):
        raise error

    return function


def test_ctrl_c_ends_with_130_and_says_that_it_can_go_on(verb, capsys):
    verb(raising(KeyboardInterrupt()))
    code, out, err = run("run --json", capsys)
    value = json.loads(out)
    assert code == value["exit"] == 130
    assert value["outcome"] == "stopped"
    assert err == "\nintone run: stopped\n"


def test_a_full_disk_has_its_own_outcome(verb, capsys):
    def fill(*_):
        with disk_errors(Path("/runs/d3-1")):
            raise OSError(errno.ENOSPC, "full")

    verb(fill)
    code, out, err = run("run --json", capsys)
    assert code == 2
    assert json.loads(out)["outcome"] == "disk_full"
    assert "no space left on the disk of /runs/d3-1" in err
    assert issubclass(DiskFull, UserError)


def test_our_own_fault_is_one_line_and_the_traceback_a_file(verb, capsys, home):
    verb(raising(ZeroDivisionError("division by zero")))
    code, out, err = run("run --json --depth 3", capsys)
    assert code == 1
    assert json.loads(out)["outcome"] == "error"
    assert err.splitlines()[0] == "intone run: ZeroDivisionError: division by zero"
    assert "Traceback" not in err
    [report] = home.glob("crash-*.txt")
    assert str(report) in err
    assert "run --json --depth 3" in report.read_text()
    assert "raise error\nZeroDivisionError: division by zero" in report.read_text()


def test_a_fault_is_still_told_where_no_file_can_be_written(verb, capsys, monkeypatch):
    monkeypatch.setenv("INTONE_HOME", "/dev/null/nowhere")
    verb(raising(ZeroDivisionError("division by zero")))
    code, _, err = run("run", capsys)
    assert code == 1
    assert "ZeroDivisionError: division by zero" in err
    assert "no file could be written" in err


def test_a_package_that_is_missing_is_named_with_the_command_that_brings_it(verb, capsys):
    verb(raising(ModuleNotFoundError("No module named 'torch'", name="torch")))
    code, _, err = run("run", capsys)
    assert code == 2
    assert err.splitlines()[0] == "intone run: the package torch is not installed"


def test_show_prints_every_value_with_its_origin_and_does_nothing(verb, capsys):
    code, out, err = run("run --show --depth 3 --preset classic", capsys)
    lines = {line.split()[0]: line.split() for line in out.splitlines()}
    assert (code, err) == (0, "")
    assert lines["depth"] == ["depth", "3", "flag", "--depth"]
    assert lines["minutes"][:3] == ["minutes", "auto", "default"]
    assert lines["smear"] == ["smear", "no", "preset", "architecture", "classic"]
    assert "show" not in lines
    assert SEEN == {}


def test_show_puts_the_forecast_before_the_settings(verb, capsys, monkeypatch):
    verb(lambda settings, _: (f"about 8 min at depth {settings.depth}", {"minutes": 8}))
    monkeypatch.setitem(cli.VERBS, "run", cli.VERBS["run"]._replace(forecast=cli.VERBS["run"].target))
    _, out, _ = run("run --show --depth 3", capsys)
    assert out.startswith("about 8 min at depth 3\n\nsetting ")
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:]}
    assert lines["minutes"][:3] == ["auto:", "8", "default"] and lines["depth"][0] == "3"
    assert lines["seed"] == ["1337", "default"], "a reason that says no more than the origin is left out"
    _, out, _ = run("run --show --depth 3 --json", capsys)
    result = json.loads(out)["result"]
    assert result["forecast"] == {"minutes": 8}
    assert result["settings"]["depth"] == {"value": 3, "origin": "flag", "reason": "--depth"}


def test_every_verb_shows_its_settings_and_what_was_settled_for_the_run_it_names(tiny_job, tmp_path, capsys):
    folder = write_job(tmp_path / "copied" / "base", tiny_job)
    code, out, _ = run(f"chat --show --from {folder}", capsys)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0 and ["temperature", "0.6", "default"] in [line[:3] for line in lines]
    assert ["device", "cpu", "default", "test"] in lines
    _, out, _ = run(f"chat --show --json --from {folder}", capsys)
    assert json.loads(out)["result"]["choices"]["device"]["reason"] == "test"
    code, out, _ = run("report nowhere --show", capsys)
    assert code == 0 and "nothing is known of what was settled for nowhere" in out


def test_the_words_after_two_dashes_are_kept_apart():
    assert cli.split_argv(["a", "--x", "--", "b", "--", "c"]) == (["a", "--x"], ["b", "--", "c"])
    assert cli.split_argv(["a"]) == (["a"], None)


def test_a_reader_that_goes_away_is_no_crash(home):
    """`intone runs | head -0`: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "intone", "runs"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (130, b"")


def test_a_termination_ends_as_ctrl_c_does(home):
    """The signal comes while the command waits at a pipe that nobody opens for writing."""
    (home / "runs" / "x").mkdir(parents=True)
    os.mkfifo(home / "runs" / "x" / "run.json")
    child = subprocess.Popen(
        [sys.executable, "-m", "intone", "runs", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    opened = os.open(home / "runs" / "x" / "run.json", os.O_WRONLY)  # returns once the command reads it
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=20)
    os.close(opened)
    assert child.returncode == 130
    assert json.loads(out.splitlines()[-1])["outcome"] == "stopped"
    assert b"Traceback" not in err
