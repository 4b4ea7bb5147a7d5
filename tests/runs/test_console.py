"""The progress that a user sees: on a terminal (a pseudo-terminal here), through a pipe, in CI, and in run.log."""

import os
import pty
import re
import subprocess
import sys
import threading

import pytest

from gpt1cli.runs import console
from gpt1cli.runs.console import Progress, abbreviate_number, format_duration

SCRIPT = """
import sys
from pathlib import Path
from gpt1cli.runs.console import Progress
with Progress(None, total=600, mode={mode!r}, start=100) as progress:
    progress.update(110, loss=4.21299, lr=2.5e-4, tokens_per_second=12345.6)
    progress.say("step 110: valid [loss] 4.1 :smile:")
    progress.update(120)
    {ending}
"""
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


def clean_environment(**changes: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "FORCE_COLOR")}
    return {**plain, "TERM": "xterm-256color", "COLUMNS": "100", **changes}


def run_piped(mode: str = "auto", ending: str = "pass", **env: str) -> subprocess.CompletedProcess[bytes]:
    code = SCRIPT.format(mode=mode, ending=ending)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, env=clean_environment(**env))


def run_on_terminal(mode: str = "auto", ending: str = "pass", **env: str) -> tuple[bytes, int]:
    """The output of the script on a terminal, and its exit status."""
    parent, child = pty.openpty()
    code = SCRIPT.format(mode=mode, ending=ending)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=child, stderr=child, env=clean_environment(**env))
    os.close(child)
    output = b""
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:  # on Linux: the other side is closed
            break
        if not chunk:
            break
        output += chunk
    os.close(parent)
    return output, process.wait()


def strip_escapes(output: bytes) -> str:
    """The text without its escape codes."""
    return re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", output).decode()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves: now[0] seconds."""
    time = [1000.0]
    monkeypatch.setattr(console, "monotonic", lambda: time[0])
    return time


def test_terminal_gets_one_live_line_that_is_redrawn():
    output, status = run_on_terminal()
    text = strip_escapes(output)
    assert status == 0
    assert re.search(r"step 120/600  loss 4\.2130  lr 0\.00025  12\.3k tokens/s  0:00:\d\d  left \d:\d\d:\d\d", text)
    assert b"\x1b[2K" in output  # a line is erased and redrawn
    assert "valid [loss] 4.1 :smile:" in text  # literal: neither markup nor emoji
    assert text.rstrip().splitlines()[-1].startswith("step 120/600")
    assert all(len(line) <= 100 for line in re.split(r"[\r\n]+", text))


@pytest.mark.parametrize(
    ("ending", "status"),
    [("pass", 0), ("raise SystemExit(143)", 143), ("raise ValueError('no')", 1), ("raise KeyboardInterrupt", -2)],
)
def test_cursor_is_restored_after_any_ending(ending: str, status: int):
    output, exit_status = run_on_terminal(ending=ending)
    assert exit_status == status
    assert output.rfind(SHOW_CURSOR) > output.rfind(HIDE_CURSOR) >= 0


@pytest.mark.parametrize("env", [{"CI": "true"}, {"CI": "1"}, {"TERM": "dumb"}])
def test_terminal_in_ci_or_without_cursor_gets_plain_lines(env: dict[str, str]):
    output, _ = run_on_terminal(**env)
    assert b"\x1b" not in output
    assert b"step 120/600" in output


@pytest.mark.parametrize("env", [{}, {"CI": "true"}, {"FORCE_COLOR": "1"}])
@pytest.mark.parametrize("mode", ["auto", "plain"])
def test_pipe_gets_plain_lines_without_escape_codes(mode: str, env: dict[str, str]):
    done = run_piped(mode, **env)
    assert done.stderr == b""
    assert b"\x1b" not in done.stdout and b"\r" not in done.stdout
    first, message, last = done.stdout.decode().splitlines()
    assert re.fullmatch(r"step 110/600  loss 4\.2130  lr 0\.00025  12\.3k tokens/s  0:00:\d\d", first)
    assert message == "step 110: valid [loss] 4.1 :smile:"
    assert last.startswith("step 120/600  loss 4.2130")


