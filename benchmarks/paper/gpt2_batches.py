"""Claim: GPT-2 prefill at sequence length 512 over batch 1 to 16: T_Orchestration stays flat while T_DeviceActive
grows, HDBI climbs from 0.25 to 0.74, and host and device balance near batch 8.

    python -m benchmarks.paper.gpt2_batches [--out benchmarks/results]

The value is how many of the six published statements hold for our figures.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from benchmarks.paper import claim, figures
from benchmarks.paper.cells import BATCHES, GPT2_BATCHES, Cell, Store
from benchmarks.paper.claim import Claim, Row, alone, beside, lacking
from benchmarks.paper.published import FIGURES

NAME = "gpt2_batches"
EVEN = 0.5  # HDBI where T_DeviceActive equals T_Orchestration


def crossover(found: dict[int, float]) -> float | None:
    """The batch at which HDBI reaches 0.5, between two measured ones on a line; None where it never does."""
    batches = sorted(found)
    if found[batches[0]] >= EVEN:
        return float(batches[0])
    for below, above in itertools.pairwise(batches):
        if found[below] < EVEN <= found[above]:
            return below + (above - below) * (EVEN - found[below]) / (found[above] - found[below])
    return None


def _balance(store: Store, cells: dict[int, Cell]) -> Row:
    what = "batch at which host and device balance (HDBI 0.5)"
    found: dict[int, float] = {}
    for batch, cell in cells.items():
        one = store.variant(cell)
        if isinstance(one, str):
            return lacking(what, "gpt2_crossover", one)
        value = figures.hdbi(one[1])
        if value is None:
            return lacking(what, "gpt2_crossover", figures.why_null(*one, figures.hdbi))
        found[batch] = value
    at, where = crossover(found), "between measured batches on a line"
    if at is None:
        below = beside(what, "gpt2_crossover", float(max(found)), where, "unexplained", detail="HDBI stays below 0.5")
        return msgspec.structs.replace(below, agreement="differs", reason="unexplained")
    # Batches are powers of two: near 8 is nearer to 8 than to 4 or 16, which is 6 to 12.
    row = beside(what, "gpt2_crossover", at, where, "unexplained")
    near = 6 <= at <= 12
    return msgspec.structs.replace(
        row, agreement="agrees" if near else "differs", reason=None if near else "unexplained"
    )


def compute(store: Store) -> Claim:
    """The claim from the cells that are there."""
    cells = dict(zip(GPT2_BATCHES, BATCHES, strict=True))
    first, last = cells[1], cells[16]
    rows = [
        figures.row(store, f"T_Orchestration, batch {batch}", cell, "gpt2_orchestration", figures.orchestration_ms,
                    "ms", "machine")
        for batch, cell in cells.items()
    ]  # fmt: skip
    flat = list(rows)
    ends = [
        figures.row(store, "T_DeviceActive, batch 1", first, "gpt2_device_1", figures.device_ms, "ms"),
        figures.row(store, "T_DeviceActive, batch 16", last, "gpt2_device_16", figures.device_ms, "ms"),
        figures.row(store, "HDBI, batch 1", first, "gpt2_hdbi_1", figures.hdbi, "HDBI"),
        figures.row(store, "HDBI, batch 16", last, "gpt2_hdbi_16", figures.hdbi, "HDBI"),
        _balance(store, cells),
    ]
    rows += ends
    spread = _spread(flat)
    rows.append(spread)
    rows += [
        figures.row(store, f"{what}, batch {batch}", cells[batch], None, get, unit)
        for batch in GPT2_BATCHES[1:-1]
        for what, get, unit in (("T_DeviceActive", figures.device_ms, "ms"), ("HDBI", figures.hdbi, "HDBI"))
    ]
    needed = [*ends, *flat]

    def value() -> tuple[float, bool]:
        published = FIGURES["gpt2_orchestration"]
        even = (spread.ours or 0.0) <= claim.TOLERANCE + published.high / published.low
        held = sum(row.agreement == "agrees" for row in ends) + even
        return held, held == len(ends) + 1

    return claim.finished(
        store, "GPT-2 prefill, sequence 512: what is published of batch 1 to 16 holds", len(ends) + 1,
        "of six published statements", rows, value, needed,
    )  # fmt: skip


def _spread(flat: Sequence[Row]) -> Row:
    """How flat T_Orchestration is: largest over smallest of all batches."""
    what, published = "T_Orchestration, largest ÷ smallest over the batches", FIGURES["gpt2_orchestration"]
    values = [row.ours for row in flat if row.ours is not None]
    if len(values) < len(flat):
        return lacking(what, None, claim.NOT_RUN, "ratio")
    return alone(what, max(values) / min(values), "ratio", f"published: {published.high / published.low:.2f}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    claim.run(NAME, __doc__, compute, argv)


if __name__ == "__main__":
    main()
