"""A review of a step that nobody ran: its ops and planned launches, priced by a hardware profile and simulated.

Pure: ``absent_step`` and ``dry_run`` supply what is known of the step, ``hardware`` the profile.  docs/whatif.md says
what is left out.  Nothing silently costs 0: what the profile does not cover is an error for eager, since all else is
set against it, and a skipped variant with that reason for the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from taxbreak_fx import __version__, hardware_scale
from taxbreak_fx.compare import LADDER, LEAST_EFFECT, verdict_of
from taxbreak_fx.errors import UncoveredError, UsageError
from taxbreak_fx.findings import with_findings
from taxbreak_fx.hardware import BY_HAND, Profile
from taxbreak_fx.machine import Calibration, Conditions, HostScore, Machine
from taxbreak_fx.model import Comparison, GraphInfo, Removed, Review, Variant
from taxbreak_fx.predict_compiled import inductor, reduce_overhead
from taxbreak_fx.predict_eager import eager, eager_graph
from taxbreak_fx.predict_layout import Layout
from taxbreak_fx.predict_variant import variant_of
from taxbreak_fx.predicted import DryRun, FakeStep
from taxbreak_fx.record import Interval
from taxbreak_fx.request import closest
from taxbreak_fx.whatif_compare import PREDICTED

VARIANTS = ("eager", "inductor", "reduce-overhead", "eager-graph")
COMPILED = ("inductor", "reduce-overhead")
UNKNOWN = "not in the profile"


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The variants to predict, eager first; all without any.  Raises ``UsageError`` for one that is not predicted."""
    for name in names:
        if name not in VARIANTS:
            raise UsageError(f"variant {name!r} is not predicted{closest(name, VARIANTS)}")
    chosen = tuple(dict.fromkeys(names)) or VARIANTS
    return ("eager", *(name for name in chosen if name != "eager"))


def on_host(profile: Profile, score_us: float | None) -> Profile:
    """``profile`` as a host with that score would have it; None: as it is.  Raises ``UsageError`` for a score that is
    not above zero, and as ``hardware_scale.scaled``."""
    if score_us is None:
        return profile
    if not (math.isfinite(score_us) and score_us > 0):
        raise UsageError(f"--host-score must be a positive number of microseconds, not {score_us:g}")
    version = profile.host_score.version if profile.host_score is not None else 0
    return hardware_scale.scaled(profile, HostScore(version=version, us=score_us))


def predict(
    step: FakeStep,
    plan: DryRun | str,
    profile: Profile,
    names: Sequence[str] = (),
    captured: FakeStep | str | None = None,
) -> Review:
    """The review of ``step`` on the machine of ``profile``.

    ``plan``: what Inductor would launch, or the reason why that is not known.  ``names``: as ``check_names``.
    ``captured``: the ops of the step under capture of a CUDA graph, or why they are not known; None: those of ``step``.
    Raises ``UncoveredError`` that names everything the profile lacks for eager, and ``UsageError`` as ``check_names``.
    """
    chosen = check_names(names)
    base = eager(step, profile)
    variants = [variant_of(base, profile)]
    builders: dict[str, Callable[[], Layout | str]] = {
        "inductor": lambda: plan if isinstance(plan, str) else inductor(plan, step, profile),
        "reduce-overhead": lambda: plan if isinstance(plan, str) else reduce_overhead(plan, step, profile),
        "eager-graph": lambda: captured if isinstance(captured, str) else eager_graph(captured or step, profile),
    }
    variants += [_made(name, builders[name], profile) for name in chosen[1:]]
    made = Review(
        tool_version=__version__,
        origin="predicted",
        model=step.model,
        step=step.step,
        machine=_machine(step, profile),
        variants=variants,
        comparisons=_comparisons(variants),
        graphs=_graphs(plan) if isinstance(plan, DryRun) else [],
        recorded_with={**step.versions, **(plan.versions if isinstance(plan, DryRun) else {})},
        notes=_notes(step, plan, profile),
    )
    return with_findings(made)


def _graphs(plan: DryRun) -> list[GraphInfo]:
    """The graphs that Dynamo made of the step, so that breaks can be found and gated without a GPU."""
    return [
        GraphInfo(compile_id=graph.compile_id, nodes=graph.ops, break_reason=graph.break_reason, source=graph.source)
        for graph in plan.graphs
    ]


def _made(name: str, build: Callable[[], Layout | str], profile: Profile) -> Variant:
    try:
        layout = build()
        return _skipped(name, layout) if isinstance(layout, str) else variant_of(layout, profile)
    except UncoveredError as error:
        return _skipped(name, str(error))


