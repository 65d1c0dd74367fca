"""The report: one self-contained HTML file for people, and a Markdown twin for git."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from bandsearch.run.facts import ReportFacts
from bandsearch.run.page import make_page
from bandsearch.run.words import correlation, layers_of, markdown_text, percent
from bandsearch.rundir import disk_errors, write_atomically

__all__ = ["ReportFacts", "write_report"]


def write_report(facts: ReportFacts, directory: Path) -> None:
    """Write `report.html` and `report.md`, each whole or not at all. Text from data and models is escaped."""
    page = make_page(facts)
    html = Environment(loader=PackageLoader("bandsearch.run", "."), autoescape=True, undefined=StrictUndefined)
    plain = Environment(
        loader=PackageLoader("bandsearch.run", "."),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plain.filters["text"] = markdown_text
    for environment in (html, plain):
        environment.globals |= {"layers_of": layers_of, "percent": percent, "correlation": correlation}
    with disk_errors(directory):
        write_atomically(directory / "report.md", plain.get_template("report.md.jinja").render(page=page))
        write_atomically(directory / "report.html", html.get_template("report.html.jinja").render(page=page))
