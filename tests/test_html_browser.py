"""The page in a real browser: nothing fails, nothing is fetched, tables sort and filter, the timeline zooms, hostile
names stay text.  Needs the package playwright and Debian's chromium (``make test`` installs both where it can)."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sample_findings import full_review, on_real_lines
from sample_review import sample_review
from test_report import cpu_review, hostile_review

from taxbreak_fx.report.html import html

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian's package of that name)")

NARROWER = """(width) => {
  const view = document.getElementById("timeline-canvas").dataset;
  return Number(view.to) - Number(view.from) < width - 1;
}"""
HAS_NAME = """(control) => Boolean(
  control.getAttribute("aria-label") || control.getAttribute("aria-labelledby") || control.closest("label")
    || control.textContent.trim()
)"""
REACH_OUT = "() => { try { return parent.document.title; } catch (error) { return error.name; } }"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield found
        found.close()


class Opened:
    """A page opened from disk, with everything that it complained of or asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.trouble: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("dialog", lambda dialog: (self.trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))

    def column(self, table: str, number: int) -> list[str]:
        """The texts of a column, in the order of the rows that are shown."""
        return self.page.locator(f"#{table} tbody tr:visible td:nth-child({number})").all_inner_texts()  # type: ignore[no-any-return]

    def view(self) -> tuple[float, float]:
        data = self.page.locator("#timeline-canvas").evaluate("canvas => [canvas.dataset.from, canvas.dataset.to]")
        return float(data[0]), float(data[1])


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def open_page(text: str, **options: Any) -> Opened:
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": 1100, "height": 900}, **options))
        found = Opened(contexts[-1].new_page())
        found.page.goto(path.as_uri())
        return found

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("make", [full_review, sample_review, cpu_review, hostile_review])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_complaint_or_a_request(opened: Any, make: Any, scheme: str) -> None:
    found = opened(html(make()), color_scheme=scheme)
    for section in ("headline", "findings", "waterfall", "variants", "timeline", "source", "costs", "method"):
        assert found.page.locator(f"section#{section} > h2").is_visible()
        assert found.page.locator(f"nav a[href='#{section}']").count() == 1
    assert found.trouble == []
    assert [url.partition(":")[0] for url in found.requests] == ["file"]


def test_what_a_page_would_fetch_or_run_is_forbidden(opened: Any) -> None:
    found = opened(html(full_review()))
    refused = found.page.evaluate(
        """async () => {
          const image = new Image();
          const failed = new Promise((done) => { image.onerror = () => done(true); image.onload = () => done(false); });
          image.src = "https://example.org/x.png";
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
          const div = document.createElement("div");
          div.innerHTML = "<img src=x onerror='window.ran = true'>";
          document.body.append(div);
          let fetched = true;
          try { await fetch("https://example.org/"); } catch { fetched = false; }
          return [await failed, fetched, window.ran === true];
        }"""
    )
    assert refused == [True, False, False]
    assert all("Content Security Policy" in line for line in found.trouble) and len(found.trouble) >= 3


def test_hostile_names_are_text(opened: Any) -> None:
    found = opened(html(hostile_review()))
    page = found.page
    assert page.locator("img, iframe, a[href^='javascript']").count() == 0
    assert page.locator("script").count() == 2
    assert "</script><img src=x onerror=alert(1)>" in page.locator("h1").inner_text()
    assert page.locator("#timeline-variant option").count() == 4
    page.locator("#timeline-canvas").focus()
    page.keyboard.press("n")
    assert "</script><img src=x onerror=alert(1)>" in page.locator("#timeline-detail").inner_text()
    for column in range(3):
        page.locator("#variants-table th button").nth(column).click()
    assert found.trouble == []


