"""benchmarks/spine.py makes reviews from the stage results that a run kept, without a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_breakdown_timeline import closing, whole
from test_stages import FACTS

from benchmarks import spine
from taxbreak_fx.model import Review
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.stages import Outcome, Stage, journal


def test_a_case_that_was_broken_off_becomes_the_review_of_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = closing()
    machine = msgspec.structs.replace(FACTS.machine, calibration=whole())
    kept: list[tuple[Stage, Any]] = [
        (Stage(kind="host"), msgspec.structs.replace(FACTS, machine=machine)),
        (Stage(kind="timing", variant="eager"), record.timing),
        (Stage(kind="trace", variant="eager"), record.trace),
    ]
    for number, (stage, result) in enumerate(kept):
        encoded = msgspec.Raw(msgspec.json.encode(result))
        journal(Outcome(stage=stage, seconds=1.0, result=encoded), tmp_path / "kept" / "toy" / "journal", number)
    cases = {name: ReviewRequest(model=name, variants=("eager", "inductor")) for name in ("toy", "never-begun")}
    monkeypatch.setattr(spine, "CASES", cases)
    monkeypatch.setattr(
        sys, "argv", ["spine.py", "--out", str(tmp_path), "--journals", str(tmp_path / "kept"), "--again"]
    )
    spine.main()
    review = Review.load(tmp_path / "spine-toy.json")
    assert [(variant.name, variant.status) for variant in review.variants] == [("eager", "ok"), ("inductor", "skipped")]
    result = json.loads((tmp_path / "spine.json").read_text())
    assert result["not_run"] == ["never-begun: eager", "never-begun: inductor"] and not result["met"]
    assert "inductor" in capsys.readouterr().out


def test_again_needs_the_journals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["spine.py", "--again"])
    with pytest.raises(SystemExit):
        spine.main()
    assert "--again needs the --journals" in capsys.readouterr().err
