"""The arithmetic of benchmarks/timeline_accuracy.py, and rows made anew from kept stage results."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sample_review import sample_review
from test_breakdown_timeline import closing, graphed, whole
from test_stages import FACTS

from taxbreak_fx.recording import Recording
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.stages import Outcome, Stage, journal


@pytest.fixture(scope="module")
def benchmark() -> Any:
    path = Path(__file__).parent.parent / "benchmarks" / "timeline_accuracy.py"
    spec = importlib.util.spec_from_file_location("timeline_accuracy", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def line(case: str, error: float | None, naive: float | None = None, crossover: bool | None = False) -> dict[str, Any]:
    return {"case": case, "error": error, "naive_error": naive, "crossover": crossover}


def test_there_are_enough_cases_of_every_kind(benchmark: Any) -> None:
    assert len(benchmark.CASES) >= benchmark.FEWEST
    models = {request.model for request in benchmark.CASES.values()}
    assert len(models) == 5 and {request.phase for request in benchmark.CASES.values()} == {"prefill", "decode"}
    assert {request.batch for request in benchmark.CASES.values()} >= {1, 8, 32}
    assert all(request.variants[0] == "eager" for request in benchmark.CASES.values())


def test_the_goal_is_on_the_median_the_largest_the_crossover_and_the_number_of_cases(benchmark: Any) -> None:
    rows = [line(f"c{i}", 0.004, -0.05) for i in range(20)] + [line("c20", -0.03, -0.3, True)]
    found = benchmark.summary(rows, [])
    assert (found["value"], found["largest"], found["cases"], found["met"]) == (0.004, 0.03, 21, True)
    assert (found["timeline_at_crossover"]["median"], found["naive_at_crossover"]["median"]) == (0.03, 0.3)
    assert not benchmark.summary(rows, ["lost"])["met"]
    assert not benchmark.summary(rows[5:], [])["met"]  # 16 cases
    assert not benchmark.summary([*rows, line("c21", 0.06)], [])["met"]
    assert not benchmark.summary([*rows[:-1], line("c20", -0.03, -0.02, True)], [])["met"]  # the other model is nearer
    assert not benchmark.summary(rows[:-1], [])["met"]  # nothing at the crossover
    assert benchmark.summary([line("c", None, None, None)], [])["value"] is None


def test_a_row_of_a_review_and_of_what_could_not_be_simulated(benchmark: Any) -> None:
    rows = {row["variant"]: row for row in benchmark.rows_of("case", sample_review())}
    assert (rows["eager"]["simulated_us"], rows["eager"]["naive_us"], rows["eager"]["reason"]) == (990.0, 908.0, None)
    assert rows["eager"]["crossover"] is False  # 900 of 220
    assert rows["reduce-overhead"]["error"] is None and "drained" in rows["reduce-overhead"]["reason"]
    assert "out of memory" in rows["cudagraphs"]["reason"]


def test_rows_are_made_anew_from_kept_stage_results(benchmark: Any, tmp_path: Path) -> None:
    calibration = whole()
    facts = msgspec.structs.replace(FACTS, machine=msgspec.structs.replace(FACTS.machine, calibration=calibration))
    kept: list[tuple[Stage, Any]] = [(Stage(kind="host"), facts)]
    records: list[Recording] = [closing(), graphed()]
    for record in records:
        kept += [
            (Stage(kind="timing", variant=record.variant), record.timing),
            (Stage(kind="trace", variant=record.variant), record.trace),
        ]
    for number, (stage, result) in enumerate(kept):
        encoded = msgspec.Raw(msgspec.json.encode(result))
        journal(Outcome(stage=stage, seconds=1.0, result=encoded), tmp_path / "journal", number)
    request = ReviewRequest(model="toy", variants=("eager", "reduce-overhead"))
    review = benchmark.again(request, tmp_path)
    rows = benchmark.rows_of("toy", review)
    # Without the floor's stage the null kernel has no traced duration: the gap is not known.
    assert [row["variant"] for row in rows] == ["eager", "reduce-overhead"]
    assert {row["reason"] for row in rows} == {"no gap: no period_us here"}
    assert benchmark.again(request, tmp_path / "nothing") is None


def test_a_case_that_spine_reviewed_is_read_where_it_holds_simulated_steps(benchmark: Any, tmp_path: Path) -> None:
    assert set(benchmark.SPINE) <= set(benchmark.CASES)
    name = "gpt2-decode-b1"
    assert benchmark.reviewed(name, tmp_path) is None  # no such file
    sample = sample_review()
    step = msgspec.structs.replace(sample.step, phase="decode", batch=1)
    path = tmp_path / "spine-gpt2-decode.json"
    msgspec.structs.replace(sample, step=step).save(path)
    assert benchmark.reviewed(name, tmp_path) is not None
    assert benchmark.reviewed("gpt2-decode-b32", tmp_path) is None  # spine.py has no such case
    msgspec.structs.replace(sample, step=msgspec.structs.replace(step, batch=8)).save(path)
    assert benchmark.reviewed(name, tmp_path) is None
    bare = [msgspec.structs.replace(variant, exposed=None) for variant in sample.variants]
    msgspec.structs.replace(sample, step=step, variants=bare).save(path)
    assert benchmark.reviewed(name, tmp_path) is None


def test_the_stage_without_use_is_left_out(benchmark: Any) -> None:
    kinds = [stage.kind for stage in benchmark.without_frame(("eager", "inductor"), "cuda")]
    assert kinds == ["host", "timing", "timing", "trace", "trace", "floor"]
