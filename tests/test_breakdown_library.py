"""ΔCT by what was heard in the running step, by subtraction beside it, and the reason whenever one is missing."""

from __future__ import annotations

import msgspec
import pytest
from fake_recording import (
    HEARD,
    calibration,
    clock,
    eager_recording,
    eager_step,
    eager_timing,
    eager_trace,
    graphed_recording,
    leaf,
    libraries,
    only_places,
    parts_of,
    place,
    site,
)

from taxbreak_fx.breakdown import decompose
from taxbreak_fx.breakdown_library import DIRECT, NO_CALLS, NO_LIBRARY_OP, UNSITED
from taxbreak_fx.decompose import library_direct
from taxbreak_fx.variant_record import FamilyLibrary

SUBTRACTIVE_US = 13.0  # of the reference step, derived in test_decompose
SILENT = {"cublas": 0, "cublaslt": 0, "cudnn": 0}


def test_the_equation() -> None:
    assert library_direct(16.0, 1, 4.0) == 12.0
    assert library_direct(16.0, 0, 4.0) == 16.0
    assert library_direct(3.0, 1, 4.0) == -1.0  # the sign is kept


def test_the_headline_is_direct_and_both_estimates_stand_beside_each_other() -> None:
    variant = decompose(only_places(*HEARD), None)
    parts = parts_of(variant)
    # 16 − one launch of the trace that was not heard, at 4
    assert (parts.ct_us, parts.ct_source) == (12.0, DIRECT)
    assert parts.ct_families == [
        FamilyLibrary(family="gemm", calls=1, direct_us=12.0, subtractive_us=SUBTRACTIVE_US),
    ]
    # launches: 4.5 heard + 4 calibrated
    assert variant.launch_us == 8.5
    assert parts.ft_us == 100.0 - 12.0 - 8.5
    row = next(node for node in variant.nodes if node.family == "gemm")
    # linear took 30: 12 in the library, 4 in its launch
    assert (row.ct_us, row.ft_us) == (12.0, 30.0 - 12.0 - 4.0)


def test_a_launch_that_was_not_heard_costs_what_a_null_kernel_did_beside_the_variant() -> None:
    record = only_places(*HEARD)
    assert record.timing is not None and record.launch_us == 4.0
    faster = msgspec.structs.replace(record, timing=msgspec.structs.replace(record.timing, launch_us=3.0))
    variant = decompose(faster, None)
    assert (parts_of(variant).ct_us, variant.launch_us) == (16.0 - 3.0, 4.5 + 3.0)
    (note,) = [note for note in variant.notes if "null kernel" in note]
    assert "3.00 µs while this variant was timed and 4.00 in the calibration" in note
    near = msgspec.structs.replace(record, timing=msgspec.structs.replace(record.timing, launch_us=4.2))
    assert not [note for note in decompose(near, None).notes if "null kernel" in note]


def test_launches_heard_inside_the_library_are_gone_already() -> None:
    inside = place(1, own_us=16.0, calls=1, launches_inside=1, launch_us=5.0)
    beside = place(1, own_us=16.0, calls=1, launches_beside=1, launch_us=5.0)
    for heard in (inside, beside):
        assert parts_of(decompose(only_places(heard, HEARD[1]), None)).ct_us == 16.0


def test_set_up_calls_are_library_time_without_a_launch() -> None:
    # cublasSetStream in add's call: its own launch is add's, not the library's.
    setting = place(2, own_us=0.5, launches_beside=0)
    parts = parts_of(decompose(only_places(HEARD[0], setting), None))
    assert parts.ct_us == 12.0 + 0.5
    # and so outside all recorded calls
    parts = parts_of(decompose(only_places(*HEARD, place(own_us=0.5)), None))
    assert parts.ct_us == 12.0 + 0.5


def test_what_was_heard_is_brought_to_the_speed_of_the_pairs() -> None:
    # heard on a host half as fast: 40 µs stand for 20, less one launch at 4
    assert parts_of(decompose(only_places(place(1, own_us=40.0, calls=1), host_us=200.0), None)).ct_us == 16.0


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        ("no C compiler was found: install gcc", "no C compiler was found: install gcc"),
        ("no loaded library imports a vendor library's functions by name",) * 2,
        (None, "library calls were not timed"),
    ],
)
def test_where_calls_cannot_be_interposed_it_is_subtractive_with_that_reason(failure: str | None, why: str) -> None:
    variant = decompose(eager_recording(timing=eager_timing(library_failure=failure)), None)
    parts = parts_of(variant)
    assert (parts.ct_us, parts.ct_source) == (SUBTRACTIVE_US, f"subtractive: {why}")
    assert parts.ct_families == [
        FamilyLibrary(
            family="gemm", calls=1, direct_us=None, subtractive_us=SUBTRACTIVE_US, unmeasured={"direct_us": why}
        )
    ]
    assert (variant.launch_us, parts.ft_us, parts.kt_us) == (8.0, 79.0, 10.0)  # the rest stands


