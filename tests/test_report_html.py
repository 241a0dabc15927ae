"""What stands first in each report, and the page's markup: nothing from a review becomes a tag, an attribute or a
script, and nothing can be fetched."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import markupsafe
import msgspec
from sample_findings import full_review, with_findings
from sample_review import sample_review
from test_report import hostile_review

from taxbreak_fx.report.content import page
from taxbreak_fx.report.html import html
from taxbreak_fx.report.markdown import MAX_BYTES, markdown
from taxbreak_fx.report.text import terminal


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def parsed(text: str) -> Tags:
    parser = Tags()
    parser.feed(text)
    return parser


def test_findings_stand_first_in_the_terminal_and_the_fifth_is_the_last() -> None:
    text = terminal(with_findings())
    assert "error    0.405  eager            toy/modeling_toy.py:41           Host sync in the step" in text
    assert "toy/modeling_toy.py:7 (library)" in text
    assert text.index("Host sync") < text.index("Removed") < text.index("Top ops")
    many = terminal(msgspec.structs.replace(with_findings(), findings=with_findings().findings * 3))
    assert "Findings (5 of 9, ms exposed per step; docs/rules has the fixes)" in many
    assert many.count("Host sync in the step") == 2
    assert "Findings" not in terminal(sample_review())


def test_markdown_opens_with_what_counts_and_folds_the_rest() -> None:
    text = markdown(with_findings())
    opened = text.partition("<details>")[0]
    assert "- exposed host time, eager: 0.830 ms (84 % of the simulated wall" in opened  # 830 / 990
    assert "- best, eager-graph: 0.200 ms (0.200 \\[0.190 0.210\\] of eager)" in opened
    assert "Top finding: Host sync in the step, toy/modeling\\_toy.py:41, in eager: 0.405 ms exposed per step" in opened
    assert "This line is" not in opened and "in an installed package, not in your own code" in text
    assert "ΔFT −0.300 ms, device +0.020 ms per step (predicted)" in opened
    assert text.index("## Variants") < text.index("## Removed") < text.index("<summary>Top ops")


def test_markdown_mentions_nobody_and_links_nothing() -> None:
    review = msgspec.structs.replace(sample_review(), notes=["ask @team", "see https://example.org", "www.example.org"])
    text = markdown(review)
    assert "@team" not in text and "https://" not in text and "www." not in text
    assert "@&#8203;team" in text


def test_markdown_keeps_githubs_limit_and_says_what_is_missing() -> None:
    finding = with_findings().findings[0]
    wordy = msgspec.structs.replace(finding, evidence=["ä" * 1_500] * 20)
    text = markdown(msgspec.structs.replace(with_findings(), findings=[wordy] * 100))
    assert len(text.encode()) <= MAX_BYTES
    assert "No room here for" in text and "Host sync in the step" in text.splitlines()[-1]
    assert "No room" not in markdown(with_findings())


TAGS = {
    "html", "head", "meta", "title", "style", "body", "a", "header", "h1", "h2", "h3", "p", "button", "nav", "ul", "li",
    "main", "section", "dl", "div", "dt", "dd", "strong", "span", "figure", "label", "input", "output", "table",
    "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "svg", "g", "text", "path", "line",
    "select", "canvas", "code", "small", "footer", "script",
}  # fmt: skip


def test_html_has_no_tag_or_attribute_from_the_review() -> None:
    text = html(hostile_review())
    found, tame = parsed(text), parsed(html(full_review()))
    assert set(found.tags) <= TAGS and not {"img", "iframe", "link"} & TAGS
    assert {name for name, _ in found.attributes} == {name for name, _ in tame.attributes}
    assert not {name for name, _ in found.attributes if name.startswith("on") or name in ("src", "style")}
    assert all(value is not None and value.startswith("#") for name, value in found.attributes if name == "href")
    assert found.tags.count("script") == 2
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in text
    assert "\\u003c/script\\u003e\\u003cimg src=x onerror=alert(1)\\u003e" in text  # in the timeline's JSON


def test_html_forbids_every_request_and_all_but_its_own_script() -> None:
    text = html(full_review())
    (policy,) = [value for name, value in parsed(text).attributes if value is not None and "default-src" in value]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy and "http:" not in text and "https:" not in text
    own = {f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in inline(text)}
    assert own == set(re.findall("'sha256-[^']+'", policy))


def inline(text: str) -> list[str]:
    """What stands inside the page's style and script elements, less the data."""
    return [
        *re.findall("<style>(.*?)</style>", text, re.DOTALL),
        *re.findall("<script>(.*?)</script>", text, re.DOTALL),
    ]


def test_html_holds_every_cell_and_note() -> None:
    tables, notes = page(sample_review())
    text = html(sample_review())
    for found in tables:
        assert text.count(f"<caption>{markupsafe.escape(found.title)}</caption>") == 1
        for cell in {cell for one in found.rows for cell in one}:
            assert str(markupsafe.escape(cell)) in text
    for line in [*notes, *(line for found in tables for line in found.under)]:
        assert f"<li>{markupsafe.escape(line)}</li>" in text


def test_notebook_view_is_a_sandboxed_frame() -> None:
    found = parsed(hostile_review()._repr_html_())
    assert found.tags == ["iframe"]
    frame = dict(found.attributes)
    assert frame["sandbox"] == "allow-scripts"  # its own origin: no access to the notebook
    assert frame["srcdoc"] == html(hostile_review())
    assert sample_review().to_markdown() == markdown(sample_review())
