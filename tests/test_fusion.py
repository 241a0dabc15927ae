"""Fusible groups of hand-made graphs, derived in comments; legality on random ones; growth in the number of ops."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

import networkx
import pytest
from fake_graph import FULL_BYTES, ROW_BYTES, Maker

from taxbreak_fx.fusion import Fusion, FusionBytes, FusionGroup, fusible_groups, total
from taxbreak_fx.fusion_search import Rules
from taxbreak_fx.step_graph import HostCost, Op, Operand, Role, StepGraph, priced, producers


def groups_of(graph: StepGraph, rules: Rules | None = None) -> list[tuple[int, ...]]:
    """The groups by their first op."""
    return sorted(group.ops for group in fusible_groups(graph, rules).groups)


def only(found: Fusion) -> FusionGroup:
    assert len(found.groups) == 1
    return found.groups[0]


def test_a_chain_between_library_calls() -> None:
    m = Maker()
    a = m.extern("x")
    b = m.pointwise(a)
    c = m.pointwise(b)
    d = m.pointwise(c)
    m.extern(d)
    group = only(fusible_groups(m.graph()))
    assert group.ops == (b, c, d)
    assert (group.launches_before, group.launches_after) == (3, 1)
    # b and c need not be written, nor read by c and d; d's result is read by the library.
    assert group.bytes_saved == 4 * FULL_BYTES
    assert (group.end, [source.line for source in group.sources]) == ("extern", [b, c, d])
    assert group.reason == "aten.extern (model.py:4) reads its result: cuBLAS does it"


def test_a_tree_joins_both_branches() -> None:
    m = Maker()
    left, right = m.extern("x"), m.extern("x")
    a, b = m.pointwise(left), m.pointwise(right)
    c = m.pointwise(a, b, escapes=True)
    group = only(fusible_groups(m.graph()))
    assert group.ops == (a, b, c)
    assert group.end == "result"


def test_pointwise_into_a_reduction_and_out_of_it_again() -> None:
    # RMS norm: square, mean of each row, rsqrt of 4 values, x * that: 32 = 4 × 8 elements beside rows of 4 × 8 summed.
    m = Maker()
    x = m.extern("x")
    square = m.pointwise(x)
    mean = m.mean(square)
    rsqrt = m.pointwise(mean, shape=(4, 1))
    scaled = m.pointwise(x, rsqrt, escapes=True)
    group = only(fusible_groups(m.graph()))
    assert group.ops == (square, mean, rsqrt, scaled)
    # square written and read; mean and rsqrt, 4 values each, written and read; x, which two members read, read once.
    assert group.bytes_saved == 2 * FULL_BYTES + 2 * 2 * ROW_BYTES + FULL_BYTES


def test_another_size_or_another_reduction_ends_a_group() -> None:
    m = Maker()
    a = m.pointwise("x")
    mean = m.mean(a)
    columns = m.op("reduction", a, reduced=(0,))  # sums columns: rows of 8, not of 4
    m.extern(columns)
    wide = m.pointwise(mean, shape=(4, 1, 3), escapes=True)
    m.pointwise(wide, shape=(4, 1, 3), escapes=True)
    found = fusible_groups(m.graph())
    assert sorted(group.ops for group in found.groups) == [(a, mean), (wide, wide + 1)]
    group = next(group for group in found.groups if group.ops == (a, mean))
    assert group.end == "reduction"
    assert group.reason.endswith("it reduces 4 summed × 8, the group 4 × 8 summed")


def test_whole_rows_after_a_reduction_over_outer_dimensions_are_another_kernel() -> None:
    # The sum over dim 0 is ready only when all rows have been read: dividing by it starts over.
    m = Maker()
    a = m.pointwise(m.extern("x"))
    total_ = m.op("reduction", a, reduced=(0,))
    m.pointwise(a, total_, escapes=True)
    assert groups_of(m.graph()) == [(a, total_)]


def test_a_residual_around_a_library_call_would_be_a_cycle() -> None:
    # a → extern → c and a → c: with a and c in one kernel, the library would need it and be needed by it.
    m = Maker()
    a = m.pointwise("x")
    b = m.pointwise(a)
    c = m.pointwise(m.extern(b), b, escapes=True)
    found = only(fusible_groups(m.graph()))
    assert found.ops == (a, b)
    assert found.end == "extern"
    m.pointwise(c, escapes=True)
    assert groups_of(m.graph()) == [(a, b), (c, c + 1)]


def test_the_cycle_is_named_where_it_is_the_first_reader() -> None:
    m = Maker()
    a = m.pointwise("x")
    b = m.pointwise(a)
    view = m.view(b)
    c = m.pointwise(b, m.op("row", view, shape=(8, 4), reduced=(1,)), escapes=True)
    # The row op sums other rows than c's 4 × 8 could hold, yet as many elements: a, b and the row op are one kernel,
    # and c, which needs the same number of elements, joins it.
    assert groups_of(m.graph()) == [(a, b, view, c - 1, c)]
    m = Maker()
    a = m.pointwise("x")
    b = m.pointwise(a)
    other = m.pointwise(b, shape=(3,))
    c = m.pointwise(b, other, escapes=True, shape=(4, 8))
    d = m.pointwise(other, shape=(3,), escapes=True)
    # other has another size and is read by two groups, so that c cannot take it in; b → other → c.
    found = {group.ops: group for group in fusible_groups(m.graph()).groups}
    assert sorted(found) == [(a, b), (other, d)]
    assert (found[(a, b)].end, found[(other, d)].end) == ("domain", "domain")


def test_views_are_looked_through_and_belong_where_both_ends_do() -> None:
    m = Maker()
    a = m.pointwise("x")
    inside = m.view(a, shape=(32,))
    b = m.pointwise(inside, shape=(32,))
    after = m.view(b)
    m.extern(after)
    assert groups_of(m.graph()) == [(a, inside, b)]


def test_small_values_are_computed_in_their_only_reader() -> None:
    m = Maker()
    table = m.pointwise(shape=(8,))
    shifted = m.pointwise(table, shape=(8,))
    mask = m.view(shifted)
    a = m.pointwise("x", mask, escapes=True)
    assert groups_of(m.graph()) == [(table, shifted, mask, a)]
    m.pointwise("y", mask, shape=(2, 8), escapes=True)  # a second reader of another size: the table stands alone
    assert groups_of(m.graph()) == [(table, shifted)]


def test_readers_of_one_tensor_join_side_by_side() -> None:
    m = Maker()
    x = m.extern("x")
    a, b = m.pointwise(x), m.pointwise(x)
    m.extern(a, b)
    found = only(fusible_groups(m.graph()))
    assert found.ops == (a, b)
    assert found.bytes_saved == FULL_BYTES  # x is read once
    assert groups_of(m.graph(), Rules(siblings=False)) == []


def test_host_syncs_and_graph_breaks_are_not_crossed() -> None:
    m = Maker()
    a = m.pointwise("x")
    m.op("sync", "flag", shape=())
    b = m.pointwise(a, escapes=True)
    c = m.pointwise(b, graph=1, escapes=True)
    assert groups_of(m.graph()) == []
    assert groups_of(m.graph(), Rules(across_syncs=True)) == [(a, b)]
    assert groups_of(m.graph(), Rules(across_syncs=True, across_graphs=True)) == [(a, b, c)]


def test_an_in_place_write_waits_for_those_who_read_before() -> None:
    m = Maker()
    a = m.pointwise("x")
    reader = m.pointwise(a)
    write = m.pointwise(a, after=(reader,), writes_in_place=True, written_bytes=0, escapes=True)
    m.extern(reader)
    # The write joins nothing that read the old value: as one kernel it would not wait.
    found = only(fusible_groups(m.graph()))
    assert (found.ops, found.end) == ((a, reader), "mutation")
    m.pointwise(write, escapes=True)
    assert groups_of(m.graph()) == [(a, reader), (write, write + 2)]


def test_dtype_and_size_and_device() -> None:
    m = Maker()
    a = m.pointwise("x")
    b = m.pointwise(a, dtype="bfloat16")
    c = m.pointwise(b, dtype="bfloat16", escapes=True)
    assert groups_of(m.graph()) == [(a, b, c)]
    assert groups_of(m.graph(), Rules(same_dtype=True)) == [(b, c)]
    found = {group.ops: group.end for group in fusible_groups(m.graph(), Rules(max_ops=2)).groups}
    assert found == {(a, b): "size"}
    m.pointwise(c, devices=("cpu",), escapes=True)
    assert groups_of(m.graph()) == [(a, b, c)]


def costs(op: Op) -> HostCost | None:
    """A view costs 3 µs of ΔFT, any other op 10, with a launch floor of 5; an op named aten.free is not known."""
    if op.op == "aten.free":
        return None
    launches = int(op.role != "view")
    return HostCost(ft_us=10.0 if launches else 3.0, ct_us=0.0, kt_us=5.0 * launches, launches=launches)


def test_saved_host_time_is_the_members_less_one_kernel() -> None:
    m = Maker()
    a = m.pointwise("x")
    b = m.pointwise(m.view(a), escapes=True)
    graph = priced(m.graph(), costs)
    # ΔFT 10 + 3 + 10, ΔKT 5 + 5; a kernel of the same launch floor whose launcher takes 13 µs.
    given = only(fusible_groups(graph, kernel=HostCost(ft_us=13.0, ct_us=0.0, kt_us=5.0, launches=1)))
    assert (given.ft_saved_us, given.ct_saved_us, given.kt_saved_us, given.host_saved_us) == (10.0, 0.0, 5.0, 15.0)
    # Not given: the cheapest member that launches.
    assert only(fusible_groups(graph)).ft_saved_us == 13.0
    assert b == 2


def test_an_unknown_cost_is_null_with_its_reason() -> None:
    m = Maker()
    a = m.pointwise("x")
    m.pointwise(a, escapes=True, op="aten.free", launches=None)
    group = only(fusible_groups(priced(m.graph(), costs)))
    assert group.ft_saved_us is group.host_saved_us is group.launches_before is None
    assert group.unmeasured["ft_saved_us"] == "ft of aten.free is not known"
    assert group.unmeasured["exposed_us"] == "no timeline was given"
    assert total([group])["ft_saved_us"] is None and total([group])["launches_after"] == 1


def test_exposed_saving_ranks_before_host_saving() -> None:
    m = Maker()
    for _ in range(2):
        a = m.pointwise(m.extern("x"))
        m.pointwise(a, escapes=True)
    a = m.pointwise(m.extern("x"))
    m.pointwise(m.pointwise(a), escapes=True)
    graph = priced(m.graph(), costs)
    assert [group.ops[0] for group in fusible_groups(graph).groups] == [7, 1, 4]  # three launches save most

    def exposed(groups: Sequence[FusionBytes]) -> float | None:
        return {1: 0.5, 4: 2.0}.get(groups[0][0][0])

    ranked = fusible_groups(graph, exposed=exposed).groups
    assert [(group.ops[0], group.exposed_us) for group in ranked] == [(4, 2.0), (1, 0.5), (7, None)]
    assert ranked[-1].unmeasured["exposed_us"] == "the timeline does not tell"


def test_ops_out_of_order_are_refused() -> None:
    op = Maker()
    op.pointwise("x")
    late = Op(**{f: getattr(op.ops[0], f) for f in Op.__struct_fields__} | {"operands": (Operand(op=1),)})
    with pytest.raises(ValueError, match=r"op 0 .* does not stand before it"):
        StepGraph(ops=[late, op.ops[0]])


def random_graph(count: int, seed: int) -> StepGraph:
    """Mostly near neighbours, some far; views, externs, reductions of two kinds, writes, syncs and graph breaks."""
    chance, m = random.Random(seed), Maker()
    graph = 0
    for index in range(count):
        reads = {max(0, index - 1 - int(chance.expovariate(0.3))) for _ in range(chance.choice([1, 1, 2, 3]))}
        if chance.random() < 0.05:
            reads.add(chance.randrange(max(1, index)))
        graph += chance.random() < 0.01
        kinds: list[Role] = ["pointwise", "pointwise", "pointwise", "view", "extern", "reduction", "row", "alloc"]
        role = chance.choice(kinds) if chance.random() > 0.01 else "sync"
        shape = chance.choice([(4, 8)] * 4 + [(4, 1), (8, 4)])
        operands = sorted(reads) if index else ["x"]
        write = role == "pointwise" and index > 3 and chance.random() < 0.05
        m.op(
            role, *operands[: 1 if role == "view" else 3], shape=shape, graph=graph, writes_in_place=write,
            reduced=(chance.choice([0, 1, 1]),) if role in ("reduction", "row") else (),
            after=(index - 2,) if write and index - 2 not in reads else (), escapes=chance.random() < 0.05,
        )  # fmt: skip
    return m.graph()


@pytest.mark.parametrize("seed", range(40))
def test_random_groups_are_disjoint_convex_and_contract_to_an_acyclic_graph(seed: int) -> None:
    graph = random_graph(250, seed)
    # A short search must only lose groups, never make an illegal one.
    rules = Rules(across_graphs=seed % 2 == 0, across_syncs=seed % 3 == 0, max_ops=64 if seed % 4 else 8)
    found = fusible_groups(graph, rules).groups
    assert found == fusible_groups(graph, rules).groups  # deterministic
    whole = networkx.DiGraph()
    whole.add_nodes_from(range(len(graph.ops)))
    for index, op in enumerate(graph.ops):
        whole.add_edges_from((before, index) for before in op.after)
        whole.add_edges_from((operand.op, index) for operand in op.operands if operand.op is not None)
    home = {index: number for number, group in enumerate(found) for index in group.ops}
    assert len(home) == sum(len(group.ops) for group in found)
    assert found, "a graph of this kind always has groups"
    for group in found:
        inside = set(group.ops)
        below = set().union(*(networkx.descendants(whole, op) for op in inside)) - inside
        above = set().union(*(networkx.ancestors(whole, op) for op in inside)) - inside
        assert not below & above, "a path leaves the group and comes back"
        members = [graph.ops[index] for index in inside]
        assert all(member.role in ("pointwise", "reduction", "row", "view") for member in members)
        assert rules.across_graphs or len({member.graph for member in members}) == 1
        assert sum(member.role != "view" for member in members) <= rules.max_ops
    contracted = networkx.DiGraph(
        (home.get(a, -1 - a), home.get(b, -1 - b)) for a, b in whole.edges if home.get(a, -1 - a) != home.get(b, -1 - b)
    )
    assert networkx.is_directed_acyclic_graph(contracted)


def test_producers_look_through_views_of_views() -> None:
    m = Maker()
    a = m.pointwise("x")
    b = m.pointwise(m.view(m.view(a)), a)
    assert producers(m.graph())[b] == [(a, FULL_BYTES)]


def test_work_grows_no_faster_than_the_graph() -> None:
    def calls(count: int) -> int:
        """Function calls, Python's and C's: unlike seconds, the same on every machine."""
        graph, made = random_graph(count, 0), 0

        def note(frame: Any, event: str, argument: Any) -> None:
            nonlocal made
            made += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            fusible_groups(graph)
        finally:
            sys.setprofile(None)
        return made

    assert calls(8000) / calls(2000) < 5  # 4 if linear, 16 if quadratic
