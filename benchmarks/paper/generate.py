"""Claim: the steps that ``--phase generate`` reviews are those of transformers' own ``generate()``.

    python -m benchmarks.paper.generate [--out benchmarks/results]

``generate()`` with the loop whose steps are reviewed takes as long as with its own, in pairs, and yields the same
tokens.  The value is the largest |paired ratio − 1|; the tokens must be equal.  TTFT, TPOT and tokens per second of
transformers' loop stand beside it, and what of the wall time the reviewed steps account for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.paper import claim
from benchmarks.paper.cells import GENERATIONS, Cell, Store
from benchmarks.paper.claim import Claim, Row, alone, lacking

NAME = "generate"
GOAL = 0.02


def rows_of(store: Store, one: Cell) -> Iterator[Row]:
    """The ratio of a cell first, then its times."""
    what = f"{one.name}: reviewed ÷ transformers' loop"
    found = store.variant(one)
    if isinstance(found, str):
        yield lacking(what, None, found, "ratio")
        return
    review, _ = found
    whole = review.generate
    if whole is None or whole.ratio is None or whole.transformers is None:
        why = claim.NOT_RUN if whole is None else whole.unmeasured.get("ratio", claim.NOT_RUN)
        yield lacking(what, None, why, "ratio")
        return
    where, theirs = claim.conditions(review), whole.transformers
    yield alone(what, whole.ratio.median, "ratio", where, tokens_equal=whole.tokens_equal,
                interval=[whole.ratio.low, whole.ratio.high])  # fmt: skip
    yield alone(f"{one.name}: TTFT", theirs.ttft_us.median / 1e3, "ms", where)
    if theirs.tpot_us is not None:
        yield alone(f"{one.name}: TPOT", theirs.tpot_us.median / 1e3, "ms", where)
    yield alone(f"{one.name}: tokens", theirs.tokens_per_s, "per second", where)
    if whole.steps_share is not None:
        yield alone(f"{one.name}: what the reviewed steps account for", whole.steps_share, "share", where)
    for step in whole.steps:
        if step.hdbi is not None:
            yield alone(f"{one.name}: HDBI of token {step.token}", step.hdbi, "HDBI", where, kernels=step.kernels)


def compute(store: Store) -> Claim:
    """The claim from the cells that are there."""
    rows = [row for one in GENERATIONS for row in rows_of(store, one)]
    ratios = [row for row in rows if row.unit == "ratio"]

    def value() -> tuple[float, bool]:
        off = max(abs((row.ours or 0.0) - 1.0) for row in ratios)
        return off, off <= GOAL and all(row.facts["tokens_equal"] for row in ratios)

    return claim.finished(
        store, "generate() with the loop that is reviewed takes as long as with its own, and yields the same tokens",
        GOAL, "largest |paired ratio of wall times − 1|", rows, value, ratios,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    claim.run(NAME, __doc__, compute, argv)


if __name__ == "__main__":
    main()
