"""Prices of a graph's ops from the rows of a review: what meets what, exact shares, and what gets no price.

The rows of ``sample_review`` (4 layers, 3 projections each):

linear, line 41, 12 calls: ΔFT 150, ΔCT 200, ΔKT 48 µs, 12 launches.  A call is a transpose and a product here, so each
    op gets ΔFT 150 / 12 / 2 = 6.25; the product alone ΔCT 200 / 12 = 16.667 and ΔKT 48 / 12 = 4.
layer_norm, line 52, 4 calls: ΔFT 60, ΔKT 16: one op a call, 15 and 4 each.
gelu, line 57, 4 calls of that very name: ΔFT 50, ΔKT 16: 12.5 and 4 each.
view, line 40, 12 calls that no op of the graph answers: ΔFT 10.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fake_graph import Maker
from sample_review import AUTHOR_FILE, node, sample_review

from taxbreak_fx.capturable import capturable
from taxbreak_fx.errors import UsageError
from taxbreak_fx.model import Review, StepInfo
from taxbreak_fx.record import SourceLine
from taxbreak_fx.step_graph import HostCost, Op, StepGraph
from taxbreak_fx.variant_record import Node
from taxbreak_fx.whatif_fusion import Recorded, fusion_whatif
from taxbreak_fx.whatif_prices import (
    check_versions,
    eager_of,
    fused_kernel,
    measured,
    place_of,
    price_blockers,
    price_ops,
)

ELSEWHERE = "/opt/other/toy/modeling_toy.py"  # the same file on another machine


def at(line: int, module: str | None) -> dict[str, Any]:
    return {"source": SourceLine(file=ELSEWHERE, line=line), "module_path": module}


def sample_graph() -> StepGraph:
    m = Maker()
    for layer in range(4):
        normed = m.op(
            "row", "x", op="aten.native_layer_norm.default", family="normalization", reduced=(1,),
            **at(52, f"model.layers.{layer}.norm"),
        )  # fmt: skip
        for _ in range(3):
            query = at(41, f"model.layers.{layer}.attention.query")
            transposed = m.view(normed, op="aten.t.default", **query)
            product = m.extern(transposed, op="aten.mm.default", **query)
        m.pointwise(product, op="aten.gelu.default", **at(57, None))
    return m.graph()


def terms(op: Op) -> tuple[float | None, float | None, float | None, int | None]:
    return op.ft_us, op.ct_us, op.kt_us, op.launches


def nodes_of(review: Review) -> list[Node]:
    return review.variant("eager").nodes


def test_the_sample_reviews_rows() -> None:
    graph, coverage = price_ops(sample_graph(), nodes_of(sample_review()))
    by_name = {op.op: {terms(other) for other in graph.ops if other.op == op.op} for op in graph.ops}
    assert by_name == {
        "aten.native_layer_norm.default": {(15.0, 0.0, 4.0, 1)},
        "aten.t.default": {(6.25, 0.0, 0.0, 0)},
        "aten.mm.default": {(6.25, 200 / 12, 4.0, 1)},
        "aten.gelu.default": {(12.5, 0.0, 4.0, 1)},
    }
    # Nothing is lost and nothing is made up: what the graph holds is what the rows hold, less the views.
    assert sum(op.ft_us or 0 for op in graph.ops) == pytest.approx(150 + 60 + 50)
    assert sum(op.ct_us or 0 for op in graph.ops) == pytest.approx(200)
    assert sum(op.kt_us or 0 for op in graph.ops) == pytest.approx(48 + 16 + 16)
    assert (coverage.ops, coverage.priced, coverage.launching, coverage.launching_priced) == (32, 32, 20, 20)
    assert (coverage.rows, coverage.unused_rows, coverage.unused_us) == (4, 1, 10.0)
    assert coverage.unpriced == coverage.missing_terms == {}


def priced(rows: list[Node], *ops: dict[str, Any]) -> tuple[list[Op], dict[str, int]]:
    m = Maker()
    for fields in ops:
        m.op(fields.pop("role", "pointwise"), "x", **({"op": "aten.mul.Tensor"} | at(5, "h.3.act") | fields))
    graph, coverage = price_ops(m.graph(), rows)
    assert coverage.priced + sum(coverage.unpriced.values()) == len(ops)
    return graph.ops, coverage.unpriced


def row(op: str = "aten.mul.Tensor", family: str = "elementwise", calls: int = 1, launches: int = 1, ft: float = 6.0,
        kt: float = 4.0) -> Node:  # fmt: skip
    return node(op, family, 5, calls, launches, ft, 0.0, kt, 1.0, "h.*.act")


def test_fewer_ops_than_calls_cost_the_mean_of_a_call() -> None:
    ops, _ = priced([row(calls=3, launches=3, ft=18.0, kt=12.0)], {}, {})
    assert [terms(op) for op in ops] == [(6.0, 0.0, 4.0, 1)] * 2


def test_an_ops_measured_launches_replace_the_assumed_one() -> None:
    ops, _ = priced([row(calls=2, launches=4, kt=16.0)], {}, {})
    assert [terms(op) for op in ops] == [(3.0, 0.0, 8.0, 2)] * 2


def test_rows_of_one_op_in_two_libraries_are_one() -> None:
    other = msgspec.structs.replace(row(ft=10.0), library="cuBLAS")
    ops, _ = priced([row(), other], {}, {})
    assert [terms(op) for op in ops] == [(8.0, 0.0, 4.0, 1)] * 2


def test_what_gets_no_price() -> None:
    call = row("aten.attention.default", launches=5)
    _, unpriced = priced([call], {}, {"op": "aten.where.self"})
    assert unpriced == {"the review's call launched another number of kernels than the ops here": 2}
    _, unpriced = priced([row("aten.a.default"), row("aten.b.default")], {})
    assert unpriced == {"the review made several calls at its line, and which of them it belongs to is not told": 1}
    _, unpriced = priced([row("aten.dropout.default", family="random")], {})
    assert unpriced == {"the review made no such call at its line": 1}
    _, unpriced = priced([row("aten.a.default", calls=2, launches=3)], {}, {}, {})
    assert unpriced == {"the review made another number of calls at its line": 3}
    _, unpriced = priced([row()], {"source": None})
    assert unpriced == {"no line of the author's is known for it": 1}
    ops, unpriced = priced([row()], at(6, "h.3.act"), at(5, "h.3.other"))
    assert unpriced == {"the review made no such call at its line": 2}
    assert {terms(op) for op in ops} == {(None, None, None, 1)}  # and not 0


def test_the_end_of_a_module_path_is_enough_where_it_is_the_only_one() -> None:
    """Behind a graph break Dynamo names modules from the frame's own one on."""
    ops, unpriced = priced([row()], at(5, "act"))
    assert (terms(ops[0]), unpriced) == ((6.0, 0.0, 4.0, 1), {})
    ops, unpriced = priced([row()], at(5, ""))
    assert (terms(ops[0]), unpriced) == ((6.0, 0.0, 4.0, 1), {})
    other = msgspec.structs.replace(row(ft=9.0), module_path="g.*.act")
    ops, _ = priced([row(), other], at(5, "act"), at(5, "g.1.act"))
    assert [op.ft_us for op in ops] == [None, 9.0]


