"""Sittings of ``benchmarks.everything``: what is done stays done, what ran out of time goes on, what fails is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.everything import JOURNAL, Step, sitting, steps

IN_TERMINAL = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)"
HERE = Path(__file__).parent.parent


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_sitting_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    mark = "import pathlib; p = pathlib.Path(r'{out}') / 'count'; p.open('a').write('x')"
    known = {
        "good": Step(python(mark), 30.0),
        "bad": Step(python("print('the reason'); raise SystemExit(3)"), 30.0),
        # As in a terminal: what a shell runs in the background ignores SIGINT, and children inherit that.
        "slow": Step(python(f"{IN_TERMINAL}; import time; time.sleep(60)"), 1.5, goes_on=True),
    }
    told: list[str] = []
    journal = sitting(known, tmp_path, 100.0, tell=told.append)
    assert {name: (entry.ended, entry.exit_code) for name, entry in journal.items()} == {
        "good": ("done", 0),
        "bad": ("failed", 3),
        "slow": ("out of time", None),
    }
    assert (tmp_path / "logs" / "bad.txt").read_text() == "the reason\n"
    assert [line.split(" after")[0] for line in told] == ["good: done", "bad: failed", "slow: out of time"]
    told.clear()
    sitting(known, tmp_path, 100.0, tell=told.append)
    assert [line.split(":")[0] for line in told] == ["slow"] and (tmp_path / "count").read_text() == "x"
    sitting(known, tmp_path, 100.0, again=["good"], tell=told.append)
    assert (tmp_path / "count").read_text() == "xx"
    told.clear()
    sitting({"good": known["good"]._replace(summary=True), "bad": known["bad"]}, tmp_path, 100.0, tell=told.append)
    assert [line.split(":")[0] for line in told] == ["good"] and (tmp_path / "count").read_text() == "xxx"


def test_nothing_is_begun_that_cannot_end_in_time(tmp_path: Path) -> None:
    now = [0.0]
    known = {
        "first": Step(python("pass"), 30.0),
        "second": Step(python("pass"), 30.0),
        "third": Step(python("pass"), 5.0),
    }

    def clock() -> float:
        now[0] += 10.0  # between two looks: when a step is considered, begins and ends
        return now[0]

    told: list[str] = []
    journal = sitting(known, tmp_path, 60.0, clock=clock, tell=told.append)
    assert list(journal) == ["first", "third"] and told[1].startswith("second: not begun, ")


def test_ctrl_c_keeps_the_journal(tmp_path: Path) -> None:
    known = {"good": Step(python("pass"), 30.0), "next": Step(python("pass"), 30.0)}

    def tell(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sitting(known, tmp_path, 100.0, tell=tell)
    assert '"good"' in (tmp_path / JOURNAL).read_text()


def test_every_step_is_there_and_writes_where_it_is_told() -> None:
    for name, step in steps(2).items():
        script = [word for word in step.command if word.startswith("benchmarks/")]
        assert all((HERE / word).exists() for word in script), name
        assert name == "gpu-tests" or any("{out}" in word for word in step.command), name
