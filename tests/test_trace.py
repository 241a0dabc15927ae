"""Chrome traces as torch.profiler writes them (tests/traces, written by hand) become traced steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taxbreak_fx.errors import FormatError
from taxbreak_fx.probes import RANGE, STEP
from taxbreak_fx.recording import TracedStep
from taxbreak_fx.trace import (
    deepest_queue,
    kernel_latencies,
    read_events,
    spans,
    traced_steps,
)

TRACES = Path(__file__).parent / "traces"
GEMM = "nvjet_tst_64x8_64x16_4x1_v_bz_TNN"


def events_of(name: str) -> list[dict[str, Any]]:
    """The complete events of a trace file."""
    return read_events((TRACES / name).read_bytes(), name)


def steps_of(name: str) -> list[TracedStep]:
    """The steps of a trace file."""
    events = events_of(name)
    return traced_steps(events, spans(events, STEP), spans(events, RANGE))


def test_only_complete_events_are_read() -> None:
    assert {event["ph"] for event in events_of("eager.json")} == {"X"}


def test_ranges_are_the_hosts_not_their_mirror_on_the_device() -> None:
    events = events_of("eager.json")
    assert spans(events, STEP) == [(1000.0, 1200.0, "0"), (2000.0, 2100.0, "1")]
    assert [name for _, _, name in spans(events, RANGE)] == ["0", "1", "2", "3", "0"]
    assert spans(events, "no.such.range") == []


def test_launches_of_a_step_in_issue_order_with_their_sites() -> None:
    first, _ = steps_of("eager.json")
    assert [(launch.api, launch.kind, launch.site) for launch in first.launches] == [
        ("cuLaunchKernelEx", "kernel", 0),
        ("cudaMemcpyAsync", "memop", None),  # between sites 1 and 2
        ("cudaLaunchKernel", "kernel", None),
        ("cudaLaunchKernel", "kernel", 2),
        ("cudaMemcpyAsync", "memop", 3),
        ("cudaMemsetAsync", "memop", None),
    ]
    # API entry to start: 1040 − 1030, 1091 − 1060, 1093 − 1066, 1088.25 − 1080.5, 1112 − 1105, 1176 − 1170
    assert [launch.latency_us for launch in first.launches] == [10.0, 31.0, 27.0, 7.75, 7.0, 6.0]
    assert first.sites == 4


def test_activity_whose_launch_is_not_in_the_trace_is_kept_without_a_launch_and_a_site() -> None:
    events = events_of("eager.json")
    lost = {"ph": "X", "cat": "kernel", "name": "lost", "ts": 1195.0, "dur": 2.0, "args": {"correlation": 987654}}
    ranges = spans(events, STEP), spans(events, RANGE)
    with_it, without = (traced_steps(found, *ranges) for found in ([*events, lost], events))
    assert [len(step.activities) for step in with_it] == [len(without[0].activities) + 1, len(without[1].activities)]
    kept = next(activity for activity in with_it[0].activities if activity.name == "lost")
    assert (kept.launch, kept.site, kept.duration_us) == (None, None, 2.0)
    assert with_it[0].launches == without[0].launches


def test_activities_by_start_with_their_launch_site_stream_and_signature() -> None:
    first, _ = steps_of("eager.json")
    assert [(a.kind, a.start_us, a.duration_us, a.launch, a.site, a.stream) for a in first.activities] == [
        ("kernel", 1040.0, 50.0, 0, 0, 7),
        ("kernel", 1088.25, 3.0, 3, 2, 9),
        ("memcpy", 1091.0, 1.5, 1, None, 7),
        ("kernel", 1093.0, 2.0, 2, None, 7),
        ("memcpy", 1112.0, 1.0, 4, 3, 7),
        ("memset", 1176.0, 0.5, 5, None, 7),
    ]
    assert first.activities[0].name == GEMM
    assert first.activities[0].signature == "grid [16, 2, 1] block [384, 1, 1] smem 98304 regs 168"
    assert first.activities[2].signature == ""


def test_syncs_are_those_inside_the_step() -> None:
    first, second = steps_of("eager.json")
    # the one at 910 is before the step
    assert first.syncs == [("cudaStreamSynchronize", 3), ("cudaDeviceSynchronize", None)]
    assert second.syncs == []


def test_a_step_holds_only_its_own_window() -> None:
    _, second = steps_of("eager.json")
    assert [(launch.api, launch.site) for launch in second.launches] == [("cuLaunchKernelEx", 0)]
    assert second.sites == 1


def test_what_has_no_correlation_is_matched_with_nothing() -> None:
    _, second = steps_of("eager.json")
    assert [activity.name for activity in second.activities if activity.launch is not None] == [GEMM]
    lost = [activity for activity in second.activities if activity.launch is None]
    assert [activity.site for activity in lost] == [None]  # kept, with nobody who issued it
    assert kernel_latencies(events_of("eager.json")[-2:]) == []


def test_a_graph_launch_issues_many_activities() -> None:
    (step,) = steps_of("graph.json")
    graph = step.launches[1]
    assert [launch.kind for launch in step.launches] == ["memop", "graph"]
    assert (graph.api, graph.site, graph.activities) == ("cudaGraphLaunch", 0, 4)
    assert graph.latency_us == 138.0 - 115.0  # its first node is the memset
    inside = [activity for activity in step.activities if activity.launch == 1]
    assert [activity.kind for activity in inside] == ["memset", "kernel", "kernel", "kernel"]
    assert {activity.site for activity in inside} == {0}
    assert {activity.stream for activity in inside} == {13, 14}


def test_kernel_latencies_of_a_whole_trace() -> None:
    # kernels only, with or without a step: 906 − 900, then the three of step 0 and the one of step 1
    assert sorted(kernel_latencies(events_of("eager.json"))) == [6.0, 7.0, 7.75, 10.0, 27.0]


def test_without_ranges_there_is_no_step() -> None:
    assert traced_steps(events_of("eager.json"), [], []) == []


def test_a_step_without_device_work_is_empty() -> None:
    (step,) = traced_steps(events_of("eager.json"), [(5000.0, 5001.0, "0")], [])
    assert (step.activities, step.launches, step.syncs, step.sites, step.deepest_queue) == ([], [], [], 0, 0)


@pytest.mark.parametrize(
    ("flights", "deepest"),
    [
        ([], 0),
        ([(0.0, 5.0)], 1),
        ([(0.0, 5.0), (5.0, 9.0)], 1),  # the first is finished when the second is issued
        ([(0.0, 9.0), (1.0, 10.0), (2.0, 11.0)], 3),
        ([(0.0, 9.0), (1.0, 2.0), (3.0, 10.0)], 2),  # the middle one overtook
    ],
)
def test_the_deepest_queue(flights: list[tuple[float, float]], deepest: int) -> None:
    assert deepest_queue(flights) == deepest


def test_the_deepest_queue_of_a_step() -> None:
    # Issued and not finished at 1080.5: gemm (until 1090), copy (1092.5), add (1095) and the one issued then.
    assert steps_of("eager.json")[0].deepest_queue == 4


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b"3",
        b'{"traceEvents": null}',
        b'{"traceEvents": 3}',
        b'{"traceEvents": "text"}',
        b'{"traceEvents": [3]}',
        b'{"traceEvents": [{"ph": "X", "name": "\xff"}]}',
        b'{"traceEvents": [',
        b'{"traceEvents": ' + b"[" * 100_000,
    ],
)
def test_malformed_bytes_are_one_clear_error(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^mine\.json is not a Chrome trace of torch\.profiler") as caught:
        read_events(data, "mine.json")
    assert "\n" not in str(caught.value)
