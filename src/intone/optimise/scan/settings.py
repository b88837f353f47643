"""What a person can ask of `intone scan`"""

from dataclasses import dataclass
from typing import Literal

from intone.errors import UserError
from intone.fields import Checked, setting


@dataclass(frozen=True, kw_only=True)
class ScanSettings(Checked):
    """`intone scan PATH`: what is wrong or slow in a PyTorch code base, and how to fix it."""

    # folder or Python file to scan
    path: str = setting(".", positional=True)
    # rules to apply, such as S10; none given: all
    only: tuple[str, ...] = ()
    # exit 1 where an open finding is at least this grave; never: always exit 0
    fail_on: Literal["low", "medium", "high", "critical", "never"] = "high"
    # list findings from this severity on
    show_from: Literal["low", "medium", "high", "critical"] = "low"
    # show, count and fail on findings from this confidence on; low: also what rests on a fact that was not proven,
    # and rules of whose findings on code of strangers most likely fewer than a third hold
    confidence: Literal["low", "medium", "high"] = "medium"
    # scan tests of the code base too
    with_tests: bool = False
    # write the open findings as SARIF 2.1.0 to this file
    sarif: str | None = None
    # list the board as it stands, without scanning
    board: bool = False
    # everything about one issue: its id or the beginning of it
    issue: str | None = None
    # mark an issue as real
    confirm: str | None = None
    # mark an issue as not real or accepted; needs --reason
    dismiss: str | None = None
    # take a confirmation or dismissal back
    reopen: str | None = None
    # why an issue is dismissed, or a note to a confirmation
    reason: str | None = None
    # show the plan and the patch for a rule or an issue: S33, or S33-1a2b3c4d
    fix: str | None = None
    # make the changes of --fix one by one in a worktree, and write those that pass the gates into the files
    apply: bool = False
    # command that must pass after each change; none given: pytest, where there are tests
    tests: str | None = None
    # take the changes of the last --fix --apply out of the files again
    undo: bool = False
    # write the patch of --fix to this file
    patch: str | None = None
    # run code too: auto (our own engine and loader), or module:function in PATH that returns the parts to probe
    probe: str | None = None
    # seconds that the probes may take
    probe_s: float = setting(120, least=1)
    # keep the board in PATH/.intone instead of INTONE_HOME
    board_inside: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        marks = [
            name
            for name in ("issue", "confirm", "dismiss", "reopen", "fix", "probe")
            if getattr(self, name) is not None
        ]
        if len(marks) > 1:
            raise UserError(f"--{marks[0]} and --{marks[1]} are two commands", value=marks[1], fix="give one at a time")
        if self.dismiss is not None and not (self.reason or "").strip():
            raise UserError(
                "--dismiss needs a reason", value=self.dismiss, fix='add --reason "why it is right as it is"'
            )
        if self.reason is not None and self.dismiss is None and self.confirm is None:
            raise UserError("--reason belongs to --dismiss or --confirm", value=self.reason, fix="leave it out")
        if (self.apply or self.patch) and self.fix is None:
            flag = "--apply" if self.apply else "--patch"
            raise UserError(f"{flag} belongs to --fix", value=flag, fix="add --fix RULE or --fix ID")
        if self.tests is not None and not self.apply:
            raise UserError(
                "--tests belongs to --fix with --apply", value=self.tests, fix="add --apply, or leave it out"
            )
        if self.undo and marks:
            raise UserError(f"--undo and --{marks[0]} are two commands", value="--undo", fix="give one at a time")
