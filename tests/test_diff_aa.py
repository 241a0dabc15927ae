"""A/A: reviews of one program never differ by anything but noise, however the machine drifted between them."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from diff_samples import EVERY_GATE, on_slower_host, real, with_variant
from sample_review import interval, sample_review

from taxbreak_fx import schema
from taxbreak_fx.api import Options, review_with
from taxbreak_fx.diff import diff
from taxbreak_fx.diff_clock import unsteadiness
from taxbreak_fx.diff_types import Diff
from taxbreak_fx.findings import with_findings
from taxbreak_fx.gates import failed, judge, parse
from taxbreak_fx.model import SCHEMA_VERSION, Review, Variant
from taxbreak_fx.variant_record import Node

replace = msgspec.structs.replace
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
SPINES = sorted(path for path in RESULTS.glob("spine-*.json"))
TIMES = 20


PAIRS = 5  # measured at most, of a step on the CPU


def unchanged(found: Diff) -> None:
    """No metric, op or line changed, no finding came or went, and no gate fails that could be judged."""
    assert real(found) == [] and found.rows == [] and found.lines == []
    assert [change for change in found.findings if change.state != "unsteady"] == []
    verdicts = judge([parse(gate) for gate in EVERY_GATE], found)
    assert [v for v in failed(verdicts) if not v.why.startswith("nothing could be judged")] == []


def resampled(review: Review, rng: random.Random) -> Review:
    """``review`` as another process on another host would have measured it.

    Drawn: the host's speed, 0.7 … 1.4 (two H200 hosts an hour apart differed 1.6 times); the device's, ± 3 %; what one
    process does to the host work of one variant, up to 12 %, as seen on H200s; rows by a tenth; the ratio within its
    interval.
    """
    moved = on_slower_host(review, rng.uniform(0.7, 1.4), device=rng.uniform(0.97, 1.03))
    drawn = {
        v.name: 1.0 if v.name == "eager" else math.exp(rng.uniform(-1, 1) * math.log(1.12)) for v in moved.variants
    }

    def again(variant: Variant) -> Variant:
        if variant.t_wall_us is None or variant.t_host_us is None:
            return variant
        by = drawn[variant.name]
        wall, host = variant.t_wall_us, variant.t_host_us
        grown = grows(variant)
        rows = [row(node) for node in variant.nodes]
        return replace(
            variant,
            t_wall_us=interval(wall.median * grown, wall.low * grown, wall.high * grown),
            t_host_us=interval(host.median * by, host.low * by, host.high * by),
            issue_us=variant.issue_us and variant.issue_us * by,
            nodes=rows,
        )

    def grows(variant: Variant) -> float:
        """The wall time with the host's share of it; what waits for the device stays."""
        assert variant.t_wall_us is not None and variant.t_host_us is not None
        return 1.0 + (drawn[variant.name] - 1.0) * variant.t_host_us.median / variant.t_wall_us.median

    def row(node: Node) -> Node:
        by = rng.uniform(0.9, 1.1)
        return replace(node, ft_us=node.ft_us and node.ft_us * by, ct_us=node.ct_us and node.ct_us * by)

    comparisons = []
    for c in moved.comparisons:
        if c.wall_ratio is not None:
            ratio = c.wall_ratio
            by = grows(moved.variant(c.variant)) / grows(moved.variant(c.base))
            middle = rng.uniform(ratio.low, ratio.high) * by
            share = middle / ratio.median
            c = replace(c, wall_ratio=interval(middle, ratio.low * share, ratio.high * share))
        comparisons.append(c)
    return replace(moved, variants=[again(v) for v in moved.variants], comparisons=comparisons)


@pytest.mark.parametrize("name", ["gpt2-decode", "bert"])
def test_twenty_diffs_of_one_program_find_nothing(name: str) -> None:
    base = with_findings(schema.load(RESULTS / f"spine-{name}.json"))
    base = replace(base, schema_version=SCHEMA_VERSION)
    rng = random.Random(0)
    for _ in range(TIMES):
        unchanged(diff(base, with_findings(resampled(base, rng))))


