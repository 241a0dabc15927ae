"""The timelines of a review as compact data for the page's drawing code.

Times are whole hundredths of a microsecond.  ``host``: (place, term, duration) after one another from 0.  ``device``:
per stream, (begin, duration, family, index of the host bar that launched it), begins relative to the one before.
"""

from __future__ import annotations

import json
from typing import Any

from taxbreak_fx.model import Review, Variant
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.content import reference
from taxbreak_fx.report.format import plain
from taxbreak_fx.report.lanes import HOST_TERMS, Lanes, lanes, no_timeline
from taxbreak_fx.report.predicted import shown_name
from taxbreak_fx.timeline_store import restored

PER_US = 100


def timelines(review: Review, limit: int) -> tuple[str, list[str]]:
    """JSON of about ``limit`` bytes at most that is safe inside a script element, and a line for each variant that is
    not in it."""
    base = reference(review)
    # The reference first: when there is no room for all, it is the one to keep.
    ordered = sorted(review.variants, key=lambda variant: variant is not base)
    shown, notes, left = [], [], limit
    for variant in ordered:
        if variant.timeline is None:
            notes.append(plain(f"{variant.name}: {no_timeline(variant)}"))
            continue
        text = inert(_drawn(variant, lanes(restored(variant.timeline))))
        if len(text) > left:
            notes.append(plain(f"{variant.name}: its timeline is too long for this page; --format chrome-trace has it"))
            continue
        left -= len(text)
        shown.append(text)
    terms = inert(list(HOST_TERMS.values()))
    return f'{{"perUs":{PER_US},"terms":{terms},"variants":[{",".join(shown)}]}}', notes


def inert(value: Any) -> str:
    """JSON in which no character can end a script element, begin a comment or end a line of a script."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


class _Numbers(dict[str, int]):
    """Numbers names in the order in which they are first asked for."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


def _drawn(variant: Variant, found: Lanes) -> dict[str, Any]:
    families, places, terms = _Numbers(), _Numbers(), {term: index for index, term in enumerate(HOST_TERMS)}
    where: list[tuple[int, str]] = []
    host: list[int] = []
    end = 0
    for span in found.host:
        key = f"{span.family}\0{span.source.file if span.source else ''}\0{span.source.line if span.source else ''}"
        if key not in places:
            where.append((families[plain(span.family)], "" if span.source is None else plain(fmt.source(span.source))))
        stop = round((span.begin_us + span.us) * PER_US)
        host += (places[key], terms[span.term], stop - end)
        end = stop
    streams: dict[int, list[int]] = {}
    last: dict[int, int] = {}
    for piece in sorted(found.device, key=lambda piece: piece.begin_us):
        begin = round(piece.begin_us * PER_US)
        row = streams.setdefault(piece.stream, [])
        row += (
            begin - last.get(piece.stream, 0),
            round(piece.us * PER_US),
            families[plain(piece.family)],
            piece.launch,
        )
        last[piece.stream] = begin
    return {
        "name": plain(shown_name(variant)),
        "wall": round(found.run.wall_us * PER_US),
        "families": list(families),
        "places": where,
        "host": host,
        "streams": [[stream, row] for stream, row in sorted(streams.items())],
    }
