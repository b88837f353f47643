"""How good the scan is: precision by findings judged by hand, recall on planted faults; python -m intone.bench.scan"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from intone.bench.judgements import COMMAND, Count, Judged, Judgement, page, read_judgements, shares_of
from intone.bench.rows import ROOT, new_row, revision_of, row_path
from intone.errors import EXIT_BAD_INPUT, EXIT_CHECK_FAILED, EXIT_DONE, UserError
from intone.evals.intervals import proportion
from intone.log import say
from intone.optimise.scan.finding import CLASSES, Finding
from intone.optimise.scan.rulebook import RULES
from intone.optimise.scan.run import Scan, scan_path, scan_texts, sure_findings
from intone.optimise.scan.shares import TABLE
from intone.paths import read_json, write_atomic, write_json
from intone.records import ResultRow, append_result

JUDGEMENTS = ROOT / "docs" / "scan-judgements.json"
PAGE = ROOT / "docs" / "scan-precision.md"
RULES_FOLDER = ROOT / "src" / "intone" / "optimise" / "scan"
NEAR = 5  # lines between a label and a finding that is about the same thing
Group = Literal["tuned", "unseen", "met"]


def keyed(repo: str, findings: Sequence[Finding]) -> dict[tuple[str, str, str, str, int], Finding]:
    """Findings of a repository by the key of their judgement."""
    seen: Counter[tuple[str, str, str]] = Counter()
    found = {}
    for finding in findings:
        place = (finding.path, finding.rule, finding.function)
        seen[place] += 1
        found[(repo, *place, seen[place])] = finding
    return found


def compare(
    found: dict[Any, Finding], judged: Sequence[Judgement]
) -> tuple[list[Judgement], list[Any], list[Judgement]]:
    """(judgements of what was found, keys of findings nobody judged, judgements of what is not found any more)."""
    by_key = {judgement.key: judgement for judgement in judged}
    known = [by_key[key] for key in found if key in by_key]
    return known, [key for key in found if key not in by_key], [one for key, one in by_key.items() if key not in found]


def precision_row(judged: Sequence[Judgement], command: str, name: str = "cpu.scan.precision") -> ResultRow:
    """The share of findings that hold, over all repositories."""
    right = sum(judgement.holds for judgement in judged)
    return new_row(name, proportion(right, len(judged)), "share", n=len(judged), baseline=None, command=command)


def precision(folders: Sequence[str], *, group: Group, write: bool, out: Path) -> int:
    """Scans repositories given as NAME=FOLDER, recounts, and writes the page and the row where all are judged.

    unseen: the repositories are such that no rule was made with. They are counted once, before any rule is changed
    for them; later calls keep that count and write beside it what today's rules name no longer or in addition. Code
    bases that stand under "later" are a count of their own, whose first time is of all of them together.
    met: code of strangers that rules were changed with after it was judged; compared in the same way, without a row.
    """
    kept = read_judgements(JUDGEMENTS) if JUDGEMENTS.exists() else Judged()
    scanned = {word.partition("=")[0] for word in folders}
    at = _later_count(kept, scanned) if group == "unseen" else None
    unseen = Count(kept.unseen_rules, kept.unseen) if at is None else kept.later[at]
    judged = {"tuned": kept.tuned, "unseen": unseen.judgements, "met": kept.met}[group]
    found: dict[Any, Finding] = {}
    for word in folders:
        name, equals, folder = word.partition("=")
        if not equals:
            raise UserError(
                f"{word} is not NAME=FOLDER", value=word, fix="for example karpathy/nanoGPT@3adf61e=/data/nanoGPT"
            )
        scan = scan_path(Path(folder))
        sure = sure_findings(scan)
        held = len(scan.findings) - len(sure)
        say(f"{name}: {scan.num_files} files, {scan.num_lines:,} lines, {len(sure)} findings, {held} held back")
        found |= keyed(name, sure)
    known, unjudged, gone = compare(found, judged)
    for key in unjudged:
        print(f"not judged: {' '.join(map(str, key))}  line {found[key].line}: {found[key].message}")
    for judgement in gone:
        wrong = "" if judgement.holds else " (did not hold)"
        print(f"not found any more: {judgement.repo} {judgement.path}:{judgement.line} {judgement.rule}{wrong}")
    right = sum(judgement.holds for judgement in known)
    print(f"{right} of {len(known)} judged findings hold, {len(unjudged)} not judged")
    if unjudged or not known:
        return EXIT_CHECK_FAILED
    if not write:
        return EXIT_DONE
    names = " ".join(f"{word.partition('=')[0]}=..." for word in folders)
    if group == "met":
        fresh = replace(kept, met=tuple(_since(kept.met, found, scanned)))
    elif group == "unseen":
        if unseen.rules is None:
            count = Count(revision_of(RULES_FOLDER), tuple(known))
            command = f"{COMMAND} precision --unseen {names}"
            append_result(out, precision_row(known, command, "cpu.scan.precision_unseen"))
        else:
            count = replace(unseen, judgements=tuple(_since(unseen.judgements, found, scanned)))
        if at is None:
            fresh = replace(kept, unseen=count.judgements, unseen_rules=count.rules)
        else:
            fresh = replace(kept, later=(*kept.later[:at], count, *kept.later[at + 1 :]))
    else:
        fresh = replace(kept, tuned=tuple(replace(one, line=found[one.key].line) for one in known))
        append_result(out, precision_row(fresh.tuned, f"{COMMAND} precision {names}"))
    fresh.write(JUDGEMENTS)
    write_atomic(PAGE, page(fresh))
    return EXIT_DONE


def _later_count(kept: Judged, scanned: set[str]) -> int | None:
    """Which of the later counts is about these repositories; None where none is. Raises UserError where one is in part.

    A first count of some of its repositories would leave out the others for good.
    """
    for at, count in enumerate(kept.later):
        repos = {one.repo for one in count.judgements}
        if repos & scanned:
            if count.rules is None and repos != scanned:
                raise UserError(
                    "these repositories are part of a count that was not made yet",
                    value=" ".join(sorted(scanned)),
                    fix=f"give all of it: {' '.join(sorted(repos))}",
                )
            return at
    return None


def _since(judged: Sequence[Judgement], found: dict[Any, Finding], scanned: set[str]) -> list[Judgement]:
    """The judgements of unseen code with what today's rules make of them; those outside the count go when not found."""
    marked = []
    for one in judged:
        if one.repo not in scanned:
            marked.append(one)
        elif one.since == "new":
            marked += [one] if one.key in found else []
        else:
            marked.append(replace(one, since="" if one.key in found else "gone"))
    return marked


