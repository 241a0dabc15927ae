"""A profile from reviews: every cost is the review's own, found again by what the step's calls are."""

from __future__ import annotations

import collections
import statistics
from pathlib import Path
from typing import Any

import msgspec
import pytest

from taxbreak_fx.cli import main
from taxbreak_fx.dry_run import record_apart
from taxbreak_fx.errors import UncoveredError, UsageError
from taxbreak_fx.hardware import Profile, find
from taxbreak_fx.hardware_costs import call_of, floors, graph_us, host_us, python_us
from taxbreak_fx.hardware_scale import on_host
from taxbreak_fx.kinds import site_op
from taxbreak_fx.machine import DevicePath, HostScore
from taxbreak_fx.model import Review
from taxbreak_fx.nodes import folded
from taxbreak_fx.profile_measure_reviews import Source, check_reviews, profile_of_reviews
from taxbreak_fx.profile_measure_sources import request_of

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
REVIEW = RESULTS / "spine-gpt2-prefill.json"


@pytest.fixture(scope="module")
def source() -> Source:
    """GPT-2's prefill as measured on an H200, no host score with it, and its step on fake tensors."""
    review = Review.load(REVIEW)
    variants = [msgspec.structs.replace(variant, host_reference_us=None) for variant in review.variants]
    calibration = msgspec.structs.replace(review.machine.calibration, host_reference=None)
    review = on(msgspec.structs.replace(review, variants=variants), calibration=calibration)
    return Source(review, record_apart(request_of(review)), None)


def on(review: Review, **changes: Any) -> Review:
    """The review on another machine."""
    return msgspec.structs.replace(review, machine=msgspec.structs.replace(review.machine, **changes))


@pytest.fixture(scope="module")
def profile(source: Source) -> Profile:
    """The profile of that one review."""
    return profile_of_reviews([source], "one")


def test_every_dispatching_call_finds_its_row(source: Source, profile: Profile) -> None:
    eager = source.review.variant("eager")
    ours = collections.Counter((site_op(site), folded(site.module_path)) for site in source.step.sites if site.ops)
    theirs = collections.Counter({(node.op, node.module_path): 0 for node in eager.nodes})
    for node in eager.nodes:
        theirs[node.op, node.module_path] += node.count
    met = sum(min(count, theirs[key]) for key, count in ours.items())
    assert met == sum(theirs.values())  # the review knows no call that the fake step lacks
    assert sum(op.calls for op in profile.ops) == met


def test_host_times_of_the_calls_add_up_to_the_reviews_own(source: Source, profile: Profile) -> None:
    """Means per call times calls: the same sum, but for the dearest and cheapest tenth that a mean leaves out."""
    eager = source.review.variant("eager")
    assert eager.breakdown is not None
    predicted = sum(host_us(profile, call_of(site)).us for site in source.step.sites if site.ops)
    assert predicted == pytest.approx(eager.breakdown.ft_parts["ops"], rel=0.1)


def test_a_call_met_on_one_line_costs_what_its_row_says(source: Source, profile: Profile) -> None:
    node = next(node for node in source.review.variant("eager").nodes if node.op == "aten.tanh.default")
    entry = next(entry for entry in profile.ops if entry.ops == ("aten.tanh.default",))
    assert node.ft_us is not None
    assert entry.ft_us == pytest.approx(node.ft_us / node.count)
    assert entry.calls == node.count
    assert entry.kernels == 1


def test_python_is_the_reviews_own_where_there_is_one_step(source: Source, profile: Profile) -> None:
    """One step and three costs: the fit is exact."""
    eager = source.review.variant("eager")
    assert eager.breakdown is not None
    step = source.step
    python = python_us(profile, len(step.sites), step.modules, step.functions)
    assert python == pytest.approx(eager.breakdown.ft_parts["python"])


def test_one_graph_tells_its_launch(source: Source, profile: Profile) -> None:
    graphed = source.review.variant("eager-graph")
    assert graphed.kernels is not None and graphed.memops is not None
    assert graph_us(profile, graphed.kernels + graphed.memops)[0] == graphed.launch_us


def test_gaps_are_the_calibrations_own_and_in_graphs_the_variants(source: Source, profile: Profile) -> None:
    path, found = source.review.machine.calibration.device_path, floors(profile)
    assert path.idle_sync_us is not None
    assert (found.gap_us, found.sync_us, found.idle_sync_us) == (path.gap_us, path.sync_us, path.idle_sync_us.p50)
    graphed = [variant for variant in source.review.variants if variant.graph_launches]
    own = [variant.exposed.floors_us["graph_gap_us"] for variant in graphed if variant.exposed is not None]
    assert len(own) == 3 and found.graph_gap_us == statistics.median(own)
    bare = [msgspec.structs.replace(variant, exposed=None) for variant in source.review.variants]
    none = profile_of_reviews([source._replace(review=msgspec.structs.replace(source.review, variants=bare))], "none")
    assert floors(none).graph_gap_us == path.graph_gap_us


