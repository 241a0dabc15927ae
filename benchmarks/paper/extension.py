"""The extension: what each way of compiling a step removes of each term, which the paper does not have.

    python -m benchmarks.paper.extension [--out benchmarks/results]

Every variant of every review with compiled ones, against eager: terms removed, HDBI before and after, wall ratio,
build time, peak memory, break-even steps, and what got worse.

Break-even steps are the review's: build seconds ÷ seconds saved per step, with seconds saved = eager's T_wall × (1 −
paired wall ratio): after so many steps the build is repaid.  Null where nothing is measurably saved.

``eager_then`` = eager's T_wall in the pairs with the variant ÷ its own median.  Where it is far from 1 the host ran at
another speed meanwhile.  That cancels in the ratio of a variant that waits for the host, but not in that of a graph,
which the host does not hold up: such a ratio is ``drifted``, and compared with no other variant's.

Fusion and graphs: ``fusion`` = 1 − wall ratio of inductor against eager, ``graphs_after_fusion`` = 1 − that of
reduce-overhead against inductor; ``graphs`` = 1 − that of eager-graph against eager, ``fusion_after_graphs`` = 1 −
reduce-overhead's ÷ eager-graph's, both against eager.  Shares of the wall time that was left; null where one that is
needed did not run, or is ``drifted``.

The value is how many compiled variants of the eight cells have a decomposition, or the reason why they have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.paper import claim, figures
from benchmarks.paper.cells import COMPILED, Store
from benchmarks.paper.claim import Claim, Row, alone, lacking, short
from taxbreak_fx.compare import wall_at_speed_of
from taxbreak_fx.model import Comparison, Review

NAME = "extension"
TERMS = ("ft_us", "ct_us", "kt_us", "device_us")


def compiled(name: str, review: Review, found: Comparison) -> Row:
    """A variant against eager."""
    base, variant = review.variant(found.base), review.variant(found.variant)
    assert found.wall_ratio is not None
    removed = {term.removesuffix("_us") + "_ms": _ms(getattr(found.removed, term)) for term in TERMS}
    noise = {term.removesuffix("_us") + "_ms": _ms(found.removed.noise_us.get(term)) for term in TERMS}
    memory, before = variant.peak_memory_bytes, base.peak_memory_bytes
    then = figures.eager_then(review, found)
    return alone(
        f"{name}: {found.variant}",
        found.wall_ratio.median,
        "of eager's wall time",
        claim.conditions(review),
        case=name,
        variant=found.variant,
        wall_ratio=[found.wall_ratio.low, found.wall_ratio.high],
        verdict=found.verdict,
        eager_then=then,
        drifted=figures.drifted(found.variant, then),
        wall_at_speed_ms=wall_at_speed_of(base, variant, review.comparisons) / 1e3,
        removed=removed,
        noise=noise,
        hdbi_before=found.hdbi_before,
        hdbi_after=found.hdbi_after,
        kernels=[found.kernels_before, found.kernels_after],
        launches=[found.launches_before, found.launches_after],
        compile_s=variant.compile_s,
        memory_mib=None if memory is None else memory / 2**20,
        memory_added_mib=None if memory is None or before is None else (memory - before) / 2**20,
        breakeven_steps=found.breakeven_steps,
        worse=found.worse,
        outputs_equal=variant.outputs_equal,
        terms=figures.facts(variant),
    )


def _ms(us: float | None) -> float | None:
    return None if us is None else us / 1e3


def order(name: str, review: Review) -> dict[str, Any]:
    """Fusion and CUDA graphs in both orders; null where a variant did not run, or its ratio drifted."""
    known = [c for c in review.comparisons if c.wall_ratio is not None]
    lost = {c.variant for c in known if c.base == "eager"
            and figures.drifted(c.variant, figures.eager_then(review, c))}  # fmt: skip
    ratios = {(c.base, c.variant): c.wall_ratio.median for c in known if c.wall_ratio and c.variant not in lost}
    fused, graphed = ratios.get(("eager", "inductor")), ratios.get(("eager", "eager-graph"))
    both, after = ratios.get(("eager", "reduce-overhead")), ratios.get(("inductor", "reduce-overhead"))
    return {
        "case": name,
        "fusion": None if fused is None else 1 - fused,
        "graphs_after_fusion": None if after is None else 1 - after,
        "graphs": None if graphed is None else 1 - graphed,
        "fusion_after_graphs": None if both is None or graphed is None else 1 - both / graphed,
        "both": None if both is None else 1 - both,
        "drifted": sorted(lost),
    }


def rows_of(name: str, review: Review) -> Iterator[Row]:
    """Eager, every variant against it, those that failed, and the two orders."""
    eager = review.variant("eager")
    where = claim.conditions(review)
    if eager.t_wall_us is not None:
        memory = None if eager.peak_memory_bytes is None else eager.peak_memory_bytes / 2**20
        yield alone(f"{name}: eager", 1.0, "of eager's wall time", where, case=name, variant="eager",
                    memory_mib=memory, terms=figures.facts(eager))  # fmt: skip
    for found in review.comparisons:
        if found.base == "eager" and found.wall_ratio is not None and found.origin == "measured":
            yield compiled(name, review, found)
    for variant in review.variants:
        if variant.status != "ok":
            yield lacking(f"{name}: {variant.name}", None, variant.reason or variant.status, "of eager's wall time")
    both = order(name, review)
    if both["both"] is not None:
        yield alone(f"{name}: fusion and graphs", both["both"], "removed of eager's wall time", where, **both)


def settled(review: Review) -> int:
    """Compiled variants with a decomposition, or with the reason why there is none."""
    return sum(
        variant.name != "eager" and (variant.reason is not None or variant.breakdown is not None)
        for variant in review.variants
    )


def compute(store: Store) -> Claim:
    """The table from every review that has compiled variants."""
    rows: list[Row] = []
    answered: dict[str, int] = {}
    for name, review in store.compiled().items():
        if review.step.device == "cuda":
            store.used[name] = review
            rows += rows_of(short(name), review)
    needed = []
    for one in COMPILED:
        found = store.find(one)
        if found.review is None:
            needed.append(lacking(f"{one.name}: compiled variants", None, found.reason or claim.NOT_RUN, "variants"))
        else:
            answered[one.name] = settled(found.review)
    goal = sum(len(one.variants) - 1 for one in COMPILED)
    total = sum(answered.values())
    return claim.finished(
        store, "every compiled variant of the eight cells has a decomposition, or the reason why not", goal,
        "compiled variants", [*rows, *needed], lambda: (total, total >= goal), needed,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    claim.run(NAME, __doc__, compute, argv)


if __name__ == "__main__":
    main()
