"""Reports in two formats: report.md, and report.html for a browser, complete in one file.

A page is a list of blocks. Names, paths and settings of a run are untrusted text: they are escaped, and the html page
forbids all scripts and requests, so that it can be sent to anybody.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from gpt1cli.reporting.plots import Picture
from gpt1cli.runs import files
from gpt1cli.runs.files import write_bytes, write_text

PIPE_WIDTH = 160  # characters in a line of output that is no terminal
MAX_UNBROKEN = 20  # characters: words up to this length are not broken in a table
SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # no script, no request; drawings contain styles
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #444; }
.wide { overflow-x: auto; }
.notes { color: #555; font-size: 13px; padding-left: 1rem; }
pre { background: #f4f4f4; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figure svg { max-width: 100%; height: auto; }
figcaption { color: #555; }
"""


@dataclass(frozen=True)
class ReportTable:
    """A title, a header, rows of text, and notes below."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join(
            "| " + " | ".join(_escape_inline(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        notes = "".join(f"\n- {_escape_inline(note)}" for note in self.notes)
        return f"## {_escape_inline(self.title)}\n\n{body}\n" + (f"{notes}\n" if notes else "")

    def html(self) -> str:
        """The table in html."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.header)
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{_unbroken_cell(cell)}</td>" for cell in row) + "</tr>" for row in self.rows
        )
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return (
            f'<h2>{escape(self.title)}</h2>\n<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody></table></div>\n" + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        )

    def show(self) -> None:
        """Print the table in the width of the terminal, or PIPE_WIDTH characters wide into a pipe or a file.

        A table that is too wide is printed as several tables, each with the first column.
        """
        import rich.table
        from rich.console import Console
        from rich.markup import escape

        def plain(text: str) -> str:
            return escape(encodable(text, sys.stdout.encoding or "utf-8"))

        has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
        console = Console(width=None if has_width else PIPE_WIDTH)
        for number, columns in enumerate(self.split_columns(console.width)):
            rich_table = rich.table.Table(title=None if number else self.title, title_justify="left")
            for i in columns:
                rich_table.add_column(plain(self.header[i]), overflow="fold")  # paths differ at their end
            for row in self.rows:
                rich_table.add_row(*(plain(row[i]) for i in columns))
            console.print(rich_table)
        for note in self.notes:
            console.print(plain(f"  {note}"))

    def split_columns(self, width: int) -> list[list[int]]:
        """The columns of each part if the table is split so that no word up to MAX_UNBROKEN characters is broken."""
        parts, used = [[0]], self._min_width(0)
        for i in range(1, len(self.header)):
            if used + self._min_width(i) + 1 > width and len(parts[-1]) > 1:
                parts.append([0])
                used = self._min_width(0)
            parts[-1].append(i)
            used += self._min_width(i)
        return parts

    def _min_width(self, column: int) -> int:
        """The minimal width of a column in characters, with its frame."""
        cells = [self.header[column], *(row[column] for row in self.rows)]
        return 3 + max((min(len(word), MAX_UNBROKEN) for cell in cells for word in cell.split()), default=0)


@dataclass(frozen=True)
class CommandLine:
    """A command line for the user to type."""

    words: Sequence[str]

    def __str__(self) -> str:
        return " ".join(shlex.join(["gpt1", *self.words]).split("\n"))


Block = ReportTable | Picture | CommandLine


def write_page(folder: Path, title: str, blocks: Sequence[Block]) -> None:
    """Write report.md and report.html. Pictures are inside report.html, and in plots/ for report.md."""
    for block in blocks:
        if isinstance(block, Picture):
            picture = folder / "plots" / f"{block.name}.png"
            with files.name_write_errors(picture):
                picture.parent.mkdir(exist_ok=True)
            write_bytes(picture, block.png)
    write_text(folder / "report.md", encodable("\n".join([f"# {_escape_inline(title)}\n", *map(_markdown, blocks)])))
    write_text(folder / "report.html", encodable(html_page(title, blocks)))


def encodable(text: str, encoding: str = "utf-8") -> str:
    """The text with escapes for characters that the encoding does not have, as lone surrogates or bytes of a path."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def html_page(title: str, blocks: Sequence[Block]) -> str:
    """A complete html page that loads nothing."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{SECURITY_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>",
            f"<body><h1>{escape(title)}</h1>",
            *map(_html, blocks),
            "</body></html>\n",
        ]
    )


def _markdown(block: Block) -> str:
    if isinstance(block, ReportTable):
        return block.markdown()
    if isinstance(block, CommandLine):
        return f"    {block}\n"
    return f"![{_escape_inline(block.caption)}](plots/{block.name}.png)\n"


def _html(block: Block) -> str:
    if isinstance(block, ReportTable):
        return block.html()
    if isinstance(block, CommandLine):
        return f"<pre>{escape(str(block))}</pre>"
    return f"<figure>{block.svg}<figcaption>{escape(block.caption)}</figcaption></figure>"


def _unbroken_cell(cell: str) -> str:
    """A cell for html, without a line break between a mean and its standard deviation."""
    return escape(cell).replace(" ± ", "&nbsp;±&nbsp;")


def _escape_inline(text: str) -> str:
    """Untrusted text for a line of Markdown, with its html escaped."""
    return escape(" ".join(text.split("\n")), quote=False)
