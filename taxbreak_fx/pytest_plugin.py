"""pytest: ``assert_review`` as a fixture, and as a function for tests that import it.

Loaded by pytest itself (entry point ``pytest11``) in every run, so it imports nothing of ours until it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from taxbreak_fx.model import Review, Variant

DEFAULT_VARIANT = "inductor"
MOST_ROWS = 5


@pytest.fixture(name="assert_review")
def _assert_review() -> Callable[..., Review]:
    """``taxbreak_fx.pytest_plugin.assert_review``."""
    return assert_review


def assert_review(
    step: Callable[..., Any] | Review | str | os.PathLike[str],
    /,
    *args: Any,
    variant: str = DEFAULT_VARIANT,
    limits: Mapping[str, str | float] | None = None,
    **named: str | float,
) -> Review:
    """Fail the test unless ``variant`` of ``step`` keeps every limit; returns the review.

    ``step``: a ``Review``, the path of a review.json (measured or predicted, so that no GPU is needed), or a callable
    that is reviewed here with ``args`` as eager and as ``variant``.  A limit is ``metric="<=350"``, with a unit where
    the metric has one (``"<=50us"``), or a number that must be met exactly (``graph_breaks=0``); ``limits`` takes the
    metrics whose names have a dot.  Metrics are those of docs/diff.md.

    A measured time fails only if its whole interval is beyond the limit.  What was not measured fails too, with the
    reason.  Raises ``AssertionError``, and ``UsageError`` for an unknown metric, variant, or a limit that cannot be
    read.
    """
    __tracebackhide__ = True
    from taxbreak_fx.diff_metrics import Metric, metric, nearest
    from taxbreak_fx.errors import UsageError
    from taxbreak_fx.gates import Limit, parse_limit

    wanted = {**(limits or {}), **named}
    if not wanted:
        raise UsageError("assert_review checks nothing: give a limit, as in launches='<=350'")
    read: list[tuple[Metric, Limit]] = []
    for name, given in wanted.items():
        found = metric(name)
        if found is None or name == "findings.new":
            raise UsageError(f"assert_review: no metric {name!r} of a single review{nearest(name)}")
        limit = parse_limit(given, found) if isinstance(given, str) else Limit(f"=={given}", "==", float(given))
        read.append((found, limit))
    review = _review(step, args, variant)
    chosen = _variant(review, variant)
    problems = []
    for found, limit in read:
        value = _value(review, chosen, found)
        if isinstance(value, str):
            problems.append(f"{found.name}: wanted {limit.text}, but it is not known: {value}")
        elif not limit.allows(*value):
            problems.append(f"{found.name}: wanted {limit.text}, got {_shown(*value)}")
    if problems:
        raise AssertionError("\n".join([f"{review.model}, {variant}:", *problems, *_where(review, chosen)]))
    return review


def _review(step: Any, args: Sequence[Any], variant: str) -> Review:
    from taxbreak_fx.errors import UsageError
    from taxbreak_fx.model import Review

    if isinstance(step, Review | str | os.PathLike):
        if args:
            raise UsageError("assert_review: a review takes no further arguments; give a callable with its arguments")
        return step if isinstance(step, Review) else Review.load(step)
    from taxbreak_fx.api import Options, review_with

    return review_with(Options(variants=tuple(dict.fromkeys(("eager", variant)))), step, *args)


def _variant(review: Review, name: str) -> Variant:
    from taxbreak_fx.errors import UsageError

    try:
        found = review.variant(name)
    except KeyError as error:
        known = ", ".join(variant.name for variant in review.variants)
        raise UsageError(f"assert_review: no variant {name!r}; the review has {known}") from error
    if found.status != "ok":
        raise AssertionError(f"{review.model}, {name} {found.status}: {found.reason}")
    return found


def _value(review: Review, variant: Variant, found: Any) -> tuple[float, float] | str:
    """Lowest and highest value that the metric may have, or why it is not known."""
    if found.read is None:
        return _of_review(review, found.name)
    value, why = found.read(variant)
    if value is None:
        return str(why)
    interval = getattr(variant, found.name, None) if found.name in ("t_wall_us", "t_host_us") else None
    return (value, value) if interval is None else (interval.low, interval.high)


def _of_review(review: Review, name: str) -> tuple[float, float] | str:
    from taxbreak_fx.findings import keeps_findings

    if name.startswith("graph"):
        if not review.graphs:
            return "no variant of the review was captured by Dynamo"
        broken = [graph for graph in review.graphs if name == "graphs" or graph.break_reason is not None]
        return float(len(broken)), float(len(broken))
    if not keeps_findings(review):
        return f"a review of schema {review.schema_version} keeps no findings; review it again"
    severity = name.partition(".")[2]
    found = [finding for finding in review.findings if severity in ("", finding.severity)]
    return float(len(found)), float(len(found))


def _shown(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} … {high:g}"


def _where(review: Review, variant: Variant) -> list[str]:
    """The ops of most launches with their lines, and every graph break: where to look first."""
    breaks = [graph for graph in review.graphs if graph.break_reason is not None]
    lines = [f"  graph break: {graph.break_reason} ({_place(graph.source)})" for graph in breaks[:MOST_ROWS]]
    ranked = sorted(variant.nodes, key=lambda node: -(node.launches or 0))
    top = [node for node in ranked[:MOST_ROWS] if node.launches]
    return lines + [f"  {node.launches} launches: {node.op} ({_place(node.source)})" for node in top]


def _place(source: Any) -> str:
    return "no line is known" if source is None else f"{source.file}:{source.line}"
