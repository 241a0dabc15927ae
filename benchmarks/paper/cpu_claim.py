"""Claim: a host CPU with a faster single thread cuts T_Orchestration by 10 to 29 % and the step by up to 14 %.

    python -m benchmarks.paper.cpu_claim [--out benchmarks/results]

No second host CPU was at hand.  So (1) eager steps are simulated on hosts that are 1.1 to 1.4 times as fast
(``taxbreak whatif --cpu-speed``), and (2) T_Orchestration per launch of every eager step stands beside the host score
of the machine it ran on: hosts of one type differ as well.

The value is the share of those steps of (1) whose T_Orchestration falls by as much as published in which the wall time
falls by no more than the published 14 %: a step bound by its host gains more than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.paper import claim, figures
from benchmarks.paper.cells import ALL, BATCHES, COMPILED, PHASES, PUBLISHED_SHAPE, Store, dense_and_moe
from benchmarks.paper.claim import Claim, Row, alone, beside, lacking, short
from benchmarks.paper.published import FIGURES
from taxbreak_fx.model import Review
from taxbreak_fx.whatif import Change, whatif

NAME = "cpu_claim"
SPEEDS = (1.1, 1.2, 1.3, 1.4)
# What the paper measured; then the eager steps of the cells that are also measured compiled.
PAPERS = (*(one for phase in PHASES for one in dense_and_moe(PUBLISHED_SHAPE, phase, (ALL,))), BATCHES[0])
STEPS = {one.name: one for one in (*COMPILED, *PAPERS)}


def simulated(name: str, review: Review, speed: float) -> list[Row]:
    """The change of T_Orchestration and of T_wall of an eager step on a host ``speed`` times as fast."""
    found = whatif(review, Change(cpu_speed=speed), ("eager",), name)
    predicted = next(v.prediction for v in found.variants if v.prediction is not None)
    where = f"{claim.conditions(review)}; simulation off by {100 * predicted.base_error:+.1f} % on the measured step"
    rows = []
    for key, change in (("orchestration", predicted.orchestration_change), ("wall", predicted.wall_change)):
        what = f"{short(name)}, host × {speed:g}: {'T_Orchestration' if key == 'orchestration' else 'T_wall'}"
        if change is None:
            rows.append(lacking(what, f"cpu_{key}", "a term of the step is null"))
        else:
            rows.append(beside(what, f"cpu_{key}", change, where, "machine"))
    return rows


def hosts(store: Store) -> Iterator[Row]:
    """T_Orchestration per launch of every measured eager step, with the host score of its machine."""
    for name, review in store.reviews().items():
        if review.step.device != "cuda" or review.variant("eager").status != "ok":
            continue
        eager = review.variant("eager")
        total = figures.orchestration_ms(eager)
        if total is not None and eager.launches:
            store.used[name] = review
            score = review.machine.calibration.host_score
            yield alone(f"T_Orchestration per launch: {short(name)}", 1e3 * total / eager.launches, "µs",
                        claim.conditions(review), host_score=score, date=review.machine.date)  # fmt: skip


def compute(store: Store) -> Claim:
    """The claim from those of ``STEPS`` whose review keeps a timeline."""
    rows: list[Row] = []
    for one in STEPS.values():
        found = store.find(one.alone, simulated=True)
        eager = None if found.review is None else found.review.variant("eager")
        what = f"{one.name}, on a faster host"
        if found.review is None or found.file is None:
            rows.append(lacking(what, "cpu_orchestration", found.reason or claim.NOT_RUN))
        elif eager is None or eager.timeline is None:
            rows.append(lacking(what, "cpu_orchestration", figures.no_timeline(found)))
        else:
            store.used[found.file] = found.review
            rows += [row for speed in SPEEDS for row in simulated(found.file, found.review, speed)]
    share = within(rows)
    if share is None and not any(row.agreement == "not run" for row in rows):
        rows.append(
            lacking("a step that falls as published", None, "T_Orchestration of no simulated step does", "share")
        )

    def value() -> tuple[float, bool]:
        assert share is not None
        return share, share == 1.0

    return claim.finished(
        store, "a faster host CPU cuts T_Orchestration by 10–29 % and the wall time by at most 14 %", 1.0,
        "share of simulated steps", [*rows, *hosts(store)], value, rows,
    )  # fmt: skip


def within(rows: Sequence[Row]) -> float | None:
    """Of the steps whose T_Orchestration falls as published, the share whose T_wall falls by at most as published; None
    without such a step."""
    changes = {row.what: row.ours for row in rows if row.ours is not None}
    pairs = [
        (change, changes[what.replace("T_Orchestration", "T_wall")])
        for what, change in changes.items()
        if what.endswith("T_Orchestration")
    ]
    low, high = FIGURES["cpu_orchestration"].low, FIGURES["cpu_orchestration"].high
    alike = [wall for orchestration, wall in pairs if low <= orchestration <= high]
    return sum(wall >= FIGURES["cpu_wall"].low for wall in alike) / len(alike) if alike else None


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    claim.run(NAME, __doc__, compute, argv)


if __name__ == "__main__":
    main()
