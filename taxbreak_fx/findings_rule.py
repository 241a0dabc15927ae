"""What every rule shares: how it is declared, what it hands over, and how that becomes a ``Finding``.

A rule is a function from a ``Scene`` to what it saw there (``Seen``).  Severity, share and fingerprint are made here
alone, so that two rules never grade the same cost differently.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from taxbreak_fx.compare import LEAST_EFFECT
from taxbreak_fx.finding import Confidence, Finding, Severity
from taxbreak_fx.findings_scene import Cost, Scene
from taxbreak_fx.model import Variant
from taxbreak_fx.record import SourceLine

# The thresholds of all rules.  A share is of the variant's T_wall.
# Below what a comparison would claim at all, a cost is no finding; what is more than a cost (``keep``) stays a note.
LEAST_SHARE = LEAST_EFFECT
# 20 A/A reviews on an H200 had medians up to 2.9 % off 1, and the widest half interval was 9.3 %
# (benchmarks/results/repeatability.json): a warning is more than the first, an error more than the second.
WARNING_SHARE = 0.03
ERROR_SHARE = 0.10
# In absolute terms as well, or a step of a few microseconds is all errors: a warning is worth some four kernel launches
# (4.0 to 5.2 µs each on that machine), an error twenty.
WARNING_US = 20.0
ERROR_US = 100.0

_INSTALLED = re.compile(r"[\\/](?:site-packages|dist-packages)[\\/]|[\\/]lib[\\/]python\d[\d.]*[\\/]|^<")


class Saving(NamedTuple):
    """Term → microseconds per step that the fix removes, by a variant of the review or by prediction."""

    terms: dict[str, float]
    origin: Literal["measured", "predicted"]


class Seen(NamedTuple):
    """What a rule saw.  ``keep``: it is a finding however little it costs.  ``severity``: by the rule, not by its
    cost.  ``title``: instead of the rule's own.  ``key``: what the fingerprint is made of beside the rule, where the
    variant or the line was chosen by its times and may be another one in the next review of the same code.
    """

    variant: Variant
    cost: Cost
    evidence: list[str]
    fix: str
    confidence: Confidence
    source: SourceLine | None = None
    module_path: str | None = None
    op: str | None = None
    saving: Saving | None = None
    keep: bool = False
    severity: Severity | None = None
    title: str | None = None
    key: str | None = None


class Rule(NamedTuple):
    """A rule with its stable id, which is also the name of its page."""

    id: str
    title: str
    look: Callable[[Scene], Iterable[Seen]]

    def __call__(self, scene: Scene) -> list[Ranked]:
        """What it finds, each with the microseconds by which it is put in order."""
        return [made for seen in self.look(scene) if (made := _ranked(self, seen)) is not None]


class Ranked(NamedTuple):
    """A finding and what it costs in microseconds: exposed, else at most; None where neither is known."""

    finding: Finding
    us: float | None


def rule(name: str, title: str) -> Callable[[Callable[[Scene], Iterable[Seen]]], Rule]:
    """Declare a rule: ``name`` is its id."""
    return lambda look: Rule(name, title, look)


def in_library(source: SourceLine | None) -> bool:
    """Whether a line lies in an installed package or the standard library, not in the author's own files."""
    return source is not None and _INSTALLED.search(source.file) is not None


def file_name(source: SourceLine | None) -> str:
    """The last part of a path, of either kind of system."""
    return "" if source is None else re.split(r"[\\/]", source.file)[-1]


def place(source: SourceLine | None) -> str:
    """A line as evidence names it."""
    return "an unknown line" if source is None else f"{file_name(source)}:{source.line}"


def severity_of(us: float, wall_us: float, known: bool) -> Severity:
    """By microseconds and share.  What is only an upper bound (not ``known``) is a warning at most."""
    share = us / wall_us
    if share >= ERROR_SHARE and us >= ERROR_US:
        return "error" if known else "warning"
    return "warning" if share >= WARNING_SHARE and us >= WARNING_US else "note"


def fingerprint(*parts: str | None) -> str:
    """16 hexadecimal digits of SHA-256 over what line numbers and times do not change."""
    return hashlib.sha256("\0".join(part or "" for part in parts).encode()).hexdigest()[:16]


def _ranked(rule: Rule, seen: Seen) -> Ranked | None:
    """None where its cost is known to be too small, and it is nothing more than a cost."""
    wall = seen.variant.t_wall_us.median if seen.variant.t_wall_us is not None else None
    cost = seen.cost
    us = cost.exposed_us if cost.exposed_us is not None else cost.raw_us
    if not seen.keep and (us is None or not wall or us < LEAST_SHARE * wall):
        return None
    graded = severity_of(us, wall, cost.exposed_us is not None) if us is not None and wall else "note"
    predicted = seen.variant.origin == "predicted"  # such a step was never run: nothing about it is sure
    saved = seen.saving.terms if seen.saving is not None else {}
    saving = {term: us for term, us in saved.items() if round(us, 2)}
    finding = Finding(
        rule=rule.id,
        title=seen.title or rule.title,
        severity=seen.severity or graded,
        confidence="medium" if predicted and seen.confidence == "high" else seen.confidence,
        variant=seen.variant.name,
        source=seen.source,
        in_library=in_library(seen.source),
        module_path=seen.module_path,
        op=seen.op,
        exposed_us=cost.exposed_us,
        share=cost.exposed_us / wall if cost.exposed_us is not None and wall else None,
        evidence=[*seen.evidence, *cost.words(wall, seen.variant.origin)],
        fix=seen.fix,
        saving_us=saving,
        saving_origin=None if not saving or seen.saving is None else "predicted" if predicted else seen.saving.origin,
        fingerprint=fingerprint(rule.id, seen.key)
        if seen.key is not None
        else fingerprint(rule.id, seen.variant.name, file_name(seen.source), seen.module_path, seen.op),
    )
    return Ranked(finding, us)
