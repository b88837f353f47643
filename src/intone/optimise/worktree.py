"""A copy of a code base in which changes are tried: a git worktree, one change per commit; the person's files stay."""

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from intone.errors import UserError
from intone.paths import disk_errors

GIT_TIMEOUT_S = 120.0  # guess: the slowest command here, a checkout of a large repository, takes seconds
COPY_BYTES = 512 * 2**20  # a folder outside git is copied up to this size: code, not data
# files that git does not know (prepared data, weights) are copied beside the code up to this size in all
EXTRA_BYTES = 2 * 2**30
# folders that are never code of the person's own
LEFT_OUT = (".git", ".venv", "venv", "__pycache__", "node_modules", ".mypy_cache", ".pytest_cache", ".ruff_cache")


@dataclass(frozen=True)
class Change:
    """One change in a worktree: its commit, its subject, and the files it touches."""

    sha: str
    subject: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Worktree:
    """A branch of its own, checked out in a folder of its own.

    origin: the person's folder inside a git repository, or None where there was none and a copy was made.
    base: the commit that changes are laid on; it holds the person's uncommitted changes too.
    """

    path: Path
    branch: str
    base: str
    origin: Path | None
    notes: tuple[str, ...] = ()

    @property
    def excludes(self) -> Path:
        """Names of files that lie in the folder and belong to no change: what the program needs beside its code."""
        return self.path.with_name(self.path.name + ".extras")

    # --- changes --------------------------------------------------------------------------------------------------

    def commit(self, subject: str, body: str = "") -> Change | None:
        """Everything that differs from the last commit, as one change; None where nothing does."""
        self._git("add", "-A")
        if not self._git("status", "--porcelain").strip():
            return None
        message = subject if not body else f"{subject}\n\n{body}"
        self._git("commit", "-q", "--no-verify", "-m", message)
        return self._change(self.head())

    def changes(self) -> list[Change]:
        """The commits since base, oldest first."""
        shas = self._git("rev-list", "--reverse", f"{self.base}..HEAD").split()
        return [self._change(sha) for sha in shas]

    def head(self) -> str:
        return self._git("rev-parse", "HEAD").strip()

    def diff(self, since: str | None = None, until: str | None = None) -> str:
        """A unified diff since base, or between two commits; uncommitted changes count where until is not given."""
        words = [since or self.base] + ([until] if until else [])
        if not until:
            self._git("add", "-A", "-N")  # new files are part of a diff only where git knows of them
        return self._git("diff", "--no-color", "--no-ext-diff", *words)

    def reset(self, to: str | None = None) -> None:
        """Throws away what is not committed, and every change after the commit `to`."""
        self._git("reset", "-q", "--hard", to or "HEAD")
        self._git("clean", "-q", "-fd")

    def undo(self, change: Change) -> Change:
        """Takes one change back by a commit of its own. Raises UserError where later changes stand in its way."""
        try:
            self._git("revert", "--no-edit", change.sha)
        except UserError as problem:
            self._git("revert", "--abort", check=False)
            raise UserError(
                f"{change.subject!r} cannot be taken back alone: later changes build on it",
                value=change.sha, fix="take back the later changes first",
            ) from problem  # fmt: skip
        return self._change(self.head())

    def without(self, change: Change, path: Path) -> "Worktree":
        """A second worktree at path that has every change but this one. Raises UserError as undo does."""
        branch = f"{self.branch}-without-{change.sha[:8]}"
        self._git("worktree", "add", "-q", "-B", branch, str(path), "HEAD")
        other = Worktree(path, branch, self.base, self.origin)
        self._hand_extras_to(other)
        other.undo(change)
        return other

    def at(self, commit: str, path: Path) -> "Worktree":
        """A second worktree at path that stands at an earlier commit: the baseline of a measurement."""
        self._git("worktree", "add", "-q", "--detach", str(path), commit)
        other = Worktree(path, "", commit, self.origin)
        self._hand_extras_to(other)
        return other

    def tracked(self) -> list[Path]:
        """The files that git knows: the code, and nothing that a program writes beside it."""
        return [self.path / name for name in self._git("ls-files", "-z").split("\0") if name]

    # --- ends -----------------------------------------------------------------------------------------------------

    def apply(self) -> str:
        """Brings the changes into the person's own tree, uncommitted; returns the diff. Raises UserError.

        All of it or nothing: git refuses where their files changed in between.
        """
        if self.origin is None:
            raise UserError(
                "the target is no git repository, so nothing is written into it",
                value=str(self.path), fix=f"look at the changes with: git -C {self.path} log -p",
            )  # fmt: skip
        diff = self.diff(self.base, "HEAD")
        if diff:
            top = run_git(self.origin, "rev-parse", "--show-toplevel").strip()
            try:
                run_git(Path(top), "apply", "--whitespace=nowarn", "-", given=diff)
            except UserError as problem:
                raise UserError(
                    f"the changes do not fit the files in {top} any more: {problem.message.splitlines()[0]}",
                    value=self.branch, fix=f"merge by hand: git merge {self.branch}, or git cherry-pick its commits",
                ) from problem  # fmt: skip
        return diff

    def close(self, *, keep_branch: bool = True) -> None:
        """Removes the folder; the branch with its commits stays unless told otherwise. Harmless when called twice."""
        if self.origin is None:
            return  # a copy is all there is of the changes
        run_git(self.origin, "worktree", "remove", "--force", str(self.path), check=False)
        shutil.rmtree(self.path, ignore_errors=True)
        run_git(self.origin, "worktree", "prune", check=False)
        if not keep_branch and self.branch:
            run_git(self.origin, "branch", "-q", "-D", self.branch, check=False)

    # --- git ------------------------------------------------------------------------------------------------------

    def _change(self, sha: str) -> Change:
        subject = self._git("log", "-1", "--format=%s", sha).strip()
        files = self._git("diff-tree", "--no-commit-id", "--name-only", "-r", sha).split("\n")
        return Change(sha, subject, tuple(name for name in files if name))

    def _hand_extras_to(self, other: "Worktree") -> None:
        if self.excludes.exists():
            copy_extras(self.path, other, [name.lstrip("/") for name in self.excludes.read_text().splitlines()])

    def _git(self, *words: str, check: bool = True) -> str:
        return run_git(self.path, "-c", f"core.excludesFile={self.excludes}", *words, check=check)