def test_without_either_estimate_the_term_is_null_with_both_reasons() -> None:
    addmm, add = leaf("aten.addmm.default", None, 1, "refused"), leaf("aten.add.Tensor", 12.0, 1)
    timed = eager_timing(replays=[addmm[0], add[0]], library_failure="no compiler")
    parts = parts_of(decompose(eager_recording(timing=timed), None))
    assert (parts.ct_us, parts.ct_source) == (None, "none: no compiler")
    assert parts.unmeasured["ct_us"] == "the replay of aten.addmm.default failed: refused"
    # a failed replay costs the second estimate only
    parts = parts_of(decompose(eager_recording(timing=msgspec.structs.replace(timed, library=libraries(*HEARD))), None))
    assert parts.ct_us == 12.0
    (row,) = parts.ct_families
    assert (row.subtractive_us, row.unmeasured["subtractive_us"]) == (
        None, "the replay of aten.addmm.default failed: refused",
    )  # fmt: skip


def test_zero_only_where_neither_the_loggers_nor_the_import_tables_heard_a_call() -> None:
    quiet = eager_trace(library_calls=SILENT)
    nothing = msgspec.structs.replace(only_places(HEARD[1]), trace=quiet)
    parts = parts_of(decompose(nothing, None))
    assert (parts.ct_us, parts.ct_source, parts.ct_families) == (0.0, NO_CALLS, [])
    # cuSPARSE has no logger: what was heard counts
    heard = msgspec.structs.replace(only_places(*HEARD), trace=quiet)
    parts = parts_of(decompose(heard, None))
    assert (parts.ct_us, parts.ct_source) == (12.0, DIRECT)
    # the loggers failed: a step in which nothing was heard has no library time all the same
    lost = eager_trace(library_calls=None, library_failure="no logger")
    parts = parts_of(decompose(msgspec.structs.replace(nothing, trace=lost), None))
    assert (parts.ct_us, parts.ct_source) == (0.0, DIRECT)


def test_more_launches_heard_than_traced_falls_back_with_the_call_that_shows_it() -> None:
    many = place(1, own_us=16.0, calls=1, launches_inside=2, launch_us=8.0)
    variant = decompose(only_places(many), None)
    parts = parts_of(variant)
    assert parts.ct_us == SUBTRACTIVE_US
    why = "torch.nn.functional.linear: more launches were heard than its trace shows"
    assert parts.ct_source == f"subtractive: {why}"
    assert parts.ct_families[0].unmeasured == {"direct_us": why}
    assert variant.launch_us == 8.0, "as calibrated: the same surplus"


def test_an_unknown_launch_cost_leaves_both_estimates_null() -> None:
    parts = parts_of(
        decompose(msgspec.structs.replace(only_places(*HEARD), calibration=calibration(launch_us=None)), None)
    )
    assert (parts.ct_us, parts.ct_source) == (None, "none: no launch_us here")
    assert parts.unmeasured["ct_us"] == "no launch_us here"


def test_a_family_is_zero_where_heard_silent_and_null_where_nothing_could_be_subtracted() -> None:
    # linear made no call, add made one: what the registry says of both is wrong, and the table shows it.
    wrong = place(2, own_us=16.0, calls=1)
    rows = {row.family: row for row in parts_of(decompose(only_places(wrong), None)).ct_families}
    assert (rows["gemm"].calls, rows["gemm"].direct_us, rows["gemm"].subtractive_us) == (0, 0.0, SUBTRACTIVE_US)
    other = rows["elementwise"]
    assert (other.calls, other.direct_us, other.subtractive_us) == (1, 12.0, None)
    assert other.unmeasured == {"subtractive_us": NO_LIBRARY_OP}


