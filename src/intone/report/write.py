"""`intone report`: which report is asked for, and its three files beside each other on disk."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.errors import UserError
from intone.paths import write_atomic, write_json
from intone.records import Answer
from intone.report.comparison import read_measured
from intone.report.document import Document
from intone.report.html import to_html
from intone.report.markdown import to_markdown
from intone.report.record import read_record
from intone.report.run_page import run_document
from intone.settings import ReportSettings

MEASURED = (".json", ".jsonl")  # endings of files that hold comparisons or result rows


@dataclass(frozen=True)
class Written:
    """Where the three forms of a report lie."""

    html: Path
    markdown: Path
    json: Path


def report_verb(settings: ReportSettings, _origins: Mapping[str, Any]) -> Answer:
    """`intone report [RUN or FILE]`: writes the three files and says where. Raises UserError."""
    document, folder, stem, run = find_document(settings.run)
    if settings.out is not None:
        folder = Path(settings.out).expanduser().absolute()
        if folder.exists() and not folder.is_dir():
            fix = "name a folder; three files are written into it"
            raise UserError(f"--out {settings.out} is a file", value=settings.out, fix=fix)
    written = write_report(document, folder, stem)
    result = {"kind": document.kind, "html": str(written.html), "markdown": str(written.markdown),
              "json": str(written.json)}  # fmt: skip
    text = f"{document.title}: {written.html}\nalso as {written.markdown.name} and {written.json.name}, in {folder}"
    return Answer(result, text, run=run, path=str(folder))


def find_document(reference: str) -> tuple[Document, Path, str, str | None]:
    """What a reference means -> (its report, folder and name without ending of its files, name of the run).

    A file that ends in .json or .jsonl holds measurements; everything else is RUN. Raises UserError.
    """
    path = Path(reference).expanduser()
    if path.suffix in MEASURED:
        if not path.is_file():
            raise UserError(f"{path} does not exist", value=reference, fix="name a run, or a file of measurements")
        return read_measured(path), path.absolute().parent, f"{path.stem}-report", None
    record = read_record(reference)
    folder = record.run.stage_folder(record.stages[0].stage) if record.is_part else record.run.folder
    return run_document(record), folder, "report", record.run.name


def write_run_report(folder: Path) -> Written:
    """The report of the run in a folder, written beside its run.json."""
    return write_report(run_document(read_record(str(folder))), folder, "report")


def write_report(document: Document, folder: Path, stem: str) -> Written:
    """STEM.html, STEM.md and STEM.json in a folder, each atomically. The same rows give the same bytes."""
    written = Written(*(folder / f"{stem}.{ending}" for ending in ("html", "md", "json")))
    write_atomic(written.html, to_html(document))
    write_atomic(written.markdown, to_markdown(document))
    write_json(written.json, json.loads(json.dumps(document.data, default=str)))
    return written
