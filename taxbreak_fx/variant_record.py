"""What a variant of a review holds: its terms, rows, replays, exposed costs and checks."""

from __future__ import annotations

import math
from typing import Any, Literal

from taxbreak_fx.record import Measured, Record, SourceLine, check_sum

KtSource = Literal["untraced", "traced", "traced, bounded"]


class Classification(Record, frozen=True, kw_only=True):
    """What an op or a kernel is.  ``i_lib`` is the paper's I_lib: 1 when a vendor library does the work.

    ``code`` names the rule that decided (stable, for programs), ``reason`` says why (for people).
    """

    family: str
    library: str
    i_lib: bool
    code: str
    reason: str


class FamilyLibrary(Measured, frozen=True, kw_only=True):
    """ΔCT of one op family per step, by both estimates; microseconds.

    ``calls``: library calls that ask for work, as heard (direct), else the library ops replayed (subtractive).
    """

    MEASUREMENTS = ("direct_us", "subtractive_us")

    family: str
    calls: int
    direct_us: float | None
    subtractive_us: float | None


class Breakdown(Measured, frozen=True, kw_only=True):
    """The decomposition of one variant; every equation is in ``decompose``.

    ``kt_source`` says how the latency of graph launches in ``kt_us`` was had: ``untraced`` (a flag kernel before the
    first node), ``traced``, or ``traced, bounded`` (to the wall time beside the device's work); null: no graph was
    launched, or its latency is not known.  Kernel launches take T_sys.

    ``hdbi_untraced`` is HDBI where ΔKT rests on the untraced estimate of T_sys (``LaunchPath.t_sys_untraced_us``)
    instead of the traced one.  ``ft_parts`` sums to ``ft_us``; its ``unattributed`` entry is the closure residual, with
    its sign.
    """

    MEASUREMENTS = ("ft_us", "ct_us", "kt_us", "orchestration_us", "hdbi", "hdbi_untraced", "coverage", "closure_error")

    ft_us: float | None
    ft_parts: dict[str, float]
    ct_us: float | None
    ct_source: str
    ct_families: list[FamilyLibrary] = []
    kt_us: float | None
    kt_source: KtSource | None = None
    orchestration_us: float | None
    hdbi: float | None
    hdbi_untraced: float | None = None
    coverage: float | None
    closure_error: float | None

    def __post_init__(self) -> None:
        Measured.__post_init__(self)
        if self.ft_us is not None and self.ft_parts:
            check_sum("ft_parts", sum(self.ft_parts.values()), self.ft_us)
        if self.orchestration_us is not None and self.ft_us is not None and self.ct_us is not None:
            check_sum("orchestration_us", self.ft_us + self.ct_us + (self.kt_us or 0.0), self.orchestration_us)
        if self.hdbi is not None and not math.isfinite(self.hdbi):
            raise ValueError("hdbi is not finite")


class Node(Measured, frozen=True, kw_only=True):
    """All calls of one op from one source line in like-named modules (layer numbers folded to ``*``), per step.

    Times are sums over ``count`` calls.  ``match_tier`` is the weakest tier by which its replays met the trace.
    """

    MEASUREMENTS = ("launches", "kernels", "ft_us", "ct_us", "kt_us", "device_us")

    op: str
    family: str
    library: str
    i_lib: bool
    reason: str
    module_path: str | None
    source: SourceLine | None
    count: int
    launches: int | None
    kernels: int | None
    ft_us: float | None
    ct_us: float | None
    kt_us: float | None
    device_us: float | None
    match_tier: str | None


class FamilyReplay(Measured, frozen=True, kw_only=True):
    """Isolated replay beside the step, per family.

    ``hot_over_in_situ``: hot-loop host time over the same calls' in-situ host time.  ``kt_fw_us``: median launch
    latency of the family's replays above T_sys (the paper's residual).  ``leaf_us``: median hot-loop host time of its
    ATen ops without what the OpOverload path adds (on CUDA that is T_dispatch and the launch).  ``tiers`` counts unique
    ops per match tier.
    """

    MEASUREMENTS = ("hot_over_in_situ", "kt_fw_us", "leaf_us")

    family: str
    unique_ops: int
    failed: int
    hot_over_in_situ: float | None
    kt_fw_us: float | None
    leaf_us: float | None
    tiers: dict[str, int]