def open_worktree(target: Path, path: Path, branch: str, at: str = "HEAD") -> Worktree:
    """A new worktree at path of the repository that target lies in, on a new branch.

    Changes of tracked files that the person has not committed come along (as a commit that only the branch knows);
    files git does not know do not, and a note says how many. A folder outside git is copied, code and small files
    only. Raises UserError where target does not exist, is too large to copy, or the branch is there already.
    """
    if not target.exists():
        raise UserError(f"{target} does not exist", value=str(target), fix="give a folder or a file of a code base")
    folder = target if target.is_dir() else target.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_repository(folder):
        return copied(folder, path, branch)
    if run_git(folder, "rev-parse", "-q", "--verify", f"refs/heads/{branch}", check=False).strip():
        raise UserError(f"the branch {branch} exists already", value=branch, fix="choose another name, or delete it")
    commit = run_git(folder, "rev-parse", "-q", "--verify", f"{at}^{{commit}}", check=False).strip()
    if not commit:
        raise UserError(f"{folder} has no commit {at!r}", value=at, fix="commit once, or name a commit that exists")
    notes = []
    if at == "HEAD":
        stash = run_git(folder, "stash", "create", check=False).strip()
        if stash:
            commit = stash
            notes.append("uncommitted changes of tracked files are part of what is measured")
    run_git(folder, "worktree", "add", "-q", "-b", branch, str(path), commit)
    tree = Worktree(path, branch, commit, folder.resolve())
    top = Path(run_git(folder, "rev-parse", "--show-toplevel").strip())
    extras, large = extra_files(top)
    if extras:
        copy_extras(top, tree, extras)
        notes.append(f"{len(extras)} files that git does not know are copied beside the code, for example {extras[0]}")
    if large:
        notes.append(f"{len(large)} files that git does not know are too large to copy, for example {large[0]}")
    return replace(tree, notes=tuple(notes))


