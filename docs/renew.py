"""What README.md and docs do not say by hand: numbers and excerpts of committed reviews, the picture, lists of modules
and commands.  Each stands between two marks that say how it is made; no number is typed in.

    python docs/renew.py    renews them all; tests/test_docs.py fails where one is not what is made here

``<!-- made: KIND ARGUMENTS -->`` … ``<!-- end -->`` holds lines (``KINDS``), ``<!--= ARGUMENTS -->`` … ``<!--.-->`` a
single value (``single``).  A variant of a review is named ``CASE:VARIANT``, where CASE is of
``benchmarks/results/spine-CASE.json`` or ``CASE.json``; its rows of one line ``CASE:VARIANT@file.py:LINE``.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path

import altair as alt
import vl_convert

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_layers import PACKAGE, layer_of, matches, modules  # noqa: E402

from taxbreak_fx.finding import Finding  # noqa: E402
from taxbreak_fx.findings import RULES, with_findings  # noqa: E402
from taxbreak_fx.model import Comparison, Review, Variant  # noqa: E402
from taxbreak_fx.report import findings as shown  # noqa: E402
from taxbreak_fx.report import format as fmt  # noqa: E402
from taxbreak_fx.report.text import terminal  # noqa: E402

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PICTURE = ROOT / "docs" / "images" / "llama-decode.svg"
PICTURED = "llama-3.2-1b-decode"
WIDTH = 100  # columns of an excerpt: what `taxbreak show` takes when its output is not a terminal
TERMS = {"ft": "ΔFT", "ct": "ΔCT", "kt": "ΔKT", "device": "device"}
COLUMNS = {
    "wall": "wall, ms", "host": "host, ms", "device": "device, ms", "ft": "ΔFT, ms", "ct": "ΔCT, ms", "kt": "ΔKT, ms",
    "hdbi": "HDBI", "launches": "launches", "kernels": "kernels", "memops": "copies and fills",
}  # fmt: skip

_LINES = re.compile(r"(<!-- made: (\S+)(?: ([^\n]*?))? -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_VALUE = re.compile(r"(<!--= (.*?) -->)(.*?)(<!--\.-->)", re.DOTALL)


@cache
def review(case: str) -> Review:
    """A committed review, with the findings of today's rules: files before 2.2 have none of their own."""
    results = ROOT / "benchmarks" / "results"
    spine = results / f"spine-{case}.json"
    return with_findings(Review.load(spine if spine.exists() else results / f"{case}.json"))


def variant(name: str) -> Variant:
    """``CASE:VARIANT``."""
    case, _, which = name.partition(":")
    return review(case).variant(which)


def value(field: str, name: str) -> float:
    """A number of a variant, or of its rows at one line; times in microseconds.  Raises ``ValueError`` for null."""
    name, _, line = name.partition("@")
    one = variant(name)
    parts = one.breakdown
    found: object
    if line:
        file, _, number = line.rpartition(":")
        rows = [
            n
            for n in one.nodes
            if n.source and (n.source.file.endswith(f"/{file}"), n.source.line) == (True, int(number))
        ]
        found = sum(getattr(row, "device_us" if field == "device" else field) or 0 for row in rows) if rows else None
    elif field in ("wall", "host"):
        interval = getattr(one, f"t_{field}_us")
        found = interval.median if interval else None
    elif field in ("ft", "ct", "kt", "hdbi", "closure_error"):
        found = getattr(parts, field if field in ("hdbi", "closure_error") else f"{field}_us") if parts else None
    elif field.startswith("part."):
        found = parts.ft_parts.get(field[5:]) if parts else None
    else:
        found = getattr(
            one, {"device": "device_active_us", "launch": "launch_us", "wait": "t_wait_us"}.get(field, field)
        )
    if not isinstance(found, int | float):
        raise ValueError(f"{name} has no {field}")
    return float(found)


def written(field: str, number: float) -> str:
    """A number as the reports write it."""
    if field in ("hdbi", "closure_error"):
        return fmt.index(number) if field == "hdbi" else f"{100 * number:.0f} %".replace("-", "−")
    return fmt.count(round(number)) if field in ("launches", "kernels", "memops", "graph_launches") else fmt.ms(number)


