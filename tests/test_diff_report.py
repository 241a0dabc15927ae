"""A diff as text, markdown, annotations and JSON."""

from __future__ import annotations

import msgspec
from diff_samples import at, finding, predicted, with_nodes, with_variant
from sample_review import AUTHOR_FILE, sample_review

from taxbreak_fx.diff import diff, encode
from taxbreak_fx.diff_types import Diff
from taxbreak_fx.gates import judge, parse
from taxbreak_fx.model import Review
from taxbreak_fx.record import SourceLine
from taxbreak_fx.report.diff_text import github, markdown, text
from taxbreak_fx.report.markdown import MAX_BYTES

replace = msgspec.structs.replace


def hostile() -> tuple[Review, Review]:
    base = sample_review()
    name = "</script><img src=x onerror=alert(1)>|`x`\x1b[31m\n# no\u202e"
    bad = replace(at(70, name, name), source=SourceLine(file=f"/a/{name}.py", line=1))
    head = with_nodes(
        replace(base, model=name, findings=[replace(finding("z"), title=name)]), [*base.variant("eager").nodes, bad]
    )
    return replace(base, model=name), head


def test_reports_show_hostile_names_as_text() -> None:
    base, head = hostile()
    found = diff(base, head, names=("<b>.json", "head.json"))
    found = replace(found, verdicts=judge([parse("launches>+1%")], found))
    shown = markdown(found)
    assert "<img" not in shown and "<b>" not in shown and "`" not in shown and "\x1b" not in shown
    assert "\n# no" not in shown and "\u202e" not in shown
    plain = text(found)
    assert "\x1b" not in plain and "\u202e" not in plain
    assert all(len(line) <= 100 for line in plain.splitlines())


def test_the_text_says_what_a_reviewer_needs() -> None:
    base = sample_review()
    found = diff(base, with_nodes(base, [*base.variant("eager").nodes, at(70, launches=2, file=AUTHOR_FILE)]))
    found = replace(found, verdicts=judge([parse("launches>+2%")], found))
    shown = text(found, 120)
    assert "1 of 1 gates failed" in shown and "FAILED" in shown
    assert "modeling_toy.py:70" in shown or "toy.py:70" in shown
    assert "+2" in shown and "+10.0" in shown


def test_markdown_folds_the_numbers_away_and_fits() -> None:
    base = sample_review()
    found = diff(base, with_nodes(base, [*base.variant("eager").nodes, at(70, launches=2, file=AUTHOR_FILE)]))
    shown = markdown(found)
    opened = shown.partition("<details>")[0]
    assert "modeling\\_toy.py:70" in opened and "20 → 22 (+2)" in opened
    assert "<summary>Terms" in shown and "<summary>Ops" in shown
    long = [finding(str(i)) for i in range(1_000)]
    many = diff(
        base, replace(base, findings=[replace(f, title="x" * 5_000, fix="y" * 5_000) for f in long]), force=True
    )
    assert len(markdown(many, top=5_000).encode()) <= MAX_BYTES


def test_a_pull_request_is_told_what_it_changed_only() -> None:
    base = replace(sample_review(), findings=[finding("old")])
    more = [*base.variant("eager").nodes, at(70, launches=2, file=AUTHOR_FILE)]
    head = with_nodes(replace(base, findings=[finding("old"), finding("new", severity="error")]), more)
    found = diff(base, head)
    found = replace(found, verdicts=judge([parse("launches>+2%"), parse("kernels>+50%")], found))
    gate, new = github(found, "/home/author").splitlines()
    assert gate == "::error title=taxbreak gate::eager: launches>+2%25: 20 → 22 (+2, +10.0 %25)"
    assert new.startswith("::error file=models/toy/modeling_toy.py,line=60,title=taxbreak%3A Experts run one by one::")
    hostile_base, hostile_head = hostile()
    assert "\n" not in github(diff(hostile_base, hostile_head)).strip() and "\x1b" not in github(found)


def test_nothing_changed_is_said_so() -> None:
    shown = text(diff(sample_review(), sample_review()))
    assert "nothing changed: counts are equal, times within their noise" in shown
    assert "Lines" not in shown and "Terms" not in shown


def test_predictions_are_shown_without_noise() -> None:
    base = predicted(sample_review())
    head = with_variant(base, "eager", lambda v: replace(v, device_active_us=440.0))
    shown = text(diff(base, head), 120)
    row = next(line for line in shown.splitlines() if line.split()[:2] == ["eager", "device_active_us"])
    assert row.split()[2:] == ["220", "220", "exact", "440", "+220", "+100.0", "*"]
    assert "same" in shown and "within noise" not in shown


def test_the_json_is_the_record() -> None:
    found = diff(sample_review(), sample_review())
    assert msgspec.json.decode(encode(found), type=Diff) == found
