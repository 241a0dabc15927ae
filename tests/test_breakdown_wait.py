"""T_wait by the blocking calls themselves, where no drained pass can tell it, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fake_recording import (
    SITES,
    activity,
    calibration,
    clock,
    eager_recording,
    eager_step,
    eager_timing,
    eager_trace,
    graphed_recording,
    launch,
    libraries,
    parts_of,
    place,
    recording,
    spans,
    step,
    timing,
    trace,
    waiting,
)

from taxbreak_fx.breakdown import decompose
from taxbreak_fx.breakdown_wait import QUEUED, take_wait
from taxbreak_fx.draft import Draft
from taxbreak_fx.recording import Recording, Timing

OUTSIDE = [("cudaStreamSynchronize", 2), ("cudaDeviceSynchronize", None)]


def taken(record: Recording, launches: int = 2) -> tuple[float | None, str, Draft]:
    """T_wait, its reason, and the draft as it is left."""
    assert record.timing is not None and record.trace is not None
    draft = Draft(record, record.timing)
    return *take_wait(draft, record.trace, launches), draft


def blocked(**fields: Any) -> Timing:
    """A compiled step that blocks for 15 µs in site 2, 7 around its graph callables and 3 between its sites."""
    defaults: dict[str, Any] = {
        "sites": SITES,
        "spans": spans(51.0, 15.0, host_us=100.0, around_us=16.0),
        "in_situ": clock([1.0, 30.0, 20.0], 100.0),
        "library": libraries(
            place(2, blocked_us=15.0), place(around=True, blocked_us=7.0), place(blocked_us=3.0), HEARD_WORK
        ),
    }
    return timing("dynamo", **(defaults | fields))


HEARD_WORK = place(1, own_us=16.0, calls=1)


def traced(syncs: list[tuple[str, int | None]]) -> Any:
    return eager_trace(eager_step(syncs=syncs), variant="dynamo")


def test_blocked_time_is_taken_from_the_sites_the_surroundings_and_the_glue() -> None:
    wait, why, draft = taken(recording(blocked(), traced(OUTSIDE)))
    assert (wait, why) == (15.0 + 7.0 + 3.0, "")
    assert draft.clock is not None and draft.spans is not None
    assert draft.clock.site_us == [1.0, 30.0, 5.0]
    assert (draft.spans.around_us, draft.spans.glue_us, draft.spans.sites_us) == (9.0, 12.0, 36.0)


def test_the_whole_step_closes_on_issue_time() -> None:
    variant = decompose(recording(blocked(), traced(OUTSIDE)), None)
    parts = parts_of(variant)
    assert (variant.t_wait_us, variant.issue_us) == (25.0, 75.0)
    # ΔCT 16 − 4 = 12, launch 8: ΔFT = 75 − 20.  Around 9 (not split: no frame), glue 12, ops = 36 − 20
    assert parts.ft_us == 55.0
    assert parts.ft_parts == {"guards_and_frame": 9.0, "node_python": 12.0, "ops": 16.0, "unattributed": 18.0}
    # raw pieces 16 + 15 + 51, less the wait, of T_issue
    assert parts.closure_error == pytest.approx((82.0 - 25.0 - 75.0) / 75.0)


def test_blocked_time_is_brought_to_the_speed_of_the_pairs() -> None:
    slow = libraries(place(2, blocked_us=30.0), place(around=True, blocked_us=14.0), host_us=200.0)
    wait, _, draft = taken(recording(blocked(library=slow), traced(OUTSIDE)))
    assert wait == 22.0
    assert draft.clock is not None and draft.clock.site_us[2] == 5.0
    assert draft.spans is not None and draft.spans.around_us == 9.0


def test_a_step_without_surroundings_loses_glue_only() -> None:
    # Eager has no graph callable: all that is outside its sites is glue, 25 µs of it.
    record = eager_recording(
        timing=eager_timing(library=libraries(place(blocked_us=5.0))), trace=eager_trace(eager_step(syncs=OUTSIDE))
    )
    wait, _, draft = taken(record)
    assert wait == 5.0 and draft.spans is not None
    assert (draft.spans.around_us, draft.spans.glue_us) == (None, 20.0)


def test_clocks_that_failed_still_leave_the_wait() -> None:
    record = recording(blocked(spans=None, in_situ=None), traced(OUTSIDE))
    wait, why, draft = taken(record)
    assert (wait, why, draft.clock, draft.spans) == (25.0, "", None, None)


def test_a_graphed_step_is_charged_for_the_calls_that_block_in_and_around_it() -> None:
    heard = libraries(place(0, blocked_us=6.0), place(around=True, blocked_us=10.0), place(blocked_us=2.0))
    record = graphed_recording(library=heard, syncs=[("cudaStreamSynchronize", None)])
    wait, why, draft = taken(record, 3)
    assert (wait, why) == (18.0, "")
    assert draft.spans is not None
    assert (draft.spans.around_us, draft.spans.glue_us, draft.spans.sites_us) == (20.0, 23.0, 39.0)
    variant = decompose(record, None)
    # raw pieces 30 + 25 + 45 are all of T_host, so they are all of T_issue without the wait
    assert variant.issue_us == 82.0
    assert parts_of(variant).closure_error == 0.0
    # and a sync that the trace saw inside a graph's own call needs the timed calls too: there is no drained pass
    inside = graphed_recording(library=heard, syncs=[("cudaStreamSynchronize", 0)])
    assert taken(inside, 3)[0] == 18.0


@pytest.mark.parametrize(
    ("record", "launches", "why"),
    [
        (
            recording(blocked(library=None, library_failure="no compiler"), traced(OUTSIDE)),
            2,
            "the step blocks outside every recorded call (cudaDeviceSynchronize): no compiler",
        ),
        (
            graphed_recording(library_failure="no compiler", syncs=[("cudaStreamSynchronize", 0)]),
            3,
            "the step blocks inside a graphed variant: no compiler",
        ),
    ],
)
def test_blocking_calls_that_were_not_timed_leave_the_wait_null(record: Recording, launches: int, why: str) -> None:
    wait, reason, _ = taken(record, launches)
    assert (wait, reason) == (None, why)
    variant = decompose(record, None)
    assert (variant.t_wait_us, variant.unmeasured["t_wait_us"]) == (None, why)
    assert parts_of(variant).ft_us is None and parts_of(variant).kt_us is not None  # the rest stands


def test_nothing_blocks_where_the_trace_saw_no_sync() -> None:
    # A few tenths of noise in a call that never blocks are no wait.
    wait, why, draft = taken(recording(blocked(), traced([])))
    assert (wait, why) == (0.0, "")
    assert draft.clock is not None and draft.clock.site_us == [1.0, 30.0, 20.0]


def test_recorded_calls_are_compared_with_the_drained_pass_only_where_the_blocking_calls_have_no_times() -> None:
    base = waiting()
    assert base.timing is not None
    heard = libraries(place(2, blocked_us=14.0))
    unpriced = msgspec.structs.replace(heard, unpriced=["cudaMemcpy"])
    for library, wait in ((heard, 14.0), (unpriced, 15.0), (None, 15.0)):
        timing = msgspec.structs.replace(base.timing, library=library)
        assert taken(msgspec.structs.replace(base, timing=timing))[0] == wait


def test_a_queue_that_may_be_full_is_beyond_the_blocking_calls() -> None:
    # Launches block then, and those are no synchronisations: only a drained pass can tell, and a graph has none.
    many = step(
        [activity("k", 0.0, 1.0)], [launch("graph")] + [launch()] * 1_000, syncs=[("cudaDeviceSynchronize", None)]
    )
    graphed = graphed_recording(library=libraries(place(blocked_us=5.0)))
    queued = msgspec.structs.replace(graphed, trace=trace(many, "reduce-overhead", graph_latency_us=[20.0]))
    assert taken(queued, 1_001)[:2] == (None, "the step may fill the launch queue inside a graphed variant")
    drained = clock([1.0, 28.0, 5.0], 100.0, drained=True)
    full = recording(
        blocked(drained=drained), trace(msgspec.structs.replace(many, sites=3), "dynamo"), floors=calibration()
    )
    # all sites: 0 + 2 + 15; and beside them the 7 + 3 of the blocking calls
    assert taken(full, 1_000)[0] == 17.0 + 10.0


def test_waits_of_the_drained_pass_are_brought_to_the_speed_of_the_pairs() -> None:
    # Clocked and drained on a host half as fast as during the pairs: 30 of wait there are 15, as is all the rest.
    slow = waiting(
        in_situ=clock([2.0, 60.0, 40.0], 200.0),
        drained=clock([2.0, 56.0, 10.0], 200.0, drained=True),
        spans=spans(102.0, 98.0, host_us=200.0),
    )
    fast = decompose(waiting(spans=spans(51.0, 49.0, host_us=100.0)), None)
    found = decompose(slow, None)
    assert found.t_wait_us == fast.t_wait_us == 15.0
    assert parts_of(found).ft_parts == parts_of(fast).ft_parts
    assert parts_of(found).ft_parts["python"] == 49.0 + 1.0  # what lies above the ops waits for nothing


def test_closure_sets_the_wait_against_the_passes_it_is_taken_from() -> None:
    # Of T_host 100 the device holds 90.  The clocked passes ran at half that: 1 µs missing of T_issue 5, not of −40.
    quick = waiting(
        in_situ=clock([0.5, 1.0, 46.0], 50.0),
        drained=clock([0.5, 1.0, 1.0], 50.0, drained=True),
        spans=spans(47.5, 1.5, host_us=50.0),
    )
    assert quick.trace is not None
    silent = msgspec.structs.replace(quick.trace, library_calls={"cublas": 0, "cublaslt": 0})
    found = decompose(msgspec.structs.replace(quick, trace=silent), None)
    assert (found.t_wait_us, found.issue_us) == (90.0, 10.0)
    assert parts_of(found).closure_error == pytest.approx(-1.0 / 5.0)


def full_queue(**fields: Any) -> Recording:
    """1,000 launches of site 2, of which each took 4 µs to issue and the last one waits 4,000 for room in the queue.

    T_host 10,000: sites 1, 30 and 8,500; 4,500 when drained.  A cuBLAS call in site 1, whose launch is not heard.
    """
    kernels = [activity("nvjet_tst_64x8", 0.0, 1.0, at_site=1), activity("k", 2.0, 8_000.0, launch=1, at_site=2)]
    queued = step(kernels, [launch(at_site=1)] + [launch(at_site=2)] * 1_000, sites=3)
    heard = libraries(
        place(1, own_us=1_016.0, calls=1),
        place(2, launches_beside=1_000, launch_us=4_000.0 + 4_000.0),
        host_us=10_000.0,
    )
    timed = eager_timing(
        host_us=10_000.0,
        spans=spans(8_531.0, 1_469.0, host_us=10_000.0),
        in_situ=clock([1.0, 30.0, 8_500.0], 10_000.0),
        drained=clock([1.0, 30.0, 4_500.0], 10_000.0, drained=True),
        library=heard,
        **fields,
    )
    return eager_recording(timing=timed, trace=eager_trace(msgspec.structs.replace(queued, deepest_queue=1_000)))


def test_waiting_for_a_full_queue_is_neither_launch_nor_library_time_beside_t_wait() -> None:
    variant = decompose(full_queue(), None)
    parts = parts_of(variant)
    assert variant.t_wait_us == 4_000.0
    assert variant.launch_us == 1_001 * 4.0, "as calibrated: what was heard holds the wait"
    # and the cuBLAS call may have waited in its own launch: subtractive, 25 − 4 − (12 − 4)
    assert (parts.ct_us, parts.ct_source) == (13.0, f"subtractive: {QUEUED}")
    assert parts.ft_us == 10_000.0 - 4_000.0 - 4_004.0 - 13.0
    assert any(QUEUED in note for note in variant.notes)


def test_syncs_between_the_sites_of_a_step_that_fills_the_queue_are_waits_too() -> None:
    queued = full_queue()
    assert queued.trace is not None and queued.timing is not None and queued.timing.library is not None
    traced = msgspec.structs.replace(queued.trace.step, syncs=[("cudaDeviceSynchronize", None)])
    heard = [*queued.timing.library.sites, place(2, blocked_us=1.0), place(blocked_us=300.0)]
    timed = msgspec.structs.replace(queued.timing, library=libraries(*heard, host_us=10_000.0))
    record = msgspec.structs.replace(queued, timing=timed, trace=msgspec.structs.replace(queued.trace, step=traced))
    # the sites by the drained pass, what lies in none by its blocking calls
    wait, why, draft = taken(record, 1_001)
    assert (wait, why) == (4_000.0 + 300.0, "")
    assert draft.spans is not None and draft.spans.glue_us == 1_469.0 - 300.0
    assert draft.clock is not None and draft.clock.site_us == [1.0, 30.0, 4_500.0]
    # and without those it is unknown
    deaf = msgspec.structs.replace(timed, library=None, library_failure="no compiler")
    assert taken(msgspec.structs.replace(record, timing=deaf), 1_001)[:2] == (
        None, "the step blocks outside every recorded call (cudaDeviceSynchronize): no compiler",
    )  # fmt: skip


def test_a_blocking_call_of_unknown_idle_cost_leaves_no_wait_and_no_guess() -> None:
    library = msgspec.structs.replace(libraries(place(around=True, blocked_us=7.0)), unpriced=["cudaMemcpy"])
    record = recording(blocked(library=library), eager_trace(eager_step(syncs=OUTSIDE)))
    wait, why, _ = taken(record)
    assert (wait, why) == (None, "the step blocks in cudaMemcpy, whose cost on an idle device was not measured")
