"""A bar in a terminal, and lines elsewhere."""

import subprocess
import sys

import pytest

from hf_distill import Progress, track
from hf_distill.progress import lines
from hf_distill.progress.lines import as_time


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [100.0]
    monkeypatch.setattr(lines.time, "monotonic", lambda: now[0])
    return now


def test_lines_every_ten_seconds(clock, capsys):
    with Progress("Measuring", total=40, unit="rounds") as progress:
        for _ in range(40):
            clock[0] += 4
            progress.update()
    assert capsys.readouterr().err.splitlines() == [
        *(f"Measuring: {done} of 40 rounds, {as_time(4 * (40 - done))} left" for done in range(3, 40, 3)),
        "Measuring: 40 of 40 rounds in 2:40",
    ]


def test_disabled(clock, capsys, monkeypatch):
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        with Progress("Measuring", total=2, disable=True) as progress:
            clock[0] += 20
            progress.update()
            progress.write("a line")
        assert progress.done == 1
    assert capsys.readouterr().err == ""


def test_no_other_line_soon_after_a_written_one(clock, capsys):
    progress = Progress("Training", total=10)
    clock[0] += 9
    progress.write("step 1")
    clock[0] += 9
    progress.update(2)
    assert capsys.readouterr().err == "step 1\n"
    clock[0] += 1
    progress.update()
    assert capsys.readouterr().err == "Training: 3 of 10 steps, 0:44 left\n"


def test_short_work_shows_its_end_alone(clock, capsys):
    assert list(track([5, 6], "Reading", unit="files")) == [5, 6]
    assert capsys.readouterr().err == "Reading: 2 of 2 files in 0:00\n"
    assert list(track([5, 6], "Reading", unit="files", only_if_long=True)) == [5, 6]
    assert capsys.readouterr().err == ""
    with Progress("Reading", total=1, only_if_long=True) as progress:
        clock[0] += 10
        progress.update()
    assert capsys.readouterr().err == "Reading: 1 of 1 steps in 0:10\n"


def test_what_stops_is_not_said_to_be_done(capsys):
    def files():
        yield "a"
        raise OSError

    with pytest.raises(OSError), Progress("Reading", total=3) as progress:  # noqa: PT011
        _ = [progress.update() for _ in files()]
    assert capsys.readouterr().err == "Reading: 1 of 3 steps in 0:00\n"


def test_a_bar_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("Measuring", total=2, unit="rounds") as progress:
        progress.update()
        progress.write("half of it")
        progress.update()
    shown = capsys.readouterr().err
    assert "\nhalf of it\n" in shown.replace("\r", "\n")
    assert "Measuring: 100%" in shown
    assert " 2/2 " in shown


def test_times():
    assert [as_time(seconds) for seconds in (0.2, 36, 59.6, 125, 3723)] == ["0:00", "0:36", "1:00", "2:05", "1:02:03"]


def test_importing_takes_no_transformers():
    code = """
import sys
from hf_distill import Progress, quiet_libraries, track
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
