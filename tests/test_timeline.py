"""The simulator against timelines worked out by hand, and what holds for every timeline."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from taxbreak_fx.record import Percentiles, SourceLine
from taxbreak_fx.timeline import (
    WATERFALL,
    Floors,
    Hold,
    Item,
    Piece,
    Simulator,
    Sync,
    Timeline,
    Work,
    kernel_gap,
    launch_latency,
    simulate,
    sync_return,
)

FLOORS = Floors(latency_us=4.0, gap_us=1.0, graph_gap_us=0.5, sync_us=8.0)
LINE, OTHER = SourceLine(file="/home/author/model.py", line=12), SourceLine(file="/home/author/model.py", line=30)


def kernel(us: float, stream: int = 7, family: str = "gemm") -> Work:
    return Work(kind="kernel", stream=stream, pieces=(Piece(us=us, family=family),))


def graph(first_us: float, *us: float, family: str = "gemm") -> Work:
    return Work(
        kind="graph", stream=7, pieces=tuple(Piece(us=one, family=family) for one in us), first_node_us=first_us
    )


def item(ft: float = 0.0, call: float = 0.0, action: Any = None, ct: float = 0.0, **fields: Any) -> Item:
    return Item(ft_us=ft, ct_us=ct, launch_us=call, action=action, **({"family": "gemm"} | fields))


def step(*items: Item, floors: Floors = FLOORS) -> Timeline:
    return Timeline(items=items, floors=floors)


# --- by hand --------------------------------------------------------------------------------------------------------

# Calls enter at 10, 22, 34 and return at 12, 24, 36; each kernel starts L = 4 later, runs 3: ends 19, 31, 43.
HOST_BOUND = step(*(item(10.0, 2.0, kernel(3.0)) for _ in range(3)))


def test_a_host_bound_step() -> None:
    found = simulate(HOST_BOUND)
    assert (found.starts_us, found.ends_us) == ([16.0, 28.0, 40.0], [19.0, 31.0, 43.0])
    # wall = max(36, 43) + s
    assert (found.wall_us, found.host_us, found.device_us, found.idle_us) == (51.0, 36.0, 9.0, 42.0)
    assert (found.synced_us, found.queued_us) == (0.0, 0.0)
    assert Simulator(HOST_BOUND).naive_us() == 36.0 + 8.0


def test_exposed_costs_of_a_host_bound_step() -> None:
    # Without ΔFT calls return at 2, 4, 6: kernels at 6…9, 10…13 (g = 1), 14…17, so wall 25.  Without launch calls and
    # L: 10…13, 20…23, 30…33, so 41.  Without device work: the last start, 40, + 8 = 48.
    assert Simulator(HOST_BOUND).exposed() == {"ft": 26.0, "ct": 0.0, "kt": 10.0, "sync": 8.0, "device": 3.0}


def test_the_waterfall_removes_in_order_and_sums_to_the_whole() -> None:
    # 51 → without ΔFT 25 → ΔCT 25 → without launches too: 0…3, 4…7, 8…11 + 8 = 19 → without s 11 → nothing
    expected = {"ft": 26.0, "ct": 0.0, "kt": 6.0, "sync": 8.0, "device": 11.0}
    assert Simulator(HOST_BOUND).waterfall() == expected and tuple(expected) == WATERFALL
    backwards = Simulator(HOST_BOUND).waterfall(WATERFALL[::-1])
    # 51 → without device 48 → without s 40 → without launches 30 → 30 → 0
    assert backwards == {"device": 3.0, "sync": 8.0, "kt": 10.0, "ct": 0.0, "ft": 30.0}


def test_a_device_bound_step_hides_its_host() -> None:
    # Calls return at 2, 4, 6; kernels 6…106, 107…207, 208…308.
    timeline = step(*(item(1.0, 1.0, kernel(100.0)) for _ in range(3)))
    found, simulator = simulate(timeline), Simulator(timeline)
    assert (found.wall_us, found.host_us, found.device_us, found.idle_us) == (316.0, 6.0, 300.0, 16.0)
    # Only the first call is exposed: without ΔFT it returns at 1 instead of 2.
    assert simulator.exposed() == {"ft": 1.0, "ct": 0.0, "kt": 5.0, "sync": 8.0, "device": 298.0}
    assert simulator.naive_us() == 308.0


def test_a_synchronisation_blocks_the_host_until_the_device_is_idle_and_returns_later() -> None:
    # First call returns at 12, kernel 16…46; the sync returns at 46 + 8 = 54.  Second: returns at 61, kernel 65…68.
    # Then 20 of host time: 81, and a sync of an idle device costs s alone: 89; wall 97.
    timeline = step(
        item(10.0, 2.0, kernel(30.0)), item(action=Sync()), item(5.0, 2.0, kernel(3.0)), item(20.0), item(action=Sync())
    )  # fmt: skip
    found = simulate(timeline)
    assert (found.ends_us[0], found.ends_us[2], found.host_us, found.wall_us) == (46.0, 68.0, 89.0, 97.0)
    assert found.synced_us == 46.0 - 12.0


def test_a_synchronisation_of_one_stream_waits_for_that_stream_alone() -> None:
    # Calls return at 1 and 2: stream 7 runs 5…105, stream 9 runs 6…16.
    launches = item(0.0, 1.0, kernel(100.0, 7)), item(0.0, 1.0, kernel(10.0, 9))
    assert simulate(step(*launches, item(action=Sync(stream=9)))).host_us == 16.0 + 8.0
    assert simulate(step(*launches, item(action=Sync(stream=7)))).host_us == 105.0 + 8.0
    assert simulate(step(*launches, item(action=Sync()))).host_us == 105.0 + 8.0
    assert simulate(step(*launches, item(action=Sync(stream=3)))).host_us == 2.0 + 8.0  # nothing was put there


def test_a_stream_waits_for_an_event_of_another() -> None:
    # Returns at 3, 6, 9.  Stream 7: 7…57; stream 9 held until 57: 57…67; stream 7 again: max(13, 57 + 1)…63.
    launches = item(1.0, 2.0, kernel(50.0, 7)), item(1.0, 2.0, kernel(10.0, 9)), item(1.0, 2.0, kernel(5.0, 7))
    held = simulate(step(launches[0], item(action=Hold(stream=9, until=0)), *launches[1:]))
    assert (held.starts_us, held.wall_us, held.host_us) == ([7.0, None, 57.0, 58.0], 67.0 + 8.0, 9.0)
    assert held.device_us == 60.0  # 7…57, 57…67; 58…63 lies inside
    free = simulate(step(*launches))
    assert (free.starts_us, free.wall_us, free.device_us) == ([7.0, 10.0, 58.0], 63.0 + 8.0, 55.0)


def test_nodes_of_a_graph_may_overlap_but_none_starts_before_an_earlier_one() -> None:
    # Nodes at 12…15, 14.5…16.5, 16…16.25, and, since the third is shorter than the overlap, 16…20.
    floors = msgspec.structs.replace(FLOORS, graph_gap_us=-0.5)
    found = simulate(step(item(10.0, 1.0, graph(2.0, 3.0, 2.0, 0.25, 4.0)), floors=floors))
    assert (found.starts_us, found.ends_us) == ([12.0], [20.0])
    assert (found.device_us, found.wall_us) == (8.0, 20.0 + 8.0)
    # A node that hides behind the one before it adds nothing, and its going takes nothing away.
    hidden = step(item(10.0, 1.0, graph(2.0, 3.0, 0.25)), floors=floors)
    assert simulate(hidden).device_us == 3.0
    assert simulate(hidden).wall_us == simulate(step(item(10.0, 1.0, graph(2.0, 3.0)), floors=floors)).wall_us


def test_a_full_queue_blocks_the_host() -> None:
    # Room for 2.  Calls take 1.  Kernels of 10: the 1st runs 1…11, the 2nd 11…21.  The 3rd call may enter when the
    # 1st has ended, at 11 instead of 2; the 4th when the 2nd has, at 21 instead of 12.
    floors = Floors(latency_us=0.0, gap_us=0.0, graph_gap_us=0.0, sync_us=0.0, queue_depth=2)
    found = simulate(step(*(item(0.0, 1.0, kernel(10.0)) for _ in range(4)), floors=floors))
    assert found.ends_us == [11.0, 21.0, 31.0, 41.0]
    assert (found.queued_us, found.host_us, found.wall_us) == (9.0 + 9.0, 22.0, 41.0)
    # Each stream has a queue of its own.
    apart = simulate(step(*(item(0.0, 1.0, kernel(10.0, stream)) for stream in (7, 9, 7, 9)), floors=floors))
    assert (apart.queued_us, apart.host_us) == (0.0, 4.0)


def test_a_graph_launch_is_one_call_with_its_own_latency() -> None:
    # Entered at 20, the first node starts 25 later, before the call returns at 50.  Nodes: 45…55, 55.5…65.5, 66…76.
    timeline = step(item(20.0, 30.0, graph(25.0, 10.0, 10.0, 10.0)), item(6.0))
    found = simulate(timeline)
    assert (found.starts_us[0], found.ends_us[0], found.host_us, found.wall_us) == (45.0, 76.0, 56.0, 84.0)
    assert (found.device_us, found.idle_us) == (30.0, 54.0)
    # Without launch call and latency the first node starts at 20: 51 + 8.
    assert Simulator(timeline).exposed()["kt"] == 84.0 - 59.0


def test_a_graph_behind_a_kernel_starts_after_the_gap() -> None:
    # Kernel: returns at 2, runs 6…106.  Graph: entered at 2, may start at 27, starts at 107.
    found = simulate(step(item(0.0, 2.0, kernel(100.0)), item(0.0, 3.0, graph(25.0, 10.0))))
    assert found.starts_us == [6.0, 107.0]


def test_a_step_without_work_takes_its_host_time_and_the_synchronisation() -> None:
    found = simulate(step(item(5.0)))
    assert (found.wall_us, found.host_us, found.device_us, found.starts_us) == (13.0, 5.0, 0.0, [None])
    assert simulate(step()).wall_us == 8.0


def test_the_synchronisation_after_the_step_costs_its_whole_call_where_the_device_is_idle() -> None:
    floors = msgspec.structs.replace(FLOORS, idle_sync_us=20.0)
    # The kernel runs 16…19.  Host 12 + 20 = 32 > 19 + 8.
    assert simulate(step(item(10.0, 2.0, kernel(3.0)), floors=floors)).wall_us == 32.0
    # 16…66: the call waits from 12 on, and returns 8 after the end.
    waited = step(item(10.0, 2.0, kernel(50.0)), floors=floors)
    assert simulate(waited).wall_us == 74.0
    # Without what synchronisations take: 66.
    assert Simulator(waited).exposed()["sync"] == 8.0
    assert Simulator(step(item(5.0), floors=floors)).exposed()["sync"] == 20.0


# --- families and lines ---------------------------------------------------------------------------------------------


def test_families_and_lines_raw_and_exposed() -> None:
    # Calls return at 12, 44: kernels 16…19 (gemm, line 12), 48…148 (copy, line 30); 5 of glue: host 49, wall 156.
    timeline = step(
        item(6.0, 2.0, kernel(3.0), ct=4.0, source=LINE),
        item(30.0, 2.0, kernel(100.0, family="copy"), family="copy", source=OTHER),
        item(5.0, family="glue"),
    )
    copy, gemm, glue = Simulator(timeline).families()
    assert (copy.name, copy.host_us, copy.device_us) == ("copy", 32.0, 100.0)
    # Without the host time of the copy, nor the latency behind its launch: at 12, but for the gemm: 19 + 1 = 20…120.
    assert copy.exposed_host_us == 156.0 - 128.0
    # Without its device time: it starts at 48, and the host is done at 49: 57.  Without both the gemm ends at 19: 27.
    assert (copy.exposed_device_us, copy.exposed_us) == (156.0 - 57.0, 156.0 - 27.0)
    assert (gemm.name, gemm.host_us, gemm.device_us) == ("gemm", 12.0, 3.0)
    # Without gemm's 12 the copy starts 12 earlier, at 36.
    assert (gemm.exposed_host_us, gemm.exposed_device_us, gemm.exposed_us) == (12.0, 0.0, 12.0)
    assert (glue.name, glue.host_us, glue.device_us, glue.exposed_us) == ("glue", 5.0, 0.0, 0.0)
    other, line = Simulator(timeline).lines(5)
    assert (other.source, other.name, other.exposed_us) == (OTHER, "copy", copy.exposed_us)
    assert (line.source, line.name, line.exposed_us) == (LINE, "gemm", gemm.exposed_us)
    assert [one.source for one in Simulator(timeline).lines(1)] == [OTHER]


def test_the_nodes_of_a_graph_belong_to_their_own_families() -> None:
    work = graph(25.0, 10.0, 20.0, 40.0)
    pieces = tuple(Piece(us=p.us, family=f) for p, f in zip(work.pieces, ("gemm", "copy", "gemm"), strict=True))
    mixed = msgspec.structs.replace(work, pieces=pieces)
    found = {row.name: row for row in Simulator(step(item(0.0, 5.0, mixed, family="graph-launch"))).families()}
    # 25 + 10 + 0.5 + 20 + 0.5 + 40 + 8 = 104; a node that is gone takes one gap with it, the last leaves no gap.
    assert found["copy"].exposed_device_us == 20.5
    assert (found["gemm"].device_us, found["gemm"].exposed_device_us) == (50.0, 51.0)
    assert (found["graph-launch"].host_us, found["graph-launch"].device_us) == (5.0, 0.0)
    assert found["graph-launch"].exposed_host_us == 25.0


# --- for every timeline ---------------------------------------------------------------------------------------------


def random_step(seed: int) -> Timeline:
    """Up to 60 items on up to three streams, some of them graphs, waits and events, times in quarters."""
    chance = random.Random(seed)

    def us(most: int) -> float:
        return chance.randrange(4 * most) / 4

    items: list[Item] = []
    for _ in range(chance.randrange(1, 60)):
        stream, family = chance.choice((7, 8, 9)), chance.choice(("gemm", "copy", "attention"))
        works = [index for index, one in enumerate(items) if isinstance(one.action, Work)]
        draw, action, call = chance.random(), None, 0.0
        if draw < 0.6:
            action, call = kernel(us(30), stream, family), us(6)
        elif draw < 0.7:
            action, call = graph(us(30), *(us(9) for _ in range(chance.randrange(1, 6))), family=family), us(20)
        elif draw < 0.8:
            action = Sync(stream=chance.choice((None, 7, 8, 9)))
        elif draw < 0.9 and works:
            action = Hold(stream=stream, until=chance.choice(works))
        items.append(item(us(12), call, action, us(5), family=family, source=chance.choice((None, LINE, OTHER))))
    floors = Floors(
        latency_us=us(6),
        gap_us=us(2),
        graph_gap_us=us(1) - chance.choice((0.0, 0.0, 0.5)),
        sync_us=us(10),
        idle_sync_us=chance.choice((None, us(30))),
        queue_depth=chance.choice((1, 3, 1024)),
    )
    return step(*items, floors=floors)


SEEDS = range(150)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_part_is_longer_than_the_whole(seed: int) -> None:
    timeline = random_step(seed)
    found = simulate(timeline)
    idle = timeline.floors.idle_sync_us
    assert found.wall_us >= found.host_us + (timeline.floors.sync_us if idle is None else idle)
    assert found.wall_us >= found.device_us >= 0.0 and found.idle_us == found.wall_us - found.device_us
    own = sum(one.ft_us + one.ct_us + one.launch_us for one in timeline.items)
    waits = sum(isinstance(one.action, Sync) for one in timeline.items) * timeline.floors.sync_us
    assert found.host_us == own + waits + found.synced_us + found.queued_us
    if idle is None:
        assert Simulator(timeline).naive_us() <= found.wall_us


@pytest.mark.parametrize("seed", SEEDS)
def test_removing_never_lengthens_and_the_waterfall_sums(seed: int) -> None:
    simulator = Simulator(random_step(seed))
    wall = simulator.simulated().wall_us
    assert min(simulator.exposed().values()) >= 0.0
    order = list(WATERFALL)
    random.Random(seed).shuffle(order)
    fall = simulator.waterfall(order)
    assert list(fall) == order and min(fall.values()) >= 0.0 and sum(fall.values()) == wall
    for row in [*simulator.families(), *simulator.lines(9)]:
        assert min(row.exposed_host_us, row.exposed_device_us) >= 0.0
        assert max(row.exposed_host_us, row.exposed_device_us) <= row.exposed_us <= wall


@pytest.mark.parametrize("seed", SEEDS)
def test_no_growing_time_shortens_the_step(seed: int) -> None:
    timeline = random_step(seed)
    wall = simulate(timeline).wall_us
    for longer in grown(timeline):
        assert simulate(longer).wall_us >= wall
    if timeline.floors.queue_depth > 1:
        shallower = msgspec.structs.replace(timeline.floors, queue_depth=timeline.floors.queue_depth - 1)
        assert simulate(msgspec.structs.replace(timeline, floors=shallower)).wall_us >= wall


def grown(timeline: Timeline) -> list[Timeline]:
    """The timeline with one of its times longer by 3.25, each in turn."""
    found = []
    for name in ("latency_us", "gap_us", "graph_gap_us", "sync_us"):
        floors = msgspec.structs.replace(timeline.floors, **{name: getattr(timeline.floors, name) + 3.25})
        found.append(msgspec.structs.replace(timeline, floors=floors))
    for index, one in enumerate(timeline.items):
        others = [msgspec.structs.replace(one, **{n: getattr(one, n) + 3.25}) for n in ("ft_us", "ct_us")]
        if isinstance(one.action, Work):
            work = one.action
            others.append(msgspec.structs.replace(one, launch_us=one.launch_us + 3.25))
            first = Piece(us=work.pieces[0].us + 3.25, family="gemm")
            longer = [msgspec.structs.replace(work, pieces=(first, *work.pieces[1:]))]
            if work.first_node_us is not None:
                longer.append(msgspec.structs.replace(work, first_node_us=work.first_node_us + 3.25))
            others += [msgspec.structs.replace(one, action=action) for action in longer]
        items = timeline.items
        found += [
            msgspec.structs.replace(timeline, items=(*items[:index], other, *items[index + 1 :])) for other in others
        ]
    return found


def test_a_long_step_is_one_pass() -> None:
    count = 100_000
    found = simulate(step(*(item(1.0, 1.0, kernel(1.0)) for _ in range(count))))
    # Host-bound: the last call returns at 2 per launch, its kernel starts 4 later and runs 1.
    assert (found.wall_us, found.device_us) == (2.0 * count + 4.0 + 1.0 + 8.0, count)


# --- what is refused, and the constants -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: item(-1.0), "host time of gemm is below zero"),
        (lambda: item(1.0, 2.0), "spends time in a launch call that launches nothing"),
        (lambda: kernel(-1.0), "duration on the device is below zero"),
        (lambda: graph(-1.0, 1.0), "duration on the device is below zero"),
        (lambda: graph(1.0), "a graph launch with 0 pieces"),
        (lambda: Work(kind="graph", stream=7, pieces=(Piece(us=1.0, family="gemm"),)), "first_node_us None"),
        (lambda: Work(kind="kernel", stream=7, pieces=(Piece(us=1.0, family="gemm"),) * 2), "with 2 pieces"),
        (lambda: Floors(latency_us=-1.0, gap_us=0.0, graph_gap_us=0.0, sync_us=0.0), "out of range"),
        (lambda: Floors(latency_us=1.0, gap_us=-0.5, graph_gap_us=0.0, sync_us=0.0), "out of range"),
        (lambda: msgspec.structs.replace(FLOORS, queue_depth=0), "out of range"),
        (lambda: step(item(action=Hold(stream=7, until=0))), "which is no earlier work"),
        (lambda: step(item(1.0), item(action=Hold(stream=7, until=0))), "which is no earlier work"),
    ],
)
def test_what_is_no_timeline_is_refused(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()


def test_the_constants_from_what_is_measured() -> None:
    def p(us: float) -> Percentiles:
        return Percentiles(p5=us - 1, p50=us, p95=us + 1, samples=9)

    assert launch_latency(5.5, 3.25) == 2.25
    assert launch_latency(3.0, 4.0) == 0.0
    assert kernel_gap(p(1.75), 1.0) == 0.75
    assert sync_return(p(6.0), p(2.5)) == 7.25


def test_a_synchronisation_may_return_sooner_than_the_last_one() -> None:
    # The kernel is issued at 5 and runs 7…17; the host is back at 17 + 3, and after s = 8 where nothing else is told.
    floors = Floors(latency_us=2.0, gap_us=1.0, graph_gap_us=0.25, sync_us=8.0)
    for back, host in ((3.0, 20.0), (None, 25.0)):
        run = simulate(step(item(0.0, 5.0, kernel(10.0)), item(action=Sync(back_us=back)), floors=floors))
        assert run.host_us == pytest.approx(host)
    with pytest.raises(ValueError, match="before the device is idle"):
        Sync(back_us=-1.0)
