"""`intone scan`: scans, keeps the board, and shows findings, plans and patches; the exit code is for CI."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE, UserError, unknown_name
from intone.optimise.items import Item
from intone.optimise.scan.board import Board, Issue
from intone.optimise.scan.finding import LEAST, SEVERITIES, Confidence, Finding
from intone.optimise.scan.rulebook import RULES
from intone.optimise.scan.run import Scan, scan_path
from intone.optimise.scan.settings import ScanSettings
from intone.optimise.scan.shares import rank, share_of
from intone.optimise.scan.show import WIDTH, board_text, issue_text, scan_text
from intone.paths import write_atomic, write_json
from intone.records import Answer


def scan_verb(settings: ScanSettings, _origins: Mapping[str, Any]) -> Answer:
    """`intone scan PATH`: exit 1 where an open finding is at least as grave as --fail-on. Raises UserError."""
    path = Path(settings.path).expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist", value=settings.path, fix="name a folder or a Python file")
    if settings.undo:
        return _undo(path)
    place = Board.folder_of(path, inside=settings.board_inside)
    place.mkdir(parents=True, exist_ok=True)
    with Board(path, place, {}).lock():
        board = Board.load(path, inside=settings.board_inside)
        if marked := _mark(settings, board):
            board.save()
            more = f", with its copies: {len(marked) - 1}" if len(marked) > 1 else ""
            return Answer(marked[0].as_json(), f"{marked[0].finding.id} is {marked[0].state}{more}", path=str(place))
        if settings.issue is not None:
            issue = board.find(settings.issue)
            return Answer(issue.as_json(), issue_text(issue), path=str(place))
        if settings.board:
            return Answer(_as_json(board.issues), board_text(board), path=str(place))
        if settings.probe is not None:
            return _probe(settings, path, board)
        only = tuple(word.upper() for word in settings.only)
        scan = scan_path(path, only=only, with_tests=settings.with_tests)
        change = board.sync(scan, rules=only or tuple(RULES), least=settings.confidence)
        board.save()
    if settings.fix is not None:
        return _fix(settings, scan, board)
    if settings.sarif is not None:
        from intone.optimise.scan.sarif import to_sarif

        groups = [*board.open_groups(settings.confidence), *((issue,) for issue in board.in_state("dismissed"))]
        write_json(Path(settings.sarif), to_sarif(scan, groups))
    groups = board.open_groups(settings.confidence)
    text = scan_text(scan, board, change, settings.show_from, _command(settings), settings.confidence)
    result = {
        "files": scan.num_files,
        "lines": scan.num_lines,
        "new": change.new,
        "fixed": change.fixed,
        "reopened": change.reopened,
        "open": [_open_json(issue, copies) for issue, *copies in groups],
        "held_back": len(board.in_state("open", "confirmed")) - sum(map(len, groups)),
        "dismissed": len(board.in_state("dismissed")),
        "unread": [list(pair) for pair in scan.unread],
        "complaints": list(scan.complaints),
        "board": str(place / "board.json"),
    }
    failing = failing_issues(board, settings.fail_on, settings.confidence)
    if failing:
        text += f"\nexit 1: {len(failing)} open at {settings.fail_on} or above"
    exit_code = EXIT_CHECK_FAILED if failing else EXIT_DONE
    return Answer(result, text, path=str(path), exit=exit_code)


def _probe(settings: ScanSettings, path: Path, board: Board) -> Answer:
    """Runs the probes and brings the board up to date; exit 1 where a fault is grave enough. Raises UserError."""
    from intone.optimise.scan.probes.run import findings_of, looks_text, run_probes

    assert settings.probe is not None
    looks = run_probes(settings.probe, path, settings.probe_s)
    findings = findings_of(looks, settings.probe)
    answered = [look["rule"] for look in looks if look["outcome"] != "unclear"]
    board.sync(Scan(path, 0, 0, tuple(findings)), rules=answered)
    board.save()
    failing = [issue for issue in failing_issues(board, settings.fail_on) if issue.finding.rule in answered]
    exit_code = EXIT_CHECK_FAILED if failing else EXIT_DONE
    result = {"looks": looks, "faults": [finding.as_json() for finding in findings]}
    return Answer(result, looks_text(looks), path=str(path), exit=exit_code)


def _open_json(issue: Issue, copies: Sequence[Issue]) -> dict[str, Any]:
    """An open issue with its copies, and how often its rule held on code of strangers."""
    share = share_of(issue.finding.rule)
    measured = {"held": share.held, "judged": share.judged, "rank": round(rank(issue.finding), 1)}
    return issue.as_json() | {"copies": [_place(copy) for copy in copies]} | measured


def _place(issue: Issue) -> dict[str, Any]:
    finding = issue.finding
    return {"id": finding.id, "path": finding.path, "line": finding.line, "function": finding.function}


def failing_issues(board: Board, fail_on: str, least: Confidence = LEAST) -> list[Issue]:
    """The open issues at or above a severity and confidence, one of each group; none where that is "never"."""
    if fail_on == "never":
        return []
    gravest = SEVERITIES.index(fail_on)
    issues = [group[0] for group in board.open_groups(least)]
    return [issue for issue in issues if SEVERITIES.index(issue.finding.severity) >= gravest]


def _command(settings: ScanSettings) -> str:
    return f"intone scan {settings.path}" if settings.path != "." else "intone scan ."


def _mark(settings: ScanSettings, board: Board) -> list[Issue]:
    """A change of state that was asked for, of an issue and of its copies in other places."""
    if settings.confirm is not None:
        names = [one.finding.id for one in board.with_copies(settings.confirm)]
        return [board.confirm(name, settings.reason or "") for name in names]
    if settings.dismiss is not None:
        names = [one.finding.id for one in board.with_copies(settings.dismiss)]
        return [board.dismiss(name, settings.reason or "") for name in names]
    if settings.reopen is not None:
        return [board.reopen(settings.reopen)]
    return []


def _as_json(issues: Mapping[str, Issue]) -> dict[str, Any]:
    return {"issues": {name: issue.as_json() for name, issue in issues.items()}}


def _fix(settings: ScanSettings, scan: Scan, board: Board) -> Answer:
    """The plan and the patch for a rule or an issue; written only where that was asked for."""
    from intone.optimise.scan.fixes import as_json, patch_for
    from intone.optimise.scan.plan import plan_items

    assert settings.fix is not None
    findings = _chosen(settings.fix, scan, board, settings.confidence)
    patch = patch_for(findings, scan)
    items = plan_items(findings, scan, patch)
    lines = []
    for item in items:
        lines += [
            item.title,
            *_wrapped("change", item.change["words"]),
            *_wrapped("expected", item.effect),
            *_wrapped("risk", item.risk),
            *_wrapped("gates", item.gate),
            *_wrapped("undo", item.undo),
            "",
        ]
    if patch.diff:
        lines.append(patch.diff.rstrip("\n"))
    if settings.patch is not None:
        write_atomic(Path(settings.patch), patch.diff)
        lines += ["", f"written to {settings.patch}: git apply {settings.patch}"]
    repairs: list[dict[str, Any]] = []
    if settings.apply:
        told, repairs = _repair(settings, Path(settings.path).expanduser(), items)
        lines += ["", *told]
    elif patch.diff and settings.patch is None:
        lines += ["", f"{_command(settings)} --fix {settings.fix} --apply    writes it"]
    result = {
        "items": [item.as_json() for item in items],
        **as_json(patch),
        "applied": settings.apply,
        "tries": repairs,
    }
    return Answer(result, "\n".join(lines), path=str(scan.root))


def _repair(settings: ScanSettings, path: Path, items: Sequence[Item]) -> tuple[list[str], list[dict[str, Any]]]:
    """(lines for people, rows of the ledger): each change in a worktree, through the gates, then into the files."""
    from intone.optimise.scan.repair import Round

    if not any(item.how == "code" for item in items):
        return ["nothing changed: there is no patch for this"], []
    round_ = Round.begin(path, settings.tests)
    try:
        repairs = round_.run(items)
        written = round_.apply() if round_.tree.changes() else []
    finally:
        round_.finish()
    lines = [f"{repair.verdict:<9}{repair.item.title}" for repair in repairs]
    lines += [f"         {repair.reason}" for repair in repairs if repair.verdict in ("rejected", "crashed")]
    lines.append(f"changed {', '.join(written)}" if written else "nothing changed: no change was kept")
    lines.append(f"the ledger is in {round_.folder}")
    if written:
        lines.append(f"{_command(settings)} --undo    takes it back")
    return lines, [repair.as_json() for repair in repairs]


def _undo(path: Path) -> Answer:
    """Takes the last repair of a path out of its files again. Raises UserError."""
    from intone.optimise.scan.repair import last_applied

    round_ = last_applied(path)
    names = round_.undo()
    return Answer({"id": round_.folder.name, "files": names}, f"took the changes of {round_.folder.name} out of "
                  f"{', '.join(names)}", path=str(path))  # fmt: skip


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(f"{name:<9}{text}", WIDTH, initial_indent="  ", subsequent_indent=" " * 11)


def _chosen(word: str, scan: Scan, board: Board, least: Confidence) -> list[Finding]:
    """The open findings that a rule (those sure enough) or an id means. Raises UserError."""
    open_now = {issue.finding.id for issue in board.open_issues(least)}
    if word.upper() in RULES:
        found = [finding for finding in scan.findings if finding.rule == word.upper() and finding.id in open_now]
        if not found:
            raise UserError(f"{word} has no open finding here", value=word, fix="--board lists what is known")
        return found
    if "-" not in word:
        raise unknown_name("rule", word, RULES)
    issue = board.find(word)
    found = [finding for finding in scan.findings if finding.id == issue.finding.id]
    if not found:
        raise UserError(
            f"{issue.finding.id} is {issue.state}: its code is not there", value=word, fix="--board lists what is known"
        )
    return found
