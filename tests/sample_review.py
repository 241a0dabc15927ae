"""A hand-made review with the shape of a CUDA run.  Its numbers are round on purpose: nobody measured them.

eager:  wall 1000 µs; T_host 900, T_wait 0, so T_issue 900; M = 20 launches at 5 µs = 100 µs in the launch API;
        ΔCT 200; ΔFT = 900 - 200 - 100 = 600; ΔKT = 20 x T_sys 4 = 80; T_Orchestration = 600 + 200 + 80 = 880;
        ΔCT by family, direct and subtractive: gemm 160 and 152 (152 / 160 - 1 = -5 %), attention 40 and 46 (+15 %);
        device active 220; HDBI = 220 / (220 + 880) = 0.2.  Untraced T_sys 3: ΔKT 60, HDBI = 220 / 1080 = 0.2037.
inductor:  wall 500; T_issue 450; M = 8, 40 µs; ΔCT 150; ΔFT = 450 - 150 - 40 = 260; ΔKT = 32;
        T_Orchestration = 442; device 158; HDBI = 158 / 600 = 0.26333.  Untraced: ΔKT 24, HDBI = 158 / 592 = 0.26689.
        Removed: ΔFT 340, ΔCT 50, ΔKT 48, device 62, wall 500; ratio 0.5; 2 s of build / 500 µs = 4000 steps.
reduce-overhead:  T_wait could not be measured, so ΔFT, T_Orchestration and HDBI are null.
eager-graph:  T_issue 28, launch API 30, so ΔFT = -2, within the wall interval (20 wide); ΔKT 10;
        T_Orchestration = 8; device 160; HDBI = 160 / 168 = 0.95238.  Removed: ΔFT 602, ΔCT 200, ΔKT 70.

Simulated: eager 990 of 1000 µs (-1 %), removed in order ΔFT 560, ΔCT 180, launches 90 (830 exposed), sync 8, device
        152; naive max(900, 220) + 8 = 908 (-9.2 %).  inductor 510 of 500 (+2 %): 240 + 130 + 40 = 410 exposed, 8, 92;
        naive max(450, 158) + 8 = 458 (-8.4 %).
"""

from __future__ import annotations

from taxbreak_fx.machine import Calibration, Conditions, LaunchPath, Machine
from taxbreak_fx.model import Comparison, GraphInfo, Removed, Review, SourceLine, StepInfo, Variant
from taxbreak_fx.record import Interval, Percentiles
from taxbreak_fx.variant_record import Breakdown, Exposed, ExposedCost, FamilyLibrary, Node, OutputCheck

NO_WAIT = "the drained pass cannot run inside a CUDA graph tree"
TOO_MANY = "the step makes more library calls than can be recorded"
AUTHOR_FILE = "/home/author/models/toy/modeling_toy.py"


def interval(median: float, low: float, high: float) -> Interval:
    return Interval(median=median, low=low, high=high, samples=100)


def launch_path() -> LaunchPath:
    """Flag 4 µs after the launch, 2 µs round trip: T_sys is 4 - 2 / 2 = 3 µs untraced, 4 µs traced."""
    known = {"queued_us": 5.0, "idle_us": 6.0, "queued_arguments_us": 5.5, "t_sys_bare_us": 3.75, "flag_us": 4.0,
             "round_trip_us": 2.0, "t_sys_untraced_us": 3.0}  # fmt: skip
    return LaunchPath(
        **{name: Percentiles(p5=us - 0.5, p50=us, p95=us + 2, samples=500) for name, us in known.items()},
        unmeasured={"queued_runtime_us": "launch loop, runtime_kernel: CUDA error 500"},
    )


def machine() -> Machine:
    return Machine(
        device="Example GPU", host_cpu="Example CPU", cores=8, python="3.12.0", torch="2.11.0", cuda="13.0",
        driver="580.0", transformers="5.17.0", triton="3.6.0", date="2000-01-01T00:00:00Z",
        calibration=Calibration(
            launch_us=5.0, t_sys_us=Percentiles(p5=3.5, p50=4.0, p95=6.0, samples=1000), host_score=20.0,
            launch_source="C loop", launch_path=launch_path(),
        ),
        conditions=Conditions(
            threads=8, affinity=[0, 1], gc="disabled", grad_mode="inference", seed=0, gpu_clocks_mhz={"sm": 1500.0},
            load=0.5,
        ),
    )  # fmt: skip


def breakdown(
    ft: float | None, ct: float, kt: float, device: float, parts: dict[str, float] | None = None,
    kt_untraced: float | None = None, families: list[FamilyLibrary] | None = None, source: str = "direct",
) -> Breakdown:  # fmt: skip
    """``kt_untraced``: ΔKT on the untraced floor; None where it is the same, because only graphs were launched."""
    orchestration = None if ft is None else ft + ct + kt
    untraced = None if ft is None else ft + ct + (kt if kt_untraced is None else kt_untraced)
    missing = {"coverage": "not replayed", "closure_error": "no node times"}
    if ft is None:
        missing |= dict.fromkeys(("ft_us", "orchestration_us", "hdbi", "hdbi_untraced"), NO_WAIT)
    return Breakdown(
        ft_us=ft, ft_parts=parts or {}, ct_us=ct, ct_source=source,
        ct_families=families or [], kt_us=kt, orchestration_us=orchestration,
        hdbi=None if orchestration is None else device / (device + orchestration),
        hdbi_untraced=None if untraced is None else device / (device + untraced), coverage=None, closure_error=None,
        unmeasured=missing,
    )  # fmt: skip


