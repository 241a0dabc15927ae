"""What fusing saves of the wall clock, on steps small enough to simulate by hand."""

from __future__ import annotations

import msgspec
import pytest

from taxbreak_fx.model import Variant
from taxbreak_fx.record import SourceLine
from taxbreak_fx.step_graph import HostCost, Op, Operand, StepGraph
from taxbreak_fx.timeline import Floors, Hold, Item, Piece, Sync, Timeline, Work
from taxbreak_fx.timeline_store import stored
from taxbreak_fx.whatif_exposed import groups_exposed

FLOORS = Floors(latency_us=2.0, gap_us=1.0, graph_gap_us=0.5, sync_us=5.0)
KERNEL = HostCost(ft_us=8.0, ct_us=0.0, kt_us=4.0, launches=1)


def line(number: int) -> SourceLine:
    return SourceLine(file="/model/net.py", line=number)


def launch(number: int, device_us: float = 2.0, ft_us: float = 10.0, stream: int = 0) -> Item:
    work = Work(kind="kernel", stream=stream, pieces=(Piece(us=device_us, family="elementwise"),))
    return Item(ft_us=ft_us, launch_us=4.0, action=work, family="elementwise", source=line(number))


def op(number: int, reads: int | None = None, launches: int | None = 1) -> Op:
    operands = (Operand(op=reads, bytes=2),) if reads is not None else (Operand(input="x", bytes=2),)
    return Op(
        op="aten.mul.Tensor", role="pointwise", family="elementwise", library="ATen", i_lib=False, shape=(1,),
        dtype="bfloat16", operands=operands, source=line(number), launches=launches, written_bytes=2,
    )  # fmt: skip


def variant(*items: Item) -> Variant:
    """An eager variant with a timeline of ``items``."""
    unmeasured = Variant.unavailable("eager", "failed", "only its timeline is of interest")
    return msgspec.structs.replace(unmeasured, timeline=stored(Timeline(items=items, floors=FLOORS)))


def test_two_launches_made_one() -> None:
    """Before: launched at 14 and 28, the second runs from 30 to 32, T_wall 37.  Fused: 8 of moved bytes, 2 saved, so
    that the kernel takes 3/4 of 4 µs; launched at 12, it runs from 14 to 17: T_wall 22."""
    graph = StepGraph(ops=[op(10), op(11, reads=0)])
    exposed = groups_exposed(graph, variant(launch(10), launch(11)), KERNEL)
    assert exposed is not None
    assert exposed([((0, 1), 2)]) == pytest.approx(37 - 22)


def test_the_cheapest_members_framework_time_where_no_fused_kernel_was_measured() -> None:
    """The last one's 10 µs become the first one's 6: launched at 10, runs from 12 to 16, T_wall 21; before: the second
    is launched at 24, runs from 26 to 28, T_wall 33."""
    graph = StepGraph(ops=[op(10), op(11, reads=0)])
    exposed = groups_exposed(graph, variant(launch(10, ft_us=6.0), launch(11)), None)
    assert exposed is not None
    assert exposed([((0, 1), 0)]) == pytest.approx(33 - 21)


def test_groups_at_once_save_what_the_device_does_not_hide() -> None:
    """A kernel of 100 µs in front hides all host time behind it: fusing saves only the gaps and the bytes."""
    graph = StepGraph(ops=[op(10), op(11, reads=0), op(12, reads=1), op(13, reads=2)])
    items = (launch(9, device_us=100.0), launch(10), launch(11), launch(12), launch(13))
    exposed = groups_exposed(graph, variant(*items), KERNEL)
    assert exposed is not None
    # 9 runs from 16 to 116; the four others end at 116 + 4 × (1 + 2) = 128, fused in twos at 116 + 2 × (1 + 4) = 126.
    assert exposed([((0, 1), 0), ((2, 3), 0)]) == pytest.approx(2.0)
    assert exposed([((0, 1), 0)]) == pytest.approx(1.0)


def test_a_line_with_other_launches_than_its_ops_has_no_answer() -> None:
    graph = StepGraph(ops=[op(10), op(11, reads=0), op(12, reads=1, launches=None)])
    exposed = groups_exposed(graph, variant(launch(10), launch(10), launch(11), launch(12)), KERNEL)
    assert exposed is not None
    assert exposed([((0, 1), 0)]) is None  # line 10 launches twice, its op once
    assert exposed([((1, 2), 0)]) is None  # nobody knows how often the op of line 12 launches
    assert exposed([((1,), 0)]) is not None


def test_a_launch_that_another_stream_waits_for_stays() -> None:
    graph = StepGraph(ops=[op(10), op(11, reads=0)])
    waits = Item(family="sync", action=Hold(stream=1, until=0))
    exposed = groups_exposed(graph, variant(launch(10), waits, launch(11)), KERNEL)
    assert exposed is not None
    assert exposed([((0, 1), 0)]) is None


def test_without_a_timeline_there_is_no_answer() -> None:
    graph = StepGraph(ops=[op(10)])
    assert groups_exposed(graph, None, KERNEL) is None
    assert groups_exposed(graph, msgspec.structs.replace(variant(launch(10)), timeline=None), KERNEL) is None


def test_syncs_count() -> None:
    """A sync between the two launches is the wall: after it nothing is hidden.  32 and not 37 would be the wall without
    it: the first ends at 18, the sync returns at 23; the second is launched at 37, runs from 39 to 41: T_wall 46.
    Fused: the sync finds nothing to wait for and returns at 5, launched at 17, runs from 19 to 22 (3/4 of 4): 27."""
    graph = StepGraph(ops=[op(10), op(11, reads=0)])
    items = (launch(10), Item(family="sync", action=Sync()), launch(11))
    exposed = groups_exposed(graph, variant(*items), KERNEL)
    assert exposed is not None
    assert exposed([((0, 1), 2)]) == pytest.approx(46 - 27)