def single(spec: str) -> str:
    """``FIELD NAME``, or two of them with ``-`` (difference), ``/`` (ratio) or ``%`` (share) in between.

    Else ``date|gpu|torch|transformers CASE``, ``line CASE RULE …`` (a finding's line, linked) or
    ``ratio CASE BASE VARIANT`` (of wall times, paired, with its interval).
    """
    words = spec.split()
    if words[0] in ("date", "gpu", "torch", "transformers"):
        found = str(getattr(review(words[1]).machine, {"gpu": "device"}.get(words[0], words[0])))
        return found[:10] if words[0] == "date" else found
    if words[0] == "line":
        return line(*words[1:])
    if words[0] == "ratio":
        return fmt.interval(comparison(*words[1:]).wall_ratio)
    field, first = words[0], value(*words[:2])
    unit = " ms" if fmt.ms(first) == written(field, first) else ""
    if len(words) == 2:
        return written(field, first) + unit
    second = value(*words[3:])
    if words[2] == "-":
        return written(field, first - second) + unit
    return f"{100 * first / second:.1f} %" if words[2] == "%" else fmt.number(first / second)


def variants(names: str, *columns: str) -> str:
    """One row per variant of ``CASE:VARIANT,VARIANT,…``; the columns are fields."""
    case, _, listed = names.partition(":")
    rows = [f"| variant | {' | '.join(COLUMNS[c] for c in columns)} |", "|---" + "|---:" * len(columns) + "|"]
    for name in listed.split(",") if listed else [v.name for v in review(case).variants if v.status == "ok"]:
        cells = (written(column, value(column, f"{case}:{name}")) for column in columns)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def bought(before: str, after: str) -> str:
    """Two variants of different reviews, term by term; nothing is paired."""
    rows = ["| | before | after | removed |", "|---|---:|---:|---:|"]
    for field in ("wall", *TERMS, "launches", "kernels", "memops"):
        one, two = value(field, before), value(field, after)
        label = f"{TERMS[field]}, ms" if field in TERMS else COLUMNS[field]
        rows.append(f"| {label} | {written(field, one)} | {written(field, two)} | {written(field, one - two)} |")
    return "\n".join(rows)


def comparison(case: str, base: str, which: str) -> Comparison:
    """The paired comparison of two variants of a review."""
    return next(c for c in review(case).comparisons if (c.base, c.variant) == (base, which))


def removed(case: str, *names: str) -> str:
    """What each variant removed against its base, as compared in pairs."""
    rows = ["| step | ΔFT, ms | ΔCT, ms | ΔKT, ms | device, ms | wall ratio [99.9 %] |", "|---" + "|---:" * 5 + "|"]
    for name in names:
        base, _, which = name.partition("→")
        found = comparison(case, base, which)
        assert found.ratio_confidence == 0.999
        cells = (
            fmt.difference(getattr(found.removed, f"{term}_us"), found.removed.noise_us.get(f"{term}_us"))
            for term in TERMS
        )
        rows.append(f"| {base} → {which} | {' | '.join(cells)} | {fmt.interval(found.wall_ratio)} |")
    return "\n".join(rows)


def show(case: str, *sections: str) -> str:
    """Sections of what `taxbreak show` prints, each named by how its title begins."""
    blocks = terminal(review(case), WIDTH).rstrip("\n").split("\n\n")
    found = [next(block for block in blocks if block.startswith(section)) for section in sections]
    return "```text\n" + "\n\n".join(found) + "\n```"


def chosen(case: str, rule: str, *where: str) -> Finding:
    """A finding, told by its rule, and if need be its variant and op."""
    return next(
        f for f in review(case).findings if f.rule == rule and [f.variant, f.op or ""][: len(where)] == [*where]
    )


def finding(case: str, rule: str, *where: str) -> str:
    """A finding in full."""
    return f"```text\n{in_full(chosen(case, rule, *where))}\n```"


def line(case: str, rule: str, *where: str) -> str:
    """The line of a finding in transformers, linked to the source of the release that was reviewed."""
    source = chosen(case, rule, *where).source
    assert source is not None
    inside = source.file[source.file.index("transformers/") :]
    release = review(case).machine.transformers
    address = f"https://github.com/huggingface/transformers/blob/v{release}/src/{inside}#L{source.line}"
    return f"[`{Path(inside).name}:{source.line}`]({address})"


