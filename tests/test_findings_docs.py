"""Every number in docs/rules comes from a committed review: the table and the examples are made here.

python tests/test_findings_docs.py    renews them
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest

from taxbreak_fx.finding import Finding
from taxbreak_fx.findings import RULES
from taxbreak_fx.findings_rule import (
    ERROR_SHARE,
    ERROR_US,
    LEAST_SHARE,
    WARNING_SHARE,
    WARNING_US,
    Ranked,
    file_name,
    place,
)
from taxbreak_fx.findings_scene import Scene
from taxbreak_fx.model import Review, Variant

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "rules"
RESULTS = ROOT / "benchmarks" / "results"
SECTIONS = ("What it means", "How it is recognised", "Example", "What to do", "What it cannot see")
_BLOCK = re.compile(r"(<!-- (table|loop|example [^>]*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@cache
def committed(name: str) -> Review:
    """A review of the spine by its case, another one by its file."""
    return Review.load(RESULTS / (f"{name}.json" if name.startswith("timeline-") else f"spine-{name}.json"))


@cache
def ranked(name: str) -> list[Ranked]:
    scene = Scene(committed(name))
    found = [each for rule in RULES.values() for each in rule(scene)]
    return sorted(found, key=lambda each: -(each.us or 0.0))


def names() -> list[str]:
    return sorted(path.stem.removeprefix("spine-") for path in RESULTS.glob("spine-*.json"))


def table() -> str:
    rows = ["| rule | review | variant | severity | µs | T_wall | line | what |", "|---|---|---|---|---|---|---|---|"]
    for rule in RULES:
        for name in names():
            for finding, us in ranked(name):
                if finding.rule != rule:
                    continue
                wall = committed(name).variant(finding.variant).t_wall_us
                share = f"{us / wall.median:.1%}" if us is not None and wall is not None else "–"
                cost = "–" if us is None else f"{'=' if finding.exposed_us is not None else '≤'} {us:,.0f}"
                line = f"`{place(finding.source)}`" if finding.source is not None else "–"
                rows.append(
                    f"| [{rule}]({rule}.md) | {name} | {finding.variant} | {finding.severity} | {cost} "
                    f"| {share} | {line} | {finding.op} |"
                )
    return "\n".join(rows) + "\n"


def wall(variant: Variant) -> float:
    assert variant.t_wall_us is not None
    return variant.t_wall_us.median


def loop() -> str:
    eager = committed("olmoe-decode-eager-experts").variant("eager")
    grouped = committed("olmoe-decode-grouped").variant("eager")
    finding = next(each.finding for each in ranked("olmoe-decode-eager-experts") if each.finding.rule == "expert-loop")
    saved, removed = finding.saving_us, {}
    assert eager.breakdown is not None and grouped.breakdown is not None
    for term in ("ft_us", "ct_us", "kt_us"):
        removed[term] = getattr(eager.breakdown, term) - getattr(grouped.breakdown, term)
    cells = [f"| {term.removesuffix('_us').upper()} | {saved[term]:,.0f} | {removed[term]:,.0f} |" for term in removed]
    return "\n".join(
        [
            "| term | predicted to go, µs | measured: loop − grouped, µs |",
            "|---|---|---|",
            *cells,
            "",
            f"T_wall: {wall(eager):,.0f} → {wall(grouped):,.0f} µs. The two were measured in different processes, so",
            "that their difference also holds the drift of the machine.",
            "",
        ]
    )


def example(spec: str) -> str:
    """The finding ``REVIEW RULE [VARIANT [OP]]`` as text."""
    name, rule, *more = spec.split()
    found = next(
        each.finding
        for each in ranked(name)
        if each.finding.rule == rule and [each.finding.variant, each.finding.op][: len(more)] == more
    )
    return f"```text\n{written(found)}\n```\n"


def written(finding: Finding) -> str:
    where = f" at {place(finding.source)}" if finding.source is not None else ""
    lines = [f"{finding.severity}: {finding.title} ({finding.variant}{where}; confidence {finding.confidence})"]
    lines += [f"- {text}" for text in finding.evidence]
    if finding.saving_us:
        saved = ", ".join(f"{term.removesuffix('_us')} {us:,.0f} µs" for term, us in finding.saving_us.items())
        lines.append(f"saving, {finding.saving_origin}: {saved}")
    return "\n".join(piece for line in lines for piece in textwrap.wrap(line, 116, subsequent_indent="  "))


def renewed(text: str) -> str:
    def block(match: re.Match[str]) -> str:
        kind, _, spec = match.group(2).partition(" ")
        made = {"table": table, "loop": loop}[kind]() if kind != "example" else example(spec)
        return match.group(1) + made + match.group(4)

    return _BLOCK.sub(block, text)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_every_number_is_what_the_rules_say_today(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == renewed(text), f"renew it: python tests/{Path(__file__).name}"


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_page_with_all_its_parts(rule: str) -> None:
    text = (DOCS / f"{rule}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# `{rule}`: ")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(SECTIONS)
    assert f"[{rule}]({rule}.md)" in (DOCS / "README.md").read_text(encoding="utf-8")


def test_no_page_without_a_rule_and_no_dead_link() -> None:
    assert {path.stem for path in DOCS.glob("*.md")} == {*RULES, "README"}
    for path in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (DOCS / target).exists(), f"{path.name}: {target}"


def test_the_thresholds_and_their_reason_are_those_of_the_code() -> None:
    text = " ".join((DOCS / "README.md").read_text(encoding="utf-8").split())
    assert f"*error* from {ERROR_SHARE:.0%} of T_wall and {ERROR_US:.0f} µs".replace("%", " %") in text
    assert f"*warning* from {WARNING_SHARE:.0%} and {WARNING_US:.0f} µs".replace("%", " %") in text
    assert f"a cost below {LEAST_SHARE:.0%} is no finding".replace("%", " %") in text
    rows = json.loads((RESULTS / "repeatability.json").read_text(encoding="utf-8"))["rows"]
    pairs = [row for row in rows if "wall_ratio" in row]
    off, half = max(abs(r["wall_ratio"] - 1) for r in pairs), max((r["high"] - r["low"]) / 2 for r in pairs)
    assert off < WARNING_SHARE and half < ERROR_SHARE and len(pairs) == 20
    assert f"up to {off:.1%} off, with half intervals up to {half:.1%}".replace("%", " %") in text


def test_the_command_that_renews_is_named() -> None:
    assert file_name(None) == "" and Path(__file__).name in (DOCS / "README.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    for page in DOCS.glob("*.md"):
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
