"""Claim: the launch floor of a null kernel on an H200, and what families of kernels add to it.

    python -m benchmarks.paper.launch_floor [--out benchmarks/results]

Reads OUT/launch_floor.json (``python benchmarks/launch_floor.py`` measures it) and the replays of every eager review.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from benchmarks.paper import claim
from benchmarks.paper.cells import Store
from benchmarks.paper.claim import Claim, Row, alone, beside, lacking
from benchmarks.paper.published import FIGURES
from taxbreak_fx.machine import Machine

NAME = "launch_floor"
UNIT = "µs, p50, null kernel, launch API entry to kernel start, traced"
TAKEN = "Triton null kernel, traced"  # the T_sys that every ΔKT of a review is made of
FAMILIES = {
    "sort/scan": "residual_scan",
    "elementwise": "residual_elementwise",
    "reduction": "residual_reduction",
    "gemm": "residual_gemm",
}


def floors(rows: Sequence[dict[str, Any]], where: str) -> Iterator[Row]:
    """Every way of measuring the floor, the one that reviews take beside the published one."""
    for row in rows:
        if row["table"] != "floor" or row["what"] == "published, cited" or "T_sys" in row["what"]:
            continue
        spread = {name: row[name] for name in ("p5", "p95")}
        if row["what"] == TAKEN:
            for name in ("p5", "p50", "p95"):
                yield beside(f"{TAKEN}, {name}", f"floor_{name}", row[name], where, "machine")
        elif row["p50"] is not None:
            yield alone(f"{row['what']}, p50", row["p50"], "µs", where, **spread)
    for row in rows:
        if row["table"] == "move":
            yield alone(row["what"], row["us"], "µs", where)


def residuals(store: Store) -> Iterator[Row]:
    """Median launch latency above the floor by family, over the eager steps of all reviews of a CUDA device."""
    found: dict[str, dict[str, float]] = {}
    for name, review in store.reviews().items():
        if review.step.device != "cuda":
            continue
        for replay in review.variant("eager").replay:
            if replay.kt_fw_us is not None:
                found.setdefault(replay.family, {})[name] = replay.kt_fw_us
                store.used[name] = review
    for family, figure in FAMILIES.items():
        what = f"above the floor: {family}"
        if family not in found:
            yield lacking(what, figure, claim.NOT_RUN)
            continue
        values = list(found[family].values())
        spread = f"median of {len(values)} eager steps, {min(values):.2f} to {max(values):.2f}".replace("-", "−")
        yield beside(what, figure, statistics.median(values), spread, "unexplained", "device")
    for family in sorted(set(found) - set(FAMILIES)):
        values = list(found[family].values())
        yield alone(
            f"above the floor: {family}", statistics.median(values), "µs", f"median of {len(values)} eager steps"
        )


def compute(store: Store) -> Claim:
    """The claim from what is there."""
    path = store.folder / "launch_floor.json"
    machines: dict[str, Any] = {}
    if path.exists():
        saved = msgspec.json.decode(path.read_bytes())
        machine = saved["machine"]
        machines = {path.name: claim.brief(msgspec.convert(machine, Machine))}
        own = list(floors(saved["rows"], f"{machine['device']}, {machine['date'][:10]}"))
    else:
        own = [lacking(f"{TAKEN}, {name}", f"floor_{name}", claim.NOT_RUN) for name in ("p5", "p50", "p95")]
    rows = [*own, *residuals(store)]
    median = next(row for row in own if row.figure == "floor_p50")
    done = claim.finished(
        store,
        "the null-kernel launch floor of an H200 is the published one, within 10 %",
        FIGURES["floor_p50"].low,
        UNIT,
        rows,
        lambda: (median.ours or 0.0, median.agreement == "agrees"),
        [median],
    )
    return msgspec.structs.replace(done, machine=machines | done.machine)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    claim.run(NAME, __doc__, compute, argv)


if __name__ == "__main__":
    main()
