"""Building the package's C sources: cached by content, and a clear reason where that fails."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from taxbreak_fx import native
from taxbreak_fx.errors import MeasurementError


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "csrc"
    folder.mkdir()
    monkeypatch.setattr(native, "SOURCES", folder)
    monkeypatch.setattr(native, "_cache", lambda: tmp_path)
    return folder


def test_a_source_is_built_once_and_again_when_it_changes(sources: Path, tmp_path: Path) -> None:
    (sources / "answer.c").write_text("int answer(void) { return 42; }\n")
    assert native.load("answer").answer() == 42
    native.load("answer")
    assert len(list(tmp_path.glob("answer-*.so"))) == 1
    (sources / "answer.c").write_text("int answer(void) { return 43; }\n")
    assert native.load("answer").answer() == 43
    assert len(list(tmp_path.glob("answer-*.so"))) == 2


def test_no_compiler_is_a_reason(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sources / "answer.c").write_text("int answer(void) { return 42; }\n")
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(MeasurementError, match=r"no C compiler \(no-such-compiler\) to build answer.c; install one"):
        native.load("answer")


def test_a_refused_source_is_a_reason(sources: Path) -> None:
    (sources / "answer.c").write_text("int answer(void) { return }\n")
    with pytest.raises(MeasurementError, match=r"refused answer.c: .*"):
        native.load("answer")


def test_who_has_no_home_builds_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert native.library_path("launch_loop").parent.parent == tmp_path
