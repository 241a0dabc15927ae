"""What-ifs on a saved review against steps worked out by hand, and what holds for every step.

Floors L 2, g 1, in graphs 0.25, s 8; a kernel's launch call 5, T_sys 4.

eager:      20 x (ΔFT 30, ΔCT 10, call 5, kernel 11): calls return at 45 … 900, the last kernel runs 902…913; wall 921.
inductor:   54 around, 8 x (25, 18.75, 5, kernel 19.75), 6 around: the last call returns at 444, 446…465.75; 473.75.
reduce-overhead: 20 around and a graph of 11 nodes: 25 in the call, first node after 17: 2 and 1 more per node than 5
            and 7.  eager-graph: 20 nodes, 24 and 45: 1 and 2 per node.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest
from sample_review import breakdown, sample_review
from test_timeline import SEEDS, graph, item, kernel, random_step, step

from taxbreak_fx import schema
from taxbreak_fx.breakdown_timeline import AROUND, Built, exposed_of
from taxbreak_fx.cli import main
from taxbreak_fx.errors import FormatError, UsageError
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.report.content import page
from taxbreak_fx.report.html import html
from taxbreak_fx.report.markdown import markdown
from taxbreak_fx.report.text import MAX_LINES, terminal
from taxbreak_fx.timeline import Floors, Hold, Simulator, Sync, Timeline, Work, simulate
from taxbreak_fx.timeline_store import stored
from taxbreak_fx.variant_record import Breakdown, Exposed, Prediction
from taxbreak_fx.whatif import PAPER, Change, whatif
from taxbreak_fx.whatif_timeline import (
    GraphPoint,
    as_graphs,
    graph_cost,
    graph_points,
    on_faster_host,
    without_guards,
)

FLOORS = Floors(latency_us=2.0, gap_us=1.0, graph_gap_us=0.25, sync_us=8.0)
COST = graph_cost(5.0, 2.0, [GraphPoint(11, 25.0, 17.0)], "a test")
CPU_DEVICE = "the CPU device: host and device are one thread, nothing is hidden"
Capture = pytest.CaptureFixture[str]

EAGER = step(*(item(30.0, 5.0, kernel(11.0), ct=10.0) for _ in range(20)), floors=FLOORS)
INDUCTOR = step(
    item(54.0, family=AROUND), *(item(25.0, 5.0, kernel(19.75), ct=18.75) for _ in range(8)), item(6.0, family=AROUND),
    floors=FLOORS,
)  # fmt: skip
REDUCED = step(item(20.0, family=AROUND), item(0.0, 25.0, graph(17.0, *[15.0] * 11)), floors=FLOORS)
GRAPHED = step(item(0.0, 24.0, graph(45.0, *[8.0] * 20)), floors=FLOORS)


def measured() -> Review:
    """The sample with the timelines above; its eager and inductor terms are their sums."""
    review = sample_review()
    parts = {"guards": 40.0, "frame": 20.0, "wrapper": 200.0}
    terms = breakdown(260.0, 150.0, 32.0, 158.0, parts, 24.0)
    variants = []
    timelines = {"eager": EAGER, "inductor": INDUCTOR, "reduce-overhead": REDUCED, "eager-graph": GRAPHED}
    for variant in review.variants:
        if (timeline := timelines.get(variant.name)) is not None:
            assert variant.t_wall_us is not None
            shown = exposed_of(Built(timeline, "untraced", []), variant.t_wall_us.median)
            variant = msgspec.structs.replace(variant, timeline=stored(timeline), exposed=shown)
        if variant.name == "inductor":
            variant = msgspec.structs.replace(variant, breakdown=terms)
        variants.append(variant)
    return msgspec.structs.replace(review, variants=variants)


def terms_of(variant: Variant) -> Breakdown:
    assert variant.breakdown is not None
    return variant.breakdown


def prediction_of(variant: Variant) -> Prediction:
    assert variant.prediction is not None
    return variant.prediction


def wall(variant: Variant) -> float:
    assert variant.t_wall_us is not None
    return variant.t_wall_us.median


# --- one timeline, by hand ------------------------------------------------------------------------------------------


def test_the_measured_steps_are_as_worked_out() -> None:
    assert [simulate(one).wall_us for one in (EAGER, INDUCTOR)] == [921.0, 473.75]


def test_a_host_twice_as_fast() -> None:
    # Calls of 22.5 return at 450, 452…463; wall 471.
    found = simulate(on_faster_host(EAGER, 2.0))
    assert (found.wall_us, found.host_us, found.device_us) == (471.0, 450.0, 220.0)
    # Half the speed: calls of 90 return at 1800, 1802…1813.
    assert simulate(on_faster_host(EAGER, 0.5)).wall_us == 1821.0
    # A graph's first node: 2 + (17 − 2) / 2 = 9.5 after 10; 11 nodes of 15 and 10 gaps: 19.5 + 167.5 + 8.
    assert simulate(on_faster_host(REDUCED, 2.0)).wall_us == 195.0
    # One that starts sooner than L stays as it is.
    early = step(item(0.0, 4.0, graph(1.0, 10.0)), floors=FLOORS)
    assert simulate(on_faster_host(early, 2.0)).starts_us == [1.0]


def test_a_step_as_one_graph() -> None:
    # 5 + 19 x 2 = 43 in the call; first node after 7 + 19 = 26; 20 x 11 + 19 x 0.25 = 224.75; + 8.
    made = as_graphs(EAGER, COST)
    assert isinstance(made, Timeline)
    found = simulate(made)
    assert (found.wall_us, found.host_us, found.device_us) == (258.75, 43.0, 220.0)
    assert graph_points(made) == [GraphPoint(20, 43.0, 26.0)]


def test_what_surrounds_a_compiled_graph_stays() -> None:
    # 54; 5 + 7 x 2 = 19 in the call; first node after 14; 158 + 7 x 0.25; 54 + 14 + 159.75 + 8.
    made = as_graphs(INDUCTOR, COST)
    assert isinstance(made, Timeline)
    assert [one.family for one in made.items] == [AROUND, "graph-launch", AROUND]
    found = simulate(made)
    assert (found.wall_us, found.host_us) == (235.75, 54.0 + 19.0 + 6.0)


def test_two_compiled_graphs_are_two_and_a_single_launch_is_none() -> None:
    call = item(1.0, 1.0, kernel(5.0))
    around = item(3.0, family=AROUND)
    held = item(1.0, action=Hold(stream=9, until=4))
    made = as_graphs(step(around, call, call, around, call, around, call, held, call, held), COST)
    assert isinstance(made, Timeline)
    kinds = [one.action.kind if isinstance(one.action, Work) else one.family for one in made.items]
    assert kinds == [AROUND, "graph", AROUND, "kernel", AROUND, "graph"]
    outside = as_graphs(step(call, call, around, held_on(1)), COST)
    assert isinstance(outside, Timeline)
    assert [one.action.until for one in outside.items if isinstance(one.action, Hold)] == [0]


def held_on(until: int):  # type: ignore[no-untyped-def]
    return item(1.0, action=Hold(stream=9, until=until), family=AROUND)


def test_what_cannot_be_a_graph_says_why() -> None:
    call = item(1.0, 1.0, kernel(5.0))
    assert "the step waits 2 times" in str(as_graphs(step(call, item(action=Sync()), call, item(action=Sync())), COST))
    assert "no two launches" in str(as_graphs(step(call, item(3.0, family=AROUND), call), COST))
    assert "CUDA graphs already" in str(as_graphs(GRAPHED, COST))


def test_guards_go_from_where_they_lie() -> None:
    # 54 → 14 before the graph; the 6 behind it stay.
    made = without_guards(INDUCTOR, 40.0)
    assert [one.ft_us for one in made.items if one.family == AROUND] == pytest.approx([14.0, 6.0])
    assert simulate(made).wall_us == pytest.approx(473.75 - 40.0)
    # No more than there is.
    assert [one.ft_us for one in without_guards(INDUCTOR, 400.0).items if one.family == AROUND] == [0.0, 6.0]
    # Two graphs lose in proportion.
    call = item(1.0, 1.0, kernel(5.0))
    two = step(item(30.0, family=AROUND), call, item(10.0, family=AROUND), call)
    shares = [one.ft_us for one in without_guards(two, 20.0).items if one.family == AROUND]
    assert shares == pytest.approx([15.0, 5.0])


def test_the_cost_of_a_graph_is_linear_from_one_launch() -> None:
    assert (COST.of(1), COST.of(11)) == (GraphPoint(1, 5.0, 7.0), GraphPoint(11, 25.0, 17.0))
    # Least squares through (1, 5): nodes 11 at 25 and 21 at 65: (10 x 20 + 20 x 60) / (100 + 400) = 2.8.
    two = graph_cost(5.0, 2.0, [GraphPoint(11, 25.0, 7.0), GraphPoint(21, 65.0, 7.0)], "a test")
    assert two.node_host_us == pytest.approx(2.8) and two.node_first_us == 0.0
    # Noise makes no graph cheaper for its nodes.
    assert graph_cost(5.0, 2.0, [GraphPoint(11, 4.0, 6.0)], "a test").of(100) == GraphPoint(100, 5.0, 7.0)
    with pytest.raises(ValueError, match="no graph launch was measured"):
        graph_cost(5.0, 2.0, [], "a test")


# --- for every timeline ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_faster_host_never_lengthens(seed: int) -> None:
    timeline = random_step(seed)
    assert on_faster_host(timeline, 1.0) == timeline
    walls = [simulate(on_faster_host(timeline, speed)).wall_us for speed in (0.5, 1.0, 1.1, 2.0, 1e6)]
    assert walls == sorted(walls, reverse=True)
    # An endlessly fast host leaves what the simulator removes with ΔFT and ΔCT, and the launch calls besides.
    assert walls[-1] <= Simulator(timeline).wall_without(("ft", "ct")) + 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_removing_guards_never_lengthens(seed: int) -> None:
    timeline = random_step(seed)
    items = tuple(
        msgspec.structs.replace(one, family=AROUND) if index % 5 == 0 else one
        for index, one in enumerate(timeline.items)
    )
    timeline = msgspec.structs.replace(timeline, items=items)
    before = simulate(timeline).wall_us
    walls = [simulate(without_guards(timeline, us)).wall_us for us in (0.0, 5.0, 20.0, 1e6)]
    assert walls[0] == before
    assert all(after <= earlier + 1e-9 for earlier, after in itertools.pairwise(walls))


# --- a review -------------------------------------------------------------------------------------------------------


def test_a_review_on_a_host_twice_as_fast() -> None:
    found = whatif(measured(), Change(cpu_speed=2.0), ["eager"])
    assert [variant.name for variant in found.variants] == ["eager", "eager + cpu 2"]
    base, made = found.variants
    assert base == measured().variant("eager")
    assert (made.origin, base.origin, found.origin) == ("predicted", "measured", "predicted")
    assert wall(made) == pytest.approx(1000.0 * 471.0 / 921.0)
    assert made.t_host_us is not None and made.t_host_us.median == pytest.approx(450.0)
    assert (made.t_wait_us, made.issue_us, made.launch_us) == pytest.approx((0.0, 450.0, 50.0))
    assert (made.launches, made.graph_launches, made.kernels, made.memops) == (20, 0, 20, 0)
    terms = terms_of(made)
    # T_sys 2 + 2 / 2 = 3: ΔKT 60; 300 + 100 + 60 = 460; HDBI 220 / 680.
    assert (terms.ft_us, terms.ct_us, terms.kt_us) == pytest.approx((300.0, 100.0, 60.0))
    assert terms.orchestration_us == pytest.approx(460.0) and terms.hdbi == pytest.approx(220.0 / 680.0)
    assert terms.ft_parts == pytest.approx({"python": 175.0, "ops": 135.0, "unattributed": -10.0})
    prediction = prediction_of(made)
    assert (prediction.base, prediction.changes, prediction.measured_as) == ("eager", ["cpu 2"], None)
    assert prediction.base_error == pytest.approx(921.0 / 1000.0 - 1)
    assert prediction.orchestration_change == pytest.approx(460.0 / 880.0 - 1)
    assert made.exposed is not None and made.exposed.wall_us == 471.0 and made.exposed.error is None
    assert made.compile_s is None and made.outputs_equal is None and "predicted" in made.unmeasured["outputs_equal"]
    (comparison,) = found.comparisons
    assert (comparison.base, comparison.variant, comparison.origin) == ("eager", "eager + cpu 2", "predicted")
    ratio = comparison.wall_ratio
    assert ratio is not None and ratio.median == pytest.approx(471.0 / 921.0)
    # As wide as the simulation's error on the base, 7.9 %.
    assert ratio.low == pytest.approx(ratio.median * 0.921) and ratio.high == pytest.approx(ratio.median * 1.079)
    assert comparison.verdict == "predicted: faster" and comparison.ratio_confidence == 0.0
    assert comparison.removed.ft_us == pytest.approx(300.0)
    assert comparison.removed.wall_us == pytest.approx(1000.0 * (1 - 471.0 / 921.0))
    assert PAPER in found.notes


def test_a_host_as_fast_as_it_is_changes_nothing() -> None:
    review = measured()
    found = whatif(review, Change(cpu_speed=1.0))
    assert len([v for v in found.variants if v.origin == "predicted"]) == 4
    for made in found.variants:
        if made.origin == "measured":
            continue
        base = review.variant(made.name.removesuffix(" + cpu 1"))
        same = (
            "t_wall_us",
            "t_host_us",
            "issue_us",
            "launch_us",
            "launches",
            "kernels",
            "device_active_us",
            "timeline",
        )
        for name in same:
            assert getattr(made, name) == getattr(base, name), name
        mine, own = terms_of(made), terms_of(base)
        assert (mine.ft_us, mine.ct_us, mine.kt_us, mine.hdbi) == (own.ft_us, own.ct_us, own.kt_us, own.hdbi)
        assert mine.ft_parts == pytest.approx(own.ft_parts)
        assert prediction_of(made).wall_change == 0.0
    against = {c.variant: c for c in found.comparisons if c.origin == "predicted" and c.base == "eager"}
    assert against["eager + cpu 1"].removed.ft_us == 0.0
    assert against["eager + cpu 1"].verdict == "predicted: no measurable change"
    # A variant against eager is what was measured of it.
    real = next(c for c in review.comparisons if (c.base, c.variant) == ("eager", "inductor"))
    assert against["inductor + cpu 1"].removed.ct_us == real.removed.ct_us


def test_a_graph_is_predicted_beside_the_one_that_was_measured() -> None:
    found = whatif(measured(), Change(cuda_graph=True))
    assert [variant.name for variant in found.variants] == [
        "eager", "eager + graph", "eager-graph", "inductor", "inductor + graph", "reduce-overhead",
    ]  # fmt: skip
    made = found.variant("eager + graph")
    # Of reduce-overhead's graph: 258.75 as above; measured: a fifth of eager.
    assert wall(made) == pytest.approx(1000.0 * 258.75 / 921.0)
    prediction = prediction_of(made)
    assert prediction.measured_as == "eager-graph"
    assert prediction.error == pytest.approx(258.75 / 921.0 / 0.2 - 1)
    assert any("reduce-overhead (11 nodes)" in note for note in made.notes)
    assert (made.launches, made.graph_launches, made.kernels) == (1, 1, 20)
    terms = terms_of(made)
    assert (terms.ft_us, terms.ct_us, terms.kt_us) == pytest.approx((0.0, 0.0, 26.0))
    assert made.library_calls is None and made.launch_us == pytest.approx(43.0)
    # Of eager-graph's: 5 + 7 x 1 = 12 and 7 + 7 x 2 = 21: 54 + 21 + 159.75 + 8.
    inductor = found.variant("inductor + graph")
    assert wall(inductor) == pytest.approx(500.0 * 242.75 / 473.75)
    assert any("eager-graph (20 nodes)" in note for note in inductor.notes)
    assert terms_of(inductor).ft_us == pytest.approx(60.0)
    # Both against eager: 0.5 of it, times the change, against a measured 0.25.
    assert prediction_of(inductor).error == pytest.approx(0.5 * 242.75 / 473.75 / 0.25 - 1)
    pairs = {(c.base, c.variant) for c in found.comparisons if c.origin == "predicted"}
    assert pairs == {("eager", "eager + graph"), ("eager", "inductor + graph"), ("inductor", "inductor + graph")}


def test_a_graph_that_is_priced_by_the_very_variant_says_so() -> None:
    review = measured()
    without = [msgspec.structs.replace(v, timeline=None) if v.name == "reduce-overhead" else v for v in review.variants]
    made = whatif(msgspec.structs.replace(review, variants=without), Change(cuda_graph=True), ["eager"]).variants[1]
    # 24 in the call, first node after 45: 45 + 224.75 + 8.
    assert prediction_of(made).wall_change == pytest.approx(277.75 / 921.0 - 1)
    assert any("the variant to compare with" in note for note in made.notes)


def test_a_graph_whose_cost_nobody_measured_is_null_with_the_reason() -> None:
    review = measured()
    variants = [msgspec.structs.replace(v, timeline=None) if v.graph_launches else v for v in review.variants]
    found = whatif(msgspec.structs.replace(review, variants=variants), Change(cuda_graph=True), ["eager"])
    made = found.variant("eager + graph")
    assert (made.status, made.origin, made.t_wall_us) == ("skipped", "predicted", None)
    assert made.reason is not None and "no graphed variant of this review" in made.reason
    assert found.comparisons == [
        c for c in review.comparisons if {c.base, c.variant} <= {"eager", "eager-graph"}
    ] and "eager-graph" in {v.name for v in found.variants}


def test_a_step_that_waits_cannot_be_one_graph() -> None:
    waiting = step(*EAGER.items, item(1.0, action=Sync()), floors=FLOORS)
    review = measured()
    eager = msgspec.structs.replace(review.variants[0], timeline=stored(waiting))
    found = whatif(
        msgspec.structs.replace(review, variants=[eager, *review.variants[1:]]), Change(cuda_graph=True), ["eager"]
    )
    assert "waits 1 times" in str(found.variant("eager + graph").reason)


def test_without_guards() -> None:
    found = whatif(measured(), Change(no_guards=True))
    assert [variant.name for variant in found.variants] == ["eager", "inductor", "inductor + no guards"]
    made = found.variants[2]
    assert wall(made) == pytest.approx(500.0 * 433.75 / 473.75)
    assert terms_of(made).ft_us == pytest.approx(220.0)
    assert terms_of(made).ft_parts == pytest.approx({"frame": 20.0, "wrapper": 200.0})
    assert made.launches == 8 and terms_of(made).ct_us == 150.0


def test_all_at_once_is_one_after_the_other() -> None:
    review = measured()
    everything = Change(no_guards=True, cuda_graph=True, cpu_speed=2.0)
    at_once = whatif(review, everything, ["inductor"]).variant("inductor + no guards + graph + cpu 2")
    # 14 / 2; first node 2 + 19 / 2 = 11.5 later; 159.75; + 8.
    assert wall(at_once) == pytest.approx(500.0 * 186.25 / 473.75)
    assert prediction_of(at_once).changes == ["no guards", "graph", "cpu 2"]
    result, name = review, "inductor"
    for change, label in (
        (Change(no_guards=True), "no guards"), (Change(cuda_graph=True), "graph"), (Change(cpu_speed=2.0), "cpu 2"),
    ):  # fmt: skip
        result, name = whatif(result, change, [name]), f"{name} + {label}"
        # What the next one needs besides: the graphs that were measured.
        others = [v for v in review.variants if v.name not in {one.name for one in result.variants}]
        result = msgspec.structs.replace(result, variants=[*result.variants, *others])
    last = result.variant(name)
    assert last.name == at_once.name and prediction_of(last).base_error == prediction_of(at_once).base_error
    assert wall(last) == pytest.approx(wall(at_once), rel=1e-4)
    assert terms_of(last).ft_us == pytest.approx(terms_of(at_once).ft_us, rel=1e-3)
    eager = whatif(review, everything, ["eager"]).variant("eager + graph + cpu 2")
    assert any("no time of guards is known" in note for note in eager.notes)
    assert prediction_of(eager).measured_as is None


def test_what_a_prediction_saved_is_read_back(tmp_path: Path) -> None:
    found = whatif(measured(), Change(cuda_graph=True, cpu_speed=1.2))
    found.save(tmp_path / "r.json")
    assert Review.load(tmp_path / "r.json") == found


# --- what cannot be asked -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_no_host_has(speed: float) -> None:
    with pytest.raises(UsageError, match="--cpu-speed must be a positive factor"):
        whatif(measured(), Change(cpu_speed=speed))


def test_bad_questions_name_cause_and_mend() -> None:
    with pytest.raises(UsageError, match="nothing to change: give --cuda-graph"):
        whatif(measured(), Change())
    with pytest.raises(UsageError, match=r"r\.json has no variant 'egaer'; it has eager, dynamo"):
        whatif(measured(), Change(cpu_speed=2.0), ["egaer"], "r.json")
    with pytest.raises(FormatError, match=r"dynamo has no timeline \(the time limit was reached\)"):
        whatif(measured(), Change(cpu_speed=2.0), ["dynamo"])
    with pytest.raises(UsageError, match="one for eager-graph: it launches CUDA graphs already"):
        whatif(measured(), Change(cuda_graph=True), ["eager-graph"])
    with pytest.raises(UsageError, match="one for eager: no time of guards is known"):
        whatif(measured(), Change(no_guards=True), ["eager"])
    with pytest.raises(FormatError, match=r"has no timeline to change .*older taxbreak_fx"):
        whatif(sample_review(), Change(cpu_speed=2.0))
    review = measured()
    host = [msgspec.structs.replace(v, timeline=None, exposed=Exposed.unavailable(CPU_DEVICE)) for v in review.variants]
    with pytest.raises(FormatError, match=f"{CPU_DEVICE}.*review the model again on a CUDA device"):
        whatif(msgspec.structs.replace(review, variants=host), Change(cpu_speed=2.0))
    unclear = msgspec.structs.replace(
        review.variant("inductor"), breakdown=breakdown(260.0, 150.0, 32.0, 158.0, {"guards_and_frame": 260.0})
    )
    with pytest.raises(UsageError, match="guards are not told from the frame"):
        whatif(msgspec.structs.replace(review, variants=[unclear]), Change(no_guards=True))


# --- reports and the command ----------------------------------------------------------------------------------------


def test_reports_mark_what_was_predicted_and_show_how_far_off() -> None:
    found = whatif(measured(), Change(cuda_graph=True))
    text, whole = terminal(found, 100), markdown(found)
    assert len(text.splitlines()) <= MAX_LINES and max(map(len, text.splitlines())) <= 100
    assert "eager + graph (predicted)" in text and "eager-graph (" not in text
    # 258.75 / 921 = 0.28095 against 0.2.
    line = "eager + graph: simulation of eager off by -7.9 %; measured as eager-graph, prediction off by +40.5 %"
    assert line in text
    assert "0.281" in whole and "Predictions beside what was measured" in whole
    assert "predicted: faster" in html(found) and "simulation error" in html(found)
    (table,) = [one for one in page(found)[0] if one.title.startswith("Predictions")]
    assert table.rows[0][:2] == ("eager + graph", "eager") and table.rows[0][-1] == "+40.5 %"
    assert not [one for one in page(measured())[0] if one.title.startswith("Predictions")]
    assert "predicted" not in markdown(measured())


@pytest.fixture
def saved(tmp_path: Path) -> str:
    path = tmp_path / "review.json"
    measured().save(path)
    return str(path)


def test_the_command_prints_the_tables_and_writes_where_it_is_asked_to(
    capsys: Capture, saved: str, tmp_path: Path
) -> None:
    options = ["--cuda-graph", "--cpu-speed", "1.2", "--no-guards", "--variant", "inductor", "--variant", "eager"]
    assert main(["whatif", saved, *options]) == 0
    expected = whatif(
        measured(), Change(cuda_graph=True, cpu_speed=1.2, no_guards=True), ["inductor", "eager"], saved
    )  # fmt: skip
    printed = capsys.readouterr()
    assert printed.out == terminal(expected, 100) and printed.err == ""
    assert [v.name for v in expected.variants if v.origin == "predicted"] == [
        "inductor + no guards + graph + cpu 1.2", "eager + graph + cpu 1.2",
    ]  # fmt: skip
    assert sorted(one.name for one in tmp_path.iterdir()) == ["review.json"]
    assert main(["whatif", saved, *options, "--json", "--out", str(tmp_path / "a" / "b")]) == 0
    written = tmp_path / "a" / "b" / "review.json"
    assert capsys.readouterr().out.encode() == written.read_bytes() == schema.encode(expected)
    assert sorted(one.name for one in written.parent.iterdir()) == ["report.html", "report.md", "review.json"]
    assert schema.load(saved) == measured()


def test_the_paper_stands_beside_a_faster_cpu_only(capsys: Capture, saved: str) -> None:
    assert main(["whatif", saved, "--cpu-speed", "2", "--variant", "eager"]) == 0
    printed = capsys.readouterr().out
    assert PAPER in printed.splitlines()  # whole, in 100 columns
    # 471 / 921; 460 / 880.
    assert "eager + cpu 2: simulation of eager off by -7.9 %; wall -48.9 %, T_Orchestration -47.7 %" in printed
    assert main(["whatif", saved, "--no-guards"]) == 0
    assert "arXiv" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "options", "line"),
    [
        (2, [], "nothing to change: give --cuda-graph"),
        (2, ["--cpu-speed", "0"], "--cpu-speed must be a positive factor"),
        (2, ["--cpu-speed", "-1.5"], "--cpu-speed must be a positive factor"),
        (2, ["--cpu-speed", "nan"], "--cpu-speed must be a positive factor"),
        (2, ["--cpu-speed", "inf"], "--cpu-speed must be a positive factor"),
        (2, ["--cpu-speed", "fast"], "cpu-speed"),
        (2, ["--cpu-speed", "1.2", "--variant", "egaer"], "has no variant 'egaer'; it has eager, dynamo"),
        (2, ["--no-guards", "--variant", "eager"], "no time of guards is known"),
        (2, ["--cpu-speed", "1.2", "--profile", "h200"], "--profile is for --batch"),
        (6, ["--cuda-graph", "--variant", "dynamo"], "dynamo has no timeline"),
    ],
)
def test_a_mistake_is_one_line(capsys: Capture, saved: str, code: int, options: list[str], line: str) -> None:
    assert main(["whatif", saved, *options]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert printed.err.startswith("taxbreak: ") and line in printed.err


def test_a_review_without_timelines_is_refused_with_the_mend(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    sample_review().save(path)
    assert main(["whatif", str(path), "--cuda-graph"]) == 6
    printed = capsys.readouterr()
    assert printed.out == "" and "review the model again on a CUDA device" in printed.err and "old.json" in printed.err
    assert main(["whatif", str(tmp_path / "absent.json"), "--cuda-graph"]) == 6


def test_a_folder_that_cannot_be_written(capsys: Capture, saved: str) -> None:
    assert main(["whatif", saved, "--cuda-graph", "--out", saved]) == 7
    assert "choose another folder" in capsys.readouterr().err
