"""Mistakes and misfortunes through the command line: one readable line, a fix, and nothing left behind or lost."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from intone import cli, ground, planning
from intone.errors import DiskFull
from intone.hardware import Facts
from intone.model.checkpoint import list_checkpoints, verify
from intone.paths import append_line, read_lines, write_json
from intone.pipeline import claim
from intone.records import read_outcome
from intone.resolving import Layer, identity, resolve
from intone.runs import create_run, find_run
from intone.settings import TrainSettings
from intone.tune.trial import TrialResult
from tests.tiny_jobs import losses, write_job

GIB = 2**30
FACTS = Facts(
    fingerprint="ab" * 8, torch_version="2.13.0+cpu", libc="glibc 2.36", cores_logical=2, cores_physical=2,
    busy_cores=0.0, device="cpu", memory_bytes=8 * GIB, memory_available_bytes=7 * GIB, fp32_flops_per_s=50e9,
)  # fmt: skip
# nothing that would have to be measured; --data and --sft are the business of each test
RUN = "run --depth 1 --context 32 --vocab-size 300 --dtype fp32 --threads 1 --compile off --batch-tokens 256"
ROW_FIX = (
    "text needs rows with `text`, a string; conversations rows with `messages`, a list of {role, content} with the "
    "roles system, user, assistant and tool"
)
UTF8_FIX = "convert it to UTF-8, for example with: iconv -f latin1 -t utf-8 FILE"
DAMAGED_FIX = "fetch or make the file again, or leave it out of the data"
EMPTY_FIX = "check that the files are not empty"
TYPE_FIX = "known: .txt, .md, .jsonl, .parquet, each also with .gz, .zst, .bz2, .xz"


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Good files and bad ones."""
    folder = tmp_path_factory.mktemp("files")
    ships = [{"text": f"Ship {n} sails past island {n * 7 % 31} to the north. " * 5} for n in range(90)]
    talk = [
        {"messages": [{"role": "user", "content": f"Where is ship {n}?"}, {"role": "assistant", "content": "At sea."}]}
        for n in range(40)
    ]
    roles = [{"messages": [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]}] * 9
    latin = "Zürich liegt am See. " * 40
    content: dict[str, str | bytes] = {
        "good.jsonl": jsonl(ships),
        "talk.jsonl": jsonl(talk),
        "empty.txt": "",
        "blank.txt": " \n\n",
        "one.txt": "Only one short document.",
        "columns.jsonl": jsonl({"body": "x", "id": n} for n in range(9)),
        "roles.jsonl": jsonl(roles),
        "damaged.jsonl": jsonl(ships) + '{"text": 3}\n{"text": "cut\n',
        "hopeless.jsonl": jsonl(ships[:2]) + "{]\n" * 3,
        "latin.txt": latin.encode("latin-1"),
        "utf16.txt": latin.encode("utf-16"),
        "unmarked.txt": latin.replace("ü", "u").encode("utf-16-le"),
        "cut.txt.gz": gzip.compress(os.urandom(4000))[:900],
        "wrong.parquet": "hello",
        "pictures/a.png": b"\x89PNG",
    }
    for name, text in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


@pytest.fixture
def known_machine(monkeypatch):
    """Facts without a measurement; tests that come as far as a trial are in processes of their own."""
    monkeypatch.setattr(planning, "load_facts", lambda: FACTS)
    monkeypatch.setattr(claim, "load_facts", lambda: FACTS)


def command(words: str, home: Path) -> tuple[int, dict, str]:
    """(exit code, JSON line, stderr) of `intone WORDS --json` in a process of its own."""
    environment = {**os.environ, "INTONE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "intone", *words.split(), "--json"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def runs_in(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "runs").iterdir()) if (home / "runs").exists() else []


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message", "fix"),
    [
        ("rum", "unknown verb 'rum'", "did you mean 'run'?"),
        ("run --deph 3", "unknown flag --deph of intone run", "did you mean --depth?"),
        ("run --dtype bf61", "--dtype 'bf61' is not one of auto, fp32, bf16, fp16", "did you mean 'bf16'?"),
        ("run --batch-tokens 3000", "batch_tokens 3,000 is not a power of two", "use --batch-tokens 2048 or 4096"),
    ],
)
def test_mistyped_words_are_answered_by_the_real_command(home, words, message, fix):
    code, answer, err = command(words, home)
    assert (code, answer["outcome"], answer["exit"]) == (2, "bad_input", 2)
    assert (answer["error"]["message"], answer["error"]["fix"]) == (message, fix)
    assert err == f"intone {words.split()[0]}: {message}\n  fix: {fix}\n"
    assert not home.exists()


