"""The named public sets: what they are, which of their files a run needs, and those files on this disk."""

import fnmatch
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intone.data import hub
from intone.data.contents import KnownHashes
from intone.data.hub import RemoteFile, Unreachable
from intone.data.progress import Progress
from intone.data.streams import TOKEN_BYTES_PER_TEXT_BYTE, require_space
from intone.data.text import Kind
from intone.errors import UserError
from intone.log import human_bytes, say
from intone.mixture import PUBLIC
from intone.paths import FolderLock, read_json, sets_folder, text_folder, write_json

FORMAT = 1
# bytes of text behind a byte of zstd parquet: climbmix 250 MB of 100 MB (nanochat), tinystories 1.91 GB of 0.99 GB
TEXT_PER_BYTE = 2.0


@dataclass(frozen=True)
class PublicSet:
    """A data set of the Hugging Face hub. Its files are taken in the order of their names."""

    name: str
    repo: str
    kind: Kind  # documents: column `text`; conversations: column `messages` with roles system, user, assistant
    folder: str | None  # of the repository; None: its top
    train: str  # pattern of the names of files
    validation: str | None  # None: the last file that train matches
    licence: str  # as its card or that of the set it was made from says; not checked again here
    what: str
    size: str  # for people


# Names, columns and counts: nanochat 92d63d4 (nanochat/dataset.py, dev/LOG.md, tasks/smoltalk.py) for climbmix,
# fineweb-edu and smoltalk; the listing and card of roneneldan/TinyStories at f54c09fd for tinystories.
PUBLIC_SETS = {
    public.name: public
    for public in (
        PublicSet(
            name="climbmix",
            repo="karpathy/climbmix-400b-shuffle",
            kind="documents",
            folder=None,
            train="shard_*.parquet",
            validation=None,
            licence="CC BY-NC 4.0, for research (NVIDIA ClimbMix)",
            what="web pages, clustered, filtered and mixed; what nanochat trains on",
            size="6,543 files of about 100 MB, 400 billion tokens",
        ),
        PublicSet(
            # the repackaged sample of 100 billion tokens: HuggingFaceFW/fineweb-edu itself has files of 2 GB
            name="fineweb-edu",
            repo="karpathy/fineweb-edu-100b-shuffle",
            kind="documents",
            folder=None,
            train="shard_*.parquet",
            validation=None,
            licence="ODC-By 1.0 (HuggingFaceFW/fineweb-edu)",
            what="educational web pages",
            size="1,823 files of about 100 MB, 100 billion tokens",
        ),
        PublicSet(
            name="tinystories",
            repo="roneneldan/TinyStories",
            kind="documents",
            folder="data",
            train="train-*.parquet",
            validation="validation-*.parquet",
            licence="CDLA-Sharing-1.0",
            what="stories in the words of small children, written by GPT-3.5 and GPT-4",
            size="4 files of about 248 MB, 2.12 million stories",
        ),
        PublicSet(
            # made for models below a billion parameters: without long, mathematical and tool-calling conversations
            name="smoltalk",
            repo="HuggingFaceTB/smol-smoltalk",
            kind="conversations",
            folder="data",
            train="train-*.parquet",
            validation="test-*.parquet",
            licence="Apache-2.0",
            what="conversations, the part of SmolTalk for small models",
            size="4 files of about 230 MB, 460,000 conversations",
        ),
    )
}
assert tuple(PUBLIC_SETS) == ("climbmix", "fineweb-edu", "tinystories", "smoltalk")
assert set(PUBLIC_SETS) == set(PUBLIC)


@dataclass(frozen=True)
class Listing:
    """The files of a public set at the commit that was the newest when it was first asked for."""

    commit: str
    train: tuple[RemoteFile, ...]
    validation: tuple[RemoteFile, ...]

    def needed(self, wanted_bytes: int | None) -> tuple[RemoteFile, ...]:
        """As many training files as hold so much text, at least one; all where None is wanted."""
        if wanted_bytes is None:
            return self.train
        total, count = 0.0, 0
        while count < len(self.train) and (count == 0 or total < wanted_bytes):
            total += TEXT_PER_BYTE * self.train[count].size
            count += 1
        return self.train[:count]