def _skipped(name: str, reason: str) -> Variant:
    return msgspec.structs.replace(Variant.unavailable(name, "skipped", reason), origin="predicted")


def _notes(step: FakeStep, plan: DryRun | str, profile: Profile) -> list[str]:
    notes = [f"predicted, nothing was run: costs of profile {profile.title}; ops as for {step.target}"]
    machine = profile.machine
    if machine is not None:
        measured = {"torch": machine.torch, "transformers": machine.transformers}
        other = [
            f"{name} {step.versions[name]} (profile: {measured[name]})"
            for name in measured
            if name in step.versions and measured[name] != step.versions[name]
        ]
        notes += [f"ops and counts are those of {', '.join(other)}"] if other else []
    assumed = [*step.assumptions, *(plan.assumptions if isinstance(plan, DryRun) else [])]
    notes += [f"assumed: {text}" for text in dict.fromkeys(assumed)]
    notes += [f"profile: {note}" for note in profile.notes]
    return notes


def _machine(step: FakeStep, profile: Profile) -> Machine:
    """The profile's machine; of one written by hand without a machine, what its numbers tell."""
    if profile.machine is not None:
        return profile.machine
    reasons = {"t_sys_us": "percentiles are not in the profile", "host_score": "the profile names no machine"}
    if profile.launch.launch_us is None:
        reasons["launch_us"] = profile.why_missing("launch.launch_us")
    return Machine(
        device=profile.name if profile.origin != BY_HAND else f"{profile.name} (written by hand)",
        host_cpu=UNKNOWN,
        cores=0,
        python=UNKNOWN,
        torch=step.versions.get("torch", UNKNOWN),
        cuda=None,
        driver=None,
        transformers=step.versions.get("transformers"),
        triton=None,
        date=profile.date,
        calibration=Calibration(launch_us=profile.launch.launch_us, t_sys_us=None, host_score=None, unmeasured=reasons),
        conditions=Conditions(
            threads=0, affinity=[], gc=UNKNOWN, grad_mode=UNKNOWN, seed=None, gpu_clocks_mhz=None, load=None
        ),
    )


def _comparisons(variants: Sequence[Variant]) -> list[Comparison]:
    """Every predicted variant against eager, then the steps of the ladder that are not among those."""
    known = {variant.name: variant for variant in variants if variant.status == "ok"}
    pairs = [("eager", name) for name in known if name != "eager"]
    # Without Dynamo's own variant the ladder's next rung is reduce-overhead on inductor.
    pairs += [(a, b) for a, b in LADDER if a in known and b in known and (a, b) not in pairs]
    return [_compared(known[a], known[b]) for a, b in pairs]


def _compared(base: Variant, made: Variant) -> Comparison:
    assert base.t_wall_us is not None and made.t_wall_us is not None
    before, after = base.breakdown, made.breakdown
    assert before is not None and after is not None
    quotient = made.t_wall_us.median / base.t_wall_us.median
    ratio = Interval(median=quotient, low=quotient, high=quotient, samples=0)
    fields: dict[str, Any] = {
        "hdbi_before": before.hdbi,
        "hdbi_after": after.hdbi,
        "launches_before": base.launches,
        "launches_after": made.launches,
        "kernels_before": base.kernels,
        "kernels_after": made.kernels,
        "breakeven_steps": None,
    }
    return Comparison(
        base=base.name,
        variant=made.name,
        origin="predicted",
        removed=_removed(base, made),
        wall_ratio=ratio,
        ratio_confidence=0.0,
        verdict=f"predicted: {verdict_of(ratio, LEAST_EFFECT)}",
        unmeasured={name: PREDICTED for name, value in fields.items() if value is None},
        **fields,
    )


def _removed(base: Variant, made: Variant) -> Removed:
    terms = [(_terms(base)[name] - us) for name, us in _terms(made).items()]
    ft, ct, kt, device, wall = terms
    return Removed(ft_us=ft, ct_us=ct, kt_us=kt, device_us=device, wall_us=wall)


def _terms(variant: Variant) -> dict[str, float]:
    """What a predicted variant always has."""
    own = variant.breakdown
    values = [] if own is None else [own.ft_us, own.ct_us, own.kt_us, variant.device_active_us]
    known = [*(us for us in values if us is not None), *([variant.t_wall_us.median] if variant.t_wall_us else [])]
    return dict(zip(Removed.MEASUREMENTS, known, strict=True))