def test_a_call_that_does_nothing_does_not_hide_the_one_that_does() -> None:
    idle = row("aten.dropout.default", family="random", launches=0)
    ops, unpriced = priced([idle, row("aten.a.default")], {})
    assert (terms(ops[0]), unpriced) == ((6.0, 0.0, 4.0, 1), {})


def test_a_term_that_was_not_measured_stays_null_with_its_reason() -> None:
    unknown = msgspec.structs.replace(row(), ft_us=None, unmeasured={"ft_us": "no in-situ times"})
    m = Maker()
    m.op("pointwise", "x", op="aten.mul.Tensor", **at(5, "h.0.act"))
    graph, coverage = price_ops(m.graph(), [unknown])
    assert terms(graph.ops[0]) == (None, 0.0, 4.0, 1)
    assert (coverage.priced, coverage.missing_terms) == (1, {"ft_us: no in-situ times": 1})


def test_a_place_is_the_same_on_another_machine() -> None:
    windows = SourceLine(file="C:\\models\\toy\\modeling_toy.py", line=41)
    here = SourceLine(file=AUTHOR_FILE, line=41)
    assert place_of(windows, "h.7.mlp") == place_of(here, "h.*.mlp") == ("toy/modeling_toy.py", 41, "h.*.mlp")
    assert place_of(here, "") == place_of(here, None)
    assert place_of(None, "h.0") is None


