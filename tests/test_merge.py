"""Several graphs as one step: sums by repetition, lists laid end to end, nothing counted twice, nothing made up."""

from __future__ import annotations

import msgspec
import pytest

from taxbreak_fx.breakdown import decompose
from taxbreak_fx.machine import Calibration
from taxbreak_fx.merge import merge, merge_timings
from taxbreak_fx.model import GraphInfo
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recording import Activity, InSitu, Launch, Recording, Replay, Site, Spans, Timing, Trace, TracedStep
from taxbreak_fx.variant_record import OutputCheck

ADD = "aten.add.Tensor"


def check(eager: float, variant: float, flips: int = 0, total: int = 10) -> OutputCheck:
    return OutputCheck(
        reference_dtype="float64", eager_error=eager, variant_error=variant, top1_flips=flips, top1_total=total
    )


def timing(sites: int, host: list[float], site_us: float = 2.0) -> Timing:
    clock = InSitu(
        drained=False,
        site_us=[site_us] * sites,
        host_us=10.0 * sites,
        probe_us=0.5,
        steps=7,
    )
    return Timing(
        variant="dynamo",
        wall_us=[us + 5.0 for us in host],
        host_us=host,
        base_wall_us=[us + 5.0 for us in host],
        base_host_us=host,
        compile_s=1.5,
        peak_memory_bytes=100 * sites,
        sites=[Site(target=f"op{i}", ops=(ADD,), graph=1, leaf_keys=(f"{ADD}()",)) for i in range(sites)],
        spans=Spans(around_us=None, runtime_us=None, glue_us=3.0, sites_us=site_us * sites, host_us=10.0 * sites),
        in_situ=clock,
        drained=msgspec.structs.replace(clock, drained=True),
        replays=[Replay(key=f"{ADD}()", level="leaf", op=ADD, dtype="float32", host_us=3.0)],
        output_check=check(1e-7, 2e-7, flips=1),
        graph_launch_us=None,
        output_floor=1e-6,
        graphs=[GraphInfo(compile_id=f"{sites}/0", nodes=sites, break_reason=None, source=None)],
    )


def traced(sites: int, at: float) -> Trace:
    """One kernel of 4 µs per site, 6 µs apart, beginning at ``at``."""
    activities = [
        Activity(
            kind="kernel", name="k", start_us=at + 6.0 * i, duration_us=4.0, stream=7, launch=i, site=i, signature=""
        )
        for i in range(sites)
    ]
    launches = [
        Launch(api="cudaLaunchKernel", kind="kernel", site=i, latency_us=5.0, activities=1) for i in range(sites)
    ]
    step = TracedStep(activities=activities, launches=launches, syncs=[("cudaStreamSynchronize", 0)], sites=sites)
    return Trace(variant="dynamo", step=step, graph_latency_us=[], library_calls={"cublas": sites}, notes=["same"])


def recording(sites: int, host: list[float], at: float = 1e6) -> Recording:
    return Recording(
        variant="dynamo",
        device="cuda",
        calibration=Calibration(
            launch_us=1.0, t_sys_us=Percentiles(p5=3.0, p50=4.0, p95=5.0, samples=9), host_score=1.0
        ),
        timing=timing(sites, host),
        trace=traced(sites, at),
        frame=None,
        failures={"frame": "outside"},
        scope="captured graphs",
    )


def test_samples_add_by_repetition_as_far_as_all_graphs_go() -> None:
    merged = merge([recording(2, [20.0, 21.0, 22.0]), recording(3, [30.0, 31.0])])
    assert merged.timing is not None
    assert merged.timing.host_us == [50.0, 52.0]
    assert merged.timing.wall_us == [60.0, 62.0]
    assert merged.timing.compile_s == 3.0
    assert merged.timing.peak_memory_bytes == 300
    assert [graph.compile_id for graph in merged.timing.graphs] == ["2/0", "3/0"]


def test_sites_are_laid_end_to_end_and_keep_their_graphs() -> None:
    merged = merge([recording(2, [20.0]), recording(0, [1.0]), recording(3, [30.0])]).timing
    assert merged is not None and merged.in_situ is not None and merged.drained is not None
    assert [site.graph for site in merged.sites] == [1, 1, 3, 3, 3]
    for clock in (merged.in_situ, merged.drained):
        assert len(clock.site_us) == len(merged.sites)
        assert sum(clock.site_us) == 10.0 and clock.host_us == 50.0


def spanned(sites: int, spans: Spans | None) -> Recording:
    one = recording(sites, [20.0])
    assert one.timing is not None
    return msgspec.structs.replace(one, timing=msgspec.structs.replace(one.timing, spans=spans))


def test_spans_add_up_and_a_graph_that_has_no_such_span_adds_nothing() -> None:
    first = Spans(around_us=5.0, runtime_us=2.0, glue_us=3.0, sites_us=4.0, host_us=20.0)
    other = Spans(around_us=50.0, runtime_us=None, glue_us=30.0, sites_us=40.0, host_us=200.0)
    merged = merge([spanned(2, first), spanned(3, other)]).timing
    assert merged is not None
    # Inductor writes no code for a graph without ops: all of its time is glue, and the sum of all is still the whole.
    assert merged.spans == Spans(around_us=55.0, runtime_us=2.0, glue_us=33.0, sites_us=44.0, host_us=220.0)
    bare = msgspec.structs.replace(other, around_us=None)
    neither = merge([spanned(2, bare), spanned(3, bare)]).timing
    assert neither is not None and neither.spans is not None
    assert (neither.spans.around_us, neither.spans.runtime_us) == (None, None)
    lost = merge([spanned(2, first), spanned(3, None)]).timing
    assert lost is not None and lost.spans is None


