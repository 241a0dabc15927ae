"""Claim: HDBI of dense and MoE models, prefill and decode, is what is published.

    python -m benchmarks.paper.dense_and_moe [--out benchmarks/results]

Every cell at batch 4, sequence 2048 and at batch 1, sequence 512, with its terms, kernels and idle share of the GPU.
At which of the two shapes a published HDBI stands is not known: a published statement is reached when a cell of its
kind, at either shape, has it.  MoE models count with the loop over all experts, which is what the paper measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.paper import claim, figures
from benchmarks.paper.cells import ALL, DENSE, MOE, PHASES, PUBLISHED_SHAPE, SMALL_SHAPE, Store, cell, dense_and_moe
from benchmarks.paper.claim import Claim, Row, beside, lacking
from benchmarks.paper.published import FIGURES

NAME = "dense_and_moe"
STATEMENTS = {
    "hdbi_dense_prefill": (DENSE, "prefill"),
    "hdbi_dense_decode_small": (DENSE, "decode"),
    "hdbi_dense_decode_large": (DENSE, "decode"),
    "hdbi_moe_prefill": (MOE, "prefill"),
    "hdbi_moe_decode": (MOE, "decode"),
}


def statement(store: Store, figure: str) -> Row:
    """The cell of a statement's kind whose HDBI is nearest to the published one."""
    models, phase = STATEMENTS[figure]
    what = f"nearest HDBI of a cell: {figure.removeprefix('hdbi_').replace('_', ' ')}"
    found: list[tuple[float, str]] = []
    why = ""
    for shape in (PUBLISHED_SHAPE, SMALL_SHAPE):
        for model in models:
            one = store.variant(cell(model, phase, shape, ALL if models == MOE else None))  # type: ignore[arg-type]
            if isinstance(one, str):
                why = why or one
                continue
            value = figures.hdbi(one[1])
            if value is not None:
                found.append((value, claim.conditions(one[0])))
    if not found:
        return lacking(what, figure, why)
    published = FIGURES[figure]
    value, where = min(found, key=lambda one: max(published.low - one[0], one[0] - published.high, 0.0))
    return beside(what, figure, value, where, "unexplained", "unknown shape")


def compute(store: Store) -> Claim:
    """The claim from the cells that are there."""
    rows = [statement(store, figure) for figure in STATEMENTS]
    cells = [
        figures.row(store, f"HDBI: {one.name}", one, None, figures.hdbi, "HDBI")
        for shape in (PUBLISHED_SHAPE, SMALL_SHAPE)
        for phase in PHASES
        for one in dense_and_moe(shape, phase)
    ]
    kinds = [row for row in cells if ALL in row.what or not any(name in row.what for name in ("olmoe", "qwenmoe"))]

    def value() -> tuple[float, bool]:
        held = sum(row.ours is not None and claim.agrees(str(row.figure), row.ours) for row in rows)
        return held, held == len(rows)

    return claim.finished(
        store, "HDBI of dense and MoE models in prefill and decode: what is published of it is reached", len(rows),
        "of five published statements", [*rows, *cells], value, kinds,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    claim.run(NAME, __doc__, compute, argv)


if __name__ == "__main__":
    main()
