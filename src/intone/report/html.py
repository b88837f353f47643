"""A report as one HTML file: style and charts inside, no script, no request to anywhere."""

import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from intone.report.document import Document

HERE = Path(__file__).parent
CODE = re.compile(r"`([^`]+)`")


def to_html(document: Document) -> str:
    """The page. Everything is escaped but the charts, which are ours."""
    style = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    return templates().get_template("page.html").render(document=document, style=style)


@cache
def templates() -> Environment:
    """The templates beside this file, with every value escaped and a missing one an error."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["prose"] = prose
    environment.filters["svg"] = Markup
    environment.tests["block"] = lambda block, name: type(block).__name__ == name
    return environment


def prose(words: str) -> Markup:
    """Text with its `code` marked up and the rest escaped."""
    parts = CODE.split(words)  # text and code in turns
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts)
    )
