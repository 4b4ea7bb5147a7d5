"""Pages in two dresses: report.md for a reader of files, report.html for a browser, whole in one file.

A page is a list of blocks. Whatever a run brings along (names, paths, settings) is the text of a stranger: it is
escaped, and the html page forbids itself every script and every request, so that it can be sent to anybody.
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

WIDTH = 160  # columns of a table that no terminal fits
WORD = 20  # letters of a word that a table keeps in one piece
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # no script, no request; drawings have styles of their own
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
class Table:
    """A title, a header, rows of text, and notes below."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The table as GitHub reads it."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join("| " + " | ".join(_inline(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
        notes = "".join(f"\n- {_inline(note)}" for note in self.notes)
        return f"## {_inline(self.title)}\n\n{body}\n" + (f"{notes}\n" if notes else "")

    def html(self) -> str:
        """The table as a browser reads it."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.header)
        rows = "\n".join("<tr>" + "".join(f"<td>{_together(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return (
            f'<h2>{escape(self.title)}</h2>\n<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody></table></div>\n" + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        )

    def show(self) -> None:
        """Print the table, fitted to the terminal; into a pipe or a file WIDTH columns wide.

        What is too wide is printed as several tables, each with the first column.
        """
        import rich.table
        from rich.console import Console
        from rich.markup import escape

        def plain(text: str) -> str:
            return escape(held(text, sys.stdout.encoding or "utf-8"))

        fitted = sys.stdout.isatty() or "COLUMNS" in os.environ
        console = Console(width=None if fitted else WIDTH)
        for number, columns in enumerate(self.side_by_side(console.width)):
            drawn = rich.table.Table(title=None if number else self.title, title_justify="left")
            for i in columns:
                drawn.add_column(plain(self.header[i]), overflow="fold")  # paths differ at their ends
            for row in self.rows:
                drawn.add_row(*(plain(row[i]) for i in columns))
            console.print(drawn)
        for note in self.notes:
            console.print(plain(f"  {note}"))

    def side_by_side(self, width: int) -> list[list[int]]:
        """The columns of each table into which this one is cut, so that no word of at most WORD letters is broken."""
        parts, used = [[0]], self._least(0)
        for i in range(1, len(self.header)):
            if used + self._least(i) + 1 > width and len(parts[-1]) > 1:
                parts.append([0])
                used = self._least(0)
            parts[-1].append(i)
            used += self._least(i)
        return parts

    def _least(self, column: int) -> int:
        """The letters that a column takes at least, with its frame."""
        cells = [self.header[column], *(row[column] for row in self.rows)]
        return 3 + max((min(len(word), WORD) for cell in cells for word in cell.split()), default=0)


@dataclass(frozen=True)
class Command:
    """A command line, to be typed again."""

    words: Sequence[str]

    def __str__(self) -> str:
        return " ".join(shlex.join(["gpt1", *self.words]).split("\n"))


Block = Table | Picture | Command


def write(folder: Path, title: str, blocks: Sequence[Block]) -> None:
    """report.md and report.html; the pictures are in the latter, and in plots/ for the former."""
    for block in blocks:
        if isinstance(block, Picture):
            picture = folder / "plots" / f"{block.name}.png"
            with files.writing(picture):
                picture.parent.mkdir(exist_ok=True)
            write_bytes(picture, block.png)
    write_text(folder / "report.md", held("\n".join([f"# {_inline(title)}\n", *map(_markdown, blocks)])))
    write_text(folder / "report.html", held(html(title, blocks)))


def held(text: str, encoding: str = "utf-8") -> str:
    """The text with escapes for what the encoding cannot hold, as half a character, or odd bytes of a path."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def html(title: str, blocks: Sequence[Block]) -> str:
    """A page that needs nothing but itself."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>",
            f"<body><h1>{escape(title)}</h1>",
            *map(_html, blocks),
            "</body></html>\n",
        ]
    )


def _markdown(block: Block) -> str:
    if isinstance(block, Table):
        return block.markdown()
    if isinstance(block, Command):
        return f"    {block}\n"
    return f"![{_inline(block.caption)}](plots/{block.name}.png)\n"


def _html(block: Block) -> str:
    if isinstance(block, Table):
        return block.html()
    if isinstance(block, Command):
        return f"<pre>{escape(str(block))}</pre>"
    return f"<figure>{block.svg}<figcaption>{escape(block.caption)}</figcaption></figure>"


def _together(cell: str) -> str:
    """A cell for html in which no line ends between a mean and its deviation."""
    return escape(cell).replace(" ± ", "&nbsp;±&nbsp;")


def _inline(text: str) -> str:
    """A stranger's text within a line of Markdown, where html would be read as such."""
    return escape(" ".join(text.split("\n")), quote=False)
