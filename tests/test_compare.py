"""Variant against variant: paired ratios, one clock, and what became worse."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fake_recording import FRAME, eager_recording, eager_timing, eager_trace, recording
from fake_recording import timing as bare_timing

from taxbreak_fx.breakdown import decompose
from taxbreak_fx.compare import (
    LEAST_EFFECT,
    UNCHANGED,
    compare,
    compare_all,
    least_effect,
    verdict_of,
    wall_at_speed_of,
    wall_ratio,
)
from taxbreak_fx.model import Comparison, Variant
from taxbreak_fx.record import Interval
from taxbreak_fx.recording import Timing
from taxbreak_fx.variant_record import Breakdown

EAGER = decompose(eager_recording(), None)


def timing(variant: str, **fields: Any) -> Timing:
    """A variant that makes the reference step's calls: ΔCT 13, launch 8."""
    return bare_timing(variant, sites=eager_timing().sites, replays=eager_timing().replays, **fields)


def variant_of(timed: Timing, **fields: Any) -> Variant:
    """A measured variant with the reference step's device work, and other fields where given."""
    found = decompose(recording(timed, eager_trace(variant=timed.variant), FRAME), eager_recording())
    return msgspec.structs.replace(found, nodes=[], **fields)


def against_eager(timed: Timing, base: Variant = EAGER, **fields: Any) -> Comparison:
    """``timed`` beside the reference step."""
    return compare(base, variant_of(timed, **fields), {"eager": eager_timing(), timed.variant: timed})


def test_the_ratio_rests_on_pairs_in_one_process_not_on_two_medians() -> None:
    # Beside this variant eager took 240 µs, twice its own 120: 120 ÷ 240, not 120 ÷ 120.
    found = against_eager(timing("dynamo", wall_us=120.0, base_wall_us=[240.0] * 10, base_host_us=[200.0] * 10))
    assert found.wall_ratio is not None
    assert (found.wall_ratio.low, found.wall_ratio.median, found.wall_ratio.high) == (0.5, 0.5, 0.5)
    assert found.verdict == "faster"
    assert found.removed.wall_us == 60.0  # half of eager's own 120


def test_variants_are_put_in_order_at_one_speed_of_the_host() -> None:
    # Eager took 240 µs beside both, twice its own 120.  One waits for its host, the other for its device.
    slow = {"base_wall_us": [240.0] * 10, "base_host_us": [200.0] * 10}
    host_bound = timing("dynamo", wall_us=160.0, host_us=160.0, **slow)
    graphed = timing("eager-graph", wall_us=130.0, host_us=10.0, **slow)
    variants = [EAGER, variant_of(host_bound), variant_of(graphed)]
    timings = {"eager": eager_timing(), "dynamo": host_bound, "eager-graph": graphed}
    made = compare_all(variants, timings)
    assert [wall_at_speed_of(EAGER, one, made) for one in variants] == pytest.approx([120.0, 80.0, 125.0])
    assert [wall_at_speed_of(EAGER, one, []) for one in variants] == [120.0, 160.0, 130.0]  # no pairs: as measured
    # No step is shorter than its device's work, 60 µs here.
    hidden = variant_of(timing("dynamo", wall_us=70.0, host_us=70.0, **slow))
    beside = [against_eager(timing("dynamo", wall_us=70.0, host_us=70.0, **slow))]
    assert hidden.device_active_us == 60.0 and wall_at_speed_of(EAGER, hidden, beside) == 60.0
    on_cpu = msgspec.structs.replace(
        hidden, kernels=None, unmeasured=hidden.unmeasured | {"kernels": "no kernels here"}
    )
    assert wall_at_speed_of(EAGER, on_cpu, beside) == pytest.approx(35.0)  # the work there slows with the host
    with pytest.raises(ValueError, match="inductor has no T_wall"):
        wall_at_speed_of(EAGER, Variant.unavailable("inductor", "failed", "no"), [])


def test_two_compiled_variants_meet_through_eager() -> None:
    dynamo = timing("dynamo", wall_us=96.0)  # 0.8 of 120
    inductor = timing("inductor", wall_us=96.0, base_wall_us=[240.0] * 10)  # 0.4 of 240
    assert wall_ratio("dynamo", "inductor", {"dynamo": dynamo, "inductor": inductor}).median == pytest.approx(0.5)


def test_terms_are_base_minus_variant_with_their_sign() -> None:
    slower = against_eager(timing("dynamo", host_us=130.0, wall_us=150.0))
    # ΔFT = 130 − 13 − 8 = 109 against 79; library, launch floor and device are the same
    assert slower.removed.ft_us == pytest.approx(-30.0)
    assert (slower.removed.ct_us, slower.removed.kt_us, slower.removed.device_us) == (0.0, 0.0, 0.0)
    assert slower.removed.wall_us == pytest.approx(120.0 * (1 - 1.25))
    assert slower.verdict == "slower"
    assert slower.worse == ["wall time is 1.25 times the base's"]


