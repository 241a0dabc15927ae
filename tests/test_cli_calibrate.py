"""``taxbreak calibrate``: arguments, files and exit codes.  Nothing is measured here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from test_hardware import profile as small

from taxbreak_fx import cli, hardware, profile_measure
from taxbreak_fx.cli import main
from taxbreak_fx.errors import OutputError
from taxbreak_fx.profile_measure_text import profile_text

Capture = pytest.CaptureFixture[str]
PROFILE = small(origin="measured")


class FakeMeasurement:
    """Stands for ``measure_profile``: records what it was asked and returns ``result``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.result: Any = PROFILE

    def __call__(self, device: str, name: str | None, budget_s: float, on_event: Callable[[Any], None]) -> Any:
        self.calls.append((device, name, budget_s))
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture(autouse=True)
def measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMeasurement:
    fake = FakeMeasurement()
    monkeypatch.setattr(profile_measure, "measure_profile", fake)
    monkeypatch.chdir(tmp_path)
    return fake


def test_calibrate_writes_the_profile_and_prints_a_table(capsys: Capture, measurement: FakeMeasurement) -> None:
    assert main(["calibrate", "--out", "new/p.json", "--budget", "30", "--device", "cpu", "--name", "mine"]) == 0
    printed = capsys.readouterr()
    assert measurement.calls == [("cpu", "mine", 30.0)]
    assert hardware.load("new/p.json") == PROFILE
    assert printed.out == profile_text(PROFILE)
    first, last = printed.err.splitlines()
    assert "only the parts of the host are measured" in first
    assert last == "taxbreak: wrote new/p.json"


def test_quiet_still_says_what_is_not_measured(capsys: Capture) -> None:
    assert main(["calibrate", "--out", "p.json", "--device", "cpu", "--quiet"]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1


def _refused(capsys: Capture, code: int, *argv: str) -> str:
    assert main(["calibrate", *argv]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    return printed.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_absent_ends_with_3(capsys: Capture, measurement: FakeMeasurement) -> None:
    assert "no CUDA device" in _refused(capsys, 3, "--out", "p.json", "--device", "cuda")
    assert measurement.calls == [] and not Path("p.json").exists()


@pytest.mark.parametrize(
    ("argv", "code", "line"),
    [
        ("", 2, "--out"),
        ("--out p.json --budget 0", 2, "--budget must be a positive number of seconds, got 0"),
        ("--out p.json --budget nan", 2, "--budget must be"),
        ("--out p.json --name a/b", 2, "--name 'a/b' is no name"),
        ("--out p.json --device tpu", 2, "tpu"),
        ("--out .", 7, "is a folder: name a file in it"),
        ("--out blocked/p.json", 7, "cannot be written"),
    ],
)
def test_mistakes_are_found_before_measuring(
    capsys: Capture, measurement: FakeMeasurement, argv: str, code: int, line: str
) -> None:
    Path("blocked").write_text("a file, not a folder")
    assert line in _refused(capsys, code, *argv.split())
    assert measurement.calls == []


def test_an_interrupt_keeps_the_profile(capsys: Capture, measurement: FakeMeasurement) -> None:
    measurement.result = msgspec.structs.replace(PROFILE, notes=(cli.INTERRUPTED_NOTE,))
    assert main(["calibrate", "--out", "p.json", "--device", "cpu"]) == 130
    assert "saved in p.json" in capsys.readouterr().err
    assert cli.INTERRUPTED_NOTE in hardware.load("p.json").notes


def test_the_table_is_printed_even_when_the_file_cannot_be_written(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OutputError("p.json: cannot be written (disk full); choose another place")

    monkeypatch.setattr(hardware, "save", full)
    assert main(["calibrate", "--out", "p.json", "--device", "cpu"]) == 7
    printed = capsys.readouterr()
    assert printed.out == profile_text(PROFILE) and "disk full" in printed.err


def test_documentation_names_every_option() -> None:
    import typer

    documented = (Path(__file__).parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    command: Any = typer.main.get_command(cli.app)
    found = command.get_command(command.make_context("taxbreak", ["models"]), "calibrate")
    options = {flag for parameter in found.params for flag in parameter.opts} - {"--help"}
    assert "taxbreak calibrate" in documented
    assert {flag for flag in options if f"`{flag}`" not in documented} == set()
