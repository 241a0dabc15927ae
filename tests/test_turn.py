"""One process at a time measures on a device."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from taxbreak_fx import turn
from taxbreak_fx.turn import Turn

HOLDER = """
import sys
from taxbreak_fx.turn import Turn
with Turn(sys.argv[1], lambda: None)():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def holder(device: str) -> subprocess.Popen[bytes]:
    """Another process that measures on ``device`` until a line comes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def test_nothing_is_waited_for_alone() -> None:
    told: list[int] = []
    mine = Turn("gpu", lambda: told.append(1))
    for _ in range(2):  # and it can be taken again
        with mine():
            pass
    assert (told, mine.failure) == ([], None)


def test_it_waits_until_the_other_process_has_measured() -> None:
    other = holder("gpu")
    told = threading.Event()
    entered = threading.Event()

    def measure() -> None:
        with Turn("gpu", told.set)():
            entered.set()

    thread = threading.Thread(target=measure)
    thread.start()
    assert told.wait(120)
    assert not entered.is_set()
    other.communicate(b"\n")
    assert entered.wait(120)
    thread.join()


def test_it_is_told_again_and_once_more_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "TELL_EVERY_S", 0.0)
    other = holder("gpu")
    told: list[int] = []

    def waiting() -> None:
        told.append(1)
        if len(told) == 3:
            other.communicate(b"\n")

    with Turn("gpu", waiting)():
        assert len(told) >= 4


def test_a_process_that_was_killed_holds_nothing() -> None:
    other = holder("gpu")
    other.kill()
    other.communicate()
    told: list[int] = []
    with Turn("gpu", lambda: told.append(1))():
        assert not told


def test_devices_do_not_wait_for_each_other() -> None:
    other = holder("GPU-1")
    told: list[int] = []
    with Turn("GPU-2", lambda: told.append(1))():
        assert not told
    other.communicate(b"\n")


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    mine = Turn("gpu/../x", lambda: None)
    assert mine.path is not None and mine.path.parent == tmp_path  # whatever the device is called
    target = tmp_path / "victim"
    mine.path.symlink_to(target)
    with mine():
        pass
    assert not target.exists()
    assert mine.failure is not None and str(mine.path) in mine.failure


def test_given_up_others_have_it_and_it_is_taken_again() -> None:
    mine, other = Turn("gpu"), Turn("gpu")
    with mine():
        with mine.given_up(), other():  # would wait for ever
            pass
        assert not free("gpu")
        with pytest.raises(ValueError, match="of the compiler"), mine.given_up():
            raise ValueError("of the compiler")
        assert not free("gpu")
    assert free("gpu")


def test_who_is_interrupted_does_not_wait_again() -> None:
    mine = Turn("gpu")
    with pytest.raises(KeyboardInterrupt), mine(), mine.given_up():
        process = holder("gpu")
        raise KeyboardInterrupt
    process.communicate(b"\n")
    assert free("gpu")


def test_what_was_not_held_is_not_taken() -> None:
    mine = Turn("gpu")
    with mine.given_up():
        pass
    assert free("gpu")


def test_the_time_it_waited_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    other = holder("gpu")
    told: list[int] = []

    def waiting() -> None:
        if not told:
            other.communicate(b"\n")
        told.append(1)

    mine = Turn("gpu", waiting)
    with mine():
        pass
    assert told and mine.waited_s > 0


def test_no_device_is_nobodys() -> None:
    nobody = Turn(None)
    with nobody(), Turn(None)(), nobody.given_up():
        assert nobody.waited_s == 0.0


def free(device: str) -> bool:
    """Whether no process has the turn on ``device``."""
    path = Turn(device).path
    assert path is not None
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
