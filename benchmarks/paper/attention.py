"""Claim: FlashAttention makes Llama-3.2-1B's prefill faster and lowers its HDBI: faster can be more host-bound.

    python -m benchmarks.paper.attention [--out benchmarks/results]

Batch 8, sequence 2048; transformers' eager attention beside its SDPA, which picks the backend.  The value is the change
of HDBI; the claim is met when it falls and the step gets faster.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.paper import claim, figures
from benchmarks.paper.cells import ATTENTION, Store
from benchmarks.paper.claim import Claim

NAME = "attention"
NUMBERS = (
    ("wall", figures.wall_ms, "ms", "T_wall"),
    ("orchestration", figures.orchestration_ms, "ms", "T_Orchestration"),
    ("hdbi", figures.hdbi, "HDBI", "HDBI"),
)


def compute(store: Store) -> Claim:
    """The claim from the two cells."""
    published = dict(zip(("eager", "flash"), ATTENTION, strict=True))
    rows = [
        figures.row(store, f"{label}, {'eager' if kind == 'eager' else 'SDPA'} attention", one,
                    f"attention_{number}_{kind}", get, unit, "machine" if number == "orchestration" else "versions")
        for number, get, unit, label in NUMBERS
        for kind, one in published.items()
    ]  # fmt: skip

    def value() -> tuple[float, bool]:
        ours = [row.ours or 0.0 for row in rows]
        change = ours[5] - ours[4]
        return change, change < 0 and ours[1] < ours[0]

    return claim.finished(
        store, "FlashAttention makes the step faster and lowers its HDBI (published: 0.96 → 0.90)", 0.0,
        "change of HDBI, below 0 in a faster step", rows, value,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    claim.run(NAME, __doc__, compute, argv)


if __name__ == "__main__":
    main()