def test_the_review_must_be_of_this_step() -> None:
    review = sample_review()
    step = msgspec.structs.replace(review.step, device="cpu", options={"cache": "static", "weights": "random"})
    assert eager_of(review, "toy", step).name == "eager"
    with pytest.raises(UsageError, match=r"model toy instead of gpt2, batch 1 instead of 2\): give the review of this"):
        eager_of(review, "gpt2", msgspec.structs.replace(step, batch=2))
    with pytest.raises(UsageError, match="cache static instead of dynamic"):
        eager_of(review, "toy", msgspec.structs.replace(step, options={"cache": "dynamic"}))
    alone = msgspec.structs.replace(review, variants=[v for v in review.variants if v.name != "eager"])
    with pytest.raises(UsageError, match="no rows of the eager step: give a review whose eager variant ran"):
        eager_of(alone, "toy", step)


def test_lines_of_another_transformers_are_refused() -> None:
    review = sample_review()
    check_versions(review, "4.0.0")  # none of its lines is transformers' own
    line = SourceLine(file="/x/site-packages/transformers/activations.py", line=5)
    eager = review.variant("eager")
    moved = msgspec.structs.replace(eager, nodes=[msgspec.structs.replace(n, source=line) for n in eager.nodes])
    theirs = msgspec.structs.replace(review, variants=[moved])
    check_versions(theirs, "5.17.0")
    with pytest.raises(UsageError, match=r"transformers 5\.17\.0, and 5\.18\.0 is installed"):
        check_versions(theirs, "5.18.0")


def test_a_fused_kernel_costs_what_triton_launches_did() -> None:
    assert fused_kernel(sample_review()) is None
    rows = [
        node("triton:a", "elementwise", 1, 6, 6, 30.0, 0.0, 24.0, 1.0, None),
        node("triton:b", "reduction", 1, 2, 2, 18.0, 0.0, 8.0, 1.0, None),
    ]
    review = sample_review()
    inductor = msgspec.structs.replace(review.variant("inductor"), nodes=rows)
    # (30 + 18) / 8 = 6 and (24 + 8) / 8 = 4
    found = fused_kernel(msgspec.structs.replace(review, variants=[inductor]))
    assert found == HostCost(ft_us=6.0, ct_us=0.0, kt_us=4.0, launches=1)


COST = {"ft_us": 3.0, "ct_us": 1.0, "kt_us": 2.0}  # 6 µs an op; one graph launch of the sample's eager-graph is 10 µs