@pytest.mark.parametrize(
    ("flags", "message", "fix"),
    [
        ("--data F/god.jsonl", "F/god.jsonl does not exist", "did you mean F/good.jsonl?"),
        ("--data F/good.jsonl --val F/bad/x", "F/bad does not exist", "nothing in F has a similar name"),
        ("--data F/pictures", "F/pictures has no file of a known type", TYPE_FIX),
        ("--data F/pictures/a.png", "F/pictures/a.png has an unknown type", TYPE_FIX),
        ("--data F/*.tx", "F/*.tx does not exist", None),
        ("--data starter:0.5,F/good.jsonl", "F/good.jsonl has no weight while others have one", None),
        ("--data F/good.jsonl:-1", "the weight of F/good.jsonl is -1", "use a number above 0"),
        ("--data smoltalk:1", "smoltalk holds conversations, not documents", "give it to --sft"),
        ("--sft starter:1,tinystories:1", "tinystories holds documents, not conversations", "give it to --data"),
        ("--data F/empty.txt", "there is no text in F/empty.txt", EMPTY_FIX),
        ("--data F/blank.txt", "there is no text in F/blank.txt", EMPTY_FIX),
        ("--sft F/empty.txt", "there is no text in F/empty.txt", EMPTY_FIX),
        (
            "--data F/one.txt",
            "F/one.txt holds only one document: nothing is left for validation",
            "give more text, or a validation file with --val",
        ),
        (
            "--data F/columns.jsonl",
            "9 of 9 rows of F/columns.jsonl cannot be used: it has no `text`, columns found: body, id",
            ROW_FIX,
        ),
        (
            "--data F/talk.jsonl",
            "40 of 40 rows of F/talk.jsonl cannot be used: it has no `text`, columns found: messages",
            ROW_FIX,
        ),
        (
            "--sft F/good.jsonl",
            "90 of 90 rows of F/good.jsonl cannot be used: it has no `messages`, columns found: text",
            ROW_FIX,
        ),
        (
            "--sft F/roles.jsonl",
            "9 of 9 rows of F/roles.jsonl cannot be used: `messages`: unknown role 'human'",
            ROW_FIX,
        ),
        (
            "--data F/hopeless.jsonl",
            "3 of 5 rows of F/hopeless.jsonl cannot be used, mostly: it is not valid JSON; "
            "the first: F/hopeless.jsonl:3: it is not valid JSON",
            ROW_FIX,
        ),
        ("--data F/latin.txt", "1 of 1 rows of F/latin.txt cannot be used: it is not valid UTF-8", UTF8_FIX),
        (
            "--data F/unmarked.txt",
            "1 of 1 rows of F/unmarked.txt cannot be used: it holds zero bytes: no text, or UTF-16 without a byte "
            "order mark",
            ROW_FIX,
        ),
        (
            "--data F/cut.txt.gz",
            "F/cut.txt.gz is damaged: Compressed file ended before the end-of-stream marker was reached",
            DAMAGED_FIX,
        ),
        (
            "--data F/wrong.parquet",
            "F/wrong.parquet is damaged: Parquet file size is 5 bytes, smaller than the minimum file footer (8 bytes)",
            DAMAGED_FIX,
        ),
        ("--device cuda", "device cuda is not usable here", "install a torch build for it, or use --device auto"),
        ("--device-batch 9", "device_batch 9 is more than the 8 rows of a step", "use --device-batch 8 or auto"),
    ],
)
def test_what_cannot_be_used_leaves_no_run_behind(known_machine, home, files, capsys, flags, message, fix):
    given = flags if "--data" in flags else f"{flags} --data F/good.jsonl"
    given = given if "--sft" in given else f"{given} --sft F/talk.jsonl"
    code = cli.main(f"{RUN} --json {given.replace('F/', f'{files}/')}".split())
    out, err = capsys.readouterr()
    answer = json.loads(out.splitlines()[-1])
    assert (code, answer["outcome"]) == (2, "bad_input")
    assert answer["error"]["message"].replace(str(files), "F") == message
    assert fix is None or answer["error"]["fix"].replace(str(files), "F") == fix
    assert "Traceback" not in err
    assert runs_in(home) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("chat --from d9-9 --prompt x", "there is no run under HOME/runs"),
        ("train sft --from d9-9", "there is no run under HOME/runs"),
        ("run --like d9-9", "there is no run under HOME/runs"),
        ("eval d9-9", "there is no run under HOME/runs"),
    ],
)
def test_a_run_that_is_not_there_is_named(known_machine, home, capsys, words, message):
    assert cli.main(words.split()) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"intone {words.split()[0]}: {message.replace('HOME', str(home))}"
    assert runs_in(home) == []


