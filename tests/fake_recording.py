"""Synthetic recordings whose every microsecond is typed in, so that tests can derive the expected terms by hand.

The eager step of ``eager_recording`` is the reference that test_decompose and test_nodes compute with; its numbers
stand beside the constants.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from taxbreak_fx.machine import Calibration, LaunchPath
from taxbreak_fx.model import Variant
from taxbreak_fx.record import Percentiles, SourceLine
from taxbreak_fx.recording import (
    Activity,
    Frame,
    InSitu,
    Launch,
    LibrarySite,
    LibraryTimes,
    Recording,
    Replay,
    ReplayTrace,
    Site,
    Spans,
    Timing,
    Trace,
    TracedStep,
)
from taxbreak_fx.variant_record import Breakdown, OutputCheck

LAUNCH_US = 4.0
T_SYS_US = 5.0
UNTRACED_US = 3.0
ADDMM, ADD, VIEW, ITEM = (
    "aten.addmm.default",
    "aten.add.Tensor",
    "aten.view.default",
    "aten._local_scalar_dense.default",
)
LINE = SourceLine(file="/home/author/model.py", line=12)


def key(op: str, shape: str = "bfloat16[8x8](8,1)") -> str:
    """The key of a leaf replay, as capture writes it."""
    return f"{op}({shape})"


def launch_path(untraced_us: float | None) -> LaunchPath:
    """A launch path of which only the untraced T_sys matters here; a missing one has the reason "no untraced T_sys"."""
    found = LaunchPath.unavailable("no untraced T_sys")
    if untraced_us is None:
        return found
    floor = Percentiles(p5=untraced_us - 1, p50=untraced_us, p95=untraced_us + 1, samples=9)
    reasons = {name: why for name, why in found.unmeasured.items() if name != "t_sys_untraced_us"}
    return msgspec.structs.replace(found, t_sys_untraced_us=floor, unmeasured=reasons)


def calibration(
    launch_us: float | None = LAUNCH_US,
    t_sys_us: float | None = T_SYS_US,
    untraced_us: float | None = UNTRACED_US,
) -> Calibration:
    """A machine with these floors; a missing one has the reason "no <name> here"."""
    floors = {"launch_us": launch_us, "t_sys_us": t_sys_us}
    return Calibration(
        launch_us=launch_us,
        t_sys_us=None if t_sys_us is None else Percentiles(p5=t_sys_us - 1, p50=t_sys_us, p95=t_sys_us + 1, samples=9),
        host_score=20.0,
        launch_path=launch_path(untraced_us),
        unmeasured={name: f"no {name} here" for name, value in floors.items() if value is None},
    )


def site(target: str, *leaf_ops: str, composite: str | None = None, **fields: Any) -> Site:
    """A call; ``leaf_ops`` are the ops it dispatches (none: Python only), ``composite`` what it shows as."""
    return Site(
        target=target,
        ops=() if not leaf_ops else (composite,) if composite else leaf_ops,
        dtype=fields.pop("dtype", "bfloat16"),
        leaf_keys=tuple(key(op) for op in leaf_ops),
        **fields,
    )


def clock(site_us: list[float], host_us: float, drained: bool = False) -> InSitu:
    """In-situ times as they come out of a clocked pass."""
    return InSitu(drained=drained, site_us=site_us, host_us=host_us, probe_us=0.2, steps=7)


def spans(
    sites_us: float, glue_us: float, host_us: float, around_us: float | None = None, runtime_us: float | None = None
) -> Spans:
    """The step's spans as they come out of the clocked passes."""
    return Spans(around_us=around_us, runtime_us=runtime_us, glue_us=glue_us, sites_us=sites_us, host_us=host_us)


def timing(variant: str = "eager", host_us: float = 100.0, wall_us: float = 120.0, **fields: Any) -> Timing:
    """Ten equal pairs: every interval has no width, every median is the number given."""
    defaults: dict[str, Any] = {
        "base_wall_us": [120.0] * 10,
        "base_host_us": [100.0] * 10,
        "compile_s": None if variant == "eager" else 2.0,
        "peak_memory_bytes": 1024,
        "sites": [],
        "spans": None,
        "in_situ": None,
        "drained": None,
        "graph_launch_us": None,
        "output_check": OutputCheck(
            reference_dtype="float32", eager_error=1e-3, variant_error=1e-3, top1_flips=0, top1_total=8
        ),
        "output_floor": 1e-2,
    }
    return Timing(variant=variant, wall_us=[wall_us] * 10, host_us=[host_us] * 10, **(defaults | fields))