def test_tables_sort_by_number_and_by_text_with_keys_too(opened: Any) -> None:
    found = opened(html(full_review()))
    head = found.page.locator("#variants-table th", has_text="launches")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert found.column("variants-table", 5) == ["20", "8", "2", "1", "–", "–"]
    head.locator("button").focus()
    found.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert found.column("variants-table", 5) == ["1", "2", "8", "20", "–", "–"]
    name = found.page.locator("#variants-table th").first
    name.locator("button").click()
    name.locator("button").click()
    assert found.column("variants-table", 1) == sorted(v.name for v in full_review().variants)
    assert head.get_attribute("aria-sort") is None


def test_rows_can_be_filtered(opened: Any) -> None:
    review = full_review()
    eager = review.variants[0]
    more = [
        msgspec.structs.replace(eager.nodes[-1], op=f"aten.op{n}.default", launches=0, kernels=0, ft_us=float(n))
        for n in range(12)
    ]
    eager = msgspec.structs.replace(eager, nodes=[*eager.nodes, *more])
    found = opened(html(msgspec.structs.replace(review, variants=[eager, *review.variants[1:]])))
    table = found.page.locator("table", has=found.page.locator("caption", has_text="Top ops of eager"))
    field = found.page.locator(f"input[data-filter='{table.get_attribute('id')}']")
    assert table.locator("tbody tr:visible").count() == 16
    field.fill("OP1")
    assert sorted(table.locator("tbody tr:visible td:first-child").all_inner_texts()) == ["op1", "op10", "op11"]
    assert found.page.locator(f"output[data-count='{table.get_attribute('id')}']").inner_text() == "3 of 16 rows"
    field.fill("")
    assert table.locator("tbody tr:visible").count() == 16


def test_the_timeline_zooms_and_moves_by_buttons_keys_wheel_and_drag(opened: Any) -> None:
    found = opened(html(full_review()))
    page, canvas = found.page, found.page.locator("#timeline-canvas")
    whole = found.view()
    # 942 µs and a margin of 2 %
    assert whole == (0.0, pytest.approx(1.02 * 942.0))
    page.locator("#zoom-in").click()
    assert found.view() == (pytest.approx(whole[1] / 4), pytest.approx(3 * whole[1] / 4))
    page.locator("#zoom-out").click()
    assert found.view() == pytest.approx(whole)
    canvas.focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    left = found.view()
    assert left[1] - left[0] == pytest.approx(whole[1] / 1.6, abs=0.01)
    assert left[0] < (whole[1] - whole[1] / 1.6) / 2
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 600, box["y"] + 40)
    page.mouse.wheel(0, -100)
    page.wait_for_function(NARROWER, arg=left[1] - left[0])
    near = found.view()
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 40, steps=4)
    page.mouse.up()
    moved = found.view()
    assert moved[0] > near[0] and moved[1] - moved[0] == pytest.approx(near[1] - near[0], abs=0.01)
    page.keyboard.press("0")
    assert found.view() == pytest.approx(whole)
    for _ in range(60):
        page.keyboard.press("+")
    assert found.view()[1] - found.view()[0] == pytest.approx(0.5)  # as far as it goes
    assert found.trouble == []


def test_bars_are_reached_by_keys_and_by_the_mouse(opened: Any) -> None:
    found = opened(html(full_review()))
    page, detail = found.page, found.page.locator("#timeline-detail")
    page.locator("#timeline-canvas").focus()
    page.keyboard.press("n")
    assert detail.inner_text() == "host: ΔFT, gemm, toy/modeling_toy.py:41; begins at 0.00 µs, takes 30.00 µs"
    page.keyboard.press("n")
    page.keyboard.press("n")
    assert detail.inner_text().startswith("host: launch call, gemm")
    page.keyboard.press("l")
    # Entered at 40, returned at 45, L = 2.
    assert detail.inner_text().startswith(
        "stream 7: on stream 7, gemm, toy/modeling_toy.py:41; begins at 47.00 µs, takes 11"
    )
    page.keyboard.press("l")
    assert detail.inner_text().startswith("host: launch call, gemm")
    page.keyboard.press("Escape")
    assert detail.inner_text() == ""
    # The first bar of the host: the lane is 34 pixels high and begins 32 below the edge, names take 76.
    page.locator("#timeline-canvas").click(position={"x": 90, "y": 45})
    assert detail.inner_text().startswith("host: ΔFT, gemm")


