"""Files of a public repository on this disk: listed and fetched through huggingface_hub, resumed, checked, explained.

huggingface_hub brings the bytes, logins and mirrors. It (2.4) keeps nothing of a download that was cut and does not
compare checksums: both happen here.
"""

import contextlib
import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import intone
from intone.data.progress import Progress
from intone.errors import Damaged, UserError
from intone.paths import disk_errors, sync_folder

T = TypeVar("T")

MAX_FAILURES = 4  # in a row without a single byte; huggingface_hub itself tries five times in each (guess)
LONGEST_WAIT_S = 30.0  # between two tries; the first wait is a second, and each is twice as long as the one before
LISTING_S = 120.0  # huggingface_hub sets no limit of its own for listings; the longest has seven pages (guess)
PARALLEL = 4  # files at a time, as many as nanochat takes
CHUNK_BYTES = 1 << 18  # kept at a time: of the library's own 10 MiB all would be lost at every cut
BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses that may be gone at the next try


class Unreachable(UserError):
    """The hub cannot be asked now: no network, offline by request, or it fails; what is on disk may still do."""


class _Cancelled(Exception):
    """Another file failed or the person pressed Ctrl-C: this one stops where it is."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at one commit."""

    path: str  # inside the repository
    size: int  # bytes
    sha256: str | None  # of large files
    git_sha1: str  # git's own hash, which it has of the others

    def digest(self) -> "hashlib._Hash":
        """A new hash of the kind that is known of this file."""
        if self.sha256 is not None:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    @property
    def checksum(self) -> str:
        return self.sha256 or self.git_sha1


def endpoint() -> str:
    """The address of the hub: HF_ENDPOINT as it is now, not only as it was when huggingface_hub was imported."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def list_repository(repo: str, folder: str | None) -> tuple[str, list[RemoteFile]]:
    """(commit, files) of a data set's folder, or its top where folder is None, at the head of its main branch.

    Raises Unreachable, or UserError where the repository is not there or may not be read.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    def ask() -> tuple[str, list[RemoteFile]]:
        api = HfApi(endpoint=endpoint(), library_name="intone", library_version=intone.__version__)
        commit = api.dataset_info(repo, timeout=10).sha
        entries = api.list_repo_tree(repo, folder, revision=commit, repo_type="dataset")
        return str(commit), [
            RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile)
        ]

    failures = 0
    while True:
        try:
            with our_way():
                return _within(LISTING_S, ask)
        except Exception as error:
            failures += 1
            _give_up_or_wait(error, repo, failures)


def download(repo: str, commit: str, files: Sequence[tuple[RemoteFile, Path]], progress: Progress) -> None:
    """Fetches files to their places, several at a time; each goes on from what an earlier try left beside its place.

    A file stands in its place only when its size and checksum are those that the hub states.
    Raises Unreachable, UserError as list_repository, Damaged where a file is wrong twice, DiskFull.
    """
    cancelled = threading.Event()

    def fetch(file: RemoteFile, place: Path) -> None:
        try:
            _fetch_file(repo, commit, file, place, progress, cancelled)
        except BaseException:
            cancelled.set()
            raise

    with our_way(), ThreadPoolExecutor(PARALLEL) as pool:
        pending = [pool.submit(fetch, file, place) for file, place in files]
        try:
            errors = [error for future in pending if (error := future.exception()) is not None]
        except BaseException:  # Ctrl-C
            cancelled.set()
            pool.shutdown(cancel_futures=True)
            raise
    for error in errors:
        if not isinstance(error, _Cancelled):
            raise error


def partial_path(place: Path) -> Path:
    """Where the bytes of a file are kept until it is whole."""
    return place.with_name(place.name + ".part")


def _fetch_file(
    repo: str, commit: str, file: RemoteFile, place: Path, progress: Progress, cancelled: threading.Event
) -> None:
    part = partial_path(place)
    with disk_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        for is_last in (False, True):
            if part.exists() and part.stat().st_size > file.size:
                progress.add(-part.stat().st_size)
                part.unlink()
            with _PartFile(part, file, progress, cancelled) as sink:
                _transfer(repo, commit, file, sink)
                found = sink.finish()
            if found == file.checksum:
                os.replace(part, place)
                sync_folder(place.parent)
                return
            progress.add(-part.stat().st_size)
            part.unlink()
            if is_last:
                raise Damaged(
                    f"{file.path} of {repo} came twice with other bytes than its checksum says",
                    value=file.path,
                    fix=f"try again later, or another mirror than {endpoint()}: HF_ENDPOINT=https://...",
                )


