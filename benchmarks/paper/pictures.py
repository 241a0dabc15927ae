"""The pictures of docs/results.md and docs/paper.md, from their claims' rows: described with altair and drawn by
vl-convert as SVG on a white ground, so that a dark page shows them as a light one does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import vl_convert

TERMS = {"ft_ms": ("ΔFT", "#d1603d"), "ct_ms": ("ΔCT", "#8250df"), "kt_ms": ("ΔKT", "#bf8700"),
         "device_ms": ("device active", "#2d7d46")}  # fmt: skip
COLOURS = {"eager": "#57606a", "dynamo": "#bf8700", "inductor": "#d1603d", "reduce-overhead": "#0969da",
           "cudagraphs": "#8250df", "eager-graph": "#2d7d46"}  # fmt: skip
WAYS = {"fusion": COLOURS["inductor"], "CUDA graphs": COLOURS["eager-graph"], "remains": COLOURS["eager"]}
SHOWN = ("eager", "inductor", "reduce-overhead", "eager-graph")
# In pixels: the plot's width, a row of bars or dots, and what lies around the plot.
WIDTH, ROW, AROUND = 440, 18, {"left": 310, "right": 310, "top": 78, "bottom": 48}
Facts = Mapping[str, Any]


class Row(NamedTuple):
    """A row of stacked bars: its name, its parts by label as shares, and the words behind them."""

    name: str
    parts: Mapping[str, float]
    words: str


def _svg(chart: Any, title: str, height: float) -> str:
    """The chart as a file of its own; its size is fixed, since other programs' letters are of other widths."""
    left = 12 - AROUND["left"]
    whole = chart.properties(
        title=alt.TitleParams(title, anchor="start", frame="group", fontSize=15, fontWeight="normal", dx=left),
        width=WIDTH, height=height, padding=AROUND, background="#ffffff", autosize=alt.AutoSizeParams(type="none"),
    )  # fmt: skip
    styled = whole.configure(font="sans-serif").configure_view(stroke=None).configure_text(fontSize=12, fill="#1f2328")
    axis = {"gridColor": "#d0d7de", "domainColor": "#d0d7de", "tickColor": "#d0d7de", "labelFontSize": 11}
    styled = styled.configure_axis(labelColor="#1f2328", titleFontWeight="normal", labelLimit=AROUND["left"], **axis)
    return str(vl_convert.vegalite_to_svg(styled.to_dict())) + "\n"


def _coloured(field: str, colours: Mapping[str, str]) -> alt.Color:
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color(field, scale=scale, legend=alt.Legend(orient="top", title=None, columns=len(colours)))


def _bars(title: str, rows: Sequence[Row], colours: Mapping[str, str]) -> str:
    """Stacked bars from 0, in the order of ``rows`` and of each row's parts."""
    bars, words = [], []
    for number, row in enumerate(rows):
        at = 0.0
        for part, share in row.parts.items():
            bars.append({"row": number, "begin": at, "end": at + max(share, 0.0), "part": part})
            at += max(share, 0.0)
        words.append({"row": number, "name": row.name, "words": row.words, "end": at})
    y = alt.Y("row:O", axis=None, scale=alt.Scale(domain=list(range(len(rows)))))
    share = alt.Axis(format="%", title=None)
    drawn = alt.Chart(alt.InlineData(values=bars)).mark_bar(height=ROW - 4)
    told = alt.Chart(alt.InlineData(values=words)).encode(y=y)
    chart = alt.layer(
        drawn.encode(x=alt.X("begin:Q", axis=share), x2="end:Q", y=y, color=_coloured("part:N", colours)),
        told.mark_text(align="right", dx=-8).encode(x=alt.value(0), text="name:N"),
        told.mark_text(align="left", dx=6).encode(x=alt.X("end:Q", axis=share), text="words:N"),
    )
    return _svg(chart, title, ROW * len(rows))


def _dots(title: str, found: Mapping[str, Mapping[str, float]], x: alt.X, shown: Mapping[str, str]) -> str:
    """One row per case, one dot per variant, at the field ``value``."""
    values = [
        {"case": case, "variant": name, "value": value, "words": f"{name} {value:,.3g}"}
        for case, variants in found.items()
        for name, value in variants.items()
    ]
    y = alt.Y(
        "case:N", title=None, sort=list(found), axis=alt.Axis(grid=False, ticks=False, domain=False, labelPadding=8)
    )
    dots = alt.Chart(alt.InlineData(values=values)).mark_circle(size=80, opacity=1.0)
    chart = dots.encode(x=x, y=y, color=_coloured("variant:N", shown), description="words:N")
    return _svg(chart, title, (ROW + 4) * len(found))


def cases(rows: Sequence[Facts]) -> dict[str, dict[str, Facts]]:
    """Measured variants by case, in the order of the file."""
    found: dict[str, dict[str, Facts]] = {}
    for row in rows:
        if "variant" in row["facts"]:
            found.setdefault(row["facts"]["case"], {})[row["facts"]["variant"]] = row
    return found


