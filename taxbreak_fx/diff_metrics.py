"""The metrics by which two reviews are compared, by name: where each is found, its unit, and what makes its noise.

``kind`` decides the noise (docs/diff.md): ``exact`` has none; ``host`` scales with the host's clock; ``split`` is a
part of T_host that subtraction told apart, and as unsure as T_host; ``library`` is timed call by call; ``wall`` lies
between the host's clock and none; ``calibrated`` is a count times what the calibration of the review says;
``orchestration``, ``index`` and ``exposed`` are made of the others.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from taxbreak_fx.diff_types import Unit
from taxbreak_fx.finding import Severity
from taxbreak_fx.model import Variant
from taxbreak_fx.variant_record import Exposed

Kind = Literal[
    "exact", "memory", "host", "split", "library", "wall", "device", "calibrated", "orchestration", "index", "exposed"
]  # fmt: skip
PART = "ft_parts."
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Metric(NamedTuple):
    """A metric of a variant, or of the whole review where ``read`` is None."""

    name: str
    unit: Unit
    kind: Kind
    read: Callable[[Variant], tuple[float | None, str]] | None


def _plain(field: str) -> Callable[[Variant], tuple[float | None, str]]:
    return lambda variant: (getattr(variant, field), variant.unmeasured.get(field, "not measured"))


def _median(field: str) -> Callable[[Variant], tuple[float | None, str]]:
    def read(variant: Variant) -> tuple[float | None, str]:
        value = getattr(variant, field)
        return (None, variant.unmeasured.get(field, "not measured")) if value is None else (value.median, "")

    return read


def _term(field: str) -> Callable[[Variant], tuple[float | None, str]]:
    def read(variant: Variant) -> tuple[float | None, str]:
        terms = variant.breakdown
        if terms is None:
            return None, variant.unmeasured.get("breakdown", "no breakdown")
        return getattr(terms, field), terms.unmeasured.get(field, "not measured")

    return read


def _exposed(field: str) -> Callable[[Variant], tuple[float | None, str]]:
    def read(variant: Variant) -> tuple[float | None, str]:
        if variant.exposed is None:
            return None, "nothing was simulated"
        return getattr(variant.exposed, field), variant.exposed.unmeasured.get(field, "not simulated")

    return read


def _part(part: str) -> Callable[[Variant], tuple[float | None, str]]:
    def read(variant: Variant) -> tuple[float | None, str]:
        terms = variant.breakdown
        if terms is None or terms.ft_us is None or not terms.ft_parts:
            return None, "ΔFT was not split"
        return terms.ft_parts.get(part), "ΔFT has no such part"

    return read


def _ops(variant: Variant) -> tuple[float | None, str]:
    return (sum(node.count for node in variant.nodes), "") if variant.nodes else (None, "no ops were recorded")


def _library_calls(variant: Variant) -> tuple[float | None, str]:
    if variant.library_calls is None:
        return None, variant.unmeasured.get("library_calls", "not measured")
    return sum(variant.library_calls.values()), ""


EXPOSED_TERMS = ("ft_us", "ct_us", "kt_us", "sync_us", "device_us")
_VARIANT_METRICS = (
    *(Metric(name, "count", "exact", _plain(name)) for name in ("launches", "graph_launches", "kernels", "memops")),
    Metric("ops", "count", "exact", _ops),
    Metric("library_calls", "count", "exact", _library_calls),
    Metric("peak_memory_bytes", "bytes", "memory", _plain("peak_memory_bytes")),
    Metric("t_wall_us", "µs", "wall", _median("t_wall_us")),
    Metric("t_host_us", "µs", "host", _median("t_host_us")),
    Metric("issue_us", "µs", "host", _plain("issue_us")),
    Metric("launch_us", "µs", "calibrated", _plain("launch_us")),
    Metric("ft_us", "µs", "split", _term("ft_us")),
    Metric("ct_us", "µs", "library", _term("ct_us")),
    Metric("kt_us", "µs", "calibrated", _term("kt_us")),
    Metric("orchestration_us", "µs", "orchestration", _term("orchestration_us")),
    Metric("device_active_us", "µs", "device", _plain("device_active_us")),
    Metric("hdbi", "index", "index", _term("hdbi")),
    *(Metric(f"exposed.{term}", "µs", "exposed", _exposed(term)) for term in EXPOSED_TERMS),
)  # fmt: skip
REVIEW_METRICS = (
    Metric("graphs", "count", "exact", None),
    Metric("graph_breaks", "count", "exact", None),
    Metric("findings", "count", "exact", None),
    Metric("findings.new", "count", "exact", None),
    *(Metric(f"findings.{severity}", "count", "exact", None) for severity in SEVERITIES),
)
_BY_NAME = {metric.name: metric for metric in (*_VARIANT_METRICS, *REVIEW_METRICS)}
assert set(EXPOSED_TERMS) < set(Exposed.MEASUREMENTS)


def names() -> list[str]:
    """Every metric that has a name of its own; the parts of ΔFT are named ``ft_parts.PART``."""
    return list(_BY_NAME)


def metric(name: str) -> Metric | None:
    """The metric called ``name``; None where there is none."""
    if re.fullmatch(r"ft_parts\.[a-z_]+", name):
        return Metric(name, "µs", "split", _part(name.removeprefix(PART)))
    return _BY_NAME.get(name)


def nearest(name: str) -> str:
    """What may have been meant by ``name``, in words; empty where nothing is like it."""
    alike = difflib.get_close_matches(name, _BY_NAME, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(alike)}?" if alike else ""


def metrics_of(base: Variant, head: Variant) -> list[Metric]:
    """The metrics of a variant, with the parts into which either review splits its ΔFT."""
    parts = [part for v in (base, head) if v.breakdown is not None for part in v.breakdown.ft_parts]
    found = [made for part in dict.fromkeys(parts) if (made := metric(PART + part)) is not None]
    return [*_VARIANT_METRICS, *found]
