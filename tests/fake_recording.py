"""Synthetic recordings whose every microsecond is typed in, so that tests can derive the expected terms by hand.

The eager step of ``eager_recording`` is the reference that test_decompose and test_nodes compute with; its numbers
stand beside the constants.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from taxbreak_fx.model import Breakdown, Calibration, OutputCheck, Percentiles, SourceLine, Variant
from taxbreak_fx.recording import (
    Activity,
    Frame,
    InSitu,
    Launch,
    Recording,
    Replay,
    ReplayTrace,
    Site,
    Timing,
    Trace,
    TracedStep,
)

LAUNCH_US = 4.0
T_SYS_US = 5.0
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


def calibration(launch_us: float | None = LAUNCH_US, t_sys_us: float | None = T_SYS_US) -> Calibration:
    """A machine with these floors; a missing one has the reason "no <name> here"."""
    floors = {"launch_us": launch_us, "t_sys_us": t_sys_us}
    return Calibration(
        launch_us=launch_us,
        t_sys_us=None if t_sys_us is None else Percentiles(p5=t_sys_us - 1, p50=t_sys_us, p95=t_sys_us + 1, samples=9),
        host_score=20.0,
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


def clock(site_us: list[float], gap_us: list[float], host_us: float, drained: bool = False) -> InSitu:
    """In-situ times as they come out of a clocked pass."""
    return InSitu(drained=drained, site_us=site_us, gap_us=gap_us, host_us=host_us, probe_us=0.2, steps=7)


def timing(variant: str = "eager", host_us: float = 100.0, wall_us: float = 120.0, **fields: Any) -> Timing:
    """Ten equal pairs: every interval has no width, every median is the number given."""
    defaults: dict[str, Any] = {
        "base_wall_us": [120.0] * 10,
        "base_host_us": [100.0] * 10,
        "compile_s": None if variant == "eager" else 2.0,
        "peak_memory_bytes": 1024,
        "sites": [],
        "in_situ": None,
        "drained": None,
        "graph_launch_us": None,
        "output_check": OutputCheck(
            reference_dtype="float32", eager_error=1e-3, variant_error=1e-3, top1_flips=0, top1_total=8
        ),
        "output_floor": 1e-2,
    }
    return Timing(variant=variant, wall_us=[wall_us] * 10, host_us=[host_us] * 10, **(defaults | fields))


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
# T_host 100.  Sites: x.size() 1 µs (Python only), linear 30 (addmm: cuBLAS), add 20 (ATen); gaps 10 and 15.
# Leaf replays: addmm 25 µs with one launch, add 12 µs with one launch.
# Device: linear's kernel 200…240 on stream 7, add's 230…260 on stream 9: they overlap for 10 µs.
SITES = [
    site("Tensor.size"),
    site("torch.nn.functional.linear", ADDMM, composite="aten.linear.default", source=LINE, module_path="h.0.mlp"),
    site("torch.add", ADD, source=LINE, module_path="h.0"),
]
SITE_US, GAP_US = [1.0, 30.0, 20.0], [10.0, 15.0]
LEAVES = [leaf(ADDMM, 25.0, 1), leaf(ADD, 12.0, 1)]


def eager_timing(**fields: Any) -> Timing:
    """The timing of the reference step."""
    defaults: dict[str, Any] = {
        "sites": SITES,
        "in_situ": clock(SITE_US, GAP_US, host_us=100.0),
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


FRAME = Frame(guards_us=9.0, frame_us=7.0, aot_us=3.0)


def parts_of(variant: Variant) -> Breakdown:
    """The breakdown of a variant that must have one."""
    assert variant.status == "ok" and variant.breakdown is not None
    return variant.breakdown


WAITING = [SITES[0], SITES[1], site("Tensor.item", ITEM)]


def waiting(**fields: Any) -> Recording:
    """The reference step whose third call waits: 20 µs as it runs, 5 µs on an idle device."""
    defaults: dict[str, Any] = {
        "sites": WAITING,
        "in_situ": clock([1.0, 30.0, 20.0], GAP_US, 100.0),
        "drained": clock([1.0, 28.0, 5.0], GAP_US, 100.0, drained=True),
    }
    traced = eager_trace(eager_step(syncs=[("cudaStreamSynchronize", 2)]))
    return eager_recording(timing=eager_timing(**(defaults | fields)), trace=traced)
