"""What the page is made of: bars of a timeline, the way from eager to the best variant, lines with their costs."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from sample_findings import EAGER, LIBRARY_FILE, TIMELINES, full_review, on_real_lines, with_findings
from sample_review import AUTHOR_FILE, sample_review
from test_report import HOSTILE, cpu_review, hostile_review
from test_timeline import HOST_BOUND, SEEDS, item, kernel, random_step, step

from taxbreak_fx.model import Review, Variant
from taxbreak_fx.report import html as page_module
from taxbreak_fx.report.html import MAX_BYTES, TIMELINE_BYTES, html
from taxbreak_fx.report.lanes import DeviceSpan, HostSpan, lanes
from taxbreak_fx.report.listing import MAX_FILE, listings
from taxbreak_fx.report.plots import VARIABLES, waterfall_chart
from taxbreak_fx.report.summary import best, facts, sentences
from taxbreak_fx.report.timeline_data import timelines
from taxbreak_fx.report.waterfall import REST, WALL, Bar, Line, changes, chart_lines, path, path_table, terms_of
from taxbreak_fx.timeline import Hold, Sync, Timeline, Work, simulate
from taxbreak_fx.timeline_store import stored
from taxbreak_fx.variant_record import Exposed

# --- lanes ----------------------------------------------------------------------------------------------------------


def test_bars_by_hand() -> None:
    # Calls enter at 10, 22, 34 and take 2; each kernel starts L = 4 after the return and runs 3.
    found = lanes(HOST_BOUND)
    assert found.host[:3] == [
        HostSpan(0.0, 10.0, "ft", "gemm", None), HostSpan(10.0, 2.0, "launch", "gemm", None),
        HostSpan(12.0, 10.0, "ft", "gemm", None),
    ]  # fmt: skip
    assert found.device == [
        DeviceSpan(16.0, 3.0, 7, "gemm", "kernel", 1), DeviceSpan(28.0, 3.0, 7, "gemm", "kernel", 3),
        DeviceSpan(40.0, 3.0, 7, "gemm", "kernel", 5),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_the_hosts_bars_have_no_gap_and_end_with_the_host(seed: int) -> None:
    timeline = random_step(seed)
    found, run = lanes(timeline), simulate(timeline)
    at = 0.0
    for span in found.host:
        assert span.begin_us == pytest.approx(at, abs=1e-9)
        at += span.us
    assert at == pytest.approx(run.host_us)
    blocked = sum(span.us for span in found.host if span.term == "blocked")
    assert blocked == pytest.approx(run.synced_us + run.queued_us)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_piece_follows_its_launch_and_lies_where_it_was_simulated(seed: int) -> None:
    timeline = random_step(seed)
    found, run = lanes(timeline), simulate(timeline)
    works = [one.action for one in timeline.items if isinstance(one.action, Work)]
    assert len(found.device) == sum(len(work.pieces) for work in works)
    for piece in found.device:
        launch = found.host[piece.launch]
        assert launch.term == "launch" and piece.begin_us >= launch.begin_us
    ends = [end for end in run.ends_us if end is not None]
    if ends:
        assert max(piece.begin_us + piece.us for piece in found.device) == pytest.approx(max(ends))


def test_a_wait_for_a_stream_without_work_blocks_nobody() -> None:
    held = step(item(1.0, 2.0, kernel(5.0)), item(action=Hold(stream=9, until=0)), item(action=Sync(stream=3)))
    assert [span.term for span in lanes(held).host] == ["ft", "launch", "sync"]


# --- the page's data ------------------------------------------------------------------------------------------------


def test_the_pages_timeline_is_the_lanes_in_hundredths() -> None:
    text, notes = timelines(full_review(), 1_000_000)
    data = json.loads(text)
    assert [variant["name"] for variant in data["variants"]] == ["eager", "inductor", "reduce-overhead", "eager-graph"]
    eager, found = data["variants"][0], lanes(EAGER)
    assert sum(eager["host"][2::3]) == round(found.run.host_us * data["perUs"])
    assert len(eager["host"]) == 3 * len(found.host)
    assert {stream: len(row) // 4 for stream, row in eager["streams"]} == {7: 10, 9: 10}
    begin = eager["streams"][1][1][0]  # the first begin of a stream counts from 0, the others from the one before
    assert begin == round(found.device[10].begin_us * data["perUs"])
    assert notes == ["dynamo: the time limit was reached", "cudagraphs: CUDA out of memory: tried to allocate 32 GiB"]


def test_a_name_cannot_end_the_script_element() -> None:
    text, _ = timelines(hostile_review(), 1_000_000)
    assert not set("<>&\u2028\u2029") & set(text) and text.isascii()
    assert HOSTILE.partition("\x1b")[0].replace("\n", " ") in json.loads(text)["variants"][0]["families"][0]


def test_a_timeline_too_long_for_the_page_is_named_instead() -> None:
    items = [item(float(n % 7) + 0.5, 1.0, kernel(2.0, n % 3), ct=0.3, family=f"op{n % 900}") for n in range(30_000)]
    review = full_review()
    long = {v.name: msgspec.structs.replace(v, timeline=stored(step(*items))) for v in review.variants if v.timeline}
    crowded = msgspec.structs.replace(review, variants=[long.get(v.name, v) for v in review.variants])
    text, notes = timelines(crowded, TIMELINE_BYTES)
    assert json.loads(text)["variants"][0]["name"] == "eager"
    assert any("too long for this page; --format chrome-trace has it" in note for note in notes)
    assert len(html(crowded).encode()) <= MAX_BYTES


# --- from eager to the best -----------------------------------------------------------------------------------------


def test_the_best_variant_is_the_fastest_with_right_outputs() -> None:
    review = sample_review()
    assert best(review) == review.variant("eager-graph")
    # reduce-overhead is next by wall time, and its outputs differ.
    slower = [v for v in review.variants if v.name != "eager-graph"]
    found = best(msgspec.structs.replace(review, variants=slower, comparisons=[]))
    assert found is not None and found.name == "inductor"
    assert best(msgspec.structs.replace(review, variants=[], comparisons=[])) is None


def ladder() -> Review:
    """The full review without its two graphed variants: the way leads from eager to inductor."""
    review = full_review()
    kept = [v for v in review.variants if v.name in ("eager", "dynamo", "inductor")]
    return msgspec.structs.replace(review, variants=kept, comparisons=[])


@pytest.mark.parametrize("make", [full_review, ladder, sample_review, cpu_review])
def test_the_changes_add_up_to_the_difference_of_the_walls(make: Callable[[], Review]) -> None:
    stands = path(make())
    assert stands[0].name == "eager"
    for before, after in itertools.pairwise(stands):
        assert sum(changes(before, after).values()) == pytest.approx(after.wall_us - before.wall_us)
    for stand in stands:
        assert sum(stand.terms.values()) == pytest.approx(stand.wall_us)


def test_the_way_names_its_terms_only_where_they_add_up() -> None:
    assert [stand.name for stand in path(full_review())] == ["eager", "eager-graph"]
    assert [stand.name for stand in path(ladder())] == ["eager", "inductor"]
    assert set(path(ladder())[0].terms) == {"ft", "ct", "kt", "sync", "device"}
    # eager-graph of the sample is not simulated: walls only.
    assert path(sample_review())[0].terms == {WALL: 1000.0}
    cpu = msgspec.structs.replace(cpu_review(), step=msgspec.structs.replace(cpu_review().step, device="cpu"))
    # 1000 − 600 − 200 − 220 = −20
    assert path(cpu)[0].terms == {"ft": 600.0, "ct": 200.0, "device": 220.0, REST: pytest.approx(-20.0)}


@pytest.mark.parametrize("make", [full_review, ladder, sample_review, cpu_review])
def test_the_charts_bars_lead_from_wall_to_wall(make: Callable[[], Review]) -> None:
    lines, stands = chart_lines(make()), path(make())
    totals = [line for line in lines if line.total]
    assert [line.name for line in totals] == [stand.name for stand in stands]
    for line, stand in zip(totals, stands, strict=True):
        assert line.bars[0].begin_us == 0.0 and line.bars[-1].end_us >= stand.wall_us - 1e-9
        assert all(one.end_us == other.begin_us for one, other in itertools.pairwise(line.bars))
    assert all(0.0 <= bar.begin_us <= bar.end_us for line in lines for bar in line.bars)
    assert {bar.term for line in lines for bar in line.bars} == {term for term, _ in terms_of(lines)}


def texts_of(chart: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(chart).iter("text")]


def test_the_chart_shows_every_row_and_bar() -> None:
    lines = chart_lines(ladder())
    drawn = str(waterfall_chart(lines))
    shown = texts_of(drawn)
    for line in lines:
        assert line.name in shown and line.value in shown
    assert drawn.count('aria-roledescription="bar"') == sum(len(line.bars) for line in lines)
    assert {f"var(--{VARIABLES[term]})" for term, _ in terms_of(lines)} == set(
        re.findall(r"var\(--(?!ink|soft|rule)\w+\)", drawn)
    )


def test_a_chart_is_inert_whatever_its_rows_are_called() -> None:
    hostile = "</text></svg><script>alert(1)</script>\" onload=\"alert(2) datum.x ' + parent.location + '"
    drawn = str(waterfall_chart([Line(hostile, hostile, [Bar(0.0, 5.0, hostile)], True)]))
    root = ElementTree.fromstring(drawn)  # whole, so nothing closed it early
    assert {one.tag for one in root.iter()} <= {"svg", "g", "path", "line", "text", "rect"}
    assert not [name for one in root.iter() for name in one.attrib if name.startswith("on") or "href" in name]
    assert any(text.startswith("</text></svg><script>") for text in texts_of(drawn))  # cut where it is too long


def test_the_headline_says_what_it_knows_and_why_not() -> None:
    found = {fact.name: fact.value for fact in facts(with_findings())}
    assert found == {
        "wall, eager": "1.00 ms", "HDBI, eager": "0.200", "exposed host time, eager": "0.830 ms",
        "best, eager-graph": "0.200 ms",
    }  # fmt: skip
    assert "exposed, by ordered removal: ΔFT 57 %, ΔCT 18 %, device 15 %" in sentences(with_findings())[0]
    assert "host and device are one thread" in sentences(cpu_review())[0]
    failed = msgspec.structs.replace(
        sample_review(), variants=[Variant.unavailable("eager", "failed", "boom")], comparisons=[]
    )
    assert facts(failed) == [] and "No variant could be measured" in sentences(failed)[0]


# --- annotated source -----------------------------------------------------------------------------------------------


@pytest.fixture
def author_file(tmp_path: Path) -> Path:
    file = tmp_path / "modeling_toy.py"
    file.write_text("".join(f"line_{n} = '</script><b>{n}'\n" for n in range(1, 121)), encoding="utf-8")
    return file


def rows(review: Review, source: bool = True) -> dict[int, Any]:
    _, files = listings(review, source)
    return {row.number: row for block in files[0].blocks for row in block.rows}


def test_a_line_carries_its_sums_and_findings(author_file: Path) -> None:
    found = rows(on_real_lines(with_findings(), author_file))
    # exposed 405; host 150 + 200 + 48 = 398; device 150; 12 launches and calls
    assert found[41].cells == ("0.405", "0.398", "0.150", "12", "12")
    assert (found[41].text, found[41].heat, found[41].findings) == ("line_41 = '</script><b>41'", 5, (0,))
    assert found[42].cells == () and found[42].heat == 0
    assert set(found) == set(range(1, 121))


def test_only_lines_near_a_cost_stand_open(author_file: Path) -> None:
    _, files = listings(on_real_lines(with_findings(), author_file), True)
    blocks = [(block.folded, block.rows[0].number, block.rows[-1].number) for block in files[0].blocks]
    # Ops on the lines 40, 41, 52 and 57, four lines around each.
    assert blocks == [(True, 1, 35), (False, 36, 45), (False, 46, 47), (False, 48, 61), (True, 62, 120)]


def test_a_missing_file_is_said_and_its_costs_are_listed() -> None:
    found = listings(with_findings(), True)[1]
    assert [row.number for block in found[0].blocks for row in block.rows] == [40, 41, 52, 57]
    assert "the file is not on the machine that made this report" in found[0].notes[-1]
    assert found[1].notes[0] == "This file is in an installed package, not in your own code."
    assert "is not on the machine that made this report" in html(with_findings())


def test_without_source_no_file_is_opened(author_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    review = on_real_lines(with_findings(), author_file)
    assert "line_41" in html(review) and "line_41" not in html(review, source=False)
    monkeypatch.setattr("tokenize.open", lambda path: pytest.fail(f"{path} was opened"))
    assert "left out of this report on purpose" in html(review, source=False)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("id_rsa", b"-----BEGIN PRIVATE KEY-----", "it is no Python file"),
        ("large.py", b"#" * (MAX_FILE + 1), "the file is too large"),
        ("odd.py", b"# coding: latin-99\n", "the file is no readable text"),
        ("binary.py", b"\xff\xfe\x00", "the file is no readable text"),
    ],
)
def test_what_is_no_source_is_not_shown(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert any(reason in note for note in listings(on_real_lines(with_findings(), tmp_path / name), True)[1][0].notes)


def test_a_link_to_a_secret_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    (tmp_path / "model.py").symlink_to(tmp_path / "secret")
    assert "password" not in html(on_real_lines(with_findings(), tmp_path / "model.py"))


def test_a_file_that_is_not_what_ran_is_doubted(author_file: Path) -> None:
    review = on_real_lines(with_findings(), author_file)  # of the year 2000
    assert "changed after the review" in listings(review, True)[1][0].notes[-1]
    later = msgspec.structs.replace(
        review, machine=msgspec.structs.replace(review.machine, date="2999-01-01T00:00:00Z")
    )
    assert listings(later, True)[1][0].notes == []
    author_file.write_text("short = 1\n" * 50, encoding="utf-8")
    _, files = listings(later, True)
    assert files[0].notes == ["2 of its lines lie beyond its end: this is not the text that was reviewed."]
    assert [row.number for row in files[0].blocks[-1].rows] == [52, 57]
    author_file.write_text("long = 1\n" * 90, encoding="utf-8")
    odd = msgspec.structs.replace(review, machine=msgspec.structs.replace(review.machine, date="yesterday"))
    assert listings(odd, True)[1][0].notes == []


def test_text_that_hides_itself_is_made_visible(tmp_path: Path) -> None:
    file = tmp_path / "modeling_toy.py"
    file.write_text("\n" * 40 + "access = 'user\u202e\u2066'  # \u200b\n", encoding="utf-8")
    assert rows(on_real_lines(with_findings(), file))[41].text == r"access = 'user\u202e\u2066'  # \u200b"


# --- the whole page -------------------------------------------------------------------------------------------------


def huge() -> Review:
    """A thousand ops, notes, graphs and findings, with long names."""
    review = full_review()
    eager = review.variants[0]
    ops = [
        msgspec.structs.replace(eager.nodes[-1], op=f"op{n}{'x' * 5_000}", launches=0, kernels=0) for n in range(1_000)
    ]
    eager = msgspec.structs.replace(eager, nodes=[*eager.nodes, *ops], notes=["n" * 5_000] * 1_000)
    findings = [msgspec.structs.replace(review.findings[0], title=f"t{n}") for n in range(1_000)]
    graphs = [msgspec.structs.replace(review.graphs[0], break_reason="r" * 3_000)] * 1_000
    return msgspec.structs.replace(review, variants=[eager, *review.variants[1:]], findings=findings, graphs=graphs)


def test_a_page_keeps_its_size_whatever_the_review_holds() -> None:
    text = html(huge())
    assert len(text.encode()) <= MAX_BYTES
    assert "more rows: see review.json" in text and "more notes: see review.json" in text


def test_the_scripts_cannot_end_their_own_element() -> None:
    for name in (*page_module.SCRIPTS, page_module.STYLE):
        text = (page_module.PAGE / name).read_text(encoding="utf-8")
        assert "</" not in text and "<!--" not in text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|Function\(", text)


@pytest.mark.parametrize("make", [sample_review, full_review, cpu_review, hostile_review, ladder])
def test_ids_are_unique_and_every_reference_has_its_target(make: Callable[[], Review]) -> None:
    text = html(make())
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    pattern = r'(?:href="#|aria-labelledby="|aria-controls="|data-filter="|data-fold="|for=")([^"]+)"'
    wanted = {name for found in re.findall(pattern, text) for name in found.split()}
    assert wanted <= set(ids)


def test_reviews_of_older_versions_make_a_page(tmp_path: Path) -> None:
    bare = [msgspec.structs.replace(v, exposed=None, timeline=None) for v in sample_review().variants]
    text = html(msgspec.structs.replace(sample_review(), variants=bare, graphs=[]))
    assert "No timeline can be drawn." in text and "This review holds no findings." in text
    assert "the version that made this review kept no timeline" in text
    empty = html(msgspec.structs.replace(sample_review(), variants=[], comparisons=[], graphs=[]))
    assert "No variant has a wall time." in empty and "No line of any file is known" in empty


def test_a_review_that_could_not_be_simulated_says_so() -> None:
    review = full_review()
    eager = msgspec.structs.replace(
        review.variants[0], timeline=None, exposed=Exposed.unavailable("no gap was measured")
    )
    text = html(msgspec.structs.replace(review, variants=[eager, *review.variants[1:]]))
    assert "eager: no gap was measured" in text and "What the device hides is not known here" in text


def test_the_samples_of_these_tests_are_what_they_say() -> None:
    review = full_review()
    assert {v.name for v in review.variants if v.timeline is not None} == set(TIMELINES)
    assert isinstance(EAGER, Timeline) and AUTHOR_FILE != LIBRARY_FILE


def test_a_measured_wall_stands_in_its_table_once() -> None:
    simulated, measured = path_table(full_review()), path_table(sample_review())
    assert simulated is not None and measured is not None
    assert [column.title for column in simulated.columns][:3] == ["step", "wall", "measured wall"]
    assert [column.title for column in measured.columns] == ["step", "wall"]