def in_full(one: Finding) -> str:
    lines = [one.title, *(f"{name}: {text}" for name, text in shown.facts(one)), *(f"- {e}" for e in one.evidence)]
    lines += [f"{name}: {text}" for name, text in shown.advice(one)]
    return "\n".join(piece for line in lines for piece in textwrap.wrap(line, WIDTH, subsequent_indent="  "))


@cache
def parsed() -> dict[str, ast.Module]:
    """The modules of the package by name."""
    return modules(PACKAGE)


def in_layer(wanted: str) -> str:
    """The modules of a layer, or of ``report``, with the first sentence of what each says of itself."""
    rows = ["| module | what it is |", "|---|---|"]
    for name, tree in parsed().items():
        layer = layer_of(name)
        if (wanted == "report" and matches(name, ("report", "report.*"))) or wanted == str(layer):
            text = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
            first = re.match(r".*?[.](?= [A-Z`]|$)", text)
            said = (first.group() if first else text).replace("``", "`").replace("|", "\\|")
            rows.append(f"| `{name}` | {said} |")
    return "\n".join(rows)


def api(module: str, *names: str) -> str:
    """Signatures of a module's functions and classes, with their fields and methods, and what each says of itself."""
    tree = parsed()[module]
    parts = [_described(node, "") for name in names for node in tree.body if getattr(node, "name", None) == name]
    assert len(parts) == len(names), f"{module} lacks some of {names}"
    return "\n\n".join(parts)


