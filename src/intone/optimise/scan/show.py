"""Findings and issues as text for people, at most 100 columns wide."""

import textwrap
from collections import Counter
from collections.abc import Sequence

from intone.optimise.scan.board import Board, Change, Issue, State
from intone.optimise.scan.finding import CLASSES, LEAST, SEVERITIES, Confidence, Finding, Severity
from intone.optimise.scan.rulebook import RULES
from intone.optimise.scan.run import Scan
from intone.optimise.scan.shares import certainty, share_words

WIDTH = 100


def counted(findings: Sequence[Finding]) -> str:
    """2 critical, 5 high, 3 low."""
    counts = Counter(finding.severity for finding in findings)
    return ", ".join(f"{counts[name]} {name}" for name in reversed(SEVERITIES) if counts[name]) or "none"


def scan_text(
    scan: Scan, board: Board, change: Change, show_from: Severity, command: str, least: Confidence = LEAST
) -> str:
    """What a scan found and what changed on the board. command: how this scan is called, for the last lines.

    least: the confidence from which on a finding is shown and counted; one line says how many are held back.
    """
    groups = board.open_groups(least)
    issues = [group[0] for group in groups]
    gravest = SEVERITIES.index(show_from)
    shown = [group for group in groups if SEVERITIES.index(group[0].finding.severity) >= gravest]
    lines = [
        f"{scan.num_files:,} {'file' if scan.num_files == 1 else 'files'}, {scan.num_lines:,} lines: "
        f"{len(issues)} open ({counted([issue.finding for issue in issues])})",
        f"board: {change.new} new, {change.fixed} fixed, {change.reopened} back, "
        f"{len(board.in_state('dismissed'))} dismissed",
    ]
    for name, why in scan.unread:
        lines.append(f"not read: {name} {why}"[:WIDTH])
    lines += [complaint for complaint in scan.complaints]
    told: set[str] = set()
    for issue, *copies in shown:
        lines += ["", *issue_lines(issue, copies, with_fix=issue.finding.rule not in told)]
        told.add(issue.finding.rule)
    if len(shown) < len(issues):
        lines += ["", f"{len(issues) - len(shown)} more below {show_from}"]
    if held := len(board.in_state("open", "confirmed")) - sum(map(len, groups)):
        lines += ["", f"{held} held back, assumed or of rules that seldom held elsewhere; shown by --confidence low"]
    lines += ["", *_next(issues, command)]
    return "\n".join(lines)


def _next(issues: Sequence[Issue], command: str) -> list[str]:
    if not issues:
        return ["nothing open"]
    first = issues[0].finding
    return [
        f"{command} --issue {first.id}    says more about one",
        f"{command} --fix {first.id}      shows its plan and patch",
        f'{command} --dismiss {first.id} --reason "..."',
    ]


def issue_lines(issue: Issue, copies: Sequence[Issue] = (), *, with_fix: bool) -> list[str]:
    """An issue, where else it is, how often its rule held, and its fix where that was not said before."""
    finding = issue.finding
    mark = "" if issue.state == "open" else f"  [{issue.state}]"
    head = f"{finding.severity:<9}{finding.id}  {finding.path}:{finding.line}{mark}"
    where = "" if finding.function == "<module>" else f" in {finding.function}"
    body = textwrap.wrap(finding.message + where, WIDTH - 9)
    if copies:
        places = ", ".join(f"{one.finding.path}:{one.finding.line}" for one in copies)
        body += textwrap.wrap(f"and at {places}", WIDTH - 9)
    body.append(share_words(finding))
    fix = textwrap.wrap(f"fix: {finding.fix}", WIDTH - 9) if with_fix else []
    return [head[:WIDTH], *(" " * 9 + line for line in [*body, *fix])]


def issue_text(issue: Issue) -> str:
    """Everything about one issue."""
    finding = issue.finding
    rule = RULES[finding.rule][0] if finding.rule in RULES else None
    lines = [
        f"{finding.id}  {rule.name if rule else finding.rule}",
        f"{finding.path}:{finding.line}  in {finding.function}",
        f"severity {finding.severity}, confidence {certainty(finding)}, {issue.state}"
        + (f": {issue.reason}" if issue.reason else ""),
        "",
        f"    {finding.excerpt}"[:WIDTH],
        "",
        *_block("what", finding.message),
        *_block("share", share_words(finding)),
        *_block("class", CLASSES.get(finding.kind, finding.kind)),
        *[line for fact in finding.evidence for line in _block("seen", fact)],
        *[line for path, at, name in finding.also for line in _block("with", f"{path}:{at} in {name}")],
        *_block("why", finding.why),
        *_block("fix", finding.fix),
        *(_block("source", rule.source) if rule else []),
        *_block("board", f"first seen {issue.first_seen}, last seen {issue.last_seen}"),
    ]
    return "\n".join(lines)


def _block(name: str, text: str) -> list[str]:
    wrapped = textwrap.wrap(text, WIDTH - 9) or [""]
    return [f"{name:<9}{wrapped[0]}", *(" " * 9 + line for line in wrapped[1:])]


def board_text(board: Board) -> str:
    """The whole board, by state."""
    lines = [f"{board.root}: {len(board.issues)} issues after {board.scans} scans ({board.folder / 'board.json'})"]
    states: tuple[State, ...] = ("confirmed", "open", "dismissed", "fixed")
    for state in states:
        issues = board.in_state(state)
        if issues:
            lines += ["", f"{state}: {len(issues)}"]
        for issue in issues:
            finding = issue.finding
            line = f"  {finding.severity:<9}{finding.id}  {finding.path}:{finding.line}  {finding.message}"
            lines.append(line if len(line) <= WIDTH else line[: WIDTH - 3] + "...")
            if state == "dismissed":
                lines += textwrap.wrap(issue.reason, WIDTH, initial_indent=" " * 11, subsequent_indent=" " * 11)
    return "\n".join(lines)
