"""Progress of a run: one live line on a terminal, a plain line every 10 seconds anywhere else, and run.log."""

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

PLAIN_LINE_SECONDS = 10.0  # keeps a log that is read later short
REDRAWS_PER_SECOND = 2  # by a thread of rich: the clock runs also during a long step


class Progress:
    """Progress of work with a known total, as a context manager: `update` advances it, `say` prints a permanent line.

    `total` and the steps given to `update` count training steps, bytes or documents; `unit` is their name. `start` is
    the step at which a resumed run continues. `folder` is the run's, for run.log; None writes no log. Mode `auto` is
    live on a terminal outside CI and plain elsewhere; `none` prints nothing. Plain and none start no thread and print
    no escape code. A terminal shows only one live line: leave one Progress before entering the next.
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
        self.mode = mode if mode != "auto" else "live" if _is_terminal() else "plain"
        self.values: dict[str, float] = {}
        self.start_time = self.update_time = monotonic()
        self.first_update: tuple[int, float] | None = None  # its step and time: the speed is measured from there
        self.print_time: float | None = None  # of the last plain line
        self.live: Live | None = None

    def __enter__(self) -> Self:
        self.start_time = self.update_time = monotonic()
        if self.mode == "live":
            console = Console(force_terminal=True)
            self.live = Live(console=console, get_renderable=self._render_line, refresh_per_second=REDRAWS_PER_SECOND)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()  # draws the last state and restores the cursor and the streams
            self.live = None
        elif self.mode == "plain" and self.first_update and self.print_time != self.update_time:
            print(self.line(), flush=True)

    def say(self, text: str) -> None:
        """Print a permanent line, above the live line or on plain stdout, and write it with its time to run.log."""
        if self.folder:
            write_log(self.folder, text)
        if self.live:
            self.live.console.print(Text(text), soft_wrap=True)
        elif self.mode != "none":
            print(text, flush=True)

    def update(self, step: int, **values: float) -> None:
        """Set the current step; values (loss, lr, tokens_per_second, ...) are shown until they are replaced."""
        self.step, self.update_time = step, monotonic()
        self.values = {**self.values, **values}
        self.first_update = self.first_update or (step, self.update_time)
        due = self.print_time is None or self.update_time - self.print_time >= PLAIN_LINE_SECONDS or step >= self.total
        if self.mode == "plain" and due:
            print(self.line(), flush=True)
            self.print_time = self.update_time

    def line(self) -> str:
        """The line of text: `step 120/600  loss 4.2130  lr 0.00025  12.3k tokens/s  0:01:23  left 0:05:12`."""
        count = abbreviate_number if self.unit else "{:,}".format
        parts = [f"{self.description} {count(self.step)}/{count(self.total)} {self.unit}".rstrip()]
        parts += [_format_metric(name, value) for name, value in self.values.items()]
        parts.append(format_duration(monotonic() - self.start_time))
        if (left := self.seconds_left()) is not None:
            parts.append(f"left {format_duration(left)}")
        return "  ".join(parts)

    def seconds_left(self) -> float | None:
        """The time left at the speed since the first update, None before the second: compiling happens only once."""
        if self.first_update is None or self.step <= self.first_update[0]:
            return None
        seconds_per_step = (self.update_time - self.first_update[1]) / (self.step - self.first_update[0])
        return max(0.0, seconds_per_step * (self.total - self.step) - (monotonic() - self.update_time))

    def _render_line(self) -> Table:
        """The live line: the text, and a progress bar in the remaining width."""
        row = Table.grid(Column(no_wrap=True, overflow="ellipsis"), Column(max_width=32), padding=(0, 1))
        row.add_row(Text(self.line()), ProgressBar(total=max(1, self.total), completed=self.step))
        return row


def write_log(folder: Path, text: str) -> None:
    """Append a line with its date and time to a run's run.log."""
    path = folder / "run.log"
    with files.name_write_errors(path), path.open("a", encoding="utf-8") as log:
        log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")


def abbreviate_number(number: float) -> str:
    """A number with three significant digits and a suffix: 12345 -> 12.3k."""
    for suffix in ("", "k", "M", "G"):
        if abs(number) < 999.5:  # 999.5 would be rounded to 1e+03
            return f"{number:.3g}{suffix}"
        number /= 1000
    return f"{number:.3g}T"


def format_duration(seconds: float) -> str:
    """Seconds as hours, minutes, seconds: 5025 -> 1:23:45."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _format_metric(name: str, value: float) -> str:
    if name == "tokens_per_second":
        return f"{abbreviate_number(value)} tokens/s"
    return f"{name} {value:.4f}" if name.endswith("loss") else f"{name} {value:.3g}"


def _is_terminal() -> bool:
    """Whether stdout is a terminal with a user in front of it; TERM=dumb cannot redraw a line."""
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return sys.stdout.isatty() and not in_ci and os.environ.get("TERM") != "dumb"