def place(site: int | None = None, **fields: Any) -> LibrarySite:
    """What was heard in one place of the step: nothing but what is given."""
    nothing = {
        "around": False, "own_us": 0.0, "blocked_us": 0.0, "calls": 0, "launches_inside": 0, "launches_beside": 0,
        "launch_us": 0.0, "graph_us": 0.0,
    }  # fmt: skip
    return LibrarySite(site=site, **(nothing | fields))


def libraries(*places: LibrarySite, host_us: float = 100.0) -> LibraryTimes:
    """The places of a step as they come out of the listening passes."""
    return LibraryTimes(sites=list(places), host_us=host_us, cost_us=0.25)


def activity(
    name: str,
    start_us: float,
    duration_us: float,
    launch: int | None = 0,
    at_site: int | None = None,
    kind: Literal["kernel", "memcpy", "memset"] = "kernel",
    stream: int = 7,
    signature: str = "grid [1, 1, 1] block [128, 1, 1] smem 0 regs 16",
) -> Activity:
    """One device activity."""
    return Activity(
        kind=kind,
        name=name,
        start_us=start_us,
        duration_us=duration_us,
        stream=stream,
        launch=launch,
        site=at_site,
        signature=signature if kind == "kernel" else "",
    )


def launch(
    kind: Literal["kernel", "graph", "memop"] = "kernel",
    at_site: int | None = None,
    latency_us: float = 6.0,
    activities: int = 1,
) -> Launch:
    """One launch call."""
    api = {"kernel": "cudaLaunchKernel", "graph": "cudaGraphLaunch", "memop": "cudaMemcpyAsync"}[kind]
    return Launch(api=api, kind=kind, site=at_site, latency_us=latency_us, activities=activities)


def step(
    activities: list[Activity],
    launches: list[Launch],
    sites: int = 0,
    syncs: list[tuple[str, int | None]] | None = None,
) -> TracedStep:
    """A traced step."""
    return TracedStep(activities=activities, launches=launches, syncs=syncs or [], sites=sites)


def trace(traced: TracedStep, variant: str = "eager", **fields: Any) -> Trace:
    """A trace in which the libraries reported one cuBLAS call, unless ``library_calls`` says otherwise."""
    defaults: dict[str, Any] = {"graph_latency_us": [], "library_calls": {"cublas": 1, "cublaslt": 0, "cudnn": 0}}
    return Trace(variant=variant, step=traced, **(defaults | fields))


def leaf(op: str, host_us: float | None, launches: int, failure: str | None = None) -> tuple[Replay, ReplayTrace]:
    """The timed and the traced half of a leaf replay of ``op``."""
    timed = Replay(key=key(op), level="leaf", op=op, dtype="bfloat16", host_us=host_us, failure=failure)
    kernels = [(kernel_of(op), "grid [1, 1, 1] block [128, 1, 1] smem 0 regs 16")] * launches
    traced = ReplayTrace(key=key(op), level="leaf", op=op, kernels=kernels, launches=launches, latency_us=6.5)
    return timed, traced


def kernel_of(op: str) -> str:
    """The name of the kernel that ``op`` launches in these recordings."""
    return {
        ADDMM: "nvjet_tst_64x8_64x16_4x1_v_bz_TNN",
        ADD: "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int)",
    }.get(op, f"kernel_of_{op}")


# --- the reference eager step ---------------------------------------------------------------------------------------
# T_host 100.  Sites: x.size() 1 µs (Python only), linear 30 (addmm: cuBLAS), add 20 (ATen); glue 25.
# Leaf replays: addmm 25 µs with one launch, add 12 µs with one launch.
# Device: linear's kernel 200…240 on stream 7, add's 230…260 on stream 9: they overlap for 10 µs.
SITES = [
    site("Tensor.size"),
    site("torch.nn.functional.linear", ADDMM, composite="aten.linear.default", source=LINE, module_path="h.0.mlp"),
    site("torch.add", ADD, source=LINE, module_path="h.0"),
]
SITE_US, GLUE_US = [1.0, 30.0, 20.0], 25.0
LEAVES = [leaf(ADDMM, 25.0, 1), leaf(ADD, 12.0, 1)]


def eager_timing(**fields: Any) -> Timing:
    """The timing of the reference step."""
    defaults: dict[str, Any] = {
        "sites": SITES,
        "spans": spans(sum(SITE_US), GLUE_US, host_us=100.0),
        "in_situ": clock(SITE_US, host_us=100.0),
        "replays": [timed for timed, _ in LEAVES],
    }
    return timing(**(defaults | fields))


