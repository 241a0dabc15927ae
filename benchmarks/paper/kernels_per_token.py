"""Claim: MoE models dispatch 8 to 11 times as many kernels per output token as dense ones.

    python -m benchmarks.paper.kernels_per_token [--out benchmarks/results]

At the published batch 4, sequence 2048, with the loop over ALL experts that the paper measured (``all_experts``), and
beside it what transformers 5 runs: its own loop over the experts that were hit, grouped_mm, batched_mm.  Kernels are
those of one decode step.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.paper import claim, figures
from benchmarks.paper.cells import (
    ALL,
    EXPERTS,
    LLAMA_1B,
    LLAMA_3B,
    MOE,
    OLMOE,
    PUBLISHED_SHAPE,
    QWEN_MOE,
    SMALL_SHAPE,
    Cell,
    Store,
    cell,
)
from benchmarks.paper.claim import Claim, Row, beside, lacking
from benchmarks.paper.published import FIGURES

NAME = "kernels_per_token"
PUBLISHED = {LLAMA_1B: "kernels_llama1b", OLMOE: "kernels_olmoe", QWEN_MOE: "kernels_qwenmoe"}


def ratio(store: Store, model: str, experts: str, shape: tuple[int, int]) -> Row:
    """Kernels of a MoE model's decode step ÷ those of Llama-3.2-1B's."""
    what = f"{model} ({experts} experts) ÷ {LLAMA_1B}, {_shape(shape)}"
    other = "shape" if shape != PUBLISHED_SHAPE else "experts" if experts != ALL else None
    figure = None if other else "kernels_ratio"  # of what is missing: what will not be compared has no figure
    counts = []
    for one in (cell(model, "decode", shape, experts), cell(LLAMA_1B, "decode", shape)):
        found = store.variant(one)
        if isinstance(found, str):
            return lacking(what, figure, found, "times")
        count = found[1].kernels
        if count is None:
            return lacking(what, figure, figures.why_null(*found, figures.kernels), "times")
        counts.append(count)
    shown = " ÷ ".join(f"{count:,}" for count in counts)
    return beside(what, "kernels_ratio", counts[0] / counts[1], shown, "versions", other)


def _shape(shape: tuple[int, int]) -> str:
    return f"batch {shape[0]}, sequence {shape[1]}"


def _count(store: Store, one: Cell) -> Row:
    """The kernels of one cell, beside the published count where it is of the same step."""
    published = one.request.batch, one.request.seq_len
    same = published == PUBLISHED_SHAPE and one.experts in (None, ALL)
    what = f"{one.model}{f' ({one.experts} experts)' if one.experts else ''}, {_shape(published)}"
    return figures.row(store, what, one, PUBLISHED.get(one.model) if same else None, figures.kernels, "kernels",
                       "versions")  # fmt: skip


def compute(store: Store) -> Claim:
    """The claim from the cells that are there."""
    counts = [
        _count(store, one)
        for shape in (PUBLISHED_SHAPE, SMALL_SHAPE)
        for one in (
            *(cell(model, "decode", shape) for model in (LLAMA_1B, LLAMA_3B)),
            *(cell(model, "decode", shape, experts) for model in MOE for experts in EXPERTS),
        )
    ]
    ratios = [ratio(store, model, experts, shape) for shape in (PUBLISHED_SHAPE, SMALL_SHAPE) for model in MOE
              for experts in EXPERTS]  # fmt: skip
    needed = ratios[:: len(EXPERTS)][: len(MOE)]  # all experts at the published shape
    published = FIGURES["kernels_ratio"]
    return claim.finished(
        store,
        f"MoE models dispatch {published.shown} as many kernels per output token as {LLAMA_1B}",
        published.low,
        "times, the smaller of two MoE models, loop over all experts, batch 4, sequence 2048",
        [*ratios, *counts],
        lambda: (min(row.ours or 0.0 for row in needed), all(row.agreement == "agrees" for row in needed)),
        needed,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    claim.run(NAME, __doc__, compute, argv)


if __name__ == "__main__":
    main()
