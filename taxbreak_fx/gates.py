"""Gates: what a change may cost before ``taxbreak diff`` fails, and limits on one review.  Pure; docs/diff.md.

    [VARIANT:]METRIC>+NUMBER[UNIT][&>NUMBER[UNIT]...]        a gate, on the change from base to head
    <=NUMBER[UNIT]                                            a limit, on a value

A gate fails where every one of its conditions holds and the change is beyond its noise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from taxbreak_fx.diff_metrics import PART, Metric, metric, nearest
from taxbreak_fx.diff_types import Change, Diff, Unit, Verdict
from taxbreak_fx.errors import UsageError

# Multiples of the unit in which a metric is kept.
UNITS: dict[Unit, dict[str, float]] = {
    "count": {"": 1.0},
    "index": {"": 1.0},
    "µs": {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6},
    "bytes": {"B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
}
NEGATIVE = "negative_residual"  # in the reason of a number that is null because a remainder came out below zero
_METRIC = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_UNIT = re.compile(r"[A-Za-zµ%]+")
_SPACE = re.compile(r"\s*")


class GateError(UsageError):
    """A gate or limit that cannot be read: ``text``, and the character ``at`` which reading it ended."""

    def __init__(self, problem: str, text: str, at: int) -> None:
        super().__init__(f"{problem}, at character {at + 1} of {text!r}")
        self.problem, self.text, self.at = problem, text, at


class Condition(NamedTuple):
    """The change is more than ``limit``: of the expected value where ``relative``, else in the metric's own unit."""

    limit: float
    relative: bool


class Gate(NamedTuple):
    """``rises``: fails where the metric grows by more than every condition, else where it falls by more.

    ``variant``: None means every variant that both reviews have.
    """

    text: str
    variant: str | None
    metric: Metric
    rises: bool
    conditions: tuple[Condition, ...]


class Limit(NamedTuple):
    """A bound on a value in the metric's own unit; ``text`` as it was given."""

    text: str
    relation: str
    value: float

    def allows(self, low: float, high: float) -> bool:
        """Whether a value that lies somewhere between ``low`` and ``high`` may be within the limit."""
        if self.relation == "==":
            return low <= self.value <= high
        if self.relation.startswith("<"):
            return low < self.value or (self.relation == "<=" and low == self.value)
        return high > self.value or (self.relation == ">=" and high == self.value)


class _Reader:
    """Reads a text from left to right; what does not fit is a ``GateError`` that points at it."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.take(_SPACE)

    def take(self, pattern: re.Pattern[str]) -> str:
        """What ``pattern`` matches here, and the space behind it; empty where it does not match."""
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        space = _SPACE.match(self.text, self.at)
        self.at = space.end() if space else self.at
        return found[0]

    def word(self, *words: str) -> str:
        """The first of ``words`` that stands here."""
        return self.take(re.compile("|".join(re.escape(word) for word in words)))

    @property
    def ended(self) -> bool:
        return self.at >= len(self.text)

    def fail(self, problem: str, at: int | None = None) -> GateError:
        return GateError(problem, self.text, self.at if at is None else at)


def parse(text: str) -> Gate:
    """The gate that ``text`` writes.  Raises ``GateError``, which points at the character, where it writes none."""
    reader = _Reader(text)
    variant = _variant(reader)
    at = reader.at
    name = reader.take(_METRIC)
    if not name:
        raise reader.fail("expected a metric, as in 'launches>+2%'")
    found = metric(name)
    if found is None:
        raise reader.fail(f"no metric {name!r}{nearest(name)}", at)
    if variant is not None and found.read is None:
        raise reader.fail(f"{name} is of the whole review: write it without a variant", 0)
    rises = True
    conditions: list[Condition] = []
    while True:
        at = reader.at
        relation = reader.word(">", "<")
        if not relation:
            raise reader.fail("expected > or <")
        if conditions and (relation == ">") != rises:
            raise reader.fail("a gate watches one direction: use a second gate for the other", at)
        rises = relation == ">"
        conditions.append(_condition(reader, found, rises))
        if reader.ended:
            return Gate(text.strip(), variant, found, rises, tuple(conditions))
        if not reader.word("&"):
            raise reader.fail("expected & or the end")


def parse_limit(text: str, of: Metric) -> Limit:
    """The limit on a value of the metric ``of``.  Raises ``GateError`` as ``parse`` does."""
    reader = _Reader(text)
    relation = reader.word("<=", ">=", "==", "<", ">")
    if not relation:
        raise reader.fail("expected <=, <, >=, > or ==")
    sign = reader.word("-", "+")
    value = _number(reader) * (-1 if sign == "-" else 1)
    value *= _factor(reader, of)
    if not reader.ended:
        raise reader.fail("expected the end")
    return Limit(text.strip(), relation, value)


def _variant(reader: _Reader) -> str | None:
    """What stands before the first colon: names of variants may hold spaces and signs, as 'eager + graph' does."""
    name, colon, _ = reader.text.partition(":")
    if not colon:
        return None
    if not name.strip():
        raise reader.fail("expected the name of a variant before ':'", len(name))
    reader.at = len(name) + 1
    reader.take(_SPACE)
    return name.strip()


def _condition(reader: _Reader, of: Metric, rises: bool) -> Condition:
    at = reader.at
    sign = reader.word("+", "-")
    if sign and (sign == "+") != rises:
        raise reader.fail("write > with + (it grows by more), < with - (it falls by more)", at)
    value = _number(reader)
    if reader.word("%"):
        return Condition(value / 100, relative=True)
    return Condition(value * _factor(reader, of), relative=False)


def _number(reader: _Reader) -> float:
    found = reader.take(_NUMBER)
    if not found:
        raise reader.fail("expected a number")
    return float(found)


def _factor(reader: _Reader, of: Metric) -> float:
    at = reader.at
    unit, known = reader.take(_UNIT), UNITS[of.unit]
    if unit in known:
        return known[unit]
    has = " or ".join(name for name in known if name)
    if not unit:
        raise reader.fail(f"expected a unit: {of.name} is in {has}", at)
    raise reader.fail(f"no unit {unit!r}: {of.name} is {f'in {has}' if has else 'a bare number'}", at)


def judge(gates: Sequence[Gate], found: Diff) -> list[Verdict]:
    """One verdict per gate and variant that it is about.

    A gate fails where the head lost its variant, or the number that it watches; so does one that could judge nothing at
    all, because a gate that sees nothing must not pass.  Raises ``UsageError`` for a variant, or a part of ΔFT, that
    neither review has.
    """
    return [verdict for gate in gates for verdict in _verdicts(gate, found)]


def failed(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that failed."""
    return [verdict for verdict in verdicts if verdict.state == "failed"]


