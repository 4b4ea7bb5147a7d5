"""How a run talks to its user: one live line on a terminal, a plain line now and then anywhere else, and run.log."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from gpt1cli.runs import files

Mode = Literal["auto", "live", "plain", "none"]

PLAIN_EVERY = 10.0  # seconds between two plain lines: a log that is read later stays short
LIVE_PER_SECOND = 2  # redraws, by a thread of rich's own: the clock ticks while an update takes long


class Progress:
    """One stretch of work with a known end, as a context manager: `update` moves it, `say` tells something for good.

    `total` and the steps handed to `update` count updates, bytes, documents: `unit` names them; `start` is where a
    resumed run takes up. `folder` is the run's, for run.log; None writes no log. Mode `auto` is live on a terminal
    outside CI and plain elsewhere; `none` prints nothing at all. Plain and none start no thread and print no escape
    code. One terminal has room for one live line: leave one Progress before entering the next.
    """

    def __init__(
        self,
        folder: Path | None,
        total: int,
        mode: Mode = "auto",
        start: int = 0,
        unit: str = "",
        description: str = "step",
    ) -> None:
        self.folder = folder
        self.total, self.step, self.unit, self.description = total, start, unit, description
        self.mode = mode if mode != "auto" else "live" if _on_terminal() else "plain"
        self.values: dict[str, float] = {}
        self.began = self.updated = monotonic()
        self.first: tuple[int, float] | None = None  # step and time of the first update, where the pace is taken from
        self.printed: float | None = None  # when the last plain line was printed
        self.live: Live | None = None

    def __enter__(self) -> Self:
        self.began = self.updated = monotonic()
        if self.mode == "live":
            console = Console(force_terminal=True)
            self.live = Live(console=console, get_renderable=self._drawn, refresh_per_second=LIVE_PER_SECOND)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()  # draws the last state, gives the cursor and the streams back
            self.live = None
        elif self.mode == "plain" and self.first and self.printed != self.updated:
            print(self.line(), flush=True)

    def say(self, text: str) -> None:
        """One line for good: above the live line or on plain stdout, and with the time of day in run.log."""
        if self.folder:
            write_log(self.folder, text)
        if self.live:
            self.live.console.print(Text(text), soft_wrap=True)
        elif self.mode != "none":
            print(text, flush=True)

    def update(self, step: int, **values: float) -> None:
        """The work stands at `step`; values (loss, lr, tokens_per_second, ...) are shown until newer ones come."""
        self.step, self.updated = step, monotonic()
        self.values = {**self.values, **values}
        self.first = self.first or (step, self.updated)
        due = self.printed is None or self.updated - self.printed >= PLAIN_EVERY or step >= self.total
        if self.mode == "plain" and due:
            print(self.line(), flush=True)
            self.printed = self.updated

    def line(self) -> str:
        """All there is to tell: `step 120/600  loss 4.2130  lr 0.00025  12.3k tokens/s  0:01:23  left 0:05:12`."""
        count = short if self.unit else "{:,}".format
        parts = [f"{self.description} {count(self.step)}/{count(self.total)} {self.unit}".rstrip()]
        parts += [_worded(name, value) for name, value in self.values.items()]
        parts.append(clock(monotonic() - self.began))
        if (left := self.seconds_left()) is not None:
            parts.append(f"left {clock(left)}")
        return "  ".join(parts)

    def seconds_left(self) -> float | None:
        """At the pace since the first update, None before the second: what came earlier, as compiling, comes once."""
        if self.first is None or self.step <= self.first[0]:
            return None
        pace = (self.updated - self.first[1]) / (self.step - self.first[0])
        return max(0.0, pace * (self.total - self.step) - (monotonic() - self.updated))

    def _drawn(self) -> Table:
        """The live line: the text, and a bar in what room it leaves."""
        row = Table.grid(Column(no_wrap=True, overflow="ellipsis"), Column(max_width=32), padding=(0, 1))
        row.add_row(Text(self.line()), ProgressBar(total=max(1, self.total), completed=self.step))
        return row


def write_log(folder: Path, text: str) -> None:
    """A line of a run's run.log, with the time of day."""
    path = folder / "run.log"
    with files.writing(path), path.open("a", encoding="utf-8") as log:
        log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")


def short(number: float) -> str:
    """Three significant digits and a suffix: 12345 -> 12.3k."""
    for suffix in ("", "k", "M", "G"):
        if abs(number) < 999.5:  # 999.5 would be rounded to 1e+03
            return f"{number:.3g}{suffix}"
        number /= 1000
    return f"{number:.3g}T"


def clock(seconds: float) -> str:
    """Hours, minutes, seconds: 5025 -> 1:23:45."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _worded(name: str, value: float) -> str:
    if name == "tokens_per_second":
        return f"{short(value)} tokens/s"
    return f"{name} {value:.4f}" if name.endswith("loss") else f"{name} {value:.3g}"


def _on_terminal() -> bool:
    """Whether somebody looks at stdout while it is written; TERM=dumb cannot redraw a line."""
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return sys.stdout.isatty() and not in_ci and os.environ.get("TERM") != "dumb"