def test_an_old_review_holds_no_gaps_and_one_graph_tells_none(source: Source) -> None:
    machine = source.review.machine
    calibration = msgspec.structs.replace(machine.calibration, device_path=DevicePath.unavailable("not measured"))
    old = msgspec.structs.replace(source.review, machine=msgspec.structs.replace(machine, calibration=calibration))
    with pytest.raises(UncoveredError, match="too few CUDA graphs"):
        floors(profile_of_reviews([source._replace(review=old)], "old"))


def test_what_reviews_do_not_hold_has_a_reason(profile: Profile) -> None:
    for name in ("host_score", "launch.memop_us", "device.attention", "python.module_us", "device.read_gb_s"):
        assert "calibrate" in profile.unmeasured[name]


def test_the_host_score_is_the_reviews_own_where_all_hold_one(source: Source) -> None:
    def at(us: float, version: int = 1) -> Source:
        machine = source.review.machine
        score = HostScore(version=version, us=us)
        calibration = msgspec.structs.replace(machine.calibration, host_reference=score)
        review = msgspec.structs.replace(
            source.review, machine=msgspec.structs.replace(machine, calibration=calibration)
        )
        return source._replace(review=review)

    assert profile_of_reviews([at(300.0), at(340.0)], "two").host_score == HostScore(version=1, us=320.0)
    found = profile_of_reviews([at(300.0), source], "two")
    assert found.host_score == HostScore(version=1, us=300.0)
    assert any("holds no host score, its host times are as measured" in note for note in found.notes)
    for others in ([source], [at(300.0), at(300.0, version=2)]):
        found = profile_of_reviews(others, "two")
        assert found.host_score is None and "calibrate" in found.unmeasured["host_score"]


def test_host_times_are_brought_to_one_speed_by_each_variants_own_score(source: Source) -> None:
    """The same step on a host that is half as fast, and on one that was so only while it was timed, costs the same."""
    calibration, us = source.review.machine.calibration, 300.0

    def seen(factor: float, own: float | None) -> Source:
        variants = [
            msgspec.structs.replace(on_host(variant, factor), host_reference_us=own)
            if variant.status == "ok"
            else variant
            for variant in source.review.variants
        ]
        score = HostScore(version=1, us=us if own is not None else us * factor)
        review = on(source.review, calibration=msgspec.structs.replace(calibration, host_reference=score))
        return source._replace(review=msgspec.structs.replace(review, variants=variants))

    plain = profile_of_reviews([seen(1.0, None)], "plain")
    for slow in (seen(2.0, 2.0 * us), seen(2.0, None)):
        found = profile_of_reviews([slow], "slow")
        assert found.host_score is not None
        share = found.host_score.us / us
        for ours, theirs in zip(found.ops, plain.ops, strict=True):
            assert ours.ft_us == pytest.approx(theirs.ft_us * share)
            assert ours.ct_us == (None if theirs.ct_us is None else pytest.approx(theirs.ct_us * share))
        assert found.fit_steps[0].host_us == pytest.approx(plain.fit_steps[0].host_us * share)
        assert found.compiled.frame_us == pytest.approx((plain.compiled.frame_us or 0.0) * share)
        assert found.launch.gap_us == plain.launch.gap_us  # the device's


def test_a_review_that_does_not_close_gives_no_host_times(source: Source) -> None:
    eager = source.review.variant("eager")
    broken = msgspec.structs.replace(eager.breakdown, closure_error=0.2)
    variants = [msgspec.structs.replace(eager, breakdown=broken), *source.review.variants[1:]]
    found = profile_of_reviews(
        [source._replace(review=msgspec.structs.replace(source.review, variants=variants))], None
    )
    assert not found.ops
    assert found.device.grids  # the trace does not depend on host times
    assert any("do not add up" in note for note in found.notes)
    assert found.name == "nvidia-h200"


def test_reviews_of_no_use_are_refused() -> None:
    review = Review.load(REVIEW)
    other = msgspec.structs.replace(review, machine=msgspec.structs.replace(review.machine, device="Other GPU"))
    with pytest.raises(UsageError, match="one machine, these reviews are of"):
        check_reviews([review, other])
    with pytest.raises(UsageError, match="measured on a CUDA device"):
        check_reviews([msgspec.structs.replace(review, origin="predicted")])
    with pytest.raises(UsageError, match="eager was not measured"):
        check_reviews([msgspec.structs.replace(review, variants=review.variants[1:])])
    step = msgspec.structs.replace(review.step, phase="forward", batch=None, seq_len=None)
    with pytest.raises(UsageError, match="cannot be rebuilt"):
        request_of(msgspec.structs.replace(review, step=step))
    images = msgspec.structs.replace(review.step, phase="prefill", seq_len=None)
    assert request_of(msgspec.structs.replace(review, step=images)).batch == review.step.batch


def test_a_review_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "review.json"
    bad.write_text("{}")
    assert main(["calibrate", "--from-review", str(bad), "--out", str(tmp_path / "p.json")]) == 6
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "p.json").exists()


def test_the_h200_profile_of_the_package_holds_no_model_that_predictions_are_tested_on() -> None:
    profile = find("h200")
    assert profile.origin == "measured"
    text = " ".join((*profile.notes, *(step.name for step in profile.fit_steps))).lower()
    for name in ("qwen", "bert", "vit", "whisper"):
        assert name not in text
    assert floors(profile).latency_us > 0