def _described(node: ast.stmt, prefix: str) -> str:
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    text = textwrap.dedent(ast.get_docstring(node) or "").replace("``", "`")
    inner = [n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    if isinstance(node, ast.FunctionDef):
        head = f"{prefix}{node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns or ast.Constant(None))}"
        lines = [f"@{ast.unparse(mark)}" for mark in node.decorator_list]
        lines += textwrap.wrap(head, WIDTH, subsequent_indent="    ", break_long_words=False)
    else:
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        lines = [f"class {node.name}({bases}):" if bases else f"class {node.name}:"]
        lines += [f"    {ast.unparse(n)}" for n in node.body if isinstance(n, ast.AnnAssign | ast.Assign)]
    code = "\n".join(lines).replace("'", '"')  # as ruff writes them, which formats code in pages too
    described = f"```python\n{code}\n```\n{text}".rstrip()
    return "\n\n".join([described, *(_described(n, f"{node.name}.") for n in inner)])


def commands() -> str:
    """The commands, each with its section of the command line's page."""
    from taxbreak_fx.cli import app

    manual = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    headings = {slug(line[3:]) for line in manual.splitlines() if line.startswith("## ")}
    rows = ["| command | what it does |", "|---|---|"]
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        anchor = next((f"#{h}" for h in sorted(headings) if re.match(f"taxbreak-{name}(-|$)", h)), "")
        doc = " ".join((command.callback.__doc__ or "").split("\n\n")[0].split())
        rows.append(f"| [`taxbreak {name}`](cli.md{anchor}) | {doc} |")
    return "\n".join(rows)


def rules() -> str:
    """The rules, each with its page and the title of that page."""
    rows = ["| rule | what it finds |", "|---|---|"]
    for name in RULES:
        title = (ROOT / "docs" / "rules" / f"{name}.md").read_text(encoding="utf-8").partition("\n")[0]
        rows.append(f"| [`{name}`](rules/{name}.md) | {title.partition(': ')[2]} |")
    return "\n".join(rows)


def pages() -> str:
    """All pages beside the index, by their titles."""
    others = [page for page in PAGES if page.parent.name == "docs" and page.name != "index.md"]
    titles = {page.name: page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for page in others}
    return "\n".join(f"- [{title}]({name})" for name, title in titles.items())


def sections(page: str) -> str:
    """The sections of a page, as links."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    return "\n".join(f"- [{line[3:]}]({page}#{slug(line[3:])})" for line in lines if line.startswith("## "))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


KINDS: dict[str, Callable[..., str]] = {
    "variants": variants, "bought": bought, "removed": removed, "show": show, "finding": finding,
    "modules": in_layer, "api": api, "commands": commands, "rules": rules,
    "sections": sections, "pages": pages,
}  # fmt: skip


def renewed(text: str) -> str:
    """``text`` with everything between marks made anew."""
    text = _LINES.sub(lambda m: f"{m[1]}{KINDS[m[2]](*(m[3] or '').split())}\n{m[5]}", text)
    return _VALUE.sub(lambda m: f"{m[1]}{single(m[2])}{m[4]}", text)


def by_hand(text: str) -> str:
    """``text`` without what is made here."""
    return _VALUE.sub("", _LINES.sub("", text))


# The picture: two bars per variant, what the host does and how long the device works, and a mark at the wall time.
COLOURS = {"ΔFT": "#d1603d", "ΔCT": "#8250df", "launch calls": "#bf8700", "device active": "#2d7d46"}
INK, ROW, LENGTH, AROUND = "#1f2328", 14, 520, {"left": 140, "right": 180, "top": 70, "bottom": 44}


def host_parts(one: str) -> dict[str, float]:
    """T_host by term, microseconds: T_host = ΔFT + ΔCT + launch calls + T_wait, and none of these steps waits."""
    parts = {"ΔFT": value("ft", one), "ΔCT": value("ct", one), "launch calls": value("launch", one)}
    if abs(sum(parts.values()) - value("host", one)) > 1e-6 * value("host", one):
        raise ValueError(f"{one}: the parts {parts} are not all of T_host; draw T_wait as well")
    return parts


def picture(case: str = PICTURED) -> str:
    """An SVG of all measured variants of a review, drawn by vl-convert on a white ground."""
    names = [v.name for v in review(case).variants if v.status == "ok"]
    bars, walls = [], []
    for number, one in enumerate(f"{case}:{name}" for name in names):
        host, device, begin = 3 * number, 3 * number + 1, 0.0
        for part, us in host_parts(one).items():
            bars.append({"row": host, "begin": begin / 1e3, "end": (begin + max(us, 0.0)) / 1e3, "part": part})
            begin += us
        bars.append({"row": device, "begin": 0.0, "end": value("device", one) / 1e3, "part": "device active"})
        wall = value("wall", one)
        words = f"{fmt.ms(wall)} ms, HDBI {fmt.index(value('hdbi', one))}"
        walls += [{"row": host, "wall": wall / 1e3, "name": names[number], "words": words},
                  {"row": device, "wall": wall / 1e3, "name": "", "words": ""}]  # fmt: skip
    x = alt.Axis(title="ms per step; upper bar host, lower bar device, mark: wall time")
    y = alt.Y("row:O", axis=None, scale=alt.Scale(domain=list(range(3 * len(names) - 1)), padding=0))
    colours = alt.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    legend = alt.Legend(orient="top", title=None, columns=len(COLOURS))
    colour = alt.Color("part:N", scale=colours, legend=legend)
    drawn = alt.Chart(alt.InlineData(values=bars)).mark_bar(height=ROW - 1)
    told = alt.Chart(alt.InlineData(values=walls)).encode(y=y)
    chart = alt.layer(
        drawn.encode(x=alt.X("begin:Q", axis=x), x2="end:Q", y=y, color=colour),
        told.mark_tick(color=INK, thickness=2, size=ROW, orient="vertical").encode(x=alt.X("wall:Q", axis=x)),
        told.mark_text(align="right", dx=-8, dy=ROW / 2).encode(x=alt.value(0), text="name:N"),
        told.mark_text(align="left", dx=8, dy=ROW / 2).encode(x=alt.X("wall:Q", axis=x), text="words:N"),
    )
    title = f"{review(case).model}, one {review(case).step.phase} step on {review(case).machine.device}"
    left = 12 - AROUND["left"]
    whole = chart.properties(
        title=alt.TitleParams(title, anchor="start", frame="group", fontSize=15, fontWeight="normal", dx=left),
        width=LENGTH, height=ROW * (3 * len(names) - 1), padding=AROUND, background="#ffffff",
        autosize=alt.AutoSizeParams(type="none"),  # other programs' letters are of other widths
    )  # fmt: skip
    styled = whole.configure(font="sans-serif").configure_view(stroke=None).configure_text(fontSize=12, fill=INK)
    axis = {"gridColor": "#d0d7de", "domainColor": "#d0d7de", "tickColor": "#d0d7de", "labelFontSize": 11}
    styled = styled.configure_axis(labelColor=INK, titleColor=INK, titleFontWeight="normal", **axis)
    return str(vl_convert.vegalite_to_svg(styled.to_dict())) + "\n"


def main() -> None:
    """Renew every page and the picture."""
    made = {page: renewed(page.read_text(encoding="utf-8")) for page in PAGES} | {PICTURE: picture()}
    for path, text in made.items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"renewed {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
