"""A timeline in the file: what is read back is what was written, and rounding hardly moves a wall time."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from sample_review import sample_review
from test_breakdown_timeline import closing
from test_timeline import FLOORS, SEEDS, graph, item, kernel, random_step, step

from taxbreak_fx import schema
from taxbreak_fx.breakdown import decompose, from_recording
from taxbreak_fx.breakdown_timeline import Built
from taxbreak_fx.errors import FormatError
from taxbreak_fx.model import Review
from taxbreak_fx.record import SourceLine
from taxbreak_fx.step_timeline import HostRow, KernelRow, StepTimeline, WorkRow
from taxbreak_fx.timeline import Hold, Item, Sync, Timeline, simulate
from taxbreak_fx.timeline_store import restored, stored

LINE = SourceLine(file="/home/author/model.py", line=12)


def uneven(count: int) -> Timeline:
    """A launching call from one of 40 lines and one that launches nothing, ``count`` times, with the glue before each;
    every time ends in a third, which is rounded the same way each time."""
    items: list[Item] = []
    for index in range(count):
        line = SourceLine(file="/home/author/models/toy/modeling_toy.py", line=100 + index % 40)
        third = 1 / 300
        items += [
            item(1.67 + third, family="between recorded calls"),
            item(2.01 + third, 3.99 + third, kernel(1.23 + third), ct=0.5 + third, source=line),
            item(0.22 + third, source=line),
            item(1.05 + third, family="between recorded calls"),
            item(2.5 + third, family="view", source=line),
        ]
    return step(*items)


def with_timeline(timeline: Timeline) -> Review:
    review = sample_review()
    eager = msgspec.structs.replace(review.variants[0], timeline=stored(timeline))
    return msgspec.structs.replace(review, variants=[eager, *review.variants[1:]])


def test_rows_by_hand() -> None:
    timeline = step(
        item(1.0, 2.0, kernel(3.0), ct=0.5, source=LINE),
        item(4.0, family="glue"),
        item(0.0, 5.0, graph(6.0, 7.0, 8.0, family="copy"), family="graph-launch"),
        item(action=Sync(stream=7)),
        item(action=Sync(stream=7, back_us=1.5)),
        item(action=Hold(stream=9, until=2)),
        item(1.0, ct=2.0, family="glue"),
    )
    found = stored(timeline)
    assert json.loads(msgspec.json.encode(found.rows)) == (
        [[1, 0, 1.0, 0.5, 2.0, 7, 3.0], [0, 1, 4.0], [2, 2, 0.0, 0.0, 5.0, 7, "graph", 6.0, [[3, 7.0], [3, 8.0]]],
         [3, 3, 0.0, 0.0, 7, None], [3, 3, 0.0, 0.0, 7, 1.5], [4, 3, 0.0, 0.0, 9, 2], [5, 1, 1.0, 2.0]]
    )  # fmt: skip
    assert (found.families, found.files) == (["gemm", "glue", "graph-launch", "copy"], [LINE.file])
    assert msgspec.to_builtins(found.places) == [[0, 0, 12], [1, None, None], [2, None, None], [0, None, None]]
    assert restored(found) == timeline


@pytest.mark.parametrize("seed", SEEDS)
def test_every_timeline_in_hundredths_comes_back_as_it_was(seed: int) -> None:
    timeline = random_step(seed)
    kept = stored(timeline)
    assert restored(kept) == timeline
    assert msgspec.json.decode(msgspec.json.encode(kept), type=StepTimeline) == kept


def test_what_is_rounded_off_is_made_up_for() -> None:
    # 3 x 0.004 = 0.012: 0.004 → 0, 0.008 → 0.01, 0.012 → 0.01; on each stream by itself.
    found = stored(step(*(item(0.004, 0.004, kernel(0.004)) for _ in range(3))))
    rows = [row for row in found.rows if isinstance(row, KernelRow)]
    assert [row.ft_us for row in rows] == [row.launch_us for row in rows] == [0.0, 0.01, 0.0]
    assert [row.device_us for row in rows] == [0.0, 0.01, 0.0]
    apart = stored(step(item(0.0, 1.0, kernel(0.004, 7)), item(0.0, 1.0, kernel(0.004, 9))))
    assert [row.device_us for row in apart.rows if isinstance(row, KernelRow)] == [0.0, 0.0]


@pytest.mark.parametrize("device_us", [1.0, 30.0])
def test_a_restored_step_takes_as_long(device_us: float) -> None:
    timeline = uneven(1_500)
    slower = [
        msgspec.structs.replace(one, action=kernel(device_us + 1 / 300)) if one.action is not None else one
        for one in timeline.items
    ]
    timeline = step(*slower)
    before, after = simulate(timeline), simulate(restored(stored(timeline)))
    # Rounded one by one, 1,500 thirds of a hundredth would add up to 5 µs a column.
    assert abs(after.wall_us - before.wall_us) < 0.1
    assert abs(after.host_us - before.host_us) < 0.1 and abs(after.device_us - before.device_us) < 0.1
    assert stored(restored(stored(timeline))) == stored(timeline)


def test_a_recorded_step_takes_as_long() -> None:
    built = from_recording(closing())
    assert isinstance(built, Built)
    variant = decompose(closing(), None)
    assert variant.timeline == stored(built.timeline)
    before, after = simulate(built.timeline), simulate(restored(variant.timeline))
    assert after.wall_us == pytest.approx(before.wall_us, abs=0.1)


def test_a_long_step_is_a_short_line_of_the_file() -> None:
    review = with_timeline(uneven(1_500))
    data = schema.encode(review)
    (line,) = [one for one in data.splitlines() if one.lstrip().startswith(b'"timeline": {')]
    assert len(line) < 120_000  # of 7,500 rows
    assert schema.decode(data, "x") == review and schema.encode(schema.decode(data, "x")) == data
    jsonschema.Draft202012Validator(schema.json_schema()).validate(json.loads(data))


def test_text_that_looks_like_a_timeline_is_left_alone() -> None:
    review = with_timeline(step(item(1.0, family='\n  "timeline": {\n}')))
    notes = ['\n      "timeline": {\n 1,\n 2\n      }\n', '      "timeline": {', "}"]
    review = msgspec.structs.replace(review, notes=notes)
    assert schema.decode(schema.encode(review), "x") == review


def test_a_variant_that_could_not_be_laid_out_has_none() -> None:
    record = msgspec.structs.replace(closing(), trace=None, failures={"trace": "killed"})
    assert decompose(record, None).timeline is None


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "place": ({"rows": [HostRow(place=1, ft_us=1.0)]}, "place 1 of 1"),
    "below zero": ({"rows": [HostRow(place=0, ft_us=-1.0)]}, "row 0 has a time below zero"),
    "constant": ({"gap_us": -1.0}, "a constant of the machine"),
    "queue": ({"queue_depth": 0}, "a constant of the machine"),
    "graph without latency": (
        {"rows": [WorkRow(place=0, ft_us=0.0, ct_us=0.0, launch_us=1.0, stream=7, kind="graph", first_node_us=None,
                          pieces=[(0, 1.0)])]},
        "row 0 is no graph launch",
    ),
    "piece": (
        {"rows": [WorkRow(place=0, ft_us=0.0, ct_us=0.0, launch_us=1.0, stream=7, kind="memop", first_node_us=None,
                          pieces=[(9, 1.0)])]},
        "family 9 of 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_timeline_that_was_damaged_is_refused_with_its_path(fields: dict[str, Any], reason: str) -> None:
    content = json.loads(schema.encode(with_timeline(step(item(1.0)))))
    content["variants"][0]["timeline"] |= msgspec.to_builtins(fields)
    with pytest.raises(FormatError, match=reason) as caught:
        schema.decode(json.dumps(content).encode(), "x.json")
    assert "$.variants[0].timeline" in str(caught.value)


def test_a_row_that_waits_for_no_launch_is_refused() -> None:
    good = stored(step(item(0.0, 1.0, kernel(2.0)), item(action=Hold(stream=9, until=0)), floors=FLOORS))
    with pytest.raises(ValueError, match="waits for row 0, which launches nothing"):
        msgspec.structs.replace(good, rows=[HostRow(place=0, ft_us=1.0), good.rows[1]]).__post_init__()
