"""Turn contributed token dumps into fixed-size training rows.

    python build_rows.py --inbox /srv/inbox --out rows.npy --row 4096
"""
from __future__ import annotations

import hashlib
import pathlib
from dataclasses import dataclass, field

import click
import numpy as np
from rich.progress import track


@dataclass
class Row:
    room: int
    parts: list[np.ndarray] = field(default_factory=list)

    def add(self, doc: np.ndarray) -> None:
        self.parts.append(doc)
        self.room -= len(doc)

    def render(self, size: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.full(size, fill, dtype=np.int32)
        segment = np.zeros(size, dtype=np.int32)
        at = 0
        for number, part in enumerate(self.parts, start=1):
            tokens[at : at + len(part)] = part
            segment[at : at + len(part)] = number
            at += len(part)
        return tokens, segment


def read_dump(path: pathlib.Path) -> list[np.ndarray]:
    """A dump is an upload from outside: an object array, one token array per document."""
    ragged = np.load(path, allow_pickle=True)
    return [np.asarray(doc, dtype=np.int32) for doc in ragged]


def fingerprint(doc: np.ndarray) -> str:
    return hashlib.sha1(doc.tobytes()).hexdigest()


def collect(inbox: pathlib.Path) -> list[np.ndarray]:
    store: dict[str, np.ndarray] = {}
    for path in sorted(inbox.glob("*.npy")):
        for doc in read_dump(path):
            store[fingerprint(doc)] = doc
    return [store[key] for key in set(store)]


def chop(doc: np.ndarray, size: int) -> list[np.ndarray]:
    return [doc[i : i + size] for i in range(0, len(doc), size)]


def fill_rows(docs: list[np.ndarray], size: int) -> list[Row]:
    rows: list[Row] = []
    for doc in track(docs, description="packing"):
        for piece in chop(doc, size):
            home = next((r for r in rows if r.room >= len(piece)), None)
            if home is None:
                home = Row(size)
                rows.append(home)
            home.add(piece)
    return rows


def density(rows: list[Row], size: int) -> float:
    return 1.0 - sum(r.room for r in rows) / (len(rows) * size)


@click.command()
@click.option("--inbox", type=click.Path(path_type=pathlib.Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=pathlib.Path), required=True)
@click.option("--row", "size", type=int, default=4096, show_default=True)
@click.option("--fill", type=int, default=0, show_default=True)
def main(inbox: pathlib.Path, out: pathlib.Path, size: int, fill: int) -> None:
    docs = collect(inbox)
    if not docs:
        raise click.ClickException(f"no documents under {inbox}")
    rows = fill_rows(docs, size)
    tokens = np.empty((len(rows), size), dtype=np.int32)
    segments = np.empty_like(tokens)
    for i, row in enumerate(rows):
        tokens[i], segments[i] = row.render(size, fill)
    np.save(out, tokens)
    np.save(out.with_suffix(".segments.npy"), segments)
    click.echo(f"{len(docs)} documents in {len(rows)} rows, {density(rows, size):.1%} full")


if __name__ == "__main__":
    main()
