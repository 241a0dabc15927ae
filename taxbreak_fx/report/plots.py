"""The charts of the page: described with altair and drawn here as SVG by vl-convert, so that a page holds no script for
them and asks the network for nothing.

Text of a review reaches a chart as data only, never as an expression.  Colours are the page's own variables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from markupsafe import Markup

from taxbreak_fx.report.waterfall import WALL, Line

# In pixels: of the plot, of a row, of a bar in it, of a name at most; and around the plot.
WIDTH, ROW, BAR, NAME = 600, 26, 18, 235
# The variable of page.css that holds a term's colour.
VARIABLES = {**{name: name for name in ("ft", "ct", "kt", "sync", "device", "rest")}, WALL: "device"}
_NAMESPACES = re.compile(r'\sxmlns(:\w+)?="[^"]*"')  # of use in a file of its own, not inside a page
PADDING = {"left": 250, "right": 110, "top": 6, "bottom": 44}


def waterfall_chart(lines: Sequence[Line]) -> Markup:
    """The rows from above, as inline SVG.  Needs no network, no browser and no GPU."""
    import altair as alt  # slow to import, and only pages need it
    import vl_convert

    bars: list[dict[str, Any]] = []
    texts: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for row, line in enumerate(lines):
        bars += [
            {"row": row, "begin": bar.begin_us / 1e3, "end": bar.end_us / 1e3, "term": bar.term} for bar in line.bars
        ]
        reach = max((bar.end_us for bar in line.bars), default=0.0) / 1e3
        texts[line.total].append({"row": row, "name": line.name, "value": line.value, "end": reach})
    y = alt.Y("row:O", axis=None, scale=alt.Scale(domain=list(range(len(lines)))))
    end = alt.X("end:Q", title="ms per step", scale=alt.Scale(domainMin=0, nice=False))
    terms = sorted({bar["term"] for bar in bars})
    colours = [f"var(--{VARIABLES.get(term, 'rest')})" for term in terms]
    colour = alt.Color("term:N", scale=alt.Scale(domain=terms, range=colours), legend=None)
    layers: list[Any] = [
        alt.Chart(alt.InlineData(values=bars))
        .mark_bar(height=BAR)
        .encode(x=alt.X("begin:Q", title="ms per step"), x2="end:Q", y=y, color=colour)
    ]
    for total, rows in texts.items():
        chart = alt.Chart(alt.InlineData(values=rows)).encode(y=y)
        weight: Literal["bold", "normal"] = "bold" if total else "normal"
        name = chart.mark_text(align="right", dx=-10, limit=NAME, fontWeight=weight, color="var(--ink)")
        amount = chart.mark_text(align="left", dx=8, fontWeight=weight, color="var(--soft)")
        layers += [name.encode(x=alt.value(0), text="name:N"), amount.encode(x=end, text="value:N")]
    chart = (
        alt.layer(*layers, width=WIDTH, height=ROW * len(lines), background="transparent", padding=PADDING)
        .properties(autosize=alt.AutoSizeParams(type="none"))  # the browser's letters are not as wide as those here
        .configure(font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_text(fontSize=13)
        .configure_axis(
            labelColor="var(--soft)",
            titleColor="var(--soft)",
            gridColor="var(--rule)",
            domainColor="var(--rule)",
            tickColor="var(--rule)",
            titleFontWeight="normal",
        )
    )
    root, _, rest = str(vl_convert.vegalite_to_svg(chart.to_dict())).partition(">")
    return Markup(f"{_NAMESPACES.sub('', root)}>{rest}")