def _transfer(repo: str, commit: str, file: RemoteFile, sink: "_PartFile") -> None:
    """Brings what is missing of a file into the sink, trying again as long as bytes come."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(repo, file.path, repo_type="dataset", revision=commit, endpoint=endpoint())
    failures = 0
    while sink.size < file.size:
        before = sink.size
        try:
            headers = build_hf_headers(library_name="intone", library_version=intone.__version__)
            http_get(url, sink, resume_size=sink.size, headers=headers, expected_size=file.size)  # type: ignore[arg-type]
        except (_Cancelled, UserError):
            raise
        except Exception as error:
            failures = 1 if sink.size > before else failures + 1
            _give_up_or_wait(error, repo, failures)


class _PartFile:
    """A file that grows while its hash is kept; what http_get writes to."""

    def __init__(self, path: Path, file: RemoteFile, progress: Progress, cancelled: threading.Event) -> None:
        self._remote, self._progress, self._cancelled = file, progress, cancelled
        self._file = open(path, "a+b")  # noqa: SIM115  closed by __exit__
        self._rehash()

    def __enter__(self) -> "_PartFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        if self._cancelled.is_set():
            raise _Cancelled
        with disk_errors(Path(self._file.name)):
            self._file.write(data)
            self._file.flush()  # a full disk must be met here, and a kill must not cost what has come
        self._digest.update(data)
        self.size += len(data)
        self._progress.add(len(data))
        return len(data)

    def tell(self) -> int:
        return self.size

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def truncate(self) -> int:
        """Forgets what stands behind the position: the server sent the file from its beginning."""
        before = self.size
        self._file.truncate()
        self._rehash()
        self._progress.add(self.size - before)
        return self.size

    def finish(self) -> str:
        """The checksum of what is there, which is then safe on the disk."""
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def _rehash(self) -> None:
        self._digest = self._remote.digest()
        self.size = 0
        self._file.seek(0)
        while data := self._file.read(1 << 20):
            self._digest.update(data)
            self.size += len(data)


# --- what went wrong --------------------------------------------------------------------------------------------


def _give_up_or_wait(error: Exception, repo: str, failures: int) -> None:
    """Waits where another try may help. Raises the error in words otherwise, or as it is where it is no network's."""
    if not _is_network(error):
        raise error
    told = explain(error, repo)
    if not isinstance(told, Unreachable) or type(error).__name__ == "OfflineModeIsEnabled" or failures >= MAX_FAILURES:
        raise told from error
    time.sleep(min(2.0 ** (failures - 1), LONGEST_WAIT_S))


def _is_network(error: Exception) -> bool:
    """Whether an error comes from the network or the other side, whichever HTTP library is in use."""
    if isinstance(error, (OSError, ValueError)):  # ValueError: an answer that is no JSON, as a portal's login page
        return True
    return any(cls.__module__.startswith(("httpx", "httpcore", "requests", "urllib3")) for cls in type(error).__mro__)


def explain(error: Exception, repo: str) -> UserError:
    """An error of huggingface_hub or the network in words, with what to do about it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    name, address = type(error).__name__, endpoint()
    if name == "OfflineModeIsEnabled":
        return Unreachable(
            f"{repo} is not complete on this disk and HF_HUB_OFFLINE forbids to fetch it",
            value=repo,
            fix="unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or use other data",
        )
    if name == "GatedRepoError" or status in (401, 403):
        return UserError(
            f"{address} does not let us read {repo} (status {status})",
            value=repo,
            fix=f"open {address}/datasets/{repo}, ask for access there, and log in: hf auth login, or HF_TOKEN=...",
        )
    if name in ("RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError") or status in (404, 410):
        return UserError(
            f"{address} has no such file or repository any more: {repo} (status {status})",
            value=repo,
            fix="where an older listing is kept, delete its folder under INTONE_HOME/sets; a mirror may lack the set",
        )
    if status == 429:
        return Unreachable(
            f"{address} asks us to come back later (status 429)",
            value=status,
            fix="wait some minutes and give the command again; a login (HF_TOKEN=...) raises the limit",
        )
    if status is not None and (status in BUSY or status >= 500):
        return Unreachable(
            f"{address} fails with status {status}",
            value=status,
            fix="give the command again later: what has come is kept; or use a mirror: HF_ENDPOINT=https://...",
        )
    if status is not None:
        return UserError(f"{address} answers {repo} with status {status}", value=status, fix="try another mirror")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else name
    return Unreachable(
        f"cannot fetch {repo} from {address}: {reason}",
        value=address,
        fix="check the network, or use a mirror: HF_ENDPOINT=https://...; --data starter needs no network",
    )


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """The answer, or TimeoutError. The thread that waits for a server that says nothing is left behind."""
    answers: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue()

    def work() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:  # raised again where the answer is awaited
            answers.put((None, error))

    threading.Thread(target=work, name="listing", daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]  # None only beside an error


@contextlib.contextmanager
def our_way() -> Iterator[None]:
    """The library without its own bars and warnings (we say what there is to say), and with smaller chunks."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, logging

    library: Any = logging
    settings: Any = constants
    before = library.get_verbosity(), settings.DOWNLOAD_CHUNK_SIZE
    library.set_verbosity_error()
    disable_progress_bars("huggingface_hub.http_get")
    settings.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    try:
        yield
    finally:
        settings.DOWNLOAD_CHUNK_SIZE = before[1]
        enable_progress_bars("huggingface_hub.http_get")
        library.set_verbosity(before[0])