def terms(rows: Sequence[Facts]) -> str:
    """Host terms and device time of the main variants, as shares of eager's sum."""
    bars = []
    for case, variants in cases(rows).items():
        whole = _sum(variants["eager"]["facts"]["terms"])
        for name in (name for name in SHOWN if name in variants and whole):
            parts = variants[name]["facts"]["terms"]
            total = _sum(parts)
            shares = {label: (parts[term] or 0.0) / whole for term, (label, _) in TERMS.items()}
            bars.append(Row(f"{case} · {name}", shares, "–" if total is None else f"{total:,.2f} ms"))
    return _bars("ΔFT, ΔCT, ΔKT and device time per step, as shares of eager's", bars, dict(TERMS.values()))


def _sum(parts: Facts) -> float | None:
    values = [parts[term] for term in TERMS]
    return None if None in values else sum(values)


def index(rows: Sequence[Facts]) -> str:
    """HDBI of every variant, 0 to 1."""
    known = {
        case: {name: row["facts"]["terms"]["hdbi"] for name, row in variants.items()}
        for case, variants in cases(rows).items()
    }
    found = {case: {n: v for n, v in values.items() if v is not None} for case, values in known.items()}
    x = alt.X(
        "value:Q",
        title=None,
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format=".2f"),
    )
    return _dots("HDBI of each variant: host-bound on the left, device-bound on the right", found, x, COLOURS)


def _share(part: float) -> str:
    whole = round(100 * part)
    return f"{whole} %".replace("-", "−")


def orders(rows: Sequence[Facts]) -> str:
    """Fusion first and graphs after it, and the other way round; what remains of eager's wall time."""
    bars = []
    ways = (("fusion first", "fusion", "graphs_after_fusion"), ("graphs first", "graphs", "fusion_after_graphs"))
    for facts in (row["facts"] for row in rows if "fusion_after_graphs" in row["facts"]):
        for label, first, second in ways:
            if facts[first] is None or facts[second] is None:
                continue
            one, rest = facts[first], (1 - facts[first]) * facts[second]
            kinds = ["fusion", "CUDA graphs"] if first == "fusion" else ["CUDA graphs", "fusion"]
            left = 1 - one - rest
            words = f"{_share(one)} + {_share(rest)}, remains {_share(left)}"
            bars.append(Row(f"{facts['case']} · {label}", {"remains": left, kinds[1]: rest, kinds[0]: one}, words))
    return _bars("What fusion and CUDA graphs remove of eager's wall time, in both orders", bars, WAYS)


def steps(rows: Sequence[Facts]) -> str:
    """Break-even steps of every variant that is measurably faster, on a scale of decades."""
    known = {
        case: {name: row["facts"].get("breakeven_steps") for name, row in variants.items()}
        for case, variants in cases(rows).items()
    }
    found = {case: {name: count for name, count in counts.items() if count} for case, counts in known.items()}
    title = "Break-even: steps after which the build is repaid (build seconds ÷ seconds saved per step)"
    if not any(found.values()):
        title = "Break-even steps: no variant is measurably faster"
    decades = alt.Axis(format=",.0f", values=[10**power for power in range(10)])
    x = alt.X("value:Q", title=None, scale=alt.Scale(type="log"), axis=decades)
    return _dots(title, found, x, {name: colour for name, colour in COLOURS.items() if name != "eager"})


HOSTS = "paper-hosts.svg"


def hosts(rows: Sequence[Facts]) -> str:
    """T_Orchestration per launch of every eager step over the host score of the machine that it ran on."""
    plotted = [row for row in rows if "host_score" in row["facts"]]
    found = sorted(
        (float(row["facts"]["host_score"]), float(row["ours"]), str(row["what"]).partition(": ")[2]) for row in plotted
    )
    points = [
        {"number": str(number), "score": score, "us": us, "row": number,
         "words": f"{number}  {name}: {us:.1f} µs, score {score:.1f}"}
        for number, (score, us, name) in enumerate(found, 1)
    ]  # fmt: skip
    title = "T_Orchestration per launch (µs) over the host score (loop iterations per µs), eager steps"
    height = max(300, 16 * len(points))
    data = alt.InlineData(values=points)
    x = alt.X("score:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(format=".0f", tickMinStep=1))
    y = alt.Y("us:Q", title=None, scale=alt.Scale(domainMin=0))
    place = alt.Y("row:Q", axis=None, scale=alt.Scale(domain=[height / 16 + 1, 1], nice=False, zero=False))
    dots = alt.Chart(data).encode(x=x, y=y)
    names = alt.Chart(data).mark_text(align="left", dx=24).encode(x=alt.value(WIDTH), y=place, text="words:N")
    numbered = dots.mark_circle(size=80, opacity=1.0, color=COLOURS["reduce-overhead"]) + dots.mark_text(
        dx=10, dy=-8
    ).encode(text="number:N")
    return _svg(alt.layer(numbered, names).resolve_scale(y="independent"), title, height)


PICTURES = {"results-terms.svg": terms, "results-hdbi.svg": index, "results-order.svg": orders,
            "results-breakeven.svg": steps}  # fmt: skip


def drawn(rows: Sequence[Facts]) -> dict[str, str]:
    """Every picture by file name."""
    return {name: draw(rows) for name, draw in PICTURES.items()}
