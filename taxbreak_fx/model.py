"""Frozen types of a finished ``Review``: units in field names, invariants checked at construction.

``null`` means "not measured" and always has its reason in ``unmeasured`` beside it; 0 is a measured zero.
The raw material (what a recorder yields) is in ``recording``; the arithmetic between the two is in ``decompose``.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from taxbreak_fx.finding import Finding
from taxbreak_fx.generate_record import Generate
from taxbreak_fx.machine import Machine
from taxbreak_fx.record import Interval, Measured, Record, SourceLine
from taxbreak_fx.step_timeline import StepTimeline
from taxbreak_fx.variant_record import (
    Breakdown,
    Exposed,
    FamilyReplay,
    GraphSkip,
    Node,
    OutputCheck,
    Prediction,
)

SCHEMA_VERSION = "2.5.0"

Origin = Literal["measured", "predicted", "ingested"]
Status = Literal["ok", "failed", "skipped"]
Phase = Literal["prefill", "decode", "generate", "forward"]


class StepInfo(Record, frozen=True, kw_only=True):
    """One forward call (prefill), one decode step at a fixed position, or one iteration of ``generate`` (which token's,
    is in ``options``).  ``options`` holds what else was chosen.
    """

    phase: Phase
    batch: int | None
    seq_len: int | None
    dtype: str
    device: str
    options: dict[str, str] = {}


class Variant(Measured, frozen=True, kw_only=True):
    """One way of running the step, measured, or predicted (``origin``) from a measured one.

    Counts are per step.  ``launches`` are kernel- and graph-launch API calls (M), ``graph_launches`` those of them
    that launch a graph, ``memops`` device copies and fills.  ``device_active_us`` is the union of device activity,
    ``device_sum_us`` the sum.  ``exposed`` is null where the variant was not measured, and in files before 2.1.
    ``timeline``: what ``exposed`` was simulated from; null where there is none.  ``graph_skips``: what Inductor left
    out of CUDA graphs; none in files before 2.2.  ``host_reference_us``: the reference workload of
    ``machine.HostScore`` while the variant was timed (``breakdown.host_reference``); null in files before 2.5.
    """

    MEASUREMENTS = (
        "compile_s",
        "peak_memory_bytes",
        "t_wall_us",
        "t_host_us",
        "t_wait_us",
        "issue_us",
        "launch_us",
        "launches",
        "graph_launches",
        "kernels",
        "memops",
        "device_active_us",
        "device_sum_us",
        "library_calls",
        "outputs_equal",
        "breakdown",
    )

    name: str
    origin: Origin = "measured"
    status: Status
    reason: str | None = None
    notes: list[str] = []
    compile_s: float | None
    peak_memory_bytes: int | None
    t_wall_us: Interval | None
    t_host_us: Interval | None
    t_wait_us: float | None
    issue_us: float | None
    launch_us: float | None
    launches: int | None
    graph_launches: int | None
    kernels: int | None
    memops: int | None
    device_active_us: float | None
    device_sum_us: float | None
    library_calls: dict[str, int] | None
    outputs_equal: bool | None
    output_check: OutputCheck | None = None
    host_reference_us: float | None = None
    breakdown: Breakdown | None
    exposed: Exposed | None = None
    timeline: StepTimeline | None = None
    prediction: Prediction | None = None
    graph_skips: list[GraphSkip] = []
    nodes: list[Node] = []
    replay: list[FamilyReplay] = []

    def __post_init__(self) -> None:
        Measured.__post_init__(self)
        if (self.status == "ok") == (self.reason is not None):
            raise ValueError(f"variant {self.name}: status {self.status} with reason {self.reason!r}")
        for field in ("kernels", "launches"):
            total = getattr(self, field)
            if self.nodes and total is not None:
                counted = sum(getattr(node, field) or 0 for node in self.nodes)
                if counted != total:
                    raise ValueError(f"variant {self.name}: nodes hold {counted} {field}, the trace {total}")

    @classmethod
    def unavailable(cls, name: str, status: Status, reason: str) -> Variant:
        """A variant that was not measured: every measurement null, with the variant's own reason."""
        nothing: dict[str, Any] = dict.fromkeys(cls.MEASUREMENTS)
        return cls(
            name=name, status=status, reason=reason, unmeasured=dict.fromkeys(cls.MEASUREMENTS, reason), **nothing
        )


