"""Lines about how far something is: seldom, with a rate and the time left."""

import threading
import time

import pytest

from intone.data.progress import Progress


def test_progress_says_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress("words", 10 * 2**20, done_bytes=2 * 2**20)
    for _ in range(12):
        clock[0] += 1.0
        progress.add(2**19)
    assert capsys.readouterr().err.splitlines() == [
        "words: 4.5 MiB of 10 MiB, 0.5 MiB/s, left 11 s",
        "words: 7 MiB of 10 MiB, 0.5 MiB/s, left 6 s",
    ]


def test_what_must_be_done_again_is_taken_back_and_nothing_known_is_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress("words", 2**20)
    progress.add(1000)
    clock[0] += 6.0
    progress.add(-1000)
    assert capsys.readouterr().err == "words: 0 MiB of 1 MiB, 0 MiB/s, left unknown\n"
    progress.reach(777)
    assert progress.done_bytes == 777


def test_threads_do_not_lose_bytes() -> None:
    progress = Progress("words", 10**9)
    threads = [threading.Thread(target=lambda: [progress.add(1) for _ in range(2000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.done_bytes == 16_000