def test_the_reason_for_missing_in_situ_times_is_that_of_the_graph_that_lacks_them() -> None:
    # A graphed variant never has node times, and says so; the second graph was not even clocked.
    one = Spans(around_us=None, runtime_us=None, glue_us=3.0, sites_us=4.0, host_us=20.0)
    good, bad = spanned(1, one).timing, spanned(1, None).timing
    assert good is not None and bad is not None
    nature = "a CUDA graph is one launch"
    good = msgspec.structs.replace(good, in_situ=None, graph_launch_us=4.0, in_situ_failure=nature)
    bad = msgspec.structs.replace(bad, in_situ=None, in_situ_failure="out of memory")
    whole = merge_timings([good, bad])
    assert (whole.graph_launch_us, whole.spans, whole.in_situ_failure) == (None, None, "out of memory")
    assert merge_timings([good, good]).in_situ_failure == nature


def test_the_closure_of_several_graphs_is_that_of_their_sums() -> None:
    # Sites 4 + 6 and glue 3 + 3 of T_host 20 + 30; one call of each graph waits, and is as long when drained: no wait.
    parts = decompose(merge([recording(2, [20.0]), recording(3, [30.0])]), None).breakdown
    assert parts is not None and parts.closure_error == pytest.approx((4 + 6 + 3 + 3 - 50) / 50)


def test_kernels_launches_and_device_time_add_up() -> None:
    parts = [recording(2, [20.0, 21.0], at=9e6), recording(3, [30.0, 31.0], at=100.0)]
    whole = decompose(merge(parts), None)
    single = [decompose(part, None) for part in parts]
    assert whole.status == "ok"
    assert whole.kernels == sum(variant.kernels or 0 for variant in single) == 5
    assert whole.launches == 5
    assert whole.device_sum_us == whole.device_active_us == 20.0, "activities of two graphs overlap"
    assert whole.library_calls == {"cublas": 5}
    assert whole.notes.count("same") == 1
    assert sum(node.kernels or 0 for node in whole.nodes) == 5


def test_indices_move_with_the_lists() -> None:
    merged = merge([recording(2, [20.0]), recording(3, [30.0])]).trace
    assert merged is not None
    step = merged.step
    assert step.sites == 5
    assert [activity.site for activity in step.activities] == [0, 1, 2, 3, 4]
    assert [activity.launch for activity in step.activities] == [0, 1, 2, 3, 4]
    assert [launch.site for launch in step.launches] == [0, 1, 2, 3, 4]
    assert step.syncs == [("cudaStreamSynchronize", 0), ("cudaStreamSynchronize", 2)]
    assert step.deepest_queue is None, "unknown for one graph, so unknown for all"


def test_a_stage_missing_for_one_graph_is_missing_for_all() -> None:
    broken = msgspec.structs.replace(recording(3, [30.0]), trace=None, failures={"trace": "graph 3/0: no kernel"})
    merged = merge([recording(2, [20.0]), broken])
    assert merged.trace is None and merged.timing is not None
    assert merged.failures["trace"] == "graph 3/0: no kernel"
    variant = decompose(merged, None)
    assert variant.kernels is None and "graph 3/0" in variant.unmeasured["kernels"]


def test_an_unequal_graph_makes_the_whole_unequal() -> None:
    good, bad = recording(2, [20.0]), recording(3, [30.0])
    assert bad.timing is not None
    wrong = msgspec.structs.replace(bad.timing, output_check=check(1e-7, 0.5, flips=4))
    variant = decompose(merge([good, msgspec.structs.replace(bad, timing=wrong)]), None)
    assert variant.outputs_equal is False
    assert variant.output_check is not None and variant.output_check.top1_flips == 5
    assert variant.output_check.top1_total == 20


def test_outputs_are_unknown_when_one_graph_was_not_compared() -> None:
    good, other = recording(2, [20.0]), recording(3, [30.0])
    assert other.timing is not None
    unknown = msgspec.structs.replace(other.timing, output_check=None, output_failure="draws random numbers")
    variant = decompose(merge([good, msgspec.structs.replace(other, timing=unknown)]), None)
    assert variant.outputs_equal is None
    assert variant.unmeasured["outputs_equal"] == "draws random numbers"


def test_a_failed_replay_gives_way_to_one_that_worked() -> None:
    first, second = recording(2, [20.0]), recording(3, [30.0])
    assert first.timing is not None
    failed = [Replay(key=f"{ADD}()", level="leaf", op=ADD, dtype=None, host_us=None, failure="refused")]
    changed = msgspec.structs.replace(first, timing=msgspec.structs.replace(first.timing, replays=failed))
    merged = merge([changed, second]).timing
    assert merged is not None
    assert [(replay.key, replay.host_us) for replay in merged.replays] == [(f"{ADD}()", 3.0)]


def test_a_single_recording_is_itself() -> None:
    one = recording(3, [30.0, 31.0], at=0.0)
    assert merge([one]) == one


def test_recordings_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        merge([])
    with pytest.raises(ValueError, match="different"):
        merge([recording(1, [1.0]), msgspec.structs.replace(recording(1, [1.0]), variant="inductor")])