@dataclass(frozen=True)
class Fetched:
    """Files of a public set that are on this disk, whole and checked."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    commit: str
    num_fetched: int  # that this call brought


def fetch(public: PublicSet, wanted_bytes: int | None) -> Fetched:
    """The files of a set for so much text (None: all of them), fetched as far as they are not here.

    What is here is used without asking the hub. Where it cannot be reached, less than was wanted will do, and that is
    said. One process at a time fetches a set. Raises Unreachable where there is too little for any training,
    otherwise as hub.download, and DiskFull before anything is fetched that will not fit.
    """
    folder = set_folder(public)
    with FolderLock(folder / "lock", wait=True, what=f"the set {public.name}"):
        listing = known_listing(public) or _ask_listing(public)
        wanted = (*listing.validation, *listing.needed(wanted_bytes))
        missing = [file for file in wanted if not is_here(public, file)]
        if missing:
            try:
                _bring(public, listing.commit, missing)
            except Unreachable as error:
                here = [file for file in wanted if is_here(public, file)]
                if len(here) <= len(listing.validation) or not set(listing.validation) <= set(here):
                    raise
                say(f"{public.name}: {error.message}; going on with {len(here)} of {len(wanted)} files that are here")
        here = [file for file in wanted if is_here(public, file)]
        num_fetched = len([file for file in missing if file in here])
    return Fetched(
        train=tuple(place_of(public, file) for file in listing.train if file in here),
        validation=tuple(place_of(public, file) for file in listing.validation),
        commit=listing.commit,
        num_fetched=num_fetched,
    )


def damaged_files(public: PublicSet) -> tuple[int, list[Path]]:
    """(files of a set on this disk, those of them whose content is not what the hub states), every byte read."""
    listing = known_listing(public)
    if listing is None:
        return 0, []
    files = [file for file in (*listing.validation, *listing.train) if place_of(public, file).exists()]
    wrong = [file for file in files if _checksum(place_of(public, file), file) != file.checksum]
    return len(files), [place_of(public, file) for file in wrong]


def is_here(public: PublicSet, file: RemoteFile) -> bool:
    """Whether a file is on this disk, whole; its content is read again only where its state on disk changed."""
    place = place_of(public, file)
    if not place.exists() or place.stat().st_size != file.size:
        return False
    if file.sha256 is None:
        return _checksum(place, file) == file.git_sha1
    return _known().of([place]) == [file.sha256]


def set_folder(public: PublicSet) -> Path:
    return sets_folder() / public.name


def place_of(public: PublicSet, file: RemoteFile) -> Path:
    """Where a file of the set is, or will be."""
    return set_folder(public) / Path(file.path).name


def known_listing(public: PublicSet) -> Listing | None:
    """The listing that is kept on this disk; None where there is none, or it is damaged or of another repository."""
    path = set_folder(public) / "listing.json"
    if not path.exists():
        return None
    try:
        value = read_json(path)
        if value["format"] != FORMAT or value["repo"] != public.repo:
            return None
        return _listing(public, value["commit"], [RemoteFile(**entry) for entry in value["files"]])
    except (UserError, KeyError, TypeError) as error:
        say(f"the listing of {public.name} is damaged and will be asked for again ({error})")
        return None


def _ask_listing(public: PublicSet) -> Listing:
    say(f"{public.name}: asking {hub.endpoint()} for the files of {public.repo}; licence: {public.licence}")
    commit, files = hub.list_repository(public.repo, public.folder)
    listing = _listing(public, commit, files)
    kept: list[dict[str, Any]] = [asdict(file) for file in (*listing.train, *listing.validation)]
    content = {"format": FORMAT, "repo": public.repo, "commit": commit, "files": kept}
    write_json(set_folder(public) / "listing.json", content)
    return listing


def _listing(public: PublicSet, commit: str, files: Sequence[RemoteFile]) -> Listing:
    """The files sorted into training and validation. Raises UserError where there is nothing of either."""
    ordered = sorted(files, key=lambda file: file.path)
    train = [file for file in ordered if fnmatch.fnmatch(Path(file.path).name, public.train)]
    if public.validation is None:
        train, validation = train[:-1], train[-1:]
    else:
        validation = [file for file in ordered if fnmatch.fnmatch(Path(file.path).name, public.validation)]
    if not train or not validation:
        raise UserError(
            f"{public.repo} at {hub.endpoint()} has no files {public.train}",
            value=public.repo,
            fix="the set was moved or the mirror is incomplete: fetch it by hand and give --data its folder",
        )
    return Listing(commit, tuple(train), tuple(validation))


def _bring(public: PublicSet, commit: str, missing: Sequence[RemoteFile]) -> None:
    """Fetches files, after a look at the disk."""
    places = [place_of(public, file) for file in missing]
    parts = [hub.partial_path(place) for place in places]
    total = sum(file.size for file in missing)
    done = sum(part.stat().st_size for part in parts if part.exists())
    tokens = round(TOKEN_BYTES_PER_TEXT_BYTE * TEXT_PER_BYTE * total)
    require_space(total - done + tokens, f"{human_bytes(total - done)} of {public.name} and the tokens made of them")
    progress = Progress(public.name, total, done_bytes=done)
    count = f"{len(missing)} file{'s' if len(missing) > 1 else ''}"
    before = f", {human_bytes(done)} of them are here already" if done else ""
    say(f"{public.name}: fetching {count}, {human_bytes(total)}{before}")
    hub.download(public.repo, commit, list(zip(missing, places, strict=True)), progress)
    _known().note({place: file.sha256 for file, place in zip(missing, places, strict=True) if file.sha256 is not None})


def _checksum(place: Path, file: RemoteFile) -> str:
    digest = file.digest()
    with open(place, "rb") as content:
        while piece := content.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _known() -> KnownHashes:
    return KnownHashes(text_folder() / "contents.json")