def write_shares(*, write: bool) -> int:
    """Prints the share of each rule on code of strangers, and writes the table that the scan reads."""
    table = shares_of(read_judgements(JUDGEMENTS))
    for rule, (held, judged) in sorted(table.items(), key=lambda one: (one[1][0] / one[1][1], one[0])):
        print(f"{rule}  {held:>3} of {judged:>3}  {RULES[rule][0].name}")
    right, total = (sum(pair[at] for pair in table.values()) for at in (0, 1))
    print(f"{right} of {total} held, {len(table)} of {len(RULES)} rules")
    if write:
        write_json(TABLE, {"format": 1, "rules": table})
    return EXIT_DONE


@dataclass(frozen=True)
class Label:
    """A fault that was planted. kinds: the classes under which it may be found."""

    path: str
    kinds: tuple[str, ...]
    line: int
    end_line: int
    function: str | None

    def is_met_by(self, finding: Finding) -> bool:
        """Whether a finding is about this fault: file, class, and its lines or its function."""
        if finding.path != self.path or finding.kind not in self.kinds:
            return False
        return self._is_at(finding.line, finding.function)

    def is_named_by(self, finding: Finding) -> bool:
        """Whether a finding that stands elsewhere names this place as one that has a share in the fault."""
        return finding.kind in self.kinds and any(
            path == self.path and self._is_at(line, function) for path, line, function in finding.also
        )

    def _is_at(self, line: int, function: str) -> bool:
        near = self.line - NEAR <= line <= self.end_line + NEAR
        same = self.function is not None and function.rpartition(".")[2] == self.function.rpartition(".")[2]
        return near or same


def read_labels(folder: Path) -> tuple[list[Label], list[tuple[str, tuple[str, ...]]], bool]:
    """(planted faults, (file, classes) that must stay clean, whether the files are one code base). Raises UserError.

    An entry of "clean" is the name of a file, clean of every class, or {"path": name, "kind": class or classes}.
    """
    value = read_json(folder / "labels.json")
    if not isinstance(value, dict) or not isinstance(value.get("planted"), list):
        raise UserError(
            f"{folder / 'labels.json'} names no planted faults",
            value=str(folder),
            fix='write {"format": 1, "planted": [{"path": ..., "kind": ..., "line": ...}], "clean": ["name.py"]}',
        )
    planted = [
        Label(entry["path"], _kinds(entry), entry["line"], entry.get("end_line", entry["line"]), entry.get("function"))
        for entry in value["planted"]
    ]
    return planted, [_clean(entry) for entry in value.get("clean", [])], bool(value.get("together", False))


