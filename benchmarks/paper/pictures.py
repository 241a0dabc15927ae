"""The four pictures of docs/results.md, drawn from FOLDER/paper_extension.json: SVG on a white ground, so that a dark
page shows them as a light one does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

INK, PALE = "#1f2328", "#d0d7de"
TERMS = {"ft_ms": ("ΔFT", "#d1603d"), "ct_ms": ("ΔCT", "#8250df"), "kt_ms": ("ΔKT", "#bf8700"),
         "device_ms": ("device active", "#2d7d46")}  # fmt: skip
COLOURS = {"eager": "#57606a", "dynamo": "#bf8700", "inductor": "#d1603d", "reduce-overhead": "#0969da",
           "cudagraphs": "#8250df", "eager-graph": "#2d7d46"}  # fmt: skip
SHOWN = ("eager", "inductor", "reduce-overhead", "eager-graph")
LEFT, LENGTH, WIDTH, TOP = 310.0, 440.0, 1060.0, 66.0
NOTES = LEFT + 1.3 * LENGTH + 8  # where the notes of bars stand that may be longer than eager's
Facts = Mapping[str, Any]


def _page(title: str, height: float, legend: Mapping[str, str], body: Sequence[str]) -> str:
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" font-family="sans-serif" '
        'font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH:g}" height="{height:g}" fill="#ffffff"/>',
        _text(12, 22, title, size=15),
    ]
    x = 12.0
    for label, colour in legend.items():
        head += [_rect(x, 36, 12, 12, colour), _text(x + 17, 46, label)]
        x += 40 + 7.2 * len(label)
    return "\n".join([*head, *body, "</svg>", ""])


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">{escape(words)}</text>'
    )


def _rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.2f}" y="{y:.1f}" width="{max(width, 0.0):.2f}" height="{height:g}" fill="{colour}"/>'


def _dot(x: float, y: float, colour: str, label: str) -> str:
    return f'<circle cx="{x:.2f}" cy="{y:.1f}" r="5" fill="{colour}"><title>{escape(label)}</title></circle>'


def cases(rows: Sequence[Facts]) -> dict[str, dict[str, Facts]]:
    """Measured variants by case, in the order of the file."""
    found: dict[str, dict[str, Facts]] = {}
    for row in rows:
        if "variant" in row["facts"]:
            found.setdefault(row["facts"]["case"], {})[row["facts"]["variant"]] = row
    return found


def terms(rows: Sequence[Facts]) -> str:
    """Host terms and device time of the main variants, as shares of eager's sum."""
    body, y = [], TOP
    for case, variants in cases(rows).items():
        whole = _sum(variants["eager"]["facts"]["terms"])
        shown = [name for name in SHOWN if name in variants]
        if whole is None:
            continue
        y += 6
        body.append(_text(LEFT - 120, y + 11, case, "end"))
        for name in shown:
            parts, x = variants[name]["facts"]["terms"], LEFT
            body.append(_text(LEFT - 8, y + 11, name, "end"))
            for term, (_, colour) in TERMS.items():
                width = LENGTH * max(parts[term] or 0.0, 0.0) / whole
                body.append(_rect(x, y, width, 13, colour))
                x += width
            total = _sum(parts)
            body.append(_text(x + 6, y + 11, "–" if total is None else f"{total:,.2f} ms"))
            y += 16
    return _page("ΔFT, ΔCT, ΔKT and device time per step, as shares of eager's", y + 10, dict(TERMS.values()), body)


def _sum(parts: Facts) -> float | None:
    values = [parts[term] for term in TERMS]
    return None if None in values else sum(values)


def index(rows: Sequence[Facts]) -> str:
    """HDBI of every variant, 0 to 1."""
    body, y = list(_axis([0, 0.25, 0.5, 0.75, 1], lambda value: LEFT + LENGTH * value, "{:g}", rows)), TOP + 14
    for case, variants in cases(rows).items():
        body.append(_text(LEFT - 12, y + 4, case, "end"))
        for name, row in variants.items():
            value = row["facts"]["terms"]["hdbi"]
            if value is not None:
                body.append(_dot(LEFT + LENGTH * value, y, COLOURS[name], f"{name} {value:.3f}"))
        y += 22
    return _page("HDBI of each variant: host-bound on the left, device-bound on the right", y + 4, COLOURS, body)


def _share(part: float) -> str:
    whole = round(100 * part)
    return f"{whole} %".replace("-", "−")


def _axis(ticks: Sequence[float], at: Any, form: str, rows: Sequence[Facts]) -> Iterator[str]:
    bottom = TOP + 22 * len(cases(rows)) + 4
    for tick in ticks:
        yield f'<path d="M{at(tick):.1f} {TOP:g}V{bottom:g}" stroke="{PALE}"/>'
        yield _text(at(tick), TOP - 4, form.format(tick), "middle", 11)