def test_a_highlight_counts_what_it_found_and_each_variant_has_its_drawing(opened: Any) -> None:
    found = opened(html(full_review()))
    page = found.page
    page.locator("#timeline-filter").fill("COPY")
    # Of ten copies: ΔFT, ΔCT and launch call, 45 µs each time, and the work of 11.  In all twice that, and three bars
    # of the synchronisation: before it, blocked, its return.
    assert page.locator("#timeline-matches").inner_text() == "40 of 83 bars; host 450.00 µs, device 110.00 µs"
    page.locator("#timeline-filter").fill("modeling_toy.py:41")
    assert page.locator("#timeline-matches").inner_text().startswith("40 of 83 bars")
    page.locator("#timeline-variant").select_option(label="reduce-overhead")
    assert "reduce-overhead" in page.locator("#timeline-range").inner_text()
    assert "timeline of reduce-overhead" in page.locator("#timeline-canvas").get_attribute("aria-label")
    assert page.locator("#timeline-matches").inner_text().startswith("0 of 13 bars")


def test_source_unfolds_and_findings_open_from_their_links(opened: Any, tmp_path: Path) -> None:
    file = tmp_path / "modeling_toy.py"
    file.write_text("".join(f"line_{n} = '</script><b>{n}'\n" for n in range(1, 121)), encoding="utf-8")
    found = opened(html(on_real_lines(full_review(), file)))
    page = found.page
    assert page.get_by_text("line_41 = '</script><b>41'").is_visible()
    hidden = page.get_by_text("line_2 = '</script><b>2'")
    assert not hidden.is_visible()
    fold = page.locator("button[data-fold]").first
    assert fold.get_attribute("aria-expanded") == "false"
    fold.click()
    assert hidden.is_visible() and fold.get_attribute("aria-expanded") == "true"
    page.locator("#finding-table a").nth(1).click()
    assert page.locator("#finding-2 dl").is_visible()
    assert found.trouble == []


def test_dark_and_light_differ_and_can_be_switched(opened: Any) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = opened(html(full_review()), color_scheme="dark").page
    light = opened(html(full_review()), color_scheme="light").page
    before = light.evaluate(ground)
    assert dark.evaluate(ground) != before
    light.locator("#theme").click()
    assert light.evaluate(ground) == dark.evaluate(ground)
    light.locator("#theme").click()
    assert light.evaluate(ground) == before


def test_a_reader_without_eyes_finds_its_way(opened: Any) -> None:
    page = opened(html(full_review())).page
    assert page.locator("main, nav, header, footer").count() == 4
    for table in page.locator("table[data-sortable]").all():
        assert table.locator("caption").count() == 1
        assert table.locator("thead th").count() == table.locator("thead th[scope='col']").count()
    for control in page.locator("button, select, input, canvas, svg, [role='region']").all():
        assert control.evaluate(HAS_NAME)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map((head) => Number(head.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_without_scripts_everything_but_the_drawing_is_there(opened: Any) -> None:
    page = opened(html(full_review()), java_script_enabled=False).page
    assert page.locator("#variants-table tbody tr").count() == 6
    assert page.locator("#waterfall svg").is_visible()
    assert page.get_by_text("The drawing needs scripts").is_visible()
    assert not page.locator("#zoom-in").is_visible() and not page.locator("#theme").is_visible()


def test_the_notebooks_frame_shows_the_page_and_cannot_reach_out(opened: Any) -> None:
    review = full_review()
    outer = f"<!doctype html><html><head><title>notebook</title></head><body>{review._repr_html_()}</body></html>"
    found = opened(outer)
    frame = found.page.frames[1]
    frame.wait_for_selector("#timeline-range")
    assert frame.locator("#timeline-range").inner_text().startswith("eager: 0.00 µs")
    assert (
        frame.evaluate("(() => { try { return parent.document.title; } catch (e) { return e.name; } })()")
        == "SecurityError"
    )