def test_the_same_draws_do_not_hide_a_change() -> None:
    # What makes the twenty pass must not make everything pass: one launch more is one more in all of them.
    base = schema.load(RESULTS / "spine-gpt2-decode.json")
    rng = random.Random(0)
    for _ in range(TIMES):
        head = resampled(base, rng)
        slower = with_variant(
            head, "inductor",
            lambda v: replace(v, device_active_us=v.device_active_us and v.device_active_us * 1.5),
        )  # fmt: skip
        assert real(diff(base, slower)) == [("inductor", "device_active_us")]


def test_reviews_of_a_step_on_the_cpu_find_nothing() -> None:
    """Measured here, one after the other.

    Where other work comes and goes between two reviews, what it costs is no noise of theirs and does show: of a few
    pairs, one must have had the machine alike.  Counts are exact in all.
    """

    def step(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            x = torch.relu(x @ w) + x
        return x

    torch.manual_seed(0)
    x, w = torch.randn(16, 32), torch.randn(32, 32)
    options = Options(variants=("eager", "dynamo"), budget_s=0.5)
    reviews = [review_with(options, step, x, w)]
    for _ in range(PAIRS):
        reviews.append(review_with(options, step, x, w))
        both = list(itertools.permutations(reviews[-2:], 2))
        changes = [change for base, head in both for change in diff(base, head).changes if change.unit == "count"]
        assert [change for change in changes if change.real and not change.metric.startswith("findings")] == []
        try:
            for base, head in both:
                unchanged(diff(base, head))
            return
        except AssertionError as error:
            seen = error
    raise seen


@pytest.mark.parametrize("path", SPINES, ids=lambda path: path.stem)
@pytest.mark.parametrize("factor", [1.0, 1.4, 0.7, 3.0, 0.33])
def test_a_measured_review_on_another_host_is_no_change(path: Path, factor: float) -> None:
    base = schema.load(path)
    head = on_slower_host(base, factor, device=1.02)
    for one, other in ((base, head), (head, base)):
        found = diff(one, other)
        assert real(found) == [] and found.rows == []
        verdicts = judge([parse(gate) for gate in EVERY_GATE if not gate.startswith(("findings", "graph"))], found)
        assert [v for v in verdicts if v.state == "failed"] == []


def test_twenty_timings_of_one_program_are_no_change() -> None:
    # benchmarks/repeatability.py: eager against itself, T_host from 6.8 to 11.6 ms within one process.
    rows = [r for r in json.loads((RESULTS / "repeatability.json").read_text())["rows"] if "low" in r]
    assert len(rows) == 20
    base = schema.load(RESULTS / "spine-gpt2-decode.json")
    dynamo = next(c for c in base.comparisons if (c.base, c.variant) == ("eager", "dynamo"))

    def timed(row: dict[str, Any]) -> Review:
        wall, paired = row["host_us"], interval(row["wall_ratio"], row["low"], row["high"])

        def again(v: Variant) -> Variant:
            t = interval(wall, wall * row["low"] / row["wall_ratio"], wall * row["high"] / row["wall_ratio"])
            return replace(v, t_wall_us=t, t_host_us=t, issue_us=wall)

        comparisons = [replace(c, wall_ratio=paired) if c == dynamo else c for c in base.comparisons]
        return replace(with_variant(base, "dynamo", again), comparisons=comparisons)

    reviews = [timed(row) for row in rows]
    clocked = ("t_wall_us", "t_host_us", "issue_us")
    for one, other in itertools.permutations(reviews, 2):
        found = diff(one, other)
        assert [c for c in found.changes if c.variant == "dynamo" and c.metric in clocked and c.real] == []


def test_an_unsteady_review_knows_it() -> None:
    # Eager took 1000 µs alone, and 500 / 0.5, 250 / 0.25, 200 / 0.2 = 1000 beside the others; then 4000 in one of them.
    base = sample_review()
    assert unsteadiness(base) == pytest.approx(1.0)
    head = with_variant(base, "inductor", lambda v: replace(v, t_wall_us=interval(2000, 1990, 2010)))
    assert unsteadiness(head) == pytest.approx(4.0)
    assert any("unsteady" in note for note in diff(base, head).notes)