def test_a_sync_between_two_regions_costs_its_own_host_time_and_a_graph_launch() -> None:
    m = Maker()
    m.pointwise("x", **COST)
    m.op("sync", 0, launches=0, **COST)
    m.pointwise(0, escapes=True, **COST)
    graph, way = m.graph(), measured(sample_review(), "eager-graph")
    found = price_blockers(graph, capturable(graph, way="eager-graph"), way)
    blocker = next(b for b in found.blockers if b.kind == "host sync")
    assert (blocker.keep_us, blocker.removing_us) == (6.0, 16.0)
    pool = next(b for b in found.blockers if b.kind == "private-pool memory")
    assert (pool.keep_us, pool.unmeasured["keep_us"]) == (None, "it takes memory, not time")
    unknown = price_blockers(graph, capturable(graph, way="eager-graph"), None)
    blocker = next(b for b in unknown.blockers if b.kind == "host sync")
    assert (blocker.keep_us, blocker.removing_us) == (6.0, None)
    assert "no graph launch was measured" in blocker.unmeasured["removing_us"]


def test_a_skipped_graph_costs_all_its_ops() -> None:
    m = Maker()
    m.pointwise("x", **COST)
    m.op("pointwise", 0, "cache", writes_in_place=True, mutates=("cache",), escapes=True, **COST)
    graph, way = m.graph(), measured(sample_review(), "eager-graph")
    found = price_blockers(graph, capturable(graph), way)
    blocker = next(b for b in found.blockers if b.kind == "mutated input")
    assert (blocker.effect, blocker.keep_us, blocker.removing_us) == ("skips", 12.0, 2.0)  # 2 x 6 - 10
    m.op("pointwise", 0, "other", writes_in_place=True, mutates=("other",), escapes=True)
    graph = m.graph()
    first, second = (b for b in price_blockers(graph, capturable(graph), way).blockers if b.kind == "mutated input")
    assert first.keep_us is None and first.unmeasured["keep_us"] == "1 of 3 ops that it keeps un-graphed have no price"
    assert second.removing_us is None and "1 other blockers" in second.unmeasured["removing_us"]


def test_the_document_adds_up_and_names_exposed_lines() -> None:
    review = sample_review()
    m = Maker()
    for layer in range(2):
        a = m.pointwise(f"x{layer}", op="aten.gelu.default", **at(57, None))
        b = m.pointwise(a, op="aten.exp.default", **at(41, f"model.layers.{layer}.attention.query"))
        m.extern(b)
    graph = m.graph()
    recorded = Recorded(
        model="toy", step=review.step, torch="2", transformers="5.17.0", eager=graph, captured=graph,
        not_compiled="not asked for",
    )  # fmt: skip
    found = fusion_whatif(recorded, review)
    (row,) = found.like
    assert (row.groups, row.names, row.graphs) == ((0, 1), ("aten.gelu.default", "aten.exp.default"), 1)
    assert (row.launches_before, row.launches_after) == (4, 2)
    # The review's linear at line 41 is no exp: no price, and so none for the group.
    assert row.ft_saved_us is None and "aten.exp.default is not known" in row.unmeasured["ft_saved_us"]
    assert found.totals["ft_saved_us"] is None and found.known["ft_saved_us"].groups == 0
    # Line 41 forms groups; the sample simulated that it costs 405 µs of wall time.
    assert [(cost.source.line, cost.exposed_us) for cost in found.lines if cost.source] == [(41, 405.0)]
    ways = {way.way: way for way in found.captures}
    assert ways["eager-graph"].graph_launches == 1 and ways["cudagraphs"].graph_launches is None
    unpriced = fusion_whatif(recorded)
    assert unpriced.pricing is None and unpriced.lines == [] and unpriced.like[0].launches_before == 4


def test_a_step_without_graphs_groups_the_uncompiled_ops() -> None:
    m = Maker()
    m.pointwise(m.pointwise("x"), escapes=True)
    step = StepInfo(phase="forward", batch=None, seq_len=None, dtype="float32", device="cpu")
    found = fusion_whatif(
        Recorded(
            model="toy", step=step, torch="2", transformers=None, eager=m.graph(), captured=None, not_captured="no way"
        )
    )
    assert len(found.like) == 1 and found.agreement is None
    assert [(way.capture is None, way.reason) for way in found.captures] == [
        (True, "no way"), (True, "no way"), (False, None),
    ]  # fmt: skip