def test_a_home_that_is_no_folder_is_the_persons_mistake(known_machine, files, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("INTONE_HOME", str(tmp_path / "file"))
    assert cli.main(f"{RUN} --data {files}/good.jsonl --sft {files}/talk.jsonl".split()) == 2
    first, fix = capsys.readouterr().err.splitlines()
    assert first == f"intone run: cannot write {tmp_path}/file/runs/d1-1: Not a directory"
    assert fix == "  fix: choose a writable folder, for example INTONE_HOME=~/intone"


# --- rows and encodings ---------------------------------------------------------------------------------------------


def test_damaged_rows_are_counted_and_named_with_file_and_line(files, capsys):
    assert cli.main(["data", "check", f"{files}/damaged.jsonl"]) == 1
    lines = capsys.readouterr().out.replace(str(files), "F").splitlines()
    assert lines[2:] == [
        "damaged: F/damaged.jsonl:91: `text` is a number, not a string",
        "damaged: F/damaged.jsonl:92: it is not valid JSON",
        "2 of 92 rows are damaged and were left out, the first: F/damaged.jsonl:91: `text` is a number, not a string",
    ]


def test_text_in_utf16_with_its_mark_is_read_as_it_is(files, capsys):
    assert cli.main(["data", "check", f"{files}/utf16.txt", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["num_documents"] == 1
    assert result["num_bytes"] == len(("Zürich liegt am See. " * 40).encode())


@pytest.mark.long
def test_too_little_text_for_the_asked_minutes_is_said_after_a_real_trial(home, files):
    code, answer, err = command(f"{RUN} --minutes 60 --data {files}/damaged.jsonl --sft {files}/talk.jsonl", home)
    assert (code, answer["outcome"]) == (2, "bad_input")
    assert "tokens of text would be seen" in answer["error"]["message"]
    assert answer["error"]["fix"] == "give more text, or fewer --minutes"
    assert f"base: 2 damaged rows were left out, the first: {files}/damaged.jsonl:91: " in err
    assert runs_in(home) == []


# --- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """An INTONE_HOME of eight megabytes that is really full at some point."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk could not be mounted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_ends_the_run_keeps_its_saves_and_lets_it_go_on(small_disk, tiny_job, monkeypatch):
    """Saves of 1.14 MB: the third does not fit beside the first two."""
    monkeypatch.setenv("INTONE_HOME", str(small_disk))
    settings, _ = resolve(TrainSettings, [Layer("flag", "test", {"stage": "base", "depth": 1})])
    run = create_run(identity(settings), verb="train", stages=("base",), name="full")
    stage = write_job(run.stage_folder("base"), tiny_job)
    write_json(run.folder / "forecast.json", {"format": 1, "minutes": 1.0})
    filler = small_disk / "filler"
    filler.write_bytes(bytes(5 * 2**20))
    words = "train base --depth 1 --name full"

    code, answer, err = command(words, small_disk)
    assert (code, answer["exit"], answer["outcome"]) == (2, 2, "disk_full")
    assert answer["error"]["message"].startswith("base ended as disk_full: no space left on the disk of ")
    assert answer["error"]["fix"].startswith("free some space, or set INTONE_HOME to a larger disk")
    assert f"intone train: {answer['error']['message']}\n  fix: " in err
    assert read_outcome(stage).outcome == find_run("full").state == "disk_full"
    saves = list_checkpoints(stage)
    assert [path.name for path in saves] == ["step_000001", "step_000002"]
    for save in saves:
        verify(save)
    assert list((stage / "checkpoints").glob(".*")) == []

    filler.unlink()
    code, answer, err = command(words, small_disk)
    assert (code, answer["outcome"]) == (0, "done")
    assert "going on from the save at step 2" in err
    assert [step for step, _ in losses(stage)] == list(range(1, 10))


def test_a_disk_that_fills_while_text_is_tokenised_leaves_no_run_and_no_half_set(
    small_disk, known_machine, files, tmp_path, monkeypatch, capsys
):
    """Compressed text of 50 kB looks as if it would fit and becomes more than there is room for."""
    monkeypatch.setenv("INTONE_HOME", str(small_disk))
    rows = jsonl({"text": f"Ship {n}. {'The sea is wide and the wind is good today. ' * 60}"} for n in range(1500))
    (tmp_path / "much.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (small_disk / "filler").write_bytes(bytes(15 * 2**19))
    data = f"--data {tmp_path}/much.jsonl.gz --val {files}/good.jsonl --sft {files}/talk.jsonl"
    monkeypatch.setattr(ground.TrialRunner, "run", lambda *_, **__: TrialResult([2.0], 0.1, 0.1, None))
    assert cli.main(f"{RUN} --json --minutes 1 {data}".split()) == 2
    out, _ = capsys.readouterr()
    answer = json.loads(out.splitlines()[-1])
    assert answer["outcome"] == "disk_full"
    assert answer["error"]["message"].startswith(f"no space left on the disk of {small_disk}/text/base-")
    assert runs_in(small_disk) == []
    assert list(small_disk.glob("text/base-*/shard_*")) == list(small_disk.glob("text/base-val-*/shard_*"))


def test_a_row_of_the_log_is_whole_or_not_there_when_the_disk_is_full(small_disk):
    log = small_disk / "log.jsonl"
    append_line(log, {"step": 1})
    with open(small_disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(bytes(2**16))
    count = 1
    with pytest.raises(DiskFull):
        while True:
            append_line(log, {"step": count + 1, "text": "x" * 1000})
            count += 1
    (small_disk / "filler").unlink()
    append_line(log, {"step": count + 1})
    assert [row["step"] for row in read_lines(log)] == list(range(1, count + 2))
    assert count > 1