class Removed(Measured, frozen=True, kw_only=True):
    """Base minus variant, per term: positive was removed, negative was added.

    ``noise_us``: half-width per term within which the difference is no measurable change.
    """

    MEASUREMENTS = ("ft_us", "ct_us", "kt_us", "device_us", "wall_us")

    ft_us: float | None
    ct_us: float | None
    kt_us: float | None
    device_us: float | None
    wall_us: float | None
    noise_us: dict[str, float] = {}


class Comparison(Measured, frozen=True, kw_only=True):
    """A variant against a base.  ``wall_ratio`` is variant ÷ base, paired inside one process: the
    centre of the pairwise ratios with its 99.9 % interval (``stats.ratio``), not the 95 % one of single medians.
    ``ratio_confidence`` is that of its interval: reviews of version 1 had the median with 0.95.

    ``breakeven_steps``: steps after which the variant's build time is repaid by the wall time it saves.

    Where the variant was predicted (``origin``) the interval is as wide as the simulation's error on the step that was
    changed, which is no confidence: ``ratio_confidence`` is 0.
    """

    MEASUREMENTS = (
        "wall_ratio",
        "hdbi_before",
        "hdbi_after",
        "launches_before",
        "launches_after",
        "kernels_before",
        "kernels_after",
        "breakeven_steps",
    )

    base: str
    variant: str
    origin: Origin = "measured"
    removed: Removed
    wall_ratio: Interval | None
    hdbi_before: float | None
    hdbi_after: float | None
    launches_before: int | None
    launches_after: int | None
    kernels_before: int | None
    kernels_after: int | None
    breakeven_steps: float | None
    ratio_confidence: float = 0.999
    verdict: str
    worse: list[str] = []


class GraphInfo(Record, frozen=True, kw_only=True):
    """A Dynamo graph: its compile id (frame/recompile), its size, and why capture ended there.

    ``recompile_reason``: the guard of an earlier graph of the same frame that failed, in Dynamo's words, and
    ``recompile_source`` the author's line that it guards.  ``frame``: first line of the author's function that the
    graph begins in.  Null in files before 2.2, and where Dynamo does not tell.
    """

    compile_id: str
    nodes: int
    break_reason: str | None
    source: SourceLine | None
    recompile_reason: str | None = None
    recompile_source: SourceLine | None = None
    frame: SourceLine | None = None


class Review(Record, frozen=True, kw_only=True):
    """The finished analysis of one model and step: all that reports see, and the content of ``review.json``.

    ``findings``: the most costly first; none in files before 2.2.  ``generate``: of phase ``generate`` only.
    ``recorded_with``: of a prediction, the versions of torch, transformers and triton that decided its ops and kernels,
    where ``machine`` is the one whose costs were taken; empty where measured, and in files before 2.3.
    """

    schema_version: str = SCHEMA_VERSION
    tool_version: str
    origin: Origin
    scope: Literal["step", "captured graphs"] = "step"
    model: str
    step: StepInfo
    machine: Machine
    variants: list[Variant]
    comparisons: list[Comparison]
    graphs: list[GraphInfo] = []
    findings: list[Finding] = []
    generate: Generate | None = None
    recorded_with: dict[str, str] = {}
    notes: list[str] = []

    def variant(self, name: str) -> Variant:
        """The variant called ``name``.  Raises ``KeyError`` when the review has none."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``review.json`` to ``path``.  Raises ``OutputError`` when it cannot be written."""
        from taxbreak_fx import schema

        schema.save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Review:
        """The review in the file at ``path``.  Raises ``FormatError`` when it is no review that can be read."""
        from taxbreak_fx import schema

        return schema.load(path)

    def to_markdown(self) -> str:
        """The review as GitHub-flavoured markdown."""
        from taxbreak_fx.report.markdown import markdown

        return markdown(self)

    def _repr_html_(self) -> str:
        """The review as notebooks show it."""
        from taxbreak_fx.report.html import notebook

        return notebook(self)