def orders(rows: Sequence[Facts]) -> str:
    """Fusion first and graphs after it, and the other way round; what remains of eager's wall time."""
    colours = {"fusion": COLOURS["inductor"], "CUDA graphs": COLOURS["eager-graph"], "remains": "#57606a"}
    body, y = [], TOP
    for row in rows:
        facts = row["facts"]
        if "fusion_after_graphs" not in facts:
            continue
        y += 6
        body.append(_text(LEFT - 110, y + 11, facts["case"], "end"))
        ways = (("fusion first", "fusion", "graphs_after_fusion"), ("graphs first", "graphs", "fusion_after_graphs"))
        for label, first, second in ways:
            if facts[first] is None or facts[second] is None:
                continue
            one, rest = facts[first], (1 - facts[first]) * facts[second]
            kinds = ["fusion", "CUDA graphs"] if first == "fusion" else ["CUDA graphs", "fusion"]
            left = 1 - one - rest
            body.append(_text(LEFT - 8, y + 11, label, "end"))
            x = LEFT
            for kind, share in zip(["remains", kinds[1], kinds[0]], (left, rest, one), strict=True):
                body.append(_rect(x, y, LENGTH * share, 13, colours[kind]))
                x += LENGTH * max(share, 0.0)
            note = f"{_share(one)} + {_share(rest)}, remains {_share(left)}"
            body.append(_text(NOTES, y + 11, note))
            y += 16
    return _page("What fusion and CUDA graphs remove of eager's wall time, in both orders", y + 10, colours, body)


def steps(rows: Sequence[Facts]) -> str:
    """Break-even steps of every variant that is measurably faster, on a scale of decades."""
    counts = [row["facts"].get("breakeven_steps") for row in rows]
    known = [count for count in counts if count]
    if not known:
        return _page("Break-even steps: no variant is measurably faster", TOP, {}, [])
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))

    def at(count: float) -> float:
        return LEFT + LENGTH * (math.log10(count) - low) / max(high - low, 1)

    body = list(_axis([10**power for power in range(low, high + 1)], at, "{:,g}", rows))
    y = TOP + 14
    for case, variants in cases(rows).items():
        body.append(_text(LEFT - 12, y + 4, case, "end"))
        for name, row in variants.items():
            count = row["facts"].get("breakeven_steps")
            if count:
                body.append(_dot(at(count), y, COLOURS[name], f"{name}: {count:,.0f} steps"))
        y += 22
    title = "Break-even: steps after which the build is repaid (build seconds ÷ seconds saved per step)"
    return _page(title, y + 4, {n: c for n, c in COLOURS.items() if n != "eager"}, body)


HOSTS = "paper-hosts.svg"


def hosts(rows: Sequence[Facts]) -> str:
    """T_Orchestration per launch of every eager step over the host score of the machine that it ran on."""
    plotted = [row for row in rows if "host_score" in row["facts"]]
    points = sorted(
        (float(row["facts"]["host_score"]), float(row["ours"]), str(row["what"]).partition(": ")[2]) for row in plotted
    )
    title = "T_Orchestration per launch (µs) over the host score (loop iterations per µs), eager steps"
    if not points:
        return _page(f"{title}: none measured", TOP, {}, [])
    low, high = math.floor(min(x for x, _, _ in points)), math.ceil(max(x for x, _, _ in points))
    top, height, bottom = math.ceil(max(y for _, y, _ in points) / 5) * 5, 300.0, TOP + 300.0

    def across(score: float) -> float:
        return 60 + 560 * (score - low) / max(high - low, 1)

    def up(us: float) -> float:
        return bottom - height * us / top

    body = []
    for tick in range(0, top + 1, 5):
        body += [f'<path d="M60 {up(tick):.1f}H640" stroke="{PALE}"/>', _text(52, up(tick) + 4, f"{tick}", "end", 11)]
    body += [_text(across(score), bottom + 16, f"{score}", "middle", 11) for score in range(low, high + 1)]
    for number, (score, us, name) in enumerate(points, 1):
        words = f"{number}  {name}: {us:.1f} µs, score {score:.1f}"
        body += [
            _dot(across(score), up(us), COLOURS["reduce-overhead"], words),
            _text(across(score) + 6, up(us) - 6, str(number), size=11),
            _text(680, TOP + 16 * number, words, size=11),
        ]
    return _page(title, max(bottom, TOP + 16 * len(points)) + 28, {}, body)


PICTURES = {"results-terms.svg": terms, "results-hdbi.svg": index, "results-order.svg": orders,
            "results-breakeven.svg": steps}  # fmt: skip


def drawn(rows: Sequence[Facts]) -> dict[str, str]:
    """Every picture by file name."""
    return {name: draw(rows) for name, draw in PICTURES.items()}
