"""From what was measured to a profile: every entry that is missing has its reason."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from taxbreak_fx.hardware import (
    PROFILE_VERSION,
    SIGNED,
    AttentionChoice,
    CompiledCosts,
    DeviceCosts,
    FamilyGrid,
    FitStep,
    GraphPoint,
    LaunchCosts,
    Profile,
    PythonCosts,
)
from taxbreak_fx.machine import SCORE_VERSION, HostScore, Machine
from taxbreak_fx.profile_measure_compiled import (
    CompiledStep,
    GuardedStep,
    cudagraph_costs,
    guard_costs,
    inductor_costs,
)
from taxbreak_fx.profile_measure_device import matrix_rates
from taxbreak_fx.profile_measure_fit import NEGATIVE, family_costs, glue_costs, library_costs, op_costs
from taxbreak_fx.profile_measure_steps import MeasuredStep
from taxbreak_fx.timeline import QUEUE_DEPTH, launch_latency

Device = Literal["cuda", "cpu"]
HOST_ONLY = "no CUDA device: the parts of the host alone were measured"
NO_CUDA = "measured on a CUDA device only"
NOT_REACHED = "not reached"
OPERATORS = "operators"  # the fit step that is a straight line of calls
TRITON = ("compiled.triton_us", "compiled.triton_argument_us")
INDUCTOR = (
    *TRITON,
    "compiled.extern_us",
    "compiled.allocation_us",
    "compiled.wrapper_us",
    "compiled.aot_us",
    "compiled.frame_us",
)
GRAPHED = ("compiled.cudagraph_us", "compiled.cudagraph_input_us")
GAPS = ("launch.gap_us", "launch.graph_gap_us", "device.null_us")


@dataclass
class Draft:
    """What has been measured so far.  ``reasons``: dotted name of a missing entry → why."""

    device: Device
    scores: list[float] = field(default_factory=list)
    machine: Machine | None = None
    steps: list[MeasuredStep] = field(default_factory=list)
    guarded: dict[str, GuardedStep] = field(default_factory=dict)
    compiled: dict[str, CompiledStep] = field(default_factory=dict)
    copied: list[tuple[int, float]] = field(default_factory=list)
    graphs: list[GraphPoint] = field(default_factory=list)
    python: dict[str, float] = field(default_factory=dict)
    launch: dict[str, float] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    grids: list[FamilyGrid] = field(default_factory=list)
    attention: list[AttentionChoice] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def launch_us(self) -> float | None:
        """Host-blocking time of one launch call in a loop in C, as far as it is known."""
        return self.machine.calibration.launch_us if self.machine is not None else None


def assemble(draft: Draft, name: str | None) -> Profile:
    """The profile of what is there; what is not has its reason in ``unmeasured``."""
    reasons = _why_no_launch(draft) | draft.reasons
    machine = draft.machine
    rows = [row for step in draft.steps for row in step.rows(draft.launch_us)]
    ops, left_out = op_costs(rows)
    fit_steps = [step.fit_step for step in draft.steps]
    if not ops:
        reasons.setdefault("ops", next((why for key, why in reasons.items() if "fit_steps" in key), NOT_REACHED))
    notes = list(dict.fromkeys(draft.notes))
    if draft.device == "cpu":
        notes.append(HOST_ONLY)
        reasons |= dict.fromkeys(("launch", "graphs", "device", "libraries", *GRAPHED, *TRITON), NO_CUDA)
    return Profile(
        profile_version=PROFILE_VERSION,
        name=name or slug(machine),
        origin="measured",
        date=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        machine=machine,
        host_score=HostScore(version=SCORE_VERSION, us=statistics.median(draft.scores)),
        launch=numbers(LaunchCosts, "launch", _launch(draft), reasons),
        graphs=tuple(draft.graphs),
        ops=tuple(ops),
        families=tuple(family_costs(ops)),
        libraries=tuple(library_costs(ops)),
        python=numbers(PythonCosts, "python", draft.python | _glue(fit_steps, reasons), reasons),
        fit_steps=tuple(fit_steps),
        compiled=numbers(CompiledCosts, "compiled", _compiled(draft, reasons), reasons),
        device=msgspec.structs.replace(
            numbers(DeviceCosts, "device", _device_numbers(draft), reasons),
            rates=tuple(matrix_rates(draft.grids)),
            grids=tuple(draft.grids),
            attention=tuple(draft.attention),
        ),
        notes=tuple(notes),
        unmeasured=reasons | left_out,
    )


def _launch(draft: Draft) -> dict[str, float]:
    """What of ``LaunchCosts`` the calibration and the steps tell."""
    if draft.machine is None or draft.device == "cpu":
        return {}
    calibration = draft.machine.calibration
    path, gaps = calibration.launch_path, calibration.device_path
    times = {
        "idle_sync_us": gaps.idle_sync_us,
        "idle_us": path.idle_us,
        "t_sys_us": path.t_sys_untraced_us,
        "t_sys_traced_us": calibration.t_sys_us,
    }
    found: dict[str, float | None] = {key: value.p50 for key, value in times.items() if value is not None}
    found |= {"launch_us": calibration.launch_us, "queue_depth": QUEUE_DEPTH, "gap_us": gaps.gap_us}
    found |= {"graph_gap_us": gaps.graph_gap_us, "sync_us": gaps.sync_us}
    if path.t_sys_untraced_us is not None and path.idle_us is not None:
        found["latency_us"] = launch_latency(path.t_sys_untraced_us.p50, path.idle_us.p50)
    elif calibration.t_sys_us is not None and calibration.launch_us is not None:
        found["latency_us"] = launch_latency(calibration.t_sys_us.p50, calibration.launch_us)
    heard = [step.launches() for step in draft.steps]
    if sum(count for _, count in heard):
        found["context_us"] = sum(us for us, _ in heard) / sum(count for _, count in heard)
    return {key: value for key, value in found.items() if value is not None} | draft.launch


def _why_no_launch(draft: Draft) -> dict[str, str]:
    """The calibration's own reasons, under the names that its numbers have in a profile."""
    if draft.machine is None or draft.device == "cpu":
        return {}
    calibration = draft.machine.calibration
    path, gaps = calibration.launch_path.unmeasured, calibration.device_path.unmeasured
    untraced = path.get("t_sys_untraced_us") or path.get("idle_us")
    found = {
        "launch.launch_us": calibration.unmeasured.get("launch_us"),
        "launch.t_sys_traced_us": calibration.unmeasured.get("t_sys_us"),
        "launch.idle_us": path.get("idle_us"),
        "launch.t_sys_us": path.get("t_sys_untraced_us"),
        "launch.latency_us": untraced,
        "device.null_us": gaps.get("null_us"),
        **{f"launch.{name}": gaps.get(name) for name in ("gap_us", "graph_gap_us", "sync_us", "idle_sync_us")},
    }
    return {name: why for name, why in found.items() if why is not None}