def test_calls_outside_all_sites_launch_the_library_kernels_that_no_site_launched() -> None:
    # Heard in no site: 20 µs.  Of the trace's launches the cuBLAS kernel's is of no site: 20 − 4.  Sites: 16 − 4.
    base = only_places(*HEARD, place(own_us=20.0, calls=1))
    assert base.trace is not None
    step = base.trace.step
    stray = msgspec.structs.replace(
        step,
        activities=[*step.activities, msgspec.structs.replace(step.activities[0], launch=2, site=None, start_us=300.0)],
        launches=[*step.launches, msgspec.structs.replace(step.launches[0], site=None)],
    )
    parts = parts_of(decompose(msgspec.structs.replace(base, trace=eager_trace(stray)), None))
    assert parts.ct_us == 16.0 + 12.0
    rows = {row.family: row for row in parts.ct_families}
    assert (rows[UNSITED].calls, rows[UNSITED].direct_us, rows[UNSITED].subtractive_us) == (1, 16.0, None)
    assert (rows["gemm"].calls, rows["gemm"].direct_us) == (1, 12.0)


def test_where_the_trace_met_other_sites_all_calls_are_charged_by_the_kernels_names() -> None:
    # 16 µs heard; the trace has one launch of a cuBLAS kernel and one of add's: 16 − 4.
    record = msgspec.structs.replace(only_places(*HEARD), trace=eager_trace(eager_step(sites=4)))
    variant = decompose(record, None)
    parts = parts_of(variant)
    assert parts.ct_us == 12.0
    rows = {row.family: row for row in parts.ct_families}
    assert (rows[UNSITED].calls, rows[UNSITED].direct_us) == (1, 12.0)
    assert (rows["gemm"].direct_us, rows["gemm"].subtractive_us) == (None, SUBTRACTIVE_US)
    assert rows["gemm"].unmeasured == {"direct_us": "the traced step met other calls than the timed one"}
    assert variant.launch_us == 8.5


def test_a_graphed_step_is_charged_for_what_its_ungraphed_partitions_call() -> None:
    # Heard: 20 µs of cuBLAS, whose kernel is launched unheard; the graph's own cuBLAS kernel is no launch.  20 − 4.
    heard = libraries(place(own_us=20.0, calls=1), place(launches_beside=1, launch_us=4.5), place(0, graph_us=40.0))
    variant = decompose(graphed_recording(library=heard), None)
    parts = parts_of(variant)
    assert (parts.ct_us, parts.ct_source) == (16.0, DIRECT)
    (row,) = parts.ct_families
    assert (row.family, row.calls, row.direct_us, row.subtractive_us) == (UNSITED, 1, 16.0, None)
    assert row.unmeasured["subtractive_us"].startswith("library calls inside a graphed variant")
    # 4.5 heard + 4 calibrated + 40 in the graph's launch; ΔFT is the rest of 100
    assert variant.launch_us == 48.5
    assert parts.ft_us == 100.0 - 16.0 - 48.5
    # Untimed, its calls leave ΔCT null with the reason, and what hangs on it.
    lost = parts_of(decompose(graphed_recording(library_failure="no compiler"), None))
    assert (lost.ct_us, lost.ct_source) == (None, "none: no compiler")
    assert (lost.ft_us, lost.hdbi) == (None, None) and lost.kt_us == 20.0 + 2 * 5.0


def test_loggers_that_cannot_hear_a_library_do_not_make_it_zero() -> None:
    # cuFFT has no logger: without timed calls, the silence of the others says nothing of its transform.
    fft, add = leaf("aten._fft_r2c.default", 30.0, 1), leaf("aten.add.Tensor", 12.0, 1)
    sites = [site("torch.fft.rfft", fft[0].op), site("torch.add", add[0].op)]
    timed = eager_timing(
        sites=sites, spans=None, in_situ=clock([30.0, 20.0], 100.0), replays=[fft[0], add[0]], library_failure="no gcc"
    )
    traced = eager_trace(eager_step(sites=2, activities=[], launches=[]), library_calls=SILENT)
    record = eager_recording(timing=timed, trace=msgspec.structs.replace(traced, replays=[fft[1], add[1]]))
    parts = parts_of(decompose(record, None))
    # (30 − 4) − (12 − 4)
    assert (parts.ct_us, parts.ct_source) == (18.0, "subtractive: no gcc")
    # listened to at the import tables, silence is silence
    quiet = msgspec.structs.replace(record, timing=msgspec.structs.replace(timed, library=libraries()))
    assert parts_of(decompose(quiet, None)).ct_us == 0.0


def test_a_graphed_step_that_nobody_listened_to_says_why_and_not_none() -> None:
    record = graphed_recording(library_failure="no compiler")
    assert record.trace is not None
    lost = msgspec.structs.replace(record.trace, library_calls=None, library_failure="no logger")
    parts = parts_of(decompose(msgspec.structs.replace(record, trace=lost), None))
    assert (parts.ct_us, parts.ct_source) == (None, "none: no compiler")
    assert parts.unmeasured["ct_us"] == "library calls inside a graphed variant were not counted: no logger"