class OutputCheck(Record, frozen=True, kw_only=True):
    """Relative L2 error of eager and of the variant against a run in ``reference_dtype``.

    An error of the largest float means that the variant returned NaN or infinity where eager did not.  ``top1_flips``
    counts the last-dimension argmaxes that differ from eager's, of ``top1_total``.
    """

    reference_dtype: str
    eager_error: float
    variant_error: float
    top1_flips: int
    top1_total: int


class ExposedCost(Record, frozen=True, kw_only=True):
    """What one op family, or one line of the author's code (``name`` then tells its families), costs; microseconds.

    Raw: ``host_us`` (ΔFT, ΔCT and launch calls) and ``device_us``, sums per step.  Exposed: T_wall of the simulated
    step − T_wall without this host time, without this device time, and without both.
    """

    name: str
    source: SourceLine | None = None
    host_us: float
    device_us: float
    exposed_host_us: float
    exposed_device_us: float
    exposed_us: float


class Exposed(Measured, frozen=True, kw_only=True):
    """What the device does not hide of a variant's step, by simulation (``timeline``); microseconds.

    ``wall_us`` and ``host_us``: simulated T_wall and T_host; ``error`` and ``naive_error``: of ``wall_us`` and of
    ``naive_us`` = max(issue time, device time) + s, against the measured T_wall, relative, with their sign.  ``ft_us``
    to ``device_us``: T_wall − T_wall with that term alone at 0; ``kt_us`` is of the launch calls and of the latency
    behind them, ``sync_us`` of what synchronisations take to return.  These do not add up; ``waterfall`` does, to
    ``wall_us``: its terms are removed one after the other in the order in which they stand.

    ``floors_us``: the constants L, g and s; ``latency_source``: which T_sys L comes from.
    """

    MEASUREMENTS = (
        "wall_us",
        "host_us",
        "error",
        "naive_us",
        "naive_error",
        "idle_us",
        "synced_us",
        "queued_us",
        "ft_us",
        "ct_us",
        "kt_us",
        "sync_us",
        "device_us",
    )

    wall_us: float | None
    host_us: float | None
    error: float | None
    naive_us: float | None
    naive_error: float | None
    idle_us: float | None
    synced_us: float | None
    queued_us: float | None
    ft_us: float | None
    ct_us: float | None
    kt_us: float | None
    sync_us: float | None
    device_us: float | None
    waterfall: dict[str, float] = {}
    families: list[ExposedCost] = []
    lines: list[ExposedCost] = []
    floors_us: dict[str, float] = {}
    latency_source: Literal["untraced", "traced"] | None = None
    notes: list[str] = []

    def __post_init__(self) -> None:
        Measured.__post_init__(self)
        if self.wall_us is not None:
            check_sum("waterfall", sum(self.waterfall.values()), self.wall_us)

    @classmethod
    def unavailable(cls, reason: str) -> Exposed:
        """Nothing could be simulated, for one reason."""
        nothing: dict[str, Any] = dict.fromkeys(cls.MEASUREMENTS)
        return cls(unmeasured=dict.fromkeys(cls.MEASUREMENTS, reason), **nothing)


class Prediction(Record, frozen=True, kw_only=True):
    """What a predicted variant follows from, and how it was checked.

    ``base``: the variant whose timeline was changed; ``changes``: what was changed, in the order in which it was.
    ``base_error``: simulated ÷ measured T_wall of the base − 1, before anything was changed.  ``wall_change`` and
    ``orchestration_change`` (null where a term of it is): predicted ÷ base − 1.  ``measured_as``: the measured variant
    that did run so, where the review has one; ``error``: predicted ÷ its measured T_wall − 1.
    """

    base: str
    changes: list[str]
    base_error: float
    wall_change: float
    orchestration_change: float | None
    measured_as: str | None = None
    error: float | None = None


class GraphSkip(Record, frozen=True, kw_only=True):
    """Inductor's reason for leaving a graph, or (``partition``) one op between two graphs, out of CUDA graphs.

    ``source``: the author's line that Inductor names.
    """

    reason: str
    source: SourceLine | None
    partition: bool = False