def _clean(entry: object) -> tuple[str, tuple[str, ...]]:
    """(file, classes of which it must be clean) of an entry of "clean"."""
    if isinstance(entry, str):
        return entry, tuple(CLASSES)
    if isinstance(entry, dict) and isinstance(entry.get("path"), str):
        return entry["path"], _kinds(entry) if "kind" in entry else tuple(CLASSES)
    raise UserError(
        f"{entry!r} among the clean files of labels.json names no file",
        value=repr(entry),
        fix='write "name.py" or {"path": "name.py", "kind": "rng"}',
    )


def _kinds(entry: dict[str, Any]) -> tuple[str, ...]:
    kinds = (entry["kind"],) if isinstance(entry["kind"], str) else tuple(entry["kind"])
    for kind in kinds:
        if kind not in CLASSES:
            raise UserError(f"unknown class {kind!r} in labels.json", value=kind, fix=f"known: {', '.join(CLASSES)}")
    return kinds


def scan_planted(folder: Path, names: Sequence[str], together: bool) -> list[Finding]:
    """The findings in planted files that are shown, each file as a code base of its own unless they belong together."""
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in sorted(set(names))}
    scans: list[Scan] = [scan_texts(texts)] if together else [scan_texts({name: text}) for name, text in texts.items()]
    return [finding for scan in scans for finding in sure_findings(scan)]


def recall(folders: Sequence[Path], *, out: Path | None) -> int:
    """Counts planted faults that are found, and alarms in files that are clean; writes the row where asked.

    folders: counted together, each with labels.json and scanned by itself.
    """
    counts: Counter[tuple[str, bool]] = Counter()
    missed: list[str] = []
    alarms: list[str] = []
    num_clean = 0
    for folder in folders:
        planted, clean, together = read_labels(folder)
        findings = scan_planted(folder, [*(label.path for label in planted), *(path for path, _ in clean)], together)
        for label in planted:
            hit = any(label.is_met_by(finding) for finding in findings)
            counts[label.kinds[0], hit] += 1
            if not hit:
                named = " (named by a finding elsewhere)" if any(label.is_named_by(one) for one in findings) else ""
                where = f"{label.path}:{label.line} {'|'.join(label.kinds)} {label.function or ''}"
                missed.append(f"missed: {where}{named}")
        for path, kinds in clean:
            mine = [finding for finding in findings if finding.path == path and finding.kind in kinds]
            alarms += [f"false alarm: {path}:{one.line} {one.rule} {one.message}" for one in mine]
        num_clean += len(clean)
    for kind in CLASSES:
        if number := counts[kind, True] + counts[kind, False]:
            print(f"{kind:<16} {counts[kind, True]} of {number}")
    print("\n".join([*missed, *alarms]))
    hits, total = sum(n for (_, hit), n in counts.items() if hit), sum(counts.values())
    print(f"{hits} of {total} planted faults found; {len(alarms)} alarms in {num_clean} clean files")
    if out is not None:
        command = f"{COMMAND} recall {' '.join(_from_root(folder) for folder in folders)}"
        interval = proportion(hits, total)
        append_result(out, new_row("cpu.scan.recall", interval, "share", n=total, baseline=None, command=command))
    return EXIT_DONE


def _from_root(folder: Path) -> str:
    """A folder as a person writes it who stands in the root of the repository."""
    whole = folder.resolve()
    return whole.relative_to(ROOT).as_posix() if whole.is_relative_to(ROOT) else str(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Counts precision or recall; exit 1 where a finding is not judged."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("precision", help="recount docs/scan-judgements.json on NAME=FOLDER ...")
    one.add_argument("folders", nargs="+")
    apart = one.add_mutually_exclusive_group()
    apart.add_argument("--unseen", action="store_true", help="code that no rule was made with: counted once")
    apart.add_argument("--met", action="store_true", help="code of strangers that rules were changed with later")
    three = parts.add_parser("shares", help="the share of each rule on code of strangers, from the judgements")
    two = parts.add_parser("recall", help="planted faults of folders with labels.json")
    two.add_argument("planted", type=Path, nargs="+")
    for part in (one, two, three):
        part.add_argument("--write", action="store_true", help="append the row, write the page or the table")
    for part in (one, two):
        part.add_argument("--out", type=Path, default=row_path("scan"))
    asked = parser.parse_args(argv)
    try:
        if asked.part == "precision":
            group: Group = "unseen" if asked.unseen else "met" if asked.met else "tuned"
            return precision(asked.folders, group=group, write=asked.write, out=asked.out)
        if asked.part == "shares":
            return write_shares(write=asked.write)
        return recall(asked.planted, out=asked.out if asked.write else None)
    except UserError as error:
        say(str(error))
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