def node(op: str, family: str, line: int, calls: int, launches: int, ft: float, ct: float, kt: float, device: float,
         module: str | None) -> Node:  # fmt: skip
    return Node(
        op=op, family=family, library="cuBLASLt" if ct else "ATen", i_lib=bool(ct), reason="by op", module_path=module,
        source=SourceLine(file=AUTHOR_FILE, line=line), count=calls, launches=launches, kernels=launches, ft_us=ft,
        ct_us=ct, kt_us=kt, device_us=device, match_tier="exact",
    )  # fmt: skip


def exposed(
    wall: float, measured: float, host: float, naive: float, idle: float, alone: tuple[float, ...],
    fall: tuple[float, ...],
) -> Exposed:  # fmt: skip
    """``alone`` and ``fall``: exposed cost of ΔFT, ΔCT, launches, sync and device, each alone and in that order."""
    terms = ("ft", "ct", "kt", "sync", "device")
    return Exposed(
        wall_us=wall, host_us=host, error=wall / measured - 1, naive_us=naive, naive_error=naive / measured - 1,
        idle_us=idle, synced_us=0.0, queued_us=0.0, ft_us=alone[0], ct_us=alone[1], kt_us=alone[2], sync_us=alone[3],
        device_us=alone[4], waterfall=dict(zip(terms, fall, strict=True)),
        families=[
            ExposedCost(name="gemm", host_us=410.0, device_us=150.0, exposed_host_us=390.0, exposed_device_us=20.0,
                        exposed_us=405.0),
            ExposedCost(name="between recorded calls", host_us=350.0, device_us=0.0, exposed_host_us=340.0,
                        exposed_device_us=0.0, exposed_us=340.0),
        ],
        lines=[
            ExposedCost(name="gemm", source=SourceLine(file=AUTHOR_FILE, line=41), host_us=410.0, device_us=150.0,
                        exposed_host_us=390.0, exposed_device_us=20.0, exposed_us=405.0),
        ],
        floors_us={"latency_us": 2.0, "gap_us": 1.0, "graph_gap_us": 0.25, "sync_us": 8.0, "queue_depth": 1024.0},
        latency_source="untraced",
    )  # fmt: skip


def variant(
    name: str, wall: Interval, host: float, launch: float, launches: int, kernels: int, device: float, terms: Breakdown,
    wait: float | None = 0.0, compile_s: float = 0.0, graphs: int = 0, nodes: list[Node] | None = None,
    check: OutputCheck | None = None, equal: bool = True, simulated: Exposed | None = None,
) -> Variant:  # fmt: skip
    missing = {} if wait is not None else {"t_wait_us": NO_WAIT, "issue_us": NO_WAIT}
    return Variant(
        name=name, status="ok", compile_s=compile_s, peak_memory_bytes=64 * 2**20, t_wall_us=wall,
        t_host_us=interval(host, host - 5, host + 5), t_wait_us=wait, issue_us=None if wait is None else host - wait,
        launch_us=launch, launches=launches, graph_launches=graphs, kernels=kernels, memops=0, device_active_us=device,
        device_sum_us=device, library_calls={"cuBLASLt": 12 if name == "eager" else 0}, outputs_equal=equal,
        output_check=check, breakdown=terms, exposed=simulated or Exposed.unavailable(NO_WAIT), nodes=nodes or [],
        unmeasured=missing,
    )  # fmt: skip


def family(name: str, calls: int, direct: float | None, subtractive: float | None, why: str = "") -> FamilyLibrary:
    estimates = {"direct_us": direct, "subtractive_us": subtractive}
    missing = {field: why for field, value in estimates.items() if value is None}
    return FamilyLibrary(family=name, calls=calls, direct_us=direct, subtractive_us=subtractive, unmeasured=missing)


def gone(before: float | None, after: float | None) -> float:
    assert before is not None and after is not None
    return before - after


def comparison(name: str, before: Variant, after: Variant, ratio: Interval, steps: float | None, verdict: str,
               worse: list[str]) -> Comparison:  # fmt: skip
    old, new = before.breakdown, after.breakdown
    assert old is not None and new is not None
    assert before.t_wall_us is not None and after.t_wall_us is not None
    known = old.ft_us is not None and new.ft_us is not None
    missing = {} if new.hdbi is not None else {"hdbi_after": NO_WAIT}
    missing |= {} if old.hdbi is not None else {"hdbi_before": NO_WAIT}
    missing |= {} if steps is not None else {"breakeven_steps": "nothing was built"}
    return Comparison(
        base=before.name, variant=name,
        removed=Removed(
            ft_us=gone(old.ft_us, new.ft_us) if known else None, ct_us=gone(old.ct_us, new.ct_us),
            kt_us=gone(old.kt_us, new.kt_us), device_us=gone(before.device_active_us, after.device_active_us),
            wall_us=before.t_wall_us.median - after.t_wall_us.median, unmeasured={} if known else {"ft_us": NO_WAIT},
        ),
        wall_ratio=ratio, hdbi_before=old.hdbi, hdbi_after=new.hdbi, launches_before=before.launches,
        launches_after=after.launches, kernels_before=before.kernels, kernels_after=after.kernels,
        breakeven_steps=steps, verdict=verdict, worse=worse, unmeasured=missing,
    )  # fmt: skip


