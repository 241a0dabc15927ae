"""Regions a CUDA graph can hold, and the blockers, on hand-made graphs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fake_graph import FULL_BYTES, Maker

from taxbreak_fx.capturable import Capture, capturable, price
from taxbreak_fx.errors import UsageError
from taxbreak_fx.record import SourceLine
from taxbreak_fx.step_graph import Break, StepGraph, StepInput


def regions(found: Capture) -> list[tuple[int, int]]:
    return [(region.first, region.last) for region in found.regions]


def blockers(found: Capture) -> list[tuple[str, int | None]]:
    """Those that are no matter of memory or copies, which every graph has."""
    return [(b.kind, b.op) for b in found.blockers if b.kind not in ("private-pool memory", "input copies")]


def with_inputs(graph: StepGraph, **changes: dict[str, Any]) -> StepGraph:
    inputs = [msgspec.structs.replace(each, **changes.get(each.name, {})) for each in graph.inputs]
    return msgspec.structs.replace(graph, inputs=inputs)


def test_a_step_with_nothing_in_the_way_is_one_region() -> None:
    m = Maker()
    a = m.extern("x")
    b = m.pointwise(a)
    m.extern(b, escapes=True)
    found = capturable(m.graph())
    assert (found.whole, found.covered, regions(found), blockers(found)) == (True, 1.0, [(0, 2)], [])
    assert found.regions[0].launches == 3
    copies = next(each for each in found.blockers if each.kind == "input copies")
    assert (copies.op, copies.bytes, copies.effect) == (0, 64, "costs")
    # a is freed when b has been made, b when the last has: two results at a time.
    pool = next(each for each in found.blockers if each.kind == "private-pool memory")
    assert (pool.bytes, pool.op, found.regions[0].pool_bytes) == (2 * FULL_BYTES, b, 2 * FULL_BYTES)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"role": "sync"}, "host sync"),
        ({"role": "extern", "data_dependent": True, "shape": (4,)}, "data-dependent op"),
        ({"role": "pointwise", "devices": ("cuda:0", "cpu")}, "CPU tensor"),
        ({"role": "extern", "unsafe": "it is tagged"}, "unsafe library call"),
    ],
)
def test_what_ends_a_region_and_where(fields: dict[str, Any], kind: str) -> None:
    m = Maker()
    a = m.pointwise("x")
    bad = m.op(fields.pop("role"), a, **fields)
    m.pointwise(a, escapes=True)
    found = capturable(m.graph())
    assert (regions(found), blockers(found)) == ([(0, 0), (2, 2)], [(kind, bad)])
    blocker = next(each for each in found.blockers if each.kind == kind)
    assert (blocker.effect, blocker.source) == ("splits", SourceLine(file="model.py", line=bad))
    assert not found.whole and found.covered == pytest.approx(2 / 3)


def test_a_written_input_skips_its_graph_unless_it_keeps_its_address() -> None:
    m = Maker()
    m.pointwise("cache", writes_in_place=True, mutates=("cache",), graph=0)
    m.pointwise("x", graph=1, escapes=True)
    graph = m.graph()
    found = capturable(graph)
    assert (regions(found), blockers(found)) == ([(1, 1)], [("mutated input", 0)])
    assert next(b for b in found.blockers if b.kind == "mutated input").effect == "skips"
    kept = capturable(with_inputs(graph, cache={"static": True}))
    assert (regions(kept), blockers(kept)) == ([(0, 0), (1, 1)], [])


def test_the_three_ways_differ() -> None:
    m = Maker()
    a = m.pointwise("cache", writes_in_place=True, mutates=("cache",))
    m.pointwise(a, escapes=True)
    m.op("sync", a, graph=1)
    m.pointwise(a, graph=1, escapes=True)
    graph = m.graph()
    # Trees: the write skips graph 0, the sync splits graph 1.  The backend: either leaves its graph un-graphed.
    assert regions(capturable(graph)) == [(3, 3)]
    assert regions(capturable(graph, way="cudagraphs")) == []
    # A bare capture may write what stays in place, and copies nothing in; the sync still stops it.
    bare = capturable(graph, way="eager-graph")
    assert regions(bare) == [(0, 1), (3, 3)] and not bare.whole
    assert [(b.kind, b.effect) for b in bare.blockers if b.kind != "private-pool memory"] == [
        ("mutated input", "costs"), ("host sync", "splits"),
    ]  # fmt: skip


def test_varying_sizes_cost_a_capture_each_but_end_nothing() -> None:
    m = Maker()
    m.pointwise("x", dynamic=True, escapes=True)
    found = capturable(m.graph())
    assert (regions(found), blockers(found)) == ([(0, 0)], [("dynamic shape", 0)])
    assert found.whole


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("Unsupported Tensor.item() call with capture_scalar_outputs=False", "host sync"),
        ("Data-dependent branching", "host sync"),
        ("Dynamic shape operator aten.nonzero.default", "data-dependent op"),
        ("Call to `torch._dynamo.graph_break()`", "graph break"),
    ],
)
def test_a_graph_break_ends_a_region_at_the_authors_line(reason: str, kind: str) -> None:
    m = Maker()
    a = m.pointwise("x", graph=0, escapes=True)
    m.pointwise(a, graph=1, escapes=True)
    line = SourceLine(file="model.py", line=77)
    found = capturable(m.graph(breaks=[Break(graph=0, reason=reason, source=line)]))
    assert (regions(found), blockers(found)) == ([(0, 0), (1, 1)], [(kind, 0)])
    assert next(each for each in found.blockers if each.kind == kind).source == line
    assert not found.whole and found.covered == 1.0


def test_parameters_are_copied_in_by_the_cudagraphs_backend_only() -> None:
    m = Maker()
    m.extern("x", "weight", "bias", escapes=True)
    graph = with_inputs(m.graph(), weight={"static": True, "bytes": 4096}, bias={"static": True})
    assert "parameter copies" not in [each.kind for each in capturable(graph).blockers]
    found = capturable(graph, way="cudagraphs")
    copied = next(each for each in found.blockers if each.kind == "parameter copies")
    assert copied.bytes == 4096 + 64
    assert copied.what == "2 copied in at each replay, the largest is weight"


def test_a_region_that_launches_nothing_is_none() -> None:
    m = Maker()
    a = m.pointwise("x")
    m.op("sync", a)
    m.view(a)
    assert regions(capturable(m.graph())) == [(0, 0)]


def test_unknown_launches_leave_the_share_unknown() -> None:
    m = Maker()
    m.pointwise("x", launches=None, escapes=True)
    found = capturable(m.graph())
    assert (found.covered, found.whole, len(found.regions)) == (None, False, 1)


def test_a_blocker_is_null_with_a_reason_until_it_is_priced() -> None:
    m = Maker()
    m.op("sync", m.pointwise("x"))
    blocker = capturable(m.graph()).blockers[-1]
    assert blocker.keep_us is blocker.removing_us is None
    assert blocker.unmeasured == {"keep_us": "not priced", "removing_us": "not priced"}
    priced = price(blocker, 12.5, None)
    assert (priced.keep_us, priced.unmeasured) == (12.5, {"removing_us": "not priced"})


def test_a_device_that_the_step_does_not_use_is_refused() -> None:
    m = Maker()
    m.pointwise("x")
    with pytest.raises(UsageError, match="no op of the step works on cuda:1; it uses: cuda:0"):
        capturable(m.graph(), "cuda:1")


def test_an_empty_step_has_nothing_to_hold() -> None:
    found = capturable(StepGraph(ops=[], inputs=[StepInput(name="x", bytes=4, device="cuda:0", static=False)]))
    assert (found.regions, found.blockers, found.covered, found.whole) == ([], [], None, False)