def eager_step(**fields: Any) -> TracedStep:
    """Its traced step: two kernels launched by sites 1 and 2."""
    defaults: dict[str, Any] = {
        "activities": [
            activity(kernel_of(ADDMM), 200.0, 40.0, launch=0, at_site=1, stream=7),
            activity(kernel_of(ADD), 230.0, 30.0, launch=1, at_site=2, stream=9),
        ],
        "launches": [launch(at_site=1), launch(at_site=2)],
        "sites": 3,
    }
    return step(**(defaults | fields))


def eager_trace(traced: TracedStep | None = None, **fields: Any) -> Trace:
    """Its trace, with the traced halves of the leaf replays."""
    defaults: dict[str, Any] = {"replays": [half for _, half in LEAVES]}
    return trace(traced or eager_step(), **(defaults | fields))


def recording(
    timed: Timing | None,
    traced: Trace | None,
    frame: Frame | None = None,
    *,
    floors: Calibration | None = None,
    device: Literal["cuda", "cpu"] = "cuda",
    failures: dict[str, str] | None = None,
    variant: str | None = None,
) -> Recording:
    """All stage results of one variant."""
    return Recording(
        variant=variant or (timed.variant if timed else "eager"),
        device=device,
        calibration=floors or calibration(),
        timing=timed,
        trace=traced,
        frame=frame,
        failures=failures or {},
    )


def eager_recording(**fields: Any) -> Recording:
    """The reference step: T_host 100, ΔCT 13, launch 8, ΔFT 79, ΔKT 10 (derived in test_decompose)."""
    return msgspec.structs.replace(recording(eager_timing(), eager_trace()), **fields)


FRAME = Frame(guards_us=9.0, aot_us=3.0, eager_us=100.0)


def parts_of(variant: Variant) -> Breakdown:
    """The breakdown of a variant that must have one."""
    assert variant.status == "ok" and variant.breakdown is not None
    return variant.breakdown


def only_places(*places: LibrarySite, host_us: float = 100.0, **fields: Any) -> Recording:
    """The reference step with what was heard in it."""
    return eager_recording(timing=eager_timing(library=libraries(*places, host_us=host_us), **fields))


# Heard in the reference step: a cuBLAS call of 16 µs that launches by a runtime of its own; add's launch, 4.5 µs.
HEARD = (place(1, own_us=16.0, calls=1), place(2, launches_beside=1, launch_us=4.5))


def graphed_recording(**fields: Any) -> Recording:
    """A step of one CUDA graph (two kernels, one of them cuBLAS's) and one partition that Inductor left un-graphed,
    which launches one kernel of cuBLAS and one of its own.

    T_host 100: 30 around the graph callable, 25 of glue in it, 45 in the graph's replay.  The traced latency of the
    graph's launch is 20; its two kernels of 10 run for 20.5 without the profiler.
    """
    defaults: dict[str, Any] = {
        "sites": [site("CUDAGraph.replay")],
        "spans": spans(45.0, 25.0, host_us=100.0, around_us=30.0),
        "graph_launch_us": 45.0,
        "graph_span_us": [20.5],
    }
    own, add = kernel_of(ADDMM), kernel_of(ADD)
    traced = step(
        [
            activity(own, 200.0, 10.0, launch=0, at_site=0),
            activity(add, 210.0, 10.0, launch=0, at_site=0),
            activity(own, 230.0, 10.0, launch=1),
            activity(add, 240.0, 10.0, launch=2),
        ],
        [launch("graph", at_site=0, activities=2), launch(), launch()],
        sites=1,
        syncs=fields.pop("syncs", None),
    )
    timed = timing("reduce-overhead", **(defaults | fields))
    return recording(timed, trace(traced, "reduce-overhead", graph_latency_us=[20.0]))


WAITING = [SITES[0], SITES[1], site("Tensor.item", ITEM)]


def waiting(**fields: Any) -> Recording:
    """The reference step whose third call waits: 20 µs as it runs, 5 µs on an idle device."""
    defaults: dict[str, Any] = {
        "sites": WAITING,
        "in_situ": clock([1.0, 30.0, 20.0], 100.0),
        "drained": clock([1.0, 28.0, 5.0], 100.0, drained=True),
    }
    traced = eager_trace(eager_step(syncs=[("cudaStreamSynchronize", 2)]))
    return eager_recording(timing=eager_timing(**(defaults | fields)), trace=traced)
