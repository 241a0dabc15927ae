"""Two reviews against each other: what counts as a change, and what is not compared at all.

``toy`` is the sample review: eager 20 launches in 4 rows, T_host 900 µs; inductor 8 launches, paired wall ratio 0.5
[0.49 0.51] at 99.9 %.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from diff_samples import at, finding, on_slower_host, predicted, real, with_nodes, with_variant
from sample_review import interval, node, sample_review
from test_predict import fake_step, plan, profile

from taxbreak_fx.diff import diff
from taxbreak_fx.diff_clock import PROCESS_SPREAD, clocks
from taxbreak_fx.diff_match import match
from taxbreak_fx.diff_noise import DEVICE_SPREAD, LEAST_US
from taxbreak_fx.errors import UsageError
from taxbreak_fx.gates import judge, parse
from taxbreak_fx.model import Review
from taxbreak_fx.predict import on_host, predict
from taxbreak_fx.record import SourceLine

replace = msgspec.structs.replace


def test_a_review_has_not_changed_against_itself() -> None:
    found = diff(sample_review(), sample_review())
    assert real(found) == [] and found.rows == [] and found.findings == [] and found.overridden == []
    assert all(c.delta == 0 for c in found.changes if c.metric == "launches")


def test_an_op_more_is_counted_on_its_line() -> None:
    # 20 launches and 3 more from line 58: 23, and one layer norm is gone from line 52: 22.
    base = sample_review()
    nodes = list(base.variant("eager").nodes)
    new = node("aten.mul.Tensor", "elementwise", 58, 3, 3, 30.0, 0.0, 12.0, 9.0, None)
    nodes[2] = replace(nodes[2], count=3, launches=3, kernels=3)
    found = diff(base, with_nodes(base, [*nodes, new]))
    change = found.change("launches", "eager")
    assert (change.base, change.head, change.delta, change.relative) == (20, 22, 2, 0.1)
    assert [(r.presence, r.op, r.calls, r.launches) for r in found.rows] == [
        ("added", "aten.mul.Tensor", 3, 3), ("both", "aten.layer_norm.default", -1, -1),
    ]  # fmt: skip
    assert [(c.source.line, c.presence, c.launches) for c in found.lines] == [(58, "added", 3), (52, "both", -1)]
    assert found.rows[0].device_us == 9.0 and found.rows[0].host_us == 30.0
    assert ("eager", "launches") in real(found) and ("inductor", "launches") not in real(found)


def test_paired_eager_is_the_clock_where_it_runs_the_same() -> None:
    # The sample's eager: wall 1000, T_issue 900: host-bound (0.9). inductor 500 µs at 0.5: eager took 1000 meanwhile.
    # Head: 750 at 0.5: eager took 1500, the host is 1.5 times as slow. Nothing changed.
    base = sample_review()
    head = with_variant(base, "inductor", lambda v: replace(v, t_wall_us=interval(750, 740, 760)))
    pairs = {v.name: match(v.nodes, v.nodes) for v in base.variants if v.status == "ok"}
    clock = clocks(base, head, pairs)["inductor"]
    assert clock.source.startswith("paired eager") and clock.host == pytest.approx(1.5)
    # Process spread, and the two reaches of 0.5 [0.49 0.51].
    assert math.log(clock.spread) == pytest.approx(math.log(PROCESS_SPREAD) + 2 * math.log(0.5 / 0.49))
    change = diff(base, head).change("t_wall_us", "inductor")
    assert change.expected is not None and change.expected.value == pytest.approx(750) and not change.real


def test_without_the_same_eager_the_rows_that_stayed_are_the_clock() -> None:
    base = sample_review()
    rows = [node(f"aten.op{i}.default", "gemm", i, 1, 1, 10.0 * i, 0.0, 4.0, 2.0, "m") for i in range(1, 9)]
    slower = [replace(row, ft_us=2 * (row.ft_us or 0.0)) for row in rows]
    extra = node("aten.new.default", "gemm", 99, 1, 1, 500.0, 0.0, 4.0, 2.0, "m")
    before, after = with_nodes(base, rows), with_nodes(base, [*slower, extra])
    pairs = {"eager": match(before.variant("eager").nodes, after.variant("eager").nodes)}
    clock = clocks(before, after, pairs)["eager"]
    assert clock.host == pytest.approx(2.0) and clock.source == "8 ops of eager that run the same"


def test_with_nothing_in_common_times_are_not_judged_and_counts_are() -> None:
    base = sample_review()
    other = [at(line, f"aten.other{line}.default", "other") for line in range(1, 11)]
    found = diff(base, with_nodes(base, other))
    assert found.change("launches", "eager").real
    wall = found.change("t_wall_us", "eager")
    assert wall.expected is None and wall.reason == "fewer than 5 timed ops run the same in base and head"


def test_a_regression_beyond_the_noise_is_seen_by_a_compiled_variant() -> None:
    # inductor twice as long against the same eager: 1000 µs at ratio 1.0; noise is 1.2 × 1.02².
    base = sample_review()
    head = with_variant(
        base, "inductor",
        lambda v: replace(v, t_wall_us=interval(1000, 990, 1020), t_host_us=interval(950, 945, 955), issue_us=950.0),
    )  # fmt: skip
    ratio = interval(1.0, 0.98, 1.02)
    head = replace(
        head, comparisons=[replace(c, wall_ratio=ratio) if c.variant == "inductor" else c for c in head.comparisons]
    )
    found = diff(base, head)
    change = found.change("t_wall_us", "inductor")
    assert change.real and change.relative == pytest.approx(1.0)
    assert ("inductor", "t_host_us") in real(found) and ("eager", "t_wall_us") not in real(found)


def test_wall_time_of_a_device_bound_variant_does_not_follow_the_host() -> None:
    # eager: 900 of 1000 µs are the host's, so c = 1900 / 1000. eager-graph: T = 200, D = 160, T_issue 28, so that 172
    # are not the host's: between c·T = 380 and c·T + (1 - c)·172 = 225.2, in the middle 302.6; it took 228.
    base = sample_review()
    head = on_slower_host(base, 2.0)
    change = diff(base, head).change("t_wall_us", "eager-graph")
    assert change.head == pytest.approx(228) and not change.real
    assert change.expected is not None and change.expected.value == pytest.approx(302.6)
    assert change.expected.low < 225.2 and change.expected.high > 380


def test_a_host_of_another_speed_than_its_calibration_is_noted() -> None:
    # Ops of inductor by paired eager: 4 times as slow, where the loop of the calibration took as long as before.
    base = sample_review()
    head = with_variant(base, "inductor", lambda v: replace(v, t_wall_us=interval(2000, 1990, 2010)))
    (note,) = [note for note in diff(base, head).notes if "every op alike" in note]
    assert note.startswith("inductor: ") and "1.00 ×" in note
    slow = replace(head.machine, calibration=replace(head.machine.calibration, host_score=5.0))
    assert not any(
        "every op alike" in note and "inductor" in note for note in diff(base, replace(head, machine=slow)).notes
    )


def test_device_time_needs_no_clock() -> None:
    base = sample_review()
    within = with_variant(base, "eager", lambda v: replace(v, device_active_us=220 * (1 + 0.9 * DEVICE_SPREAD)))
    beyond = with_variant(base, "eager", lambda v: replace(v, device_active_us=220 * (1 + 1.1 * DEVICE_SPREAD)))
    assert not diff(base, within).change("device_active_us", "eager").real
    assert diff(base, beyond).change("device_active_us", "eager").real


def test_a_lost_measurement_has_its_reason() -> None:
    found = diff(sample_review(), sample_review())
    change = found.change("ft_us", "inductor")
    assert change.reason is None
    with pytest.raises(KeyError):
        found.change("ft_us", "reduce-overhead")  # neither review has it: no change of it


def test_kernels_that_took_longer_are_told_by_line() -> None:
    # Of a prediction every row is exact; measured rows are looked at where the whole changed beyond its noise.
    base = sample_review()
    nodes = list(base.variant("eager").nodes)
    us = nodes[1].device_us
    assert us is not None
    nodes[1] = replace(nodes[1], device_us=us + 100.0)
    rows_only = with_nodes(base, nodes)
    (row,) = diff(predicted(base), predicted(rows_only)).rows
    assert (row.op, row.presence, row.calls, row.host_us) == (nodes[1].op, "both", 0, None)
    assert row.device_us == pytest.approx(100.0)
    assert diff(base, rows_only).rows == []
    longer = with_variant(rows_only, "eager", lambda v: replace(v, device_active_us=320.0))
    (line,) = diff(base, longer).lines
    assert line.device_us == pytest.approx(100.0) and line.source == nodes[1].source


@pytest.mark.parametrize("field", ["issue_us", "launch_us", "device_active_us", "peak_memory_bytes"])
def test_a_residual_below_nothing_is_compared_all_the_same(field: str) -> None:
    base = sample_review()
    head = with_variant(base, "inductor", lambda v: replace(v, **{field: -7}))
    assert diff(head, head).change(field, "inductor").delta is not None
    assert not diff(head, head).change(field, "inductor").real


def test_a_library_time_below_nothing_is_compared_all_the_same() -> None:
    base = sample_review()
    terms = base.variant("inductor").breakdown
    assert terms is not None and terms.ft_us is not None and terms.kt_us is not None
    below = replace(terms, ct_us=-0.5, orchestration_us=terms.ft_us - 0.5 + terms.kt_us)
    head = with_variant(base, "inductor", lambda v: replace(v, breakdown=below))
    assert not diff(head, head).change("ct_us", "inductor").real


def test_a_head_without_graphs_has_no_count_of_breaks() -> None:
    base = sample_review()
    found = diff(base, replace(base, graphs=[]))
    assert found.change("graph_breaks").reason == "head: no graph was captured"
    assert [v.state for v in judge([parse("graph_breaks>0")], found)] == ["failed"]


# --- findings ---


def test_findings_are_matched_by_fingerprint() -> None:
    base = replace(sample_review(), findings=[finding("a"), finding("b")])
    more = [*base.variant("eager").nodes, at(70)]
    head = with_nodes(replace(base, findings=[finding("b"), finding("c")]), more)
    found = diff(base, head)
    assert [(c.state, c.finding.fingerprint) for c in found.findings] == [("new", "c"), ("fixed", "a")]
    assert found.change("findings").delta == 0 and found.change("findings.new").delta == 1


def test_two_findings_of_one_fingerprint_are_two() -> None:
    base = replace(sample_review(), findings=[finding("a")])
    head = with_nodes(replace(base, findings=[finding("a"), finding("a")]), [*base.variant("eager").nodes, at(70)])
    assert [c.state for c in diff(base, head).findings] == ["new"]


def test_a_finding_that_noise_brought_is_not_new() -> None:
    head = replace(sample_review(), findings=[finding("a")])
    found = diff(sample_review(), head)
    assert [c.state for c in found.findings] == ["unsteady"]
    assert found.change("findings").delta == 0 and found.change("findings.new").delta == 0


def test_a_severity_that_noise_crossed_is_the_bases() -> None:
    base = replace(sample_review(), findings=[finding("a", severity="warning")])
    head = replace(base, findings=[finding("a", severity="error")])
    assert diff(base, head).change("findings.error").delta == 0
    changed = with_nodes(head, [*base.variant("eager").nodes, at(70)])
    assert diff(base, changed).change("findings.error").delta == 1


def test_findings_are_not_compared_with_a_review_that_is_older_than_they() -> None:
    older = replace(sample_review(), schema_version="2.0.0")
    found = diff(older, replace(sample_review(), findings=[finding("a")]), allow_versions=True)
    assert found.findings == [] and any("findings are not compared" in note for note in found.notes)


# --- what cannot be compared ---


def other_machine(**fields: Any) -> Review:
    review = sample_review()
    return replace(review, machine=replace(review.machine, **fields))


def other_step(**fields: Any) -> Review:
    review = sample_review()
    return replace(review, step=replace(review.step, **fields))


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (replace(sample_review(), model="other"), "model toy → other"),
        (other_machine(device="Other GPU"), "device Example GPU → Other GPU"),
        (other_step(dtype="float16"), "dtype bfloat16 → float16"),
        (other_step(batch=2), "batch 1 → 2"),
        (other_step(options={"cache": "dynamic"}), "option cache static → dynamic"),
        (replace(sample_review(), scope="captured graphs"), "scope step → captured graphs"),
        (replace(sample_review(), origin="ingested"), "origin measured → ingested"),
    ],
)
def test_another_step_is_refused_unless_forced(head: Review, what: str) -> None:
    for allowed in (False, True):
        with pytest.raises(UsageError, match="add --force") as error:
            diff(sample_review(), head, allow_versions=allowed)
        assert what in str(error.value)
    assert diff(sample_review(), head, force=True).overridden == [what]


@pytest.mark.parametrize("field", ["torch", "transformers", "triton"])
def test_other_versions_are_refused_unless_allowed(field: str) -> None:
    head = other_machine(**{field: "9.9"})
    with pytest.raises(UsageError, match=rf"{field} .* → 9.9: .*--allow-versions"):
        diff(sample_review(), head)
    assert diff(sample_review(), head, allow_versions=True).overridden != []


def test_versions_of_a_prediction_are_those_that_recorded_it() -> None:
    # The machine is the profile's, of whatever torch it was measured with.
    base = replace(predicted(sample_review()), recorded_with={"torch": "2.12.0"})
    with pytest.raises(UsageError, match=r"torch 2.12.0 → 2.13.0: .*--allow-versions"):
        diff(base, replace(base, recorded_with={"torch": "2.13.0"}))
    assert diff(base, base).base.torch == "2.12.0"


def test_one_local_model_in_two_checkouts_is_one_model() -> None:
    base, head = (replace(sample_review(), model=f"/{who}/repo/model.py:make") for who in ("a", "b"))
    assert diff(base, head).overridden == []
    with pytest.raises(UsageError, match="model org/a → org/b"):
        diff(replace(base, model="org/a"), replace(base, model="org/b"))


# --- predicted reviews ---


def test_predictions_from_one_profile_are_exact() -> None:
    base = predicted(sample_review())
    head = with_variant(base, "eager", lambda v: replace(v, t_wall_us=interval(1001, 990, 1020)))
    found = diff(base, head)
    assert all(clock.exact for clock in found.clocks) and real(found) == [("eager", "t_wall_us")]
    change = found.change("t_wall_us", "eager")
    assert change.expected is not None and (change.expected.low, change.expected.high) == (
        1000 - LEAST_US,
        1000 + LEAST_US,
    )


def test_a_graph_break_in_a_plan_is_gated_without_a_gpu() -> None:
    whole = plan()
    (graph,) = whole.graphs
    line = SourceLine(file="/a/model.py", line=7)
    broken = replace(whole, graphs=[replace(graph, break_reason="data-dependent branch", source=line)])
    base, head = predict(fake_step(), whole, profile()), predict(fake_step(), broken, profile())
    found = diff(base, head)
    assert found.change("graph_breaks").delta == 1
    (new,) = [change.finding for change in found.findings if change.state == "new"]
    assert (new.rule, new.source) == ("graph-break", line)
    assert [v.state for v in judge([parse("graph_breaks>0")], found)] == ["failed"]
    assert [v.state for v in judge([parse("graph_breaks>0")], diff(base, base))] == ["passed"]


def test_what_rounding_leaves_of_a_prediction_is_no_change() -> None:
    base = predicted(sample_review())
    head = with_variant(base, "eager", lambda v: replace(v, t_wall_us=interval(1000 + LEAST_US / 2, 990, 1020)))
    assert real(diff(base, head)) == []


def test_predictions_from_two_profiles_have_counts_in_common_only() -> None:
    base = predicted(sample_review())
    calibration = replace(base.machine.calibration, launch_us=6.0)
    head = replace(base, machine=replace(base.machine, calibration=calibration))
    found = diff(base, head)
    assert found.change("t_wall_us", "eager").reason == "predicted from different hardware profiles"
    assert found.change("launches", "eager").expected is not None
    # Another scale of one profile leaves its machine as it was.
    one, other = (predict(fake_step(), "no plan", p, ["eager"]) for p in (profile(), on_host(profile(), 200.0)))
    assert diff(one, other).change("t_wall_us", "eager").reason == "predicted from different hardware profiles"
    forced = diff(base, sample_review(), force=True)
    assert "nothing in common" in (forced.change("t_wall_us", "eager").reason or "")