def test_host_terms_are_brought_to_one_clock_device_terms_are_not() -> None:
    # Beside this variant the host was twice as slow: its T_host 200 stands for 100.
    # ΔCT: eager's base 8 is 16 by then, so 25 − 4 − 16 = 5, standing for 2.5.  ΔFT: 200 − 5 − 8 = 187, for 93.5.
    timed = timing("dynamo", host_us=200.0, base_host_us=[200.0] * 10)
    removed = against_eager(timed).removed
    assert removed.ct_us == pytest.approx(13.0 - 2.5)
    assert removed.ft_us == pytest.approx(79.0 - 93.5)
    assert (removed.kt_us, removed.device_us) == (0.0, 0.0)


def test_on_the_cpu_device_time_drifts_with_the_host_and_is_no_ground_for_a_claim() -> None:
    timed = timing("dynamo", base_host_us=[200.0] * 10)
    found = against_eager(timed, launches=None, device_active_us=180.0, unmeasured={"launches": "none on a CPU"})
    assert found.removed.device_us == 60.0 - 90.0
    assert found.worse == []


def test_an_interval_around_one_is_no_measurable_change() -> None:
    # ratios 0.9 … 1.1, median 1
    walls = [108.0, 132.0, 120.0, 114.0, 126.0] * 4
    found = against_eager(msgspec.structs.replace(timing("dynamo", base_wall_us=[120.0] * 20), wall_us=walls))
    assert found.wall_ratio is not None
    assert found.wall_ratio.low < 1.0 < found.wall_ratio.high
    assert found.verdict == UNCHANGED == "no measurable change"
    assert (found.breakeven_steps, found.unmeasured["breakeven_steps"]) == (
        None,
        "never: the variant is not measurably faster",
    )


def test_a_change_too_small_to_mean_anything_is_not_claimed_however_narrow_its_interval() -> None:
    # 0.8 % faster in every pair
    found = against_eager(timing("dynamo", wall_us=119.04))
    assert found.wall_ratio is not None and found.wall_ratio.high < 1.0
    assert (found.verdict, found.breakeven_steps) == (UNCHANGED, None)
    assert against_eager(timing("dynamo", wall_us=118.0)).verdict == "faster"
    assert against_eager(timing("dynamo", wall_us=121.0)).worse == []


def test_what_eager_against_itself_shows_no_other_ratio_can_be_sure_of() -> None:
    assert least_effect({}) == LEAST_EFFECT
    # paired with itself eager took 126 µs beside 120: 5 %
    skewed = msgspec.structs.replace(eager_timing(), wall_us=[126.0] * 10, base_wall_us=[120.0] * 10)
    assert least_effect({"eager": skewed}) == pytest.approx(0.05)
    timed = timing("dynamo", wall_us=115.2)  # 4 % faster
    assert compare(EAGER, variant_of(timed), {"eager": skewed, "dynamo": timed}).verdict == UNCHANGED
    assert compare(EAGER, variant_of(timed), {"eager": eager_timing(), "dynamo": timed}).verdict == "faster"


@pytest.mark.parametrize(
    ("low", "median", "high", "verdict"),
    [
        (0.90, 0.95, 0.99, "faster"),
        (0.90, 0.95, 1.00, UNCHANGED),
        (1.00, 1.05, 1.10, UNCHANGED),
        (1.01, 1.05, 1.10, "slower"),
        (1.001, 1.009, 1.02, UNCHANGED),
    ],
)
def test_verdicts(low: float, median: float, high: float, verdict: str) -> None:
    assert verdict_of(Interval(median=median, low=low, high=high, samples=20), LEAST_EFFECT) == verdict


def test_removed_terms_carry_the_noise_of_the_host_time_they_are_made_of() -> None:
    # T_host 100 beside eager's 100 in every pair: no scatter, so 1 % of the wall of 120 µs, and 20 % of the ΔCT of 13
    still = against_eager(timing("dynamo", host_us=100.0)).removed
    assert still.noise_us == pytest.approx({"wall_us": 1.2, "ft_us": 2.6, "ct_us": 2.6, "device_us": 0.02 * 60.0})
    # ± 10 % from pair to pair
    hosts = [90.0, 110.0, 100.0, 95.0, 105.0] * 4
    noisy = msgspec.structs.replace(
        timing("dynamo", wall_us=120.0),
        host_us=hosts,
        wall_us=[120.0] * 20,
        base_wall_us=[120.0] * 20,
        base_host_us=[100.0] * 20,
    )
    found = against_eager(noisy).removed
    assert found.noise_us["ft_us"] == found.noise_us["ct_us"] > 3.0
    assert found.ft_us is not None and abs(found.ft_us) < found.noise_us["ft_us"]
    assert "kt_us" not in found.noise_us


