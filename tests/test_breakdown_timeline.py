"""The timeline of a recording: every microsecond of T_issue and every launch of the trace is in it, in order."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from fake_recording import (
    ADD,
    ADDMM,
    SITES,
    activity,
    calibration,
    clock,
    eager_recording,
    eager_step,
    eager_timing,
    eager_trace,
    graphed_recording,
    kernel_of,
    launch,
    libraries,
    place,
    recording,
    site,
    spans,
    step,
    timing,
    trace,
    waiting,
)

from taxbreak_fx.breakdown import decompose, from_recording
from taxbreak_fx.breakdown_timeline import AROUND, BETWEEN, CPU, Built, floors_of, node_gap
from taxbreak_fx.machine import Calibration, DevicePath
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recording import Recording, Timing
from taxbreak_fx.timeline import Floors, Item, Piece, Sync, Work, simulate
from taxbreak_fx.variant_record import Exposed

GAPS = {"null_us": 1.0, "gap_us": 1.0, "graph_gap_us": 0.5, "sync_us": 8.0}
NO_CALLS = {"cublas": 0, "cublaslt": 0, "cudnn": 0}


def whole(**gaps: float | None) -> Calibration:
    """L = 3 − 2 = 1 µs, g = 1, in a graph 0.5, s = 8, unless ``gaps`` says otherwise."""
    floors, values = calibration(), GAPS | gaps
    idle = Percentiles(p5=1.0, p50=2.0, p95=3.0, samples=9)
    path = msgspec.structs.replace(
        floors.launch_path,
        idle_us=idle,
        unmeasured={name: why for name, why in floors.launch_path.unmeasured.items() if name != "idle_us"},
    )
    known = {name: us for name, us in values.items() if us is not None}
    unmeasured = {name: f"no {name} here" for name in DevicePath.MEASUREMENTS if name not in known}
    device = DevicePath(**known, unmeasured=unmeasured)  # type: ignore[arg-type]
    return msgspec.structs.replace(floors, launch_path=path, device_path=device)


def on(record: Recording, floors: Calibration | None = None, **fields: Any) -> Recording:
    return msgspec.structs.replace(record, calibration=floors or whole(), **fields)


def built(record: Recording) -> Built:
    found = from_recording(record)
    assert isinstance(found, Built), found
    return found


def why_not(record: Recording) -> str:
    found = from_recording(record)
    assert isinstance(found, str)
    variant = decompose(record, None)
    assert variant.exposed == Exposed.unavailable(found)
    return found


def sums(items: tuple[Item, ...]) -> tuple[float, float, float]:
    return sum(i.ft_us for i in items), sum(i.ct_us for i in items), sum(i.launch_us for i in items)


def closing(**fields: Any) -> Recording:
    """The reference step with T_host 76, which its sites (1, 30, 20) and its glue (25) add up to exactly."""
    defaults: dict[str, Any] = {
        "host_us": 76.0,
        "wall_us": 100.0,
        "spans": spans(51.0, 25.0, host_us=76.0),
        "in_situ": clock([1.0, 30.0, 20.0], 76.0),
    }
    return on(eager_recording(timing=eager_timing(**(defaults | fields))))


def test_the_reference_step_by_hand() -> None:
    found = built(closing())
    assert found.timeline.floors == Floors(latency_us=1.0, gap_us=1.0, graph_gap_us=0.5, sync_us=8.0)
    assert found.latency_source == "untraced"
    # ΔCT 13, launches 2 x 4: ΔFT = 76 − 13 − 8.
    assert sums(found.timeline.items) == pytest.approx((55.0, 13.0, 8.0))
    result = simulate(found.timeline)
    assert [us for us in result.starts_us if us is not None] == pytest.approx([41.9, 69.15])
    # Glue 6.25 before each of three sites and behind them.  linear enters its launch at 6.25 + 1 + 6.25 + 0.9 x 26 =
    # 36.9, returns at 40.9, starts at 41.9, ends at 81.9; the call ends at 40.9 + 2.6 = 43.5.  add: 43.5 + 6.25 +
    # 0.9 x 16 + 4 = 68.15, another stream, so 69.15…99.15.  Wall 99.15 + 8.
    assert (result.wall_us, result.host_us, result.device_us) == pytest.approx((107.15, 76.0, 57.25))
    assert found.notes == ["work on 2 streams runs side by side: the trace does not tell what they wait for"]


def test_host_time_is_scaled_onto_the_issue_time() -> None:
    # The reference's pieces add up to 76 of a T_host of 100.
    found = built(on(eager_recording()))
    assert sum(sums(found.timeline.items)) == pytest.approx(100.0)
    assert simulate(found.timeline).host_us == pytest.approx(100.0)


def test_the_review_shows_what_the_timeline_yields() -> None:
    variant = decompose(closing(), None)
    exposed = variant.exposed
    assert exposed is not None and exposed.wall_us is not None and exposed.naive_us is not None
    assert (exposed.wall_us, exposed.error) == pytest.approx((107.15, 0.0715))
    # max(76, 57.25) + 8
    assert (exposed.naive_us, exposed.naive_error) == pytest.approx((84.0, -0.16))
    assert sum(exposed.waterfall.values()) == pytest.approx(exposed.wall_us)
    assert list(exposed.waterfall) == ["ft", "ct", "kt", "sync", "device"]
    rows = {row.name: row for row in exposed.families}
    assert (rows["gemm"].host_us, rows["gemm"].device_us) == pytest.approx((30.0, 40.0))
    assert (rows["elementwise"].host_us, rows["elementwise"].device_us) == pytest.approx((20.0, 30.0))
    assert rows[BETWEEN].host_us == pytest.approx(26.0)  # the glue, and the call that dispatches nothing
    (line,) = exposed.lines
    assert line.source == SITES[1].source and line.host_us == pytest.approx(50.0)
    assert exposed.floors_us["sync_us"] == 8.0 and exposed.latency_source == "untraced"


def test_a_site_with_two_launches_issues_them_one_after_the_other() -> None:
    activities = [
        activity(kernel_of(ADDMM), 200.0, 5.0, launch=0, at_site=1),
        activity(kernel_of(ADD), 206.0, 5.0, launch=1, at_site=1),
        activity(kernel_of(ADD), 230.0, 5.0, launch=2, at_site=2),
    ]
    traced = eager_step(activities=activities, launches=[launch(at_site=1), launch(at_site=1), launch(at_site=2)])
    found = built(msgspec.structs.replace(closing(), trace=eager_trace(traced)))
    works = [one for one in found.timeline.items if isinstance(one.action, Work)]
    # linear: 30 − 13 − 8 = 9 of ΔFT, 0.45 of it before each launch, as of its ΔCT.
    assert [one.ft_us for one in works[:2]] == pytest.approx([4.05, 4.05])
    assert [one.ct_us for one in works[:2]] == pytest.approx([5.85, 5.85])
    assert [one.launch_us for one in works] == [4.0, 4.0, 4.0]
    assert [one.family for one in works] == ["gemm", "gemm", "elementwise"]
    assert sum(sums(found.timeline.items)) == pytest.approx(76.0)


def test_launches_between_the_calls_keep_their_place_and_are_paid_from_the_glue() -> None:
    activities = [
        activity("copy_before", 190.0, 2.0, launch=0),
        activity(kernel_of(ADDMM), 200.0, 40.0, launch=1, at_site=1),
        activity("copy_between", 241.0, 2.0, launch=2),
        activity(kernel_of(ADD), 250.0, 30.0, launch=3, at_site=2),
    ]
    launches = [launch(), launch(at_site=1), launch(), launch(at_site=2)]
    found = built(
        msgspec.structs.replace(closing(), trace=eager_trace(eager_step(activities=activities, launches=launches)))
    )
    us = [one.action.pieces[0].us for one in found.timeline.items if isinstance(one.action, Work)]
    assert us == [2.0, 40.0, 2.0, 30.0]
    assert sums(found.timeline.items) == pytest.approx((76.0 - 13.0 - 16.0, 13.0, 16.0))


def test_work_whose_launch_is_not_in_the_trace_lies_where_it_ran() -> None:
    activities = [
        activity("lost", 195.0, 1.0, launch=None, kind="memset"),
        activity(kernel_of(ADDMM), 200.0, 40.0, launch=0, at_site=1),
        activity("lost", 245.0, 2.0, launch=None),
        activity(kernel_of(ADD), 250.0, 30.0, launch=1, at_site=2),
        activity("lost", 285.0, 3.0, launch=None),
    ]
    found = built(msgspec.structs.replace(closing(), trace=eager_trace(eager_step(activities=activities))))
    works = [one for one in found.timeline.items if isinstance(one.action, Work)]
    assert [one.action.pieces[0].us for one in works if isinstance(one.action, Work)] == [1.0, 40.0, 2.0, 30.0, 3.0]
    assert [one.launch_us for one in works] == [0.0, 4.0, 0.0, 4.0, 0.0]
    assert sum(sums(found.timeline.items)) == pytest.approx(76.0)


def test_what_overlaps_on_one_stream_is_counted_once() -> None:
    # The second kernel starts 4 before the first has ended: programmatic launches may.
    activities = [
        activity(kernel_of(ADDMM), 200.0, 40.0, launch=0, at_site=1),
        activity(kernel_of(ADD), 236.0, 30.0, launch=1, at_site=2),
    ]
    found = built(msgspec.structs.replace(closing(), trace=eager_trace(eager_step(activities=activities))))
    us = [one.action.pieces[0].us for one in found.timeline.items if isinstance(one.action, Work)]
    assert us == [40.0, 26.0] and found.notes == []


# --- waits ----------------------------------------------------------------------------------------------------------


def test_a_call_that_blocks_waits_again_in_the_simulation() -> None:
    # The third call takes 20, 5 of it on an idle device: T_wait 15, T_issue 85, of pieces 1 + 30 + 5 + 25 = 61.
    found = built(on(waiting()))
    syncs = [index for index, one in enumerate(found.timeline.items) if isinstance(one.action, Sync)]
    works = [index for index, one in enumerate(found.timeline.items) if isinstance(one.action, Work)]
    assert len(syncs) == 1 and syncs[0] > works[-1]
    # What the synchronisation takes to return, 8, is in the call's 5 on an idle device: no more than those are taken.
    blocked = 5.0 * 85.0 / 61.0
    assert sum(sums(found.timeline.items)) == pytest.approx(85.0 - (blocked - 4.0))
    assert simulate(found.timeline).synced_us > 0.0


def copied(us: float, at_site: int | None) -> Recording:
    """The reference step whose third call copies to the host and waits for it, for 40 µs on an idle device."""
    activities = [
        activity(kernel_of(ADDMM), 200.0, 40.0, launch=0, at_site=1),
        activity("Memcpy DtoH (Device -> Pageable)", 250.0, 2.0, launch=1, at_site=at_site, kind="memcpy"),
        activity(kernel_of(ADD), 260.0, us, launch=2, at_site=2),
    ]
    traced = eager_step(
        activities=activities,
        launches=[launch(at_site=1), launch("memop", at_site=at_site), launch(at_site=2)],
        syncs=[("cudaStreamSynchronize", at_site)],
    )
    times = eager_timing(
        host_us=96.0,
        spans=spans(71.0, 25.0, host_us=96.0),
        in_situ=clock([1.0, 30.0, 40.0], 96.0),
        drained=clock([1.0, 30.0, 40.0], 96.0, drained=True),
    )
    return on(eager_recording(timing=times, trace=eager_trace(traced)))


def test_the_host_waits_behind_the_copy_that_it_awaits() -> None:
    found = built(copied(30.0, at_site=2))
    kinds = [type(one.action) for one in found.timeline.items if one.action is not None]
    assert kinds == [Work, Work, Sync, Work]
    # The idle wait, L + 2 + s = 11, is taken out of the call's 40: the simulation puts it back.
    assert sum(sums(found.timeline.items)) == pytest.approx(96.0 - 11.0)
    result = simulate(found.timeline)
    assert result.host_us == pytest.approx(96.0 - 11.0 + 8.0 + result.synced_us)


def test_a_wait_at_an_unknown_place_is_a_reason() -> None:
    record = copied(30.0, at_site=2)
    assert record.trace is not None and record.timing is not None
    lost = msgspec.structs.replace(record.trace.step, syncs=[("cudaDeviceSynchronize", None)])
    times = msgspec.structs.replace(record.timing, library=libraries(place(blocked_us=1.0), host_us=96.0))
    record = msgspec.structs.replace(record, timing=times, trace=msgspec.structs.replace(record.trace, step=lost))
    assert "blocks between recorded calls (cudaDeviceSynchronize)" in why_not(record)


# --- graphed variants -----------------------------------------------------------------------------------------------


def graphed() -> Recording:
    record = graphed_recording()
    assert record.trace is not None
    return on(record, trace=msgspec.structs.replace(record.trace, library_calls=NO_CALLS))


def test_a_graphed_step_by_hand() -> None:
    found = built(graphed())
    # T_issue 100: around 30, replay 45, glue 25, of which two launches beside the graph take 8.
    assert sums(found.timeline.items) == pytest.approx((47.0, 0.0, 53.0))
    result = simulate(found.timeline)
    # 27 around and 5.1 of glue: the replay is entered at 32.1; its first node starts 20 later: 52.1…62.1, 62.6…72.6.
    # It returns at 77.1; 5.1 of glue and the call: 86.2, kernel 87.2…97.2.  5.1 and the call: 95.3, the second kernel
    # waits for the first: 98.2…108.2.  1.7 of glue and 3 around: 100.
    assert [us for us in result.starts_us if us is not None] == pytest.approx([52.1, 87.2, 98.2])
    assert (result.wall_us, result.host_us, result.device_us) == pytest.approx((116.2, 100.0, 40.0))
    families = {one.family for one in found.timeline.items}
    assert {AROUND, BETWEEN, "graph-launch"} <= families


def test_a_step_of_which_nothing_was_graphed_is_its_launches() -> None:
    times = timing(
        "reduce-overhead", sites=[], spans=spans(0.0, 70.0, host_us=100.0, around_us=30.0), graph_launch_us=0.0
    )
    activities = [activity(kernel_of(ADD), 200.0 + 20 * i, 10.0, launch=i) for i in range(2)]
    traced = trace(step(activities, [launch(), launch()], sites=0), "reduce-overhead", library_calls=NO_CALLS)
    found = built(on(recording(times, traced)))
    assert sum(sums(found.timeline.items)) == pytest.approx(100.0)
    result = simulate(found.timeline)
    assert (result.host_us, result.device_us) == (pytest.approx(100.0), 20.0)
    assert [one.action.kind for one in found.timeline.items if isinstance(one.action, Work)] == ["kernel", "kernel"]


def test_inputs_are_copied_by_the_callable_that_the_frame_leads_to() -> None:
    record = graphed()
    assert record.trace is not None
    copies = [activity("Memcpy DtoD", 150.0 + 20 * i, 10.0, launch=i, kind="memcpy") for i in range(2)]
    nodes = [msgspec.structs.replace(one, launch=2) for one in record.trace.step.activities if one.launch == 0]
    launches = [launch("memop"), launch("memop"), record.trace.step.launches[0]]
    traced = step([*copies, *nodes], launches, sites=1)
    found = built(msgspec.structs.replace(record, trace=msgspec.structs.replace(record.trace, step=traced)))
    # 27 around, then 22.5 of glue in three: a copy, a copy, the graph.
    first = next(index for index, item in enumerate(found.timeline.items) if isinstance(item.action, Work))
    assert sum(item.ft_us for item in found.timeline.items[:first]) == pytest.approx(27.0 + 22.5 / 3)


@pytest.mark.parametrize("gap_us", [0.32, -0.05])
def test_the_nodes_of_a_graph_take_as_long_as_without_the_profiler(gap_us: float) -> None:
    record = graphed()
    assert record.timing is not None
    before = built(record)
    found = built(msgspec.structs.replace(record, timing=spanning(record.timing, [20.0 + gap_us])))
    floors = before.timeline.floors
    assert found.timeline.floors == msgspec.structs.replace(floors, graph_gap_us=pytest.approx(gap_us))
    assert found.notes == []
    own, other = simulate(found.timeline), simulate(before.timeline)
    ends = [next(us for us in one.ends_us if us is not None) for one in (other, own)]
    # One gap between its two nodes, which is no work; nodes that overlap share theirs.
    assert ends[1] - ends[0] == pytest.approx(gap_us - floors.graph_gap_us)
    assert own.device_us == pytest.approx(other.device_us + min(0.0, gap_us))


def spanning(times: Timing, spans_us: list[float] | None, failure: str | None = None) -> Timing:
    """The times with what the graphs were found to take on the device."""
    return msgspec.structs.replace(times, graph_span_us=spans_us, graph_span_failure=failure)


@pytest.mark.parametrize(
    ("spans_us", "failure", "why"),
    [
        (None, "no C compiler", "no C compiler"),
        (None, None, "not measured by the version that timed it"),
        ([20.5, 3.0], None, "2 graphs were timed on the device, 1 traced"),
    ],
)
def test_graphs_that_were_not_timed_keep_the_gaps_of_null_kernels(
    spans_us: list[float] | None, failure: str | None, why: str
) -> None:
    record = graphed()
    assert record.timing is not None
    found = built(msgspec.structs.replace(record, timing=spanning(record.timing, spans_us, failure)))
    assert found.timeline.floors == built(record).timeline.floors
    assert found.notes == [f"nodes of its CUDA graphs are taken to follow each other as null kernels do: {why}"]


def test_a_graph_of_one_node_has_no_gap() -> None:
    record = graphed()
    assert record.timing is not None
    work = Work(kind="graph", stream=7, pieces=(Piece(us=10.0, family="gemm"),), first_node_us=1.0)
    assert node_gap(spanning(record.timing, [12.0]), [work]) is None
    two = msgspec.structs.replace(work, pieces=work.pieces * 3)
    assert node_gap(spanning(record.timing, [12.0, 34.0]), [work, two]) == pytest.approx((46.0 - 40.0) / 2)


def test_a_graphs_latency_counts_from_the_entry_of_its_replay() -> None:
    # The replay takes 45, of which the launch call 30: the other 15 lie behind it.
    record = graphed()
    assert record.timing is not None
    heard = libraries(place(0, graph_us=30.0), host_us=100.0)
    found = built(msgspec.structs.replace(record, timing=msgspec.structs.replace(record.timing, library=heard)))
    (index,) = [
        i for i, one in enumerate(found.timeline.items) if isinstance(one.action, Work) and one.launch_us == 30.0
    ]
    launch_item, rest = found.timeline.items[index : index + 2]
    assert (launch_item.ft_us, rest.ft_us, rest.family) == (0.0, pytest.approx(15.0), "graph-launch")


def test_branches_of_a_graph_are_laid_end_to_end_by_what_they_add() -> None:
    record = graphed()
    assert record.trace is not None
    activities = [
        activity(kernel_of(ADDMM), 200.0, 10.0, launch=0, at_site=0),
        activity(kernel_of(ADD), 202.0, 3.0, launch=0, at_site=0, stream=9),  # beside the first: adds nothing
        activity(kernel_of(ADD), 206.0, 10.0, launch=0, at_site=0, stream=9),  # 206…216 adds 6
    ]
    alone = step(activities, [launch("graph", at_site=0, activities=3)], sites=1)
    assert record.timing is not None
    traced = msgspec.structs.replace(record.trace, step=alone)
    found = built(msgspec.structs.replace(record, trace=traced, timing=spanning(record.timing, [16.5])))
    (work,) = [one.action for one in found.timeline.items if isinstance(one.action, Work)]
    assert [piece.us for piece in work.pieces] == [10.0, 6.0]
    assert simulate(found.timeline).device_us == pytest.approx(16.0)
    assert found.notes == []


def test_two_compiled_graphs_share_what_surrounds_them() -> None:
    sites = [site("torch.add", ADD, graph=1), site("torch.add", ADD, graph=1), site("torch.add", ADD, graph=2)]
    times = timing(
        "dynamo", sites=sites, spans=spans(60.0, 0.0, host_us=100.0, around_us=40.0), in_situ=clock([20.0] * 3, 100.0)
    )
    activities = [activity(kernel_of(ADD), 200.0 + 10 * i, 5.0, launch=i, at_site=i) for i in range(3)]
    traced = trace(step(activities, [launch(at_site=i) for i in range(3)], sites=3), "dynamo", library_calls=NO_CALLS)
    found = built(on(recording(times, traced)))
    shown = [(one.family, round(sum((one.ft_us, one.ct_us, one.launch_us)), 6)) for one in found.timeline.items]
    # 20 around each: 18 before it and 2 behind; a call of 20 is 14.4 + 4 in its launch, and 1.6 behind that.
    call = [("elementwise", 18.4), ("elementwise", 1.6)]
    assert shown == [(AROUND, 18.0), *call, *call, (AROUND, 2.0), (AROUND, 18.0), *call, (AROUND, 2.0)]


def test_clocked_gaps_replace_the_even_spread() -> None:
    # Glue 25: 5 before the first call, 2 and 12 between, 6 behind the last, instead of 6.25 each.
    gaps = spans(51.0, 25.0, host_us=76.0)
    found = built(closing(spans=msgspec.structs.replace(gaps, gaps_us=[5.0, 2.0, 12.0, 6.0])))
    assert sums(found.timeline.items) == pytest.approx((55.0, 13.0, 8.0))
    glue = [one.ft_us for one in found.timeline.items if one.family == BETWEEN]
    assert glue == pytest.approx([5.0, 1.0, 2.0, 12.0, 6.0])  # the call that dispatches nothing takes 1
    # linear enters its launch at 5 + 1 + 2 + 23.4 = 31.4; add at 8 + 30 + 12 + 14.4 = 64.4, returns at 68.4.
    starts = [us for us in simulate(found.timeline).starts_us if us is not None]
    assert starts == pytest.approx([36.4, 69.4])


def test_gaps_at_another_speed_or_with_launches_of_their_own_keep_the_sum() -> None:
    activities = [
        activity(kernel_of(ADDMM), 200.0, 40.0, launch=0, at_site=1),
        activity("copy_between", 241.0, 2.0, launch=1),
        activity(kernel_of(ADD), 250.0, 30.0, launch=2, at_site=2),
    ]
    launches = [launch(at_site=1), launch(), launch(at_site=2)]
    traced = eager_trace(eager_step(activities=activities, launches=launches))
    gaps = msgspec.structs.replace(spans(51.0, 25.0, host_us=76.0), gaps_us=[10.0, 4.0, 24.0, 12.0])  # twice as slow
    found = built(msgspec.structs.replace(closing(spans=gaps), trace=traced))
    assert sum(sums(found.timeline.items)) == pytest.approx(76.0)
    glue = [one.ft_us for one in found.timeline.items if one.family == BETWEEN]
    # Of the 12 before add the launch that lies there takes 4, its place in two halves.
    assert glue == pytest.approx([5.0, 1.0, 2.0, 4.0, 4.0, 6.0])


def test_what_lies_behind_a_graph_launch_is_what_was_clocked_there() -> None:
    record = graphed()
    assert record.timing is not None and record.timing.spans is not None
    clocked = msgspec.structs.replace(record.timing.spans, gaps_us=[40.0, 15.0])
    found = built(msgspec.structs.replace(record, timing=msgspec.structs.replace(record.timing, spans=clocked)))
    result = simulate(found.timeline)
    # 40 before the replay, which is entered then; its first node starts 20 later.
    assert next(us for us in result.starts_us if us is not None) == pytest.approx(60.0)
    assert sums(found.timeline.items) == pytest.approx((47.0, 0.0, 53.0))


# --- what cannot be built -------------------------------------------------------------------------------------------


def test_every_missing_part_is_a_reason_that_the_review_shows() -> None:
    assert why_not(on(eager_recording(), whole(gap_us=None))) == "no gap: no gap_us here"
    assert why_not(on(eager_recording(), whole(graph_gap_us=None))) == "no graph gap: no graph_gap_us here"
    assert why_not(on(eager_recording(), whole(sync_us=None))) == "no sync: no sync_us here"
    assert "below zero" in why_not(on(eager_recording(), whole(gap_us=-0.25)))
    assert "below zero" in why_not(on(eager_recording(), whole(sync_us=-0.25)))
    failed = eager_timing(in_situ=None, spans=None, in_situ_failure="the step could not be clocked")
    assert why_not(on(eager_recording(timing=failed))) == "the step could not be clocked"
    other = eager_trace(eager_step(sites=4))
    assert "other calls than the timed one" in why_not(on(eager_recording(trace=other)))
    assert why_not(on(waiting(drained=None, in_situ_failure="not drained"))).endswith(
        "could not be drained: not drained"
    )
    lost = graphed()
    assert lost.trace is not None
    lost = msgspec.structs.replace(lost, trace=msgspec.structs.replace(lost.trace, graph_latency_us=[]))
    assert why_not(lost) == "the latency of 0 of 1 graph launches was measured"
    assert why_not(on(eager_recording(trace=None, failures={"trace": "killed"}))) == "the trace failed: killed"
    calls = graphed_recording()
    assert "library calls inside a graphed variant" in why_not(on(calls))


def test_the_cpu_device_hides_nothing() -> None:
    record = on(eager_recording(device="cpu", trace=None))
    assert from_recording(record) == CPU
    exposed = decompose(record, None).exposed
    assert exposed == Exposed.unavailable(CPU)


def test_a_variant_that_was_not_timed_has_no_exposed_cost() -> None:
    record = recording(None, None, failures={"timing": "out of memory"})
    assert from_recording(record) == "out of memory"
    assert decompose(record, None).exposed is None


def test_the_launch_latency_falls_back_on_the_traced_floor_and_says_so() -> None:
    floors = whole()
    bare = msgspec.structs.replace(floors, launch_path=calibration(untraced_us=None).launch_path)
    found = floors_of(bare)
    assert not isinstance(found, str)
    # T_sys 5 traced − launch 4
    assert (found[0].latency_us, found[1]) == (1.0, "traced")
    nothing = msgspec.structs.replace(bare, t_sys_us=None, unmeasured={**bare.unmeasured, "t_sys_us": "no trace"})
    assert floors_of(nothing) == "no launch latency: no trace"
    assert math.isclose(GAPS["sync_us"], found[0].sync_us)