def extra_files(top: Path) -> tuple[list[str], list[str]]:
    """(names to copy, names that are too large) of the files that git does not know, caches and environments aside."""
    found = run_git(top, "ls-files", "--others", "-z").split("\0")
    kept: list[str] = []
    large: list[str] = []
    room = EXTRA_BYTES
    sizes = {}
    for name in found:
        path = top / name
        if name and not set(Path(name).parts) & set(LEFT_OUT) and path.is_file() and not path.is_symlink():
            sizes[name] = path.stat().st_size
    for name in sorted(sizes, key=lambda name: sizes[name]):  # small ones first: they are configurations
        room -= sizes[name]
        (kept if room >= 0 else large).append(name)
    return sorted(kept), sorted(large)


def copy_extras(source: Path, tree: Worktree, names: list[str]) -> None:
    """Copies them into a worktree, which leaves them out of every change from then on."""
    with disk_errors(tree.path):
        for name in names:
            goal = tree.path / name
            if not goal.exists() and (source / name).is_file():
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source / name, goal)
        tree.excludes.write_text("".join(f"/{name}\n" for name in names))


def reopened(path: Path, branch: str, base: str, origin: Path | None) -> Worktree:
    """A worktree that an earlier process opened. Raises UserError where its folder is gone."""
    if not path.is_dir():
        raise UserError(f"the worktree {path} is gone", value=str(path), fix="start a new round with --new")
    return Worktree(path, branch, base, origin)


def copied(folder: Path, path: Path, branch: str) -> Worktree:
    """A copy of a folder outside git, as the first commit of a repository of its own."""
    size, left_out = 0, 0
    with disk_errors(path):
        for source in files_of(folder):
            size += source.stat().st_size
            if size > COPY_BYTES:
                raise UserError(
                    f"{folder} is no git repository and holds more than {COPY_BYTES // 2**20} MiB",
                    value=str(folder), fix="run git init and commit the code there, then try again",
                )  # fmt: skip
            if source.is_symlink() and not source.exists():
                left_out += 1
                continue
            goal = path / source.relative_to(folder)
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, goal)
        path.mkdir(parents=True, exist_ok=True)
    run_git(path, "init", "-q", "-b", branch)
    run_git(path, "add", "-A")
    run_git(path, "commit", "-q", "--no-verify", "--allow-empty", "-m", f"The state of {folder.name} before any change")
    notes = ["the target is no git repository: changes are made in a copy"]
    if left_out:
        notes.append(f"{left_out} links that lead nowhere are left out")
    tree = Worktree(path, branch, run_git(path, "rev-parse", "HEAD").strip(), None, tuple(notes))
    # what the code's own .gitignore keeps out of the commit (prepared data, for example) is needed beside it
    copy_extras(path, tree, extra_files(path)[0])
    return tree


def files_of(folder: Path) -> list[Path]:
    """The files below a folder, without environments and caches."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        found += [Path(place) / name for name in sorted(names)]
    return found


def is_repository(folder: Path) -> bool:
    return run_git(folder, "rev-parse", "--is-inside-work-tree", check=False).strip() == "true"


def run_git(folder: Path, *words: str, check: bool = True, given: str | None = None) -> str:
    """The output of a git command in a folder, as text. Raises UserError with git's own words where it fails.

    The person's hooks do not run, nothing is signed, and commits are made under the name intone.
    """
    if shutil.which("git") is None:
        raise UserError("git was not found", value="git", fix="install git (Debian: apt-get install git)")
    settings = {
        "core.hooksPath": os.devnull, "commit.gpgsign": "false", "user.name": "intone",
        "user.email": "intone@localhost", "core.quotePath": "false",
    }  # fmt: skip
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    # GIT_DIR and its like, set where we are called from a hook, would name another repository
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(folder), *options, *words], capture_output=True, text=True, errors="surrogateescape",
        input=given, stdin=None if given is not None else subprocess.DEVNULL, env={**env, "LC_ALL": "C"},
        timeout=GIT_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode and check:
        raise UserError(
            f"git {words[0]} failed in {folder}: {one_line(done.stderr or done.stdout)}", value=str(folder),
            fix="correct what git says there, then try again",
        )  # fmt: skip
    return done.stdout


def one_line(text: str) -> str:
    return " ".join(text.split())[:400]
