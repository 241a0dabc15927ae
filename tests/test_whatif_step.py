"""Changed steps: predicted twice, put on a review's scale, simulated; every number worked out here.

As it is: the step of ``test_predict``, T_wall 82.55, T_host 47, ΔFT 29, ΔCT 7, launch calls 11, ΔKT 18, device
40 + 4 + 6.  At batch 2 all of its kernels take twice as long: 22.55 … 102.55, … 111.55, 112.55 … 124.55; T_wall 132.55.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_predict import ADDMM, OPS, TARGETS, B, W, fake_step, launch, op, plan, planned_graph, profile

from taxbreak_fx.cli_whatif_step import sweep_text
from taxbreak_fx.errors import FormatError, UsageError
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.predict import predict
from taxbreak_fx.record import Interval
from taxbreak_fx.whatif import Change, whatif
from taxbreak_fx.whatif_step import Scales, StepChange, check_step, final, graphs_of, scales_of, step_bases, step_whatif
from taxbreak_fx.whatif_sweep import batches_of, sweep

X2 = "bfloat16[2000x1000](1000,1)"


def twice() -> list[Any]:
    """The ops of the step at batch 2: twice the operations of the product, twice the bytes of the others."""
    more = [msgspec.structs.replace(ADDMM, flops=4_000_000_000)]
    for one in OPS[1:]:
        more.append(msgspec.structs.replace(one, read_bytes=2 * one.read_bytes, written_bytes=2 * one.written_bytes))
    return more


def planned_twice() -> Any:
    launches = [
        launch("extern", "extern:addmm", inputs=f"{B}, {X2}, {W}", outputs=X2, read_bytes=1, written_bytes=1),
        launch("kernel", "triton:triton_poi_fused_0", arguments=3, read_bytes=4_000_000, written_bytes=4_000_000),
    ]
    return plan(planned_graph(launches=launches))


def as_is(*names: str) -> Review:
    return predict(fake_step(), plan(), profile(), names)


def changed(*names: str) -> Review:
    return predict(fake_step(ops=twice()), planned_twice(), profile(), names)


def measured(review: Review, host: float, device: float, wall_us: float) -> Review:
    """Its eager as if it had been measured on a host and a device that take so many times as long, without timeline."""
    eager = review.variant("eager")
    own = eager.breakdown
    assert own is not None and own.ft_us and own.ct_us and own.kt_us and eager.issue_us and eager.launch_us
    assert eager.device_active_us and eager.device_sum_us and eager.t_host_us
    ft, ct, kt = own.ft_us * host, own.ct_us * host, own.kt_us * host
    terms = msgspec.structs.replace(
        own, ft_us=ft, ft_parts={"python": ft}, ct_us=ct, ct_source="measured", kt_us=kt, orchestration_us=ft + ct + kt,
        hdbi=eager.device_active_us * device / (eager.device_active_us * device + ft + ct + kt),
        hdbi_untraced=None, unmeasured=own.unmeasured | {"hdbi_untraced": "not measured"},
    )  # fmt: skip
    made = msgspec.structs.replace(
        eager, origin="measured", timeline=None, exposed=None, breakdown=terms,
        t_wall_us=Interval(median=wall_us, low=0.9 * wall_us, high=1.1 * wall_us, samples=9),
        t_host_us=Interval(median=47.0 * host, low=47.0 * host, high=47.0 * host, samples=9),
        issue_us=eager.issue_us * host, launch_us=eager.launch_us * host,
        device_active_us=eager.device_active_us * device, device_sum_us=eager.device_sum_us * device,
    )  # fmt: skip
    return msgspec.structs.replace(review, origin="measured", variants=[made], comparisons=[], notes=["own note"])


def wall(variant: Variant) -> float:
    assert variant.t_wall_us is not None
    return variant.t_wall_us.median


BATCH = StepChange(batch=2)


# --- one change, by hand --------------------------------------------------------------------------------------------


def test_the_predictions_are_as_worked_out() -> None:
    assert [wall(one.variant("eager")) for one in (as_is("eager"), changed("eager"))] == pytest.approx([82.55, 132.55])


def test_errors_of_the_profile_cancel() -> None:
    # Host and device both twice what the profile says; L 2, g 1 and s 8 as they are.  As it is: the product's call
    # returns at 41.1 and it runs 43.1 … 123.1, relu … 132.1, add 133.1 … 145.1; 153.1.  At batch 2: 43.1 … 203.1,
    # … 220.1, 221.1 … 245.1; 253.1.  Measured was 306.2, twice the former.
    review = measured(as_is("eager"), 2.0, 2.0, 306.2)
    found = step_whatif(review, as_is("eager"), changed("eager"), BATCH)
    assert [variant.name for variant in found.variants] == ["eager", "eager + batch 2"]
    base, made = found.variants
    assert base == review.variant("eager") and (made.origin, found.origin) == ("predicted", "predicted")
    assert wall(made) == pytest.approx(2 * 253.1)
    assert made.t_wall_us is not None and made.t_wall_us.high == pytest.approx(1.1 * wall(made))
    assert made.t_host_us is not None and made.t_host_us.median == pytest.approx(94.0)
    assert (made.issue_us, made.launch_us, made.t_wait_us) == pytest.approx((94.0, 22.0, 0.0))
    assert (made.device_active_us, made.device_sum_us) == pytest.approx((200.0, 200.0))
    terms = made.breakdown
    assert terms is not None
    assert (terms.ft_us, terms.ct_us, terms.kt_us) == pytest.approx((58.0, 14.0, 36.0))
    assert terms.hdbi == pytest.approx(200 / 308) and terms.ct_source == "predicted from eager"
    assert terms.ft_parts == pytest.approx({"ops": 40.0, "python": 18.0})
    prediction = made.prediction
    assert prediction is not None and (prediction.base, prediction.changes) == ("eager", ["batch 2"])
    # Of the prediction as the profile has it: what did not cancel must not look small.
    assert prediction.base_error == pytest.approx(82.55 / 306.2 - 1)
    assert prediction.wall_change == pytest.approx(253.1 / 153.1 - 1)
    assert prediction.orchestration_change == pytest.approx(0.0)
    assert any("ΔFT × 2, ΔCT × 2, launch calls × 2, device time × 2" in note for note in made.notes)
    (comparison,) = found.comparisons
    assert (comparison.base, comparison.variant, comparison.origin) == ("eager", "eager + batch 2", "predicted")
    assert comparison.wall_ratio is not None and comparison.wall_ratio.median == pytest.approx(253.1 / 153.1)
    assert comparison.removed.device_us == pytest.approx(-100.0) and comparison.removed.ft_us == pytest.approx(0.0)
    assert "own note" in found.notes and any("profile small" in note for note in found.notes)


def test_a_turn_to_the_device_does_not_take_the_host_s_error_along() -> None:
    # The host four times the profile's, the device as it says.  As it is: linear is issued until 82.2, runs 84.2 …
    # 124.2; relu's call returns at 132, runs 134 … 138; add's at 177, 179 … 185; the host is done at 188; 196.
    # At batch 2: 84.2 … 164.2, 165.2 … 173.2, 179 … 191; 199.
    review = measured(as_is("eager"), 4.0, 1.0, 196.0)
    made = final(step_whatif(review, as_is("eager"), changed("eager"), BATCH), "eager")
    assert wall(made) == pytest.approx(199.0)
    # T_wall scaled as a whole would have said 196 × 132.55 / 82.55.
    assert wall(made) < 196.0 * 132.55 / 82.55 - 100
    assert made.device_active_us == pytest.approx(100.0)


def test_a_predicted_review_yields_the_changed_prediction() -> None:
    own, other = as_is(), changed()
    found = step_whatif(own, own, other, BATCH)
    assert len(found.variants) == 8
    for variant in other.variants:
        made = found.variant(f"{variant.name} + batch 2")
        assert wall(made) == pytest.approx(wall(variant), abs=0.02)
        for name in ("issue_us", "launch_us", "launches", "graph_launches", "kernels", "memops", "device_active_us"):
            assert getattr(made, name) == pytest.approx(getattr(variant, name)), (variant.name, name)
        mine, theirs = made.breakdown, variant.breakdown
        assert mine is not None and theirs is not None
        assert (mine.ft_us, mine.ct_us, mine.kt_us, mine.hdbi) == pytest.approx(
            (theirs.ft_us, theirs.ct_us, theirs.kt_us, theirs.hdbi)
        )
        assert mine.ft_parts == pytest.approx(theirs.ft_parts)
        assert made.prediction is not None and made.prediction.base_error == 0.0
        assert not any("on the scale of" in note for note in made.notes)
    assert {(c.base, c.variant) for c in found.comparisons if c.origin == "predicted" and "batch" in c.variant} == {
        ("eager", "eager + batch 2"),
        *((base, f"{name} + batch 2") for name in ("inductor", "reduce-overhead", "eager-graph")
          for base in ("eager", name)),
    }  # fmt: skip


def test_no_change_is_what_was_measured() -> None:
    review = measured(as_is("eager"), 1.7, 0.8, 100.0)
    made = final(step_whatif(review, as_is("eager"), as_is("eager"), StepChange(batch=1)), "eager")
    base = review.variant("eager")
    assert made.t_wall_us == base.t_wall_us and made.t_host_us == base.t_host_us
    assert made.device_active_us == pytest.approx(base.device_active_us)
    assert made.breakdown is not None and base.breakdown is not None
    assert made.breakdown.hdbi == pytest.approx(base.breakdown.hdbi)


def test_counts_are_those_of_the_changed_step() -> None:
    ops = [*twice(), op("aten.relu.default", 3, moved=(1_000_000, 1_000_000))]
    more = predict(fake_step([*TARGETS, "torch.nn.functional.relu"], ops), "no plan", profile(), ["eager"])
    review = measured(as_is("eager"), 1.0, 1.0, 100.0)
    review = msgspec.structs.replace(
        review, variants=[msgspec.structs.replace(review.variants[0], launches=5, kernels=5, nodes=[])]
    )
    made = final(step_whatif(review, as_is("eager"), more, StepChange(experts_implementation="eager")), "eager")
    assert made.name == "eager + experts eager" and (made.launches, made.kernels, made.library_calls) == (4, 4, None)
    assert made.breakdown is not None and made.breakdown.kt_us == pytest.approx(24.0)
    assert "of the step as it is, predicted are launches 3 (measured: 5), kernels 3 (measured: 5)" in made.notes


def test_terms_that_were_not_measured_take_the_whole_host_s_factor() -> None:
    base = measured(as_is("eager"), 3.0, 2.0, 300.0).variant("eager")
    own = as_is("eager").variant("eager")
    assert scales_of(base, own) == pytest.approx(Scales(3.0, 3.0, 3.0, 3.0, 2.0))
    assert base.breakdown is not None
    lacking = msgspec.structs.replace(
        base.breakdown, ft_us=None, ct_us=None, orchestration_us=None, hdbi=None, ft_parts={},
        unmeasured=base.breakdown.unmeasured | dict.fromkeys(("ft_us", "ct_us", "orchestration_us", "hdbi"), "no cc"),
    )  # fmt: skip
    without = msgspec.structs.replace(base, breakdown=lacking)
    assert scales_of(without, own) == pytest.approx(Scales(3.0, 3.0, 3.0, 3.0, 2.0))
    review = msgspec.structs.replace(measured(as_is("eager"), 3.0, 2.0, 300.0), variants=[without])
    made = final(step_whatif(review, as_is("eager"), changed("eager"), BATCH), "eager")
    assert made.breakdown is not None and made.breakdown.ft_us is None
    assert made.breakdown.unmeasured["ft_us"] == "no cc" and made.breakdown.kt_us == pytest.approx(54.0)


# --- with other changes ---------------------------------------------------------------------------------------------


def test_other_changes_are_made_to_the_changed_step() -> None:
    own, other = as_is(), changed()
    for change, base in ((Change(cpu_speed=2.0), "eager"), (Change(no_guards=True), "inductor"),
                         (Change(no_guards=True, cuda_graph=True, cpu_speed=1.5), "inductor")):  # fmt: skip
        made = final(step_whatif(own, own, other, BATCH, change, [base]), base)
        alone = final(whatif(other, change, [base]), base)
        assert made.name == alone.name.replace(base, f"{base} + batch 2", 1)
        assert wall(made) == pytest.approx(wall(alone), rel=1e-3)
        assert made.prediction is not None and alone.prediction is not None
        assert made.prediction.changes == ["batch 2", *alone.prediction.changes]
        assert (made.launches, made.kernels) == (alone.launches, alone.kernels)


def test_a_graph_of_the_changed_step() -> None:
    found = step_whatif(as_is(), as_is(), changed(), BATCH, Change(cuda_graph=True))
    assert [variant.name for variant in found.variants] == [
        "eager", "eager + batch 2", "eager + batch 2 + graph",
        "inductor", "inductor + batch 2", "inductor + batch 2 + graph",
        "reduce-overhead", "reduce-overhead + batch 2", "eager-graph", "eager-graph + batch 2",
    ]  # fmt: skip
    made = found.variant("eager + batch 2 + graph")
    assert any("predicted in reduce-overhead (" in note for note in made.notes)
    # No variant of the review ran so: nothing stands beside it as measured.
    assert made.prediction is not None and made.prediction.measured_as is None
    assert ("eager", made.name) in {(c.base, c.variant) for c in found.comparisons}
    assert final(found, "eager") is made and final(found, "eager-graph").name == "eager-graph + batch 2"


def test_a_graph_of_a_review_without_graphs_costs_what_the_profile_s_do() -> None:
    # The first node of the profile's 101 starts 29 after the call's entry; one kernel's 3 + 2: 0.24 more per node, 5.48
    # for three.  They take 80, 8 and 12, with 0.5 between nodes, and the sync returns 8 later.
    eager = as_is("eager")
    without = step_whatif(eager, eager, changed("eager"), BATCH, Change(cuda_graph=True))
    assert "what a graph launch costs is not known" in (without.variant("eager + batch 2 + graph").reason or "")
    points = graphs_of(profile())
    made = final(step_whatif(eager, eager, changed("eager"), BATCH, Change(cuda_graph=True), elsewhere=points), "eager")
    assert made.name == "eager + batch 2 + graph" and (made.launches, made.graph_launches) == (1, 1)
    assert any(note.startswith("a graph launch costs as in profile small (") for note in made.notes)
    assert wall(made) == pytest.approx(5.48 + 80.0 + 8.0 + 12.0 + 2 * 0.5 + 8.0, rel=1e-3)


def test_what_is_not_planned_is_skipped_and_the_rest_stands() -> None:
    unplanned = predict(fake_step(ops=twice()), "not planned: too long", profile())
    found = step_whatif(as_is(), as_is(), unplanned, BATCH, Change(cpu_speed=2.0))
    made = found.variant("inductor + batch 2")
    assert (made.status, made.origin) == ("skipped", "predicted")
    assert made.reason == "the changed step: not planned: too long"
    assert "inductor + batch 2 + cpu 2" not in {variant.name for variant in found.variants}
    assert found.variant("eager + batch 2 + cpu 2").status == "ok"
    with pytest.raises(FormatError, match="no changed step could be predicted: the changed step: not planned"):
        step_whatif(as_is(), as_is(), unplanned, BATCH, Change(cpu_speed=2.0), ["inductor"])


def test_a_saved_what_if_is_read_back(tmp_path: Path) -> None:
    found = step_whatif(as_is(), as_is(), changed(), BATCH, Change(cuda_graph=True))
    found.save(tmp_path / "r.json")
    assert Review.load(tmp_path / "r.json") == found


# --- what cannot be asked -------------------------------------------------------------------------------------------


def test_bad_questions_name_cause_and_mend() -> None:
    review = as_is("eager", "inductor")
    with pytest.raises(UsageError, match=r"r\.json has no variant 'egaer'; it has eager, inductor"):
        step_bases(review, ["egaer"], "r.json")
    other = msgspec.structs.replace(review.variant("inductor"), name="dynamo")
    with pytest.raises(UsageError, match="changed step of dynamo is not predicted: choose among eager, inductor"):
        step_bases(msgspec.structs.replace(review, variants=[other]), ["dynamo"])
    with pytest.raises(FormatError, match="none of eager, inductor, reduce-overhead, eager-graph has times"):
        step_bases(msgspec.structs.replace(review, variants=[other]))
    failed = Variant.unavailable("eager", "failed", "out of memory")
    with pytest.raises(FormatError, match=r"eager has no times to start from \(out of memory\)"):
        step_bases(msgspec.structs.replace(review, variants=[failed]), ["eager"])
    with pytest.raises(UsageError, match="--batch must be at least 1, got 0"):
        check_step(StepChange(batch=0), review)
    host = msgspec.structs.replace(review, step=msgspec.structs.replace(review.step, device="cpu"))
    with pytest.raises(UsageError, match=r"of the cpu device.*taxbreak predict three"):
        check_step(BATCH, host)
    with pytest.raises(UsageError, match="--cpu-speed must be"):
        step_whatif(review, review, review, BATCH, Change(cpu_speed=0.0))
    with pytest.raises(UsageError, match=r"one for eager \+ batch 2: no time of guards"):
        step_whatif(review, review, review, BATCH, Change(no_guards=True), ["eager"])


@pytest.mark.parametrize("text", ["0", "-1", "1,0", "1.5", "", ",", "many", "1 2", "²"])
def test_what_is_no_batch(text: str) -> None:
    with pytest.raises(UsageError, match="--batch must be a whole number"):
        batches_of(text)


def test_batches_are_sorted_once_each() -> None:
    assert batches_of(" 8, 1,2,8") == (1, 2, 8) and batches_of("4") == (4,)


# --- several batches ------------------------------------------------------------------------------------------------


def many(factor: int) -> Review:
    """The step whose device work is so many times as long."""
    ops = [msgspec.structs.replace(ADDMM, flops=2_000_000_000 * factor), *OPS[1:]]
    return predict(fake_step(ops=ops), "not planned: too long", profile())


def test_where_the_step_turns() -> None:
    # T_Orchestration 54 at every batch; device 40 × batch + 10: 50, 90, 170.
    review = many(1)
    found = {n: step_whatif(review, review, many(n), StepChange(batch=n), None, ["eager"]) for n in (4, 1, 2)}
    made = sweep(review, found, ["eager"])
    rows = [(row.batch, row.device_active_us, row.orchestration_us, row.bound) for row in made.rows]
    assert rows == [
        (1, pytest.approx(50.0), pytest.approx(54.0), "host"),
        (2, pytest.approx(90.0), pytest.approx(54.0), "device"),
        (4, pytest.approx(170.0), pytest.approx(54.0), "device"),
    ]
    assert [row.hdbi for row in made.rows] == pytest.approx([50 / 104, 90 / 144, 170 / 224])
    assert [(turn.variant, turn.batch, turn.next_batch, turn.to) for turn in made.turns] == [("eager", 1, 2, "device")]
    text = sweep_text(made)
    assert "(ms per step, predicted from batch 1; 1 as reviewed)" in text
    assert all(len(line) <= 80 for line in sweep_text(made, 80).splitlines())
    assert "eager: turns device-bound between batch 1 and 2" in text.splitlines()
    assert max(map(len, text.splitlines())) <= 100 and "predicted from batch 1" in text
    beyond = sweep(review, {n: one for n, one in found.items() if n > 1}, ["eager"])
    assert "eager: device-bound at every batch from 2 to 4" in sweep_text(beyond).splitlines()


def test_what_is_not_known_of_a_batch_has_its_reason() -> None:
    review = as_is("eager", "inductor")
    found = {2: step_whatif(review, review, predict(fake_step(ops=twice()), "too long", profile()), BATCH)}
    (_, row) = sweep(review, found, ["eager", "inductor"]).rows
    assert (row.variant, row.t_wall_us, row.bound) == ("inductor", None, None)
    assert row.unmeasured["bound"] == "the changed step: too long"
    text = sweep_text(sweep(review, found, ["eager", "inductor"]))
    assert "inductor: not known" in text and "inductor, batch 2: the changed step: too long" in text
