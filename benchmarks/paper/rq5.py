"""Claim (RQ5): latency, GPU idle share and a launch/queue metric can point at another target than the decomposition.

    python -m benchmarks.paper.rq5 [--out benchmarks/results]

For the eager step of every review, each metric names a target by a rule fixed beforehand, and a target has one remedy
among the variants:

  latency        T_wall alone names no layer: compile the step
  idle share     1 − T_DeviceActive ÷ T_wall ≥ 0.5: the device starves, so its launches; else the device's work
  TKLQT          mean of kernel start − entry of its launch call, simulated; at most twice T_sys: nothing queues, so
                 launches; else the device's work (the metric of the paper's predecessor)
  decomposition  the largest exposed term: framework (ΔFT), library (ΔCT), launches (ΔKT), device

A case: a metric whose target is not the decomposition's; latency names no term at all, so that it makes a case only
where its remedy is another than the decomposition's.  What each remedy really bought is the paired wall ratio of
its variant in the same review.  Where a review keeps no timeline there are no exposed terms and no TKLQT; the largest
raw term stands in then, says so, and makes no case.  The value is the number of cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.paper import claim, figures
from benchmarks.paper.cells import Store
from benchmarks.paper.claim import REASONS, Claim, short
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.report.lanes import lanes
from taxbreak_fx.timeline_store import restored

NAME = "rq5"
STEP, LAUNCHES, DEVICE, FRAMEWORK, LIBRARY = "the step", "launches", "device", "framework", "library"
# A target and the measured variant that acts on it; max-autotune, which would act on library calls, is not measured.
REMEDY: Mapping[str, str | None] = {
    STEP: "inductor", FRAMEWORK: "inductor", DEVICE: "inductor", LAUNCHES: "eager-graph", LIBRARY: None,
}  # fmt: skip
TERMS = {"ft_us": FRAMEWORK, "ct_us": LIBRARY, "kt_us": LAUNCHES, "device_us": DEVICE}
STARVED, QUEUED = 0.5, 2.0  # idle share; mean wait in units of T_sys


def mean_wait_us(variant: Variant) -> float | None:
    """TKLQT ÷ launches: start of the work − entry of its launch call, simulated; None without a timeline."""
    if variant.timeline is None:
        return None
    bars = lanes(restored(variant.timeline))
    first: dict[int, float] = {}
    for piece in bars.device:
        if piece.kind == "kernel":
            first[piece.launch] = min(first.get(piece.launch, piece.begin_us), piece.begin_us)
    waits = [begin - bars.host[launch].begin_us for launch, begin in first.items()]
    return sum(waits) / len(waits) if waits else None


def exposed_target(variant: Variant) -> str | None:
    """The largest exposed term; None where the step could not be simulated."""
    exposed = variant.exposed
    if exposed is None or exposed.wall_us is None:
        return None
    return max(TERMS.items(), key=lambda term: getattr(exposed, term[0]) or 0.0)[1]


def raw_target(variant: Variant) -> str | None:
    """The largest raw term; None where one is null."""
    terms = variant.breakdown
    if terms is None or None in (terms.ft_us, terms.ct_us, terms.kt_us, variant.device_active_us):
        return None
    values = {"ft_us": terms.ft_us, "ct_us": terms.ct_us, "kt_us": terms.kt_us, "device_us": variant.device_active_us}
    return TERMS[max(values, key=lambda name: values[name] or 0.0)]


def targets(review: Review, variant: Variant) -> dict[str, str | None]:
    """What each metric points at; None where the review cannot tell."""
    idle, wait, floor = figures.idle_share(variant), mean_wait_us(variant), review.machine.calibration.t_sys_us
    return {
        "latency": STEP,
        "idle share": None if idle is None else LAUNCHES if idle >= STARVED else DEVICE,
        "TKLQT": None if wait is None or floor is None else LAUNCHES if wait <= QUEUED * floor.p50 else DEVICE,
        "decomposition": exposed_target(variant),
        "largest raw term": raw_target(variant),
    }


def bought(review: Review, remedy: str | None) -> float | None:
    """T_wall of the remedy's variant ÷ eager's, paired; None where it did not run."""
    found = [c for c in review.comparisons if (c.base, c.variant) == ("eager", remedy) and c.wall_ratio is not None]
    return found[0].wall_ratio.median if found and found[0].wall_ratio else None


def case(name: str, review: Review) -> dict[str, Any]:
    """A review's targets, remedies and what they bought, as one line of the table."""
    eager = review.variant("eager")
    named = targets(review, eager)
    decided = named["decomposition"]
    remedies = {metric: None if target is None else REMEDY[target] for metric, target in named.items()}
    ratios = {c.variant: c.wall_ratio.median for c in review.comparisons if c.base == "eager" and c.wall_ratio}
    lost = {c.variant for c in review.comparisons if c.base == "eager"
            and figures.drifted(c.variant, figures.eager_then(review, c))}  # fmt: skip
    faster = {variant: ratio for variant, ratio in ratios.items() if ratio < 1.0 and variant not in lost}
    misled = [m for m in ("idle share", "TKLQT") if decided and named[m] and named[m] != decided]
    if decided and remedies["latency"] != remedies["decomposition"]:
        misled.insert(0, "latency")
    return {
        "review": short(name),
        "idle_share": figures.idle_share(eager),
        "hdbi": figures.hdbi(eager),
        "mean_wait_us": mean_wait_us(eager),
        "targets": named,
        "remedies": remedies,
        "bought": {metric: bought(review, remedy) for metric, remedy in remedies.items()},
        "best": min(faster, key=lambda variant: faster[variant]) if faster else None,
        "best_ratio": min(faster.values()) if faster else None,
        "misled": misled,
    }


def compute(store: Store) -> Claim:
    """The claim from every review with compiled variants."""
    rows = []
    for name, review in store.compiled().items():
        eager = review.variant("eager")
        if review.step.device != "cuda" or eager.status != "ok" or len(review.comparisons) == 0:
            continue
        store.used[name] = review
        line = case(name, review)
        where = claim.conditions(review)
        if line["targets"]["decomposition"] is None:
            why = REASONS["not kept"] if eager.exposed is None else figures.why_null(review, eager, figures.hdbi)
            row = claim.lacking(f"cases: {short(name)}", None, why, "cases")
            rows.append(msgspec.structs.replace(row, facts=line, conditions=where))
        else:
            rows.append(claim.alone(f"cases: {short(name)}", len(line["misled"]), "cases", where, **line))
    value = sum(row.ours or 0.0 for row in rows)
    if not rows:
        rows = [claim.lacking("cases", None, claim.NOT_RUN, "cases")]
    return claim.finished(
        store, "latency, idle share or TKLQT points at another target than the largest exposed term", 1.0,
        "cases", rows, lambda: (value, value >= 1.0),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    claim.run(NAME, __doc__, compute, argv)


if __name__ == "__main__":
    main()