def _glue(steps: list[FitStep], reasons: dict[str, str]) -> dict[str, float]:
    models = [step for step in steps if step.name != OPERATORS]  # a straight line of calls is no model's Python
    try:
        glue = glue_costs(models)
    except ValueError as error:
        for name in ("site_glue_us", "module_glue_us", "function_glue_us", "glue_error"):
            reasons.setdefault(f"python.{name}", str(error))
        return {}
    names = {"site_glue_us": glue.site_us, "module_glue_us": glue.module_us, "function_glue_us": glue.function_us}
    return names | {"glue_error": glue.error}


def _compiled(draft: Draft, reasons: dict[str, str]) -> dict[str, float]:
    found: dict[str, float] = {}
    parts: dict[tuple[str, ...], Callable[[], dict[str, float]]] = {
        ("compiled.guards_us", "compiled.guard_us"): lambda: guard_costs(list(draft.guarded.values())),
        INDUCTOR: lambda: inductor_costs([(step, draft.guarded.get(key)) for key, step in draft.compiled.items()]),
        GRAPHED: lambda: cudagraph_costs(draft.copied, found["aot_us"]),
    }
    for names, fit in parts.items():
        try:
            found |= fit()
        except (ValueError, KeyError) as error:
            for name in names:
                reasons.setdefault(name, f"too little was measured: {error}")
    return found


def _device_numbers(draft: Draft) -> dict[str, float]:
    machine = draft.machine
    null_us = machine.calibration.device_path.null_us if machine is not None else None
    return draft.rates | ({} if null_us is None else {"null_us": null_us})


def numbers(
    kind: Any, section: str, values: dict[str, float], reasons: dict[str, str], default: str = NOT_REACHED
) -> Any:
    """A record of ``kind`` with ``values``; what is negative and must not be is left null, and what is null gets a
    reason."""
    negative = {name for name, value in values.items() if value < 0 and f"{section}.{name}" not in SIGNED}
    kept = {name: value for name, value in values.items() if name not in negative}
    reasons |= {f"{section}.{name}": NEGATIVE for name in negative}
    record = kind(**kept)
    for name in kind.__struct_fields__:
        key = f"{section}.{name}"
        if getattr(record, name) is not None:
            reasons.pop(key, None)
        elif key not in reasons and section not in reasons:
            reasons[key] = default
    return record


def slug(machine: Machine | None) -> str:
    """The name of a profile that was given none: its device's, in lower case."""
    return re.sub(r"[^a-z0-9]+", "-", (machine.device if machine is not None else "unknown").lower()).strip("-")
