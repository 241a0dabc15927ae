"""Claim: what the experts of a MoE decode step launch is a function of the experts that are visited.

    python -m benchmarks.paper.experts [--out benchmarks/results]

The loop over ALL experts visits layers × experts per step, whatever was hit; transformers' eager loop visits those that
some token chose; grouped_mm and batched_mm visit none one by one.  A review tells the visits: ``index_add_`` runs once
in each.  Kernels inside the experts' modules are then  fixed per layer × layers + per visit × visits,  with the kernels
per visit from the ops that run as often as ``index_add_`` does.  The value is the largest part of the experts' kernels
of a step with a loop that this leaves unexplained; 0 is the goal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.paper import claim, figures
from benchmarks.paper.cells import EXPERTS, MOE, PUBLISHED_SHAPE, SMALL_SHAPE, Store, cell
from benchmarks.paper.claim import Claim, Row, alone, lacking
from taxbreak_fx.model import Variant

NAME = "experts"
VISIT = "index_add_"
LOOPS = ("all", "eager")


def experts_kernels(variant: Variant) -> dict[str, Any]:
    """Kernels in the experts' modules of a step, visits, kernels per visit, and those that are neither of a visit nor
    of a layer; visits are 0 where no expert is visited by itself."""
    nodes = [node for node in variant.nodes if node.module_path and "experts" in node.module_path.split(".")]
    visits = sum(node.count for node in nodes if VISIT in node.op)
    layers = min((node.count for node in nodes), default=0)
    per_visit = sum(node.kernels or 0 for node in nodes if visits and node.count % visits == 0)
    rest = [node for node in nodes if not (visits and node.count % visits == 0)]
    per_layer = sum(node.kernels or 0 for node in rest if node.count % layers == 0)
    total = sum(node.kernels or 0 for node in nodes)
    return {
        "kernels_in_experts": total,
        "visits": visits,
        "layers": layers,
        "kernels_per_visit": per_visit / visits if visits else None,
        "kernels_per_layer": per_layer / layers if layers else None,
        "unexplained": total - per_visit - per_layer,
    }


def compute(store: Store) -> Claim:
    """The claim from the decode cells of the MoE models."""
    rows: list[Row] = []
    for shape in (PUBLISHED_SHAPE, SMALL_SHAPE):
        for model in MOE:
            for experts in EXPERTS:
                one = cell(model, "decode", shape, experts)
                found = store.variant(one)
                if isinstance(found, str):
                    rows.append(lacking(one.name, None, found, "kernels"))
                    continue
                review, eager = found
                if eager.kernels is None:
                    rows.append(lacking(one.name, None, figures.why_null(review, eager, figures.kernels), "kernels"))
                    continue
                facts = {**experts_kernels(eager), **figures.facts(eager), "experts": experts}
                rows.append(alone(one.name, eager.kernels, "kernels", claim.conditions(review), **facts))
    loops = [row for row in rows if row.what.endswith(LOOPS)]

    def value() -> tuple[float, bool]:
        parts = [abs(row.facts["unexplained"]) / row.facts["kernels_in_experts"] for row in loops]
        return max(parts), max(parts) == 0.0

    return claim.finished(
        store, "kernels of a loop over experts = per layer × layers + per visit × visits", 0.0,
        "largest share of the experts' kernels that is neither", rows, value, loops,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    claim.run(NAME, __doc__, compute, argv)


if __name__ == "__main__":
    main()