def sample_review() -> Review:
    """The review described at the top of this file."""
    nodes = [
        node("aten.view.default", "view", 40, 12, 0, 10.0, 0.0, 0.0, 0.0, "model.layers.*.attention"),
        node("aten.linear.default", "gemm", 41, 12, 12, 150.0, 200.0, 48.0, 150.0, "model.layers.*.attention.query"),
        node("aten.layer_norm.default", "normalization", 52, 4, 4, 60.0, 0.0, 16.0, 40.0, "model.layers.*.norm"),
        node("aten.gelu.default", "elementwise", 57, 4, 4, 50.0, 0.0, 16.0, 30.0, None),
    ]
    eager_calls = [
        family("gemm", 12, 160.0, 152.0), family("attention", 4, 40.0, 46.0),
        family("outside recorded calls", 0, 0.0, None, "no op recorded there is known to call a library"),
    ]  # fmt: skip
    inductor_calls = [family("gemm", 12, None, 150.0, TOO_MANY)]
    parts = {"python": 350.0, "ops": 270.0, "unattributed": -20.0}
    eager = variant(
        "eager", interval(1000, 990, 1020), 900.0, 100.0, 20, 20, 220.0,
        breakdown(600.0, 200.0, 80.0, 220.0, parts, 60.0, eager_calls), nodes=nodes,
        simulated=exposed(
            990.0, 1000.0, 900.0, 908.0, 770.0, (560.0, 190.0, 120.0, 8.0, 40.0), (560.0, 180.0, 90.0, 8.0, 152.0)
        ),
    )  # fmt: skip
    inductor = variant(
        "inductor", interval(500, 495, 510), 450.0, 40.0, 8, 8, 158.0,
        breakdown(260.0, 150.0, 32.0, 158.0, None, 24.0, inductor_calls, f"subtractive: {TOO_MANY}"), compile_s=2.0,
        simulated=exposed(
            510.0, 500.0, 450.0, 458.0, 352.0, (240.0, 140.0, 60.0, 8.0, 30.0), (240.0, 130.0, 40.0, 8.0, 92.0)
        ),
    )  # fmt: skip
    reduce_overhead = variant(
        "reduce-overhead", interval(250, 240, 265), 70.0, 35.0, 2, 9, 165.0, breakdown(None, 0.0, 12.0, 165.0),
        wait=None, compile_s=3.0, graphs=2, equal=False,
        check=OutputCheck(
            reference_dtype="float32", eager_error=0.001, variant_error=0.02, top1_flips=3, top1_total=512
        ),
    )  # fmt: skip
    eager_graph = variant(
        "eager-graph", interval(200, 190, 210), 28.0, 30.0, 1, 20, 160.0, breakdown(-2.0, 0.0, 10.0, 160.0), graphs=1,
        simulated=Exposed.unavailable("no gap: not traced yet"),
    )  # fmt: skip
    return Review(
        tool_version="0.1.0", origin="measured", model="toy",
        step=StepInfo(
            phase="decode", batch=1, seq_len=128, dtype="bfloat16", device="cuda", options={"cache": "static"}
        ),
        machine=machine(),
        variants=[
            eager, Variant.unavailable("dynamo", "skipped", "the time limit was reached"), inductor, reduce_overhead,
            Variant.unavailable("cudagraphs", "failed", "CUDA out of memory: tried to allocate 32 GiB"), eager_graph,
        ],
        comparisons=[
            comparison("inductor", eager, inductor, interval(0.5, 0.49, 0.51), 4000.0, "faster", []),
            comparison(
                "reduce-overhead", eager, reduce_overhead, interval(0.25, 0.24, 0.27), 4000.0, "faster",
                ["outputs differ"],
            ),
            comparison("eager-graph", eager, eager_graph, interval(0.2, 0.19, 0.21), None, "faster", []),
            comparison(
                "reduce-overhead", inductor, reduce_overhead, interval(0.5, 0.48, 0.53), 4000.0, "faster",
                ["device time", "outputs differ"],
            ),
        ],
        graphs=[
            GraphInfo(compile_id="0/0", nodes=32, break_reason="data-dependent branch",
                      source=SourceLine(file=AUTHOR_FILE, line=60)),
            GraphInfo(compile_id="1/0", nodes=8, break_reason=None, source=None),
        ],
        notes=["numbers are synthetic"],
    )  # fmt: skip