def _verdicts(gate: Gate, found: Diff) -> list[Verdict]:
    known = [state.variant for state in found.variants]
    if gate.variant is not None and gate.variant not in known:
        raise UsageError(f"--fail-on {gate.text!r}: no variant {gate.variant!r}; the reviews have {', '.join(known)}")
    parts = sorted({c.metric for c in found.changes if c.metric.startswith(PART)})
    if gate.metric.name.startswith(PART) and parts and gate.metric.name not in parts:
        raise UsageError(
            f"--fail-on {gate.text!r}: ΔFT has no part {gate.metric.name}; the reviews have {', '.join(parts)}"
        )
    changes = [c for c in found.changes if c.metric == gate.metric.name and gate.variant in (None, c.variant)]
    exact: set[str | None] = {clock.variant for clock in found.clocks if clock.exact}
    verdicts = [_verdict(gate, change, change.variant in exact) for change in changes]
    if gate.metric.read is not None:
        verdicts += [
            Verdict(
                gate=gate.text, variant=s.variant, state="failed", why=f"the variant is {s.head}: {s.reason or '–'}"
            )
            for s in found.variants
            if gate.variant in (None, s.variant) and s.base == "ok" and s.head not in ("ok", "absent")
        ]
        verdicts += [
            Verdict(
                gate=gate.text,
                variant=s.variant,
                state="not judged" if gate.variant is None else "failed",
                why="the head has no such variant",
            )
            for s in found.variants
            if gate.variant in (None, s.variant) and s.base == "ok" and s.head == "absent"
        ]
    if all(verdict.state == "not judged" for verdict in verdicts):
        why = "nothing could be judged"
        if not verdicts:
            why += f": {gate.metric.name} is not in both reviews{_hint(gate.metric)}"
        verdicts.append(Verdict(gate=gate.text, variant=gate.variant, state="failed", why=why))
    return verdicts


def _verdict(gate: Gate, change: Change, exact: bool) -> Verdict:
    """``exact``: of a prediction, whose rounding is no noise."""
    if change.expected is None or change.delta is None:
        # What the base has and the head does not, an edit may have taken away; a remainder below zero, only noise did.
        why = change.reason or "not comparable"
        lost = change.base is not None and change.head is None and NEGATIVE not in why
        return Verdict(gate=gate.text, variant=change.variant, state="failed" if lost else "not judged", why=why)
    shown = _shown(change)
    if not all(_exceeds(condition, change, gate.rises) for condition in gate.conditions):
        return Verdict(gate=gate.text, variant=change.variant, state="passed", why=f"{shown}: within the limit")
    if not change.real:
        return Verdict(gate=gate.text, variant=change.variant, state="passed", why=f"{shown}: within its noise")
    beyond = "" if exact or change.expected.low == change.expected.high else ", beyond its noise"
    return Verdict(gate=gate.text, variant=change.variant, state="failed", why=f"{shown}{beyond}")


def _shown(change: Change) -> str:
    """Base, head and change against what was expected, in the metric's unit."""
    assert change.base is not None and change.head is not None and change.delta is not None
    unit = "" if change.unit in ("count", "index") else f" {change.unit}"
    share = "" if change.relative is None else f", {100 * change.relative:+.1f} %"
    return f"{change.base:,.6g} → {change.head:,.6g}{unit} ({change.delta:+,.6g}{share})"


def _hint(of: Metric) -> str:
    if of.kind == "exposed":
        return " (only reviews of a CUDA device, made since version 2.1, have it)"
    if of.name.startswith("findings"):
        return " (only reviews made since version 2.2 have it)"
    return " (no graph was captured in either)" if of.name.startswith("graph") else ""


def _exceeds(condition: Condition, change: Change, rises: bool) -> bool:
    assert change.delta is not None
    moved = change.delta if rises else -change.delta
    if not condition.relative:
        return moved > condition.limit
    # Where nothing was expected, any change is larger than every share of it.
    share = math.inf if change.relative is None else abs(change.relative)
    return moved > 0 and share > condition.limit
