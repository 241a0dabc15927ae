"""Our groups beside kernels: the score and the reasons on hand-made kernels, then on what CPU Inductor really made."""

from __future__ import annotations

import pytest
import torch
from fake_graph import Maker

from taxbreak_fx.fusion import fusible_groups
from taxbreak_fx.fusion_agreement import Agreement, Declined, FusedKernel, Kernels, agreement
from taxbreak_fx.fusion_search import Rules
from taxbreak_fx.inductor_kernels import inductor_kernels
from taxbreak_fx.model import StepInfo
from taxbreak_fx.op_graph import captured_graph
from taxbreak_fx.record import SourceLine
from taxbreak_fx.step_graph import Break, StepGraph
from taxbreak_fx.workload import Workload


def kernel(*nodes: int, extern: bool = False, graph: int = 0, stores: tuple[int, ...] = ()) -> FusedKernel:
    """A kernel of these nodes, which stores the last of them; its scheduler name is that of the last."""
    kept = stores or nodes[-1:]
    return FusedKernel(
        name=f"k{nodes[-1]}", extern=extern, nodes=tuple(f"n{n}" for n in nodes), graph=graph,
        stores=tuple(f"n{n}" for n in kept), parts=(f"op{nodes[-1]}",),
    )  # fmt: skip


def compare(graph: StepGraph, *kernels: FusedKernel, declined: tuple[Declined, ...] = ()) -> Agreement:
    groups = fusible_groups(graph, Rules(across_graphs=True)).groups
    return agreement(graph, groups, Kernels(kernels=list(kernels), declined=list(declined)))


def chain(**last: object) -> StepGraph:
    """Three pointwise ops, one after another."""
    m = Maker()
    m.pointwise(m.pointwise(m.pointwise("x")), escapes=True, **last)
    return m.graph()


def test_the_same_kernel() -> None:
    found = compare(chain(), kernel(0, 1, 2))
    assert [(row.relation, row.kernels, row.reason) for row in found.rows] == [("same", ("k2",), None)]
    # n0–n1 and n1–n2: both sides fuse both; together they hold three pairs.
    assert (found.pairs, found.agreed, found.score, found.overlap, found.unseen) == (2, 2, 1.0, 1.0, 0)


def test_two_kernels_and_the_schedulers_words() -> None:
    said = Declined(graph=0, first=("op1",), second=("op2",), reason="numel/rnumel mismatch (reduce) (4, 8), (32, 1)")
    found = compare(chain(), kernel(0, 1), kernel(2), declined=(said,))
    row = found.rows[0]
    assert (row.relation, row.reason, row.detail) == ("we fuse more", "other domain", said.reason)
    # n1–n2 is the pair they differ on; of the three pairs we put together, Inductor does one.
    assert (found.pairs, found.agreed, found.score, found.overlap) == (2, 1, 0.5, pytest.approx(1 / 3))


def test_reasons_that_the_step_itself_tells() -> None:
    assert compare(chain(writes_in_place=True), kernel(0, 1), kernel(2)).rows[0].reason == "mutation"
    assert compare(chain(dtype="int64"), kernel(0, 1), kernel(2)).rows[0].reason == "dtype"
    extern = compare(chain(), kernel(0, 1), kernel(2, extern=True)).rows[0]
    assert (extern.reason, extern.detail) == ("extern kernel between", "Inductor leaves it to k2")
    broken = chain(graph=1)
    cut = StepGraph(ops=broken.ops, breaks=[Break(graph=0, reason="print()", source=SourceLine(file="m", line=1))])
    row = compare(cut, kernel(0, 1), kernel(2, graph=1)).rows[0]
    assert (row.relation, row.reason, row.detail) == ("we fuse more", "graph break", "print()")
    assert compare(chain(), kernel(0, 1), kernel(2)).rows[0].reason == "not told"
    twice = compare(chain(), kernel(0, 1), kernel(0, 2)).rows[0]
    assert twice.reason == "computed in each reader"


def test_inductor_fuses_more_than_we_do() -> None:
    m = Maker()
    a = m.pointwise("x")
    b = m.pointwise(a, shape=(3,), escapes=True)
    c = m.pointwise(m.extern("x"), escapes=True)
    m.pointwise(c, escapes=True)
    found = compare(m.graph(), kernel(a, b), kernel(2, extern=True), kernel(a, c, c + 1))
    # A value that nothing needs is inlined into its reader whatever its size; so a and b are one group here too.
    assert {row.relation for row in found.rows} == {"same", "Inductor fuses more"}
    m = Maker()
    a = m.pointwise("x", escapes=True)
    b = m.pointwise(a, shape=(3,), escapes=True)
    found = compare(m.graph(), kernel(a, b))
    assert [(row.group, row.relation) for row in found.rows] == [(None, "Inductor fuses more")]
    assert (found.pairs, found.agreed, found.overlap) == (1, 0, 0.0)


def test_what_no_kernel_names_is_counted_not_scored() -> None:
    found = compare(chain(), kernel(7))
    assert (found.pairs, found.score, found.overlap, found.unseen) == (0, None, None, 3)
    assert (found.rows[0].relation, found.rows[0].reason) == ("Inductor has none of it", "not told")


class Block(torch.nn.Module):
    """RMS norm, a product, GELU written out and a residual; then a graph break and one more op."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(32, 32)
        self.broken = broken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        y = self.linear(normed)
        y = y * torch.sigmoid(1.702 * y)
        if self.broken:
            torch._dynamo.graph_break()
        return y + x


def block(broken: bool = False) -> Workload:
    torch.manual_seed(0)
    step = StepInfo(phase="forward", batch=16, seq_len=None, dtype="float32", device="cpu")
    return Workload(call=Block(broken).eval(), model="block", step=step, args=(torch.randn(16, 32),))


def test_agreement_with_what_inductor_made_on_the_cpu() -> None:
    graph = captured_graph(block(), "cpu")
    made = inductor_kernels(block())
    found = agreement(graph, fusible_groups(graph).groups, made)
    # The norm up to the product, and the gate with the residual behind it: one kernel each, and the product between.
    assert [row.relation for row in found.rows] == ["same", "same"]
    assert (found.score, found.overlap, found.unseen) == (1.0, 1.0, 0)
    assert found.pairs > 5
    assert [k.extern for k in made.kernels] == [False, True, False]
    # What the product reads is the work of the kernel before it.
    assert made.kernels[1].nodes == made.kernels[1].stores != ()


def test_a_graph_break_is_why_inductor_misses_a_group() -> None:
    graph = captured_graph(block(broken=True), "cpu")
    assert [cut.graph for cut in graph.breaks] == [0]
    made = inductor_kernels(block(broken=True))
    assert {kernel.graph for kernel in made.kernels} == {0, 1}
    found = agreement(graph, fusible_groups(graph, Rules(across_graphs=True)).groups, made)
    missed = [row for row in found.rows if row.reason == "graph break"]
    assert len(missed) == 1 and missed[0].relation == "we fuse more" and "graph_break" in missed[0].detail
    # Within the rules of what a compiler is given, nothing reaches over the break.
    inside = fusible_groups(graph).groups
    assert all(len({graph.ops[index].graph for index in group.ops}) == 1 for group in inside)


def test_the_scheduler_is_left_as_it_was() -> None:
    from torch._inductor.scheduler import Scheduler, WhyNoFuse

    before = Scheduler.codegen, WhyNoFuse.__call__
    inductor_kernels(block())
    assert before == (Scheduler.codegen, WhyNoFuse.__call__)