def test_on_the_cpu_every_term_is_as_sure_as_replays_are() -> None:
    found = against_eager(timing("dynamo"), launches=None, unmeasured={"launches": "none on a CPU"}).removed.noise_us
    assert found["ft_us"] == found["ct_us"] == found["device_us"] == pytest.approx(0.2 * 100.0)


def test_a_term_that_is_null_has_no_noise() -> None:
    found = against_eager(timing("dynamo"), device_active_us=None, unmeasured={"device_active_us": "timed out"})
    assert "device_us" in found.removed.unmeasured and "device_us" not in found.removed.noise_us


def test_breakeven_is_build_time_over_wall_time_saved() -> None:
    # 2 s ÷ (120 − 60 µs)
    assert against_eager(timing("dynamo", wall_us=60.0)).breakeven_steps == pytest.approx(2e6 / 60.0)
    assert against_eager(timing("dynamo", wall_us=240.0)).breakeven_steps is None
    unknown = against_eager(timing("dynamo", wall_us=60.0, compile_s=None))
    assert unknown.breakeven_steps is None and "breakeven_steps" in unknown.unmeasured


def test_a_bert_that_gets_more_kernels_and_more_device_time_is_told_so() -> None:
    base = msgspec.structs.replace(EAGER, nodes=[], kernels=154, device_active_us=813.0)
    timed = timing("cudagraphs", wall_us=60.0)
    found = against_eager(timed, base, kernels=195, device_active_us=1037.0, memops=186)
    assert found.verdict == "faster"
    assert found.worse == [
        "more kernels: 154 → 195",
        "more device time: 813 → 1,037 µs",
        "more device copies and fills: 0 → 186",
    ]
    assert (found.kernels_before, found.kernels_after) == (154, 195)
    assert found.removed.device_us == 813.0 - 1037.0


def test_device_time_within_two_percent_is_not_called_worse() -> None:
    assert against_eager(timing("dynamo"), device_active_us=61.2).worse == []
    assert against_eager(timing("dynamo"), device_active_us=61.3).worse == ["more device time: 60 → 61 µs"]


def test_wrong_outputs_and_an_ungraphed_or_uncompiled_step_are_worse() -> None:
    notes = ["nothing was graphed: the step made no CUDA graph launch", "some other note", "nothing was compiled: no"]
    assert against_eager(timing("reduce-overhead"), outputs_equal=False, notes=notes).worse == [
        "outputs are not equal to the reference",
        "nothing was graphed: the step made no CUDA graph launch",
        "nothing was compiled: no",
    ]


def test_a_null_term_names_the_variant_that_lacks_it_and_why() -> None:
    nothing = Breakdown(
        ft_us=None,
        ft_parts={},
        ct_us=None,
        ct_source="subtractive",
        kt_us=None,
        orchestration_us=None,
        hdbi=None,
        coverage=None,
        closure_error=None,
        unmeasured=dict.fromkeys(Breakdown.MEASUREMENTS, "the trace failed: timed out"),
    )
    lost = {"kernels": "timed out", "device_active_us": "timed out"}
    found = against_eager(
        timing("dynamo"), breakdown=nothing, kernels=None, device_active_us=None, unmeasured=dict(lost)
    )
    assert found.removed.unmeasured == {
        "ft_us": "dynamo: the trace failed: timed out",
        "ct_us": "dynamo: the trace failed: timed out",
        "kt_us": "dynamo: the trace failed: timed out",
        "device_us": "dynamo: timed out",
    }
    assert found.unmeasured["kernels_after"] == "timed out"
    assert found.unmeasured["hdbi_after"] == "the trace failed: timed out"
    assert found.hdbi_before is not None


def test_every_variant_meets_eager_and_the_ladder_adds_its_steps() -> None:
    names = ("dynamo", "inductor", "reduce-overhead", "eager-graph")
    timings = {"eager": eager_timing()} | {name: timing(name, wall_us=60.0) for name in names}
    variants = [EAGER, *(variant_of(timings[name]) for name in names)]
    assert [(found.base, found.variant) for found in compare_all(variants, timings)] == [
        *(("eager", name) for name in names),
        ("dynamo", "inductor"),
        ("inductor", "reduce-overhead"),
    ]


def test_a_failed_variant_is_compared_with_nothing() -> None:
    failed = Variant.unavailable("dynamo", "failed", "out of memory")
    inductor = timing("inductor")
    timings = {"eager": eager_timing(), "inductor": inductor}
    found = compare_all([EAGER, failed, variant_of(inductor)], timings)
    assert [(each.base, each.variant) for each in found] == [("eager", "inductor")]
    assert compare_all([Variant.unavailable("eager", "failed", "no"), variant_of(inductor)], timings) == []