def test_last_plain_line_is_printed_when_a_run_is_stopped():
    done = run_piped(ending="raise SystemExit(143)")
    assert done.returncode == 143
    assert done.stdout.splitlines()[-1].startswith(b"step 120/600")


def test_mode_live_is_live_in_a_pipe_and_mode_none_is_silent():
    assert HIDE_CURSOR in run_piped("live").stdout
    assert run_piped("none").stdout == b""
    assert run_on_terminal("none") == (b"", 0)


def test_plain_lines_are_printed_at_most_every_ten_seconds(now: list[float], capsys: pytest.CaptureFixture[str]):
    with Progress(None, total=100, mode="plain") as progress:
        for step in range(1, 36):
            now[0] += 1
            progress.update(step)
    steps = [int(re.match(r"step (\d+)/100", line)[1]) for line in capsys.readouterr().out.splitlines()]
    assert steps == [1, 11, 21, 31, 35]


def test_last_update_is_printed_once(now: list[float], capsys: pytest.CaptureFixture[str]):
    with Progress(None, total=2, mode="plain") as progress:
        progress.update(1)
        now[0] += 10
        progress.update(2)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_no_update_prints_nothing(capsys: pytest.CaptureFixture[str]):
    with Progress(None, total=0, mode="plain"):
        pass
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("mode", ["plain", "none"])
def test_no_thread_without_live_line(mode: console.Mode):
    before = threading.active_count()
    with Progress(None, total=10, mode=mode) as progress:
        progress.update(1)
        assert threading.active_count() == before


def test_time_left_is_measured_in_this_session_after_the_first_update(now: list[float]):
    progress = Progress(None, total=1000, mode="none", start=500)
    now[0] += 60  # compiling
    progress.update(510)
    assert progress.seconds_left() is None
    now[0] += 20
    progress.update(520)  # 10 steps in 20 seconds: the other 480 take 960
    assert progress.seconds_left() == pytest.approx(960)
    assert progress.line() == "step 520/1,000  0:01:20  left 0:16:00"
    now[0] += 60  # a long step: the clock runs on
    assert progress.line() == "step 520/1,000  0:02:20  left 0:15:00"


def test_amounts_with_a_unit_are_abbreviated(now: list[float]):
    progress = Progress(None, total=97_123_456, mode="none", unit="bytes", description="encoding")
    progress.update(12_345_678)
    assert progress.line() == "encoding 12.3M/97.1M bytes  0:00:00"


@pytest.mark.parametrize("mode", ["plain", "none"])
def test_messages_are_written_to_run_log(mode: console.Mode, tmp_path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run.log").write_text("an earlier session\n")
    with Progress(tmp_path, total=10, mode=mode) as progress:
        progress.say("reading café.txt")
        progress.update(1)
    progress.say("done")
    earlier, first, second = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert earlier == "an earlier session"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d reading café.txt", first)
    assert second.endswith(" done")
    assert ("reading café.txt" in capsys.readouterr().out) == (mode == "plain")


def test_numbers_and_durations_are_abbreviated():
    numbers = [0, 7, 950, 999.4, 999.6, 12345, 123456, 999_600, 1_234_567, 2e9]
    assert [abbreviate_number(number) for number in numbers] == [
        "0",
        "7",
        "950",
        "999",
        "1k",
        "12.3k",
        "123k",
        "1M",
        "1.23M",
        "2G",
    ]
    assert [format_duration(seconds) for seconds in (0, 59.9, 60, 5025, 100 * 3600)] == [
        "0:00:00", "0:00:59", "0:01:00", "1:23:45", "100:00:00",
    ]  # fmt: skip


@pytest.mark.parametrize(("lr", "words"), [(2.5e-4, "lr 0.00025"), (6.25e-5, "lr 6.25e-05"), (0.0, "lr 0")])
def test_learning_rate_has_three_significant_digits(lr: float, words: str):
    progress = Progress(None, total=2, mode="none")
    progress.update(1, lr=lr)
    assert f"  {words}  " in progress.line()
