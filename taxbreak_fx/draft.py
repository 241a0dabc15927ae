"""A variant under construction: fields set so far, and the reason for each that stays null."""

from __future__ import annotations

from typing import Any

import msgspec

from taxbreak_fx.decompose import equal_outputs
from taxbreak_fx.model import Variant
from taxbreak_fx.record import Interval
from taxbreak_fx.recording import InSitu, Recording, Spans, Timing
from taxbreak_fx.stats import interval
from taxbreak_fx.variant_record import Breakdown, FamilyLibrary, FamilyReplay, KtSource, Node


def on_clock_of(clock: InSitu, host_us: float) -> InSitu:
    """In-situ times brought to the speed at which T_host was ``host_us``: the host drifts between the two passes."""
    scale = host_us / clock.host_us
    return msgspec.structs.replace(
        clock,
        site_us=[us * scale for us in clock.site_us],
        host_us=host_us,
    )


def on_speed_of(spans: Spans, host_us: float) -> Spans:
    """As ``on_clock_of``, of the step's spans."""
    scale = host_us / spans.host_us
    return Spans(
        around_us=None if spans.around_us is None else spans.around_us * scale,
        runtime_us=None if spans.runtime_us is None else spans.runtime_us * scale,
        glue_us=spans.glue_us * scale,
        sites_us=spans.sites_us * scale,
        host_us=host_us,
        gaps_us=None if spans.gaps_us is None else [us * scale for us in spans.gaps_us],
    )


class Draft:
    """A variant under construction: fields set so far, and the reason for each that stays null."""

    def __init__(self, recording: Recording, timing: Timing) -> None:
        self.recording, self.timing = recording, timing
        self.fields: dict[str, Any] = dict.fromkeys(Variant.MEASUREMENTS)
        self.reasons: dict[str, str] = {}
        self.terms: dict[str, Any] = dict.fromkeys(Breakdown.MEASUREMENTS)
        self.term_reasons: dict[str, str] = {}
        self.parts: dict[str, float] = {}
        self.ct_source = "subtractive"
        self.ct_families: list[FamilyLibrary] = []
        self.kt_source: KtSource | None = None
        self.nodes: list[Node] = []
        self.replay: list[FamilyReplay] = []
        self.notes = list(timing.notes)
        self.host: Interval = interval(timing.host_us)
        self.clock = None if timing.in_situ is None else on_clock_of(timing.in_situ, self.host.median)
        self.spans = None if timing.spans is None else on_speed_of(timing.spans, self.host.median)
        self.fields.update(t_wall_us=interval(timing.wall_us), t_host_us=self.host)
        self.put("compile_s", timing.compile_s, "eager compiles nothing")
        self.put("peak_memory_bytes", timing.peak_memory_bytes, "the CPU device has no allocator statistics")
        check = timing.output_check
        equal = None if check is None else equal_outputs(check, timing.output_floor)
        self.put("outputs_equal", equal, timing.output_failure or "outputs not compared")

    def put(self, name: str, value: Any, reason: str) -> None:
        """Set a variant field, or leave it null with ``reason``."""
        self.fields[name] = value
        if value is None:
            self.reasons[name] = reason
        else:
            self.reasons.pop(name, None)

    def term(self, name: str, value: float | None, reason: str) -> None:
        """Set a breakdown term, or leave it null with ``reason``."""
        self.terms[name] = value
        if value is None:
            self.term_reasons[name] = reason

    def finish(self) -> Variant:
        """The immutable variant; its invariants are checked as it is made."""
        breakdown = Breakdown(
            ft_parts=self.parts,
            ct_source=self.ct_source,
            ct_families=self.ct_families,
            kt_source=self.kt_source,
            unmeasured=self.term_reasons,
            **self.terms,
        )
        self.fields["breakdown"] = breakdown
        return Variant(
            name=self.recording.variant,
            status="ok",
            notes=self.notes,
            unmeasured=self.reasons,
            output_check=self.timing.output_check,
            graph_skips=self.timing.graph_skips,
            nodes=self.nodes,
            replay=self.replay,
            **self.fields,
        )


def put_coverage(draft: Draft) -> None:
    """Bottom-up estimate from isolated replay of the calls' own Python targets ÷ T_host."""
    hot = {r.key: r.host_us for r in draft.timing.replays if r.level == "call" and r.host_us is not None}
    keys = [site.call_key for site in draft.timing.sites if site.call_key]
    if not keys:
        draft.term("coverage", None, "only the uncompiled step's calls are replayed by their own Python targets")
    elif any(key not in hot for key in keys):
        draft.term("coverage", None, "some calls could not be replayed")
    else:
        draft.term("coverage", sum(hot[key] for key in keys) / draft.host.median, "")
