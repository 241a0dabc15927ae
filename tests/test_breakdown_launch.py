"""Launch time: what was heard in the running step, and the calibrated cost of the launches that were not."""

from __future__ import annotations

import msgspec
import pytest
from fake_recording import (
    HEARD,
    calibration,
    eager_recording,
    eager_step,
    eager_timing,
    eager_trace,
    graphed_recording,
    libraries,
    only_places,
    place,
)

from taxbreak_fx.breakdown import decompose
from taxbreak_fx.breakdown_launch import LaunchTerm, launch_term
from taxbreak_fx.draft import Draft
from taxbreak_fx.recording import Recording


def term(record: Recording, kernels: int = 2, graphs: int = 0) -> tuple[LaunchTerm, list[str]]:
    """The term of a step of so many launches, and the notes that it leaves."""
    assert record.timing is not None and record.trace is not None
    draft = Draft(record, record.timing)
    return launch_term(draft, record.trace, kernels, graphs), draft.notes


def test_without_timed_calls_every_launch_costs_as_calibrated() -> None:
    assert term(eager_recording())[0] == LaunchTerm(8.0, sites={1: 4.0, 2: 4.0})


def test_launches_heard_cost_what_they_took_the_others_as_calibrated() -> None:
    # heard: add's, 4.5; linear's by cuBLAS, unheard: 4
    assert term(only_places(*HEARD)) == (LaunchTerm(8.5, sites={1: 4.0, 2: 4.5}), [])
    # heard inside the library and beside it alike
    inside = place(1, own_us=16.0, calls=1, launches_inside=1, launch_us=5.5)
    assert term(only_places(inside, HEARD[1]))[0] == LaunchTerm(10.0, sites={1: 5.5, 2: 4.5})
    # one that began in no site: the total has it, no site does
    loose = place(launches_beside=1, launch_us=6.0)
    assert term(only_places(*HEARD, loose), kernels=3)[0] == LaunchTerm(14.5, sites={1: 4.0, 2: 4.5})


def test_what_was_heard_is_brought_to_the_speed_of_the_pairs_the_calibration_is_not() -> None:
    slow = only_places(place(2, launches_beside=1, launch_us=9.0), host_us=200.0)
    assert term(slow)[0] == LaunchTerm(8.5, sites={1: 4.0, 2: 4.5})


@pytest.mark.parametrize(
    ("heard", "note"),
    [
        (place(2, launches_beside=3, launch_us=12.0), "3 were heard in a step whose trace shows 2"),
        (place(2, launches_beside=2, launch_us=9.0), "torch.add was heard to make more than its trace shows"),
    ],
)
def test_more_launches_heard_than_traced_are_not_believed(heard: object, note: str) -> None:
    found, notes = term(only_places(heard))  # type: ignore[arg-type]
    assert found == LaunchTerm(8.0, sites={1: 4.0, 2: 4.0})
    assert notes == [f"launches cost as calibrated: {note}"]


def test_a_trace_with_other_sites_does_not_say_whose_launches_were_not_heard() -> None:
    heard = (place(0, launches_beside=1, launch_us=4.5), HEARD[0])
    record = msgspec.structs.replace(only_places(*heard), trace=eager_trace(eager_step(sites=4)))
    found, notes = term(record)
    assert (found.total, notes) == (8.5, [])


def test_a_graphs_launch_costs_what_was_heard_else_its_whole_replay_call() -> None:
    # two kernels launched beside the graph, 4.5 heard and 4 calibrated
    beside = place(launches_beside=1, launch_us=4.5)
    heard = graphed_recording(library=libraries(beside, place(0, graph_us=40.0)))
    assert term(heard, 2, 1)[0].total == 4.5 + 4.0 + 40.0
    # on a host half as fast
    slow = graphed_recording(library=libraries(beside, place(0, graph_us=80.0), host_us=200.0))
    assert term(slow, 2, 1)[0].total == 2.25 + 4.0 + 40.0
    # the runtime looks graph launches up by itself: CUDAGraph.replay took 45
    assert term(graphed_recording(library=libraries(beside)), 2, 1)[0].total == 4.5 + 4.0 + 45.0
    assert term(graphed_recording(), 2, 1)[0].total == 8.0 + 45.0
    # a variant that graphed nothing after all launches no graph
    assert term(graphed_recording(), 2, 0)[0].total == 8.0


def test_an_unknown_cost_is_null_with_its_reason() -> None:
    unknown = msgspec.structs.replace(only_places(*HEARD), calibration=calibration(launch_us=None))
    assert term(unknown)[0] == LaunchTerm(None, "no launch_us here")
    assert term(unknown, kernels=0)[0].total is not None  # nothing to be charged for
    untimed = eager_recording(timing=eager_timing(in_situ_failure="its work depends on data"))
    assert term(untimed, 2, 1)[0] == LaunchTerm(None, "its work depends on data")
    assert decompose(unknown, None).unmeasured["launch_us"] == "no launch_us here"
