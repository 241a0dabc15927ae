"""SARIF, GitHub's annotations, Chrome traces and the commands that write them: valid, stable and inert."""

from __future__ import annotations

import collections
import itertools
import json
import re
import uuid
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from sample_findings import LIBRARY_FILE, full_review, on_real_lines, sample_findings, with_findings
from sample_review import AUTHOR_FILE, sample_review
from test_report import HOSTILE, cpu_review, hostile_review
from test_timeline import HOST_BOUND, graph, item, step

from taxbreak_fx.cli import main
from taxbreak_fx.errors import FormatError
from taxbreak_fx.finding import Finding
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.record import SourceLine, package_path
from taxbreak_fx.report.chrome_trace import chrome_trace
from taxbreak_fx.report.findings import saving
from taxbreak_fx.report.github import github
from taxbreak_fx.report.html import html
from taxbreak_fx.report.lanes import lanes
from taxbreak_fx.report.sarif import relative, sarif
from taxbreak_fx.schema import decode
from taxbreak_fx.timeline_store import stored

Capture = pytest.CaptureFixture[str]
ROOT = str(Path(AUTHOR_FILE).parent.parent)
# Where `make test` lays the schema that OASIS publishes; it is not ours to carry.
OFFICIAL = Path(__file__).parent.parent / "build/sarif/package/lib/schemas/sarif-2.1.0-rtm.5.json"


def log(review: Review, root: str | None = ROOT) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sarif(review, root))
    return found


def alone(**changes: Any) -> Review:
    """A review with one finding, the sample's first with ``changes``."""
    return msgspec.structs.replace(sample_review(), findings=[msgspec.structs.replace(sample_findings()[0], **changes)])


# --- SARIF ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [with_findings, sample_review, hostile_review])
def test_sarif_keeps_to_the_official_schema(make: Any) -> None:
    if not OFFICIAL.is_file():
        pytest.skip("no official schema of SARIF in build/sarif (`make test` fetches it where npm can)")
    schema = json.loads(OFFICIAL.read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema, format_checker=jsonschema.FormatChecker())
    assert [error.message for error in validator.iter_errors(log(make()))] == []
    broken = log(make())
    broken["runs"][0]["tool"]["driver"].pop("name")
    assert not validator.is_valid(broken)


@pytest.mark.parametrize("make", [with_findings, sample_review, hostile_review])
def test_sarif_has_the_shape_that_readers_need(make: Any) -> None:
    found = log(make())
    assert found["version"] == "2.1.0" and found["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = found["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(rules) == len(set(rules))
    assert re.fullmatch(r"\d+\.\d+\.\d+", run["tool"]["driver"]["semanticVersion"])
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note") and result["message"]["text"]
        (place,) = result["locations"]
        assert place["physicalLocation"]["region"]["startLine"] >= 1
        assert set(place["physicalLocation"]["artifactLocation"]) <= {"uri", "uriBaseId"}
        assert re.fullmatch(r"[A-Za-z0-9._~%/:-]+", place["physicalLocation"]["artifactLocation"]["uri"])


def test_a_finding_as_a_result() -> None:
    (run,) = log(with_findings())["runs"]
    first, second = run["results"]
    location = first["locations"][0]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "toy/modeling_toy.py", "uriBaseId": "SRCROOT"}, "region": {"startLine": 41},
    }  # fmt: skip
    assert location["logicalLocations"] == [{"fullyQualifiedName": "model.layers.*.attention", "kind": "module"}]
    assert first["partialFingerprints"] == {"taxbreak/v1": "a1b2c3"}
    assert first["properties"]["exposedMicroseconds"] == 405.0
    assert "4 calls of aten.item wait 0.3 ms for the device (measured)." in first["message"]["text"]
    library = second["locations"][0]["physicalLocation"]["artifactLocation"]
    assert library == {"uri": "transformers/models/toy/modeling_toy.py", "uriBaseId": "PACKAGES"}
    assert "in an installed package, not in your own code" in second["message"]["text"]
    # No line: GitHub would refuse a result without a location, so it is a notification.
    (note,) = run["invocations"][0]["toolExecutionNotifications"]
    assert note["associatedRule"] == {"id": "graph-skipped", "index": 2} and note["level"] == "note"


def test_fingerprints_survive_other_lines_and_times() -> None:
    before = log(alone())["runs"][0]["results"][0]
    moved = SourceLine(file=AUTHOR_FILE, line=412)
    after = log(alone(source=moved, exposed_us=1.0, share=None, evidence=["other"]))["runs"][0]["results"][0]
    assert before["partialFingerprints"] == after["partialFingerprints"] and before != after


@pytest.mark.parametrize(
    ("file", "root", "expected"),
    [
        ("/home/a/toy/x.py", "/home/a", {"uri": "toy/x.py", "uriBaseId": "SRCROOT"}),
        ("toy/x y#1.py", None, {"uri": "toy/x%20y%231.py", "uriBaseId": "SRCROOT"}),
        ("/other/x.py", "/home/a", {"uri": "file:///other/x.py"}),
        ("/home/abc/x.py", "/home/a", {"uri": "file:///home/abc/x.py"}),
        ("C:\\toy\\x.py", "/home/a", {"uri": "file:///C%3A/toy/x.py"}),
        (LIBRARY_FILE, "/usr", {"uri": "transformers/models/toy/modeling_toy.py", "uriBaseId": "PACKAGES"}),
    ],
)
def test_places_of_files(file: str, root: str | None, expected: dict[str, str]) -> None:
    review = alone(source=SourceLine(file=file, line=3))
    place = log(review, root)["runs"][0]["results"][0]["locations"][0]
    assert place["physicalLocation"]["artifactLocation"] == expected


def test_no_path_leads_out_of_the_root() -> None:
    assert relative("../../etc/x.py", "/home/a") is None
    assert relative("/home/a/../b/x.py", "/home/a") is None
    assert package_path("/x/site-packages") is None and package_path("/x/y.py") is None


def test_messages_name_a_file_of_a_package_from_its_folder_on() -> None:
    assert str(SourceLine(file=LIBRARY_FILE, line=3)) == "transformers/models/toy/modeling_toy.py:3"
    assert str(SourceLine(file="/home/a/toy/x.py", line=3)) == "/home/a/toy/x.py:3"


def test_a_message_holds_no_link_and_no_placeholder() -> None:
    text = log(alone(title="[click](https://example.org) {0} \\"))["runs"][0]["results"][0]["message"]["text"]
    assert text.startswith("\\[click\\](https://example.org) {{0}} \\\\ ")


# --- GitHub ---------------------------------------------------------------------------------------------------------


def test_annotations_by_hand() -> None:
    lines = github(with_findings(), ROOT).splitlines()
    assert lines[0] == (
        "::error file=toy/modeling_toy.py,line=41,title=taxbreak%3A Host sync in the step::Host sync in the step "
        "(eager: 0.405 ms exposed per step, 40.5 %25 of the wall time). Fix: Keep the value on the device: use "
        "torch.where. That saves ΔFT −0.300 ms, device +0.020 ms per step (predicted)."
    )
    assert lines[1].startswith("::warning title=taxbreak%3A A copy that no result needs::toy/modeling_toy.py:7: ")
    assert "in an installed package, not in your own code" in lines[1]
    assert lines[2].startswith("::notice title=taxbreak%3A CUDA graph skipped::CUDA graph skipped")
    assert github(sample_review()) == ""
    # A file elsewhere is named in the text: GitHub knows the files of the repository only.
    assert github(with_findings(), "/elsewhere").startswith("::error title=")


def test_one_finding_is_one_command_whatever_its_names_hold() -> None:
    evil = "x,line=1::stop\r\n::error::pwned %0A 100%"
    source = SourceLine(file=f"{evil}.py", line=0)
    text = github(alone(title=evil, fix=evil, variant=evil, source=source), ROOT)
    assert text.count("\n") == 1 and text.endswith("\n") and "\r" not in text
    head, _, message = text[2:].partition("::")
    properties = dict(part.split("=", 1) for part in head.removeprefix("error ").split(","))
    assert set(properties) == {"file", "line", "title"} and properties["line"] == "1"
    assert not set(",:\n") & set("".join(properties.values()))
    # As GitHub reads it back: what was there stays there.
    read = message.strip().replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")
    assert "pwned %0A 100%" in read
    assert github(hostile_review()).count("\n") == len(hostile_review().findings)


# --- what findings say ----------------------------------------------------------------------------------------------


def test_savings_keep_their_sign_and_origin() -> None:
    first: Finding = sample_findings()[0]
    assert saving(first) == "ΔFT −0.300 ms, device +0.020 ms per step (predicted)"
    assert saving(sample_findings()[1]) is None
    odd = msgspec.structs.replace(first, saving_us={"odd_us": 0.0, "ct": 0.1}, saving_origin=None)
    assert saving(odd) == "odd 0 ms, ΔCT >−0.001 ms per step"


def test_every_report_says_whose_line_it_is() -> None:
    review = with_findings()
    for text in (html(review), review.to_markdown(), sarif(review), github(review)):
        assert text.count("in an installed package, not in your own code") >= 1


# --- Chrome trace ---------------------------------------------------------------------------------------------------


def events(review: Review) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(chrome_trace(review))["traceEvents"]
    return found


def test_a_trace_by_hand() -> None:
    sample = sample_review()
    eager = msgspec.structs.replace(sample.variants[0], timeline=stored(HOST_BOUND))
    found = events(msgspec.structs.replace(sample, variants=[eager], comparisons=[]))
    slices = [(e["tid"], e["name"], e["ts"], e["dur"]) for e in found if e["ph"] == "X"]
    assert slices[:2] == [(1, "ΔFT", 0.0, 10.0), (1, "launch call", 10.0, 2.0)]
    assert [one for one in slices if one[0] == 2] == [(2, "gemm", 0.0, 36.0)]
    assert [one for one in slices if one[0] == 10] == [(10, "gemm", n, 3.0) for n in (16.0, 28.0, 40.0)]
    flows = [(e["ph"], e["tid"], e["ts"]) for e in found if e["ph"] in "sf"]
    assert flows[:2] == [("s", 1, 10.0), ("s", 1, 22.0)] and ("f", 10, 16.0) in flows


def test_one_process_per_variant_with_named_threads() -> None:
    found = events(full_review())
    names = {e["pid"]: e["args"]["name"] for e in found if e["name"] == "process_name"}
    assert names == {1: "eager", 2: "inductor", 3: "reduce-overhead", 4: "eager-graph"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in found if e["name"] == "thread_name"}
    assert threads[1, 1] == "host, by term" and threads[1, 10] == "device, stream 7"
    assert {(e["pid"], e["tid"]) for e in found if e["ph"] == "X"} == set(threads)


def test_each_launch_has_one_arrow_into_work_that_begins_there() -> None:
    found = events(full_review())
    starts, ends = ({e["id"]: e for e in found if e["ph"] == kind} for kind in "sf")
    assert set(starts) == set(ends) and len(starts) == sum(e["ph"] == "s" for e in found)
    works = {(e["pid"], e["tid"], e["ts"]) for e in found if e["ph"] == "X"}
    for name, end in ends.items():
        assert end["bp"] == "e" and end["ts"] >= starts[name]["ts"]
        assert (end["pid"], end["tid"], end["ts"]) in works
    # 20 kernels, 8 kernels, and a graph each.
    assert collections.Counter(e["pid"] for e in starts.values()) == {1: 20, 2: 8, 3: 1, 4: 1}


def test_one_term_has_one_name_and_colour_and_the_lanes_do_not_overlap() -> None:
    found = [e for e in events(full_review()) if e["ph"] == "X"]
    by_term = [e for e in found if e["tid"] == 1]
    assert len({(e["name"], e["cname"]) for e in by_term}) == len({e["name"] for e in by_term}) >= 4
    lanes_of = collections.defaultdict(list)
    for event in found:
        lanes_of[event["pid"], event["tid"]].append((event["ts"], event["dur"]))
    for spans in lanes_of.values():
        ordered = sorted(spans)
        assert all(b[0] >= round(a[0] + a[1], 3) for a, b in itertools.pairwise(ordered))


def test_nodes_that_overlap_in_a_graph_are_drawn_apart_with_their_whole_duration_beside() -> None:
    floors = msgspec.structs.replace(HOST_BOUND.floors, graph_gap_us=-0.5)
    sample = sample_review()
    timeline = step(item(10.0, 2.0, graph(4.0, 3.0, 2.0)), floors=floors)
    variant = msgspec.structs.replace(sample.variants[0], timeline=stored(timeline))
    found = events(msgspec.structs.replace(sample, variants=[variant], comparisons=[]))
    nodes = [(e["ts"], e["dur"], e["args"]["duration"]) for e in found if e.get("cat") == "device"]
    assert nodes == [(14.0, 2.5, "3.00 µs"), (16.5, 2.0, "2.00 µs")]


def test_perfetto_takes_only_numbers_for_flows() -> None:
    ids = [e["id"] for e in events(full_review()) if e["ph"] == "s"]
    assert all(isinstance(one, int) for one in ids) and len(set(ids)) == len(ids)


def test_a_trace_without_timelines_is_refused_with_the_reason(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(FormatError, match="host and device are one thread"):
        chrome_trace(cpu_review())
    cpu_review().save(tmp_path / "review.json")
    out = tmp_path / "trace.json"
    assert main(["report", str(tmp_path / "review.json"), "--format", "chrome-trace", "--out", str(out)]) == 6
    assert not out.exists() and "no timeline to draw" in capsys.readouterr().err


def test_hostile_names_in_a_trace_are_plain_text() -> None:
    text = chrome_trace(hostile_review())
    assert text.isascii() and "\x1b" not in text and "\\u202e" not in text.replace("\\\\u202e", "")


# --- the command ----------------------------------------------------------------------------------------------------

FORMATS = ("html", "markdown", "sarif", "github", "chrome-trace")


@pytest.mark.parametrize("format", FORMATS)
def test_report_writes_what_it_prints(format: str, tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    full_review().save("review.json")
    assert main(["report", "review.json", "--format", format]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and len(printed.out) > 200
    assert main(["report", "review.json", "--format", format, "--out", "deep/er/report"]) == 0
    assert Path("deep/er/report").read_text(encoding="utf-8") == printed.out
    assert capsys.readouterr().err == "taxbreak: wrote deep/er/report\n"


def test_paths_are_relative_to_where_the_report_is_made(tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    on_real_lines(with_findings(), tmp_path / "pkg" / "model.py").save("review.json")
    assert main(["report", "review.json", "--format", "github"]) == 0
    assert capsys.readouterr().out.startswith("::error file=pkg/model.py,line=41,")


def test_no_source_leaves_the_text_out(tmp_path: Path, capsys: Capture) -> None:
    secret = f"secret_{uuid.uuid4().hex}"
    (tmp_path / "model.py").write_text(f"{secret} = 1\n" * 60)
    on_real_lines(with_findings(), tmp_path / "model.py").save(tmp_path / "review.json")
    assert main(["report", str(tmp_path / "review.json")]) == 0
    assert secret in capsys.readouterr().out
    assert main(["report", str(tmp_path / "review.json"), "--no-source"]) == 0
    assert secret not in capsys.readouterr().out


BAD: dict[str, tuple[list[str], int, str]] = {
    "missing": (["report", "absent.json"], 6, "absent.json: cannot be read"),
    "format": (["report", "review.json", "--format", "pdf"], 2, "'pdf'"),
    "source": (["report", "review.json", "--format", "sarif", "--no-source"], 2, "--no-source is for --format html"),
    "folder": (["report", "review.json", "--out", "folder"], 7, "name a file in it, folder/report.html"),
    "file as folder": (["report", "review.json", "--out", "review.json/x"], 7, "cannot be written"),
    "newer": (["report", "newer.json"], 6, "upgrade taxbreak_fx"),
    "damaged": (["report", "damaged.json"], 6, "damaged.json"),
    "variant": (["repro", "review.json", "--variant", "inducter"], 2, "did you mean inductor"),
    "model": (["repro", "review.json", "--variant", "inductor"], 2, "no model 'toy' here"),
    "no variant": (["repro", "review.json"], 2, "--variant"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: Capture, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    full_review().save("review.json")
    text = Path("review.json").read_text(encoding="utf-8")
    Path("newer.json").write_text(text.replace('"schema_version": "2.', '"schema_version": "9.'), encoding="utf-8")
    Path("damaged.json").write_text(text[: len(text) // 2], encoding="utf-8")
    Path("folder").mkdir()
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err


def test_reports_of_a_review_without_anything(tmp_path: Path) -> None:
    empty = msgspec.structs.replace(
        sample_review(), variants=[Variant.unavailable("eager", "failed", HOSTILE)], comparisons=[], graphs=[]
    )
    for text in (html(empty), empty.to_markdown(), sarif(empty)):
        assert "\x1b" not in text
    assert json.loads(sarif(empty))["runs"][0]["results"] == []
    assert lanes(HOST_BOUND).run.wall_us == 51.0


@pytest.mark.parametrize("command", [("show",), ("report", "--format", "markdown")])
def test_a_review_from_before_findings_shows_those_of_today(
    command: tuple[str, ...], tmp_path: Path, capsys: Capture
) -> None:
    committed = Review.load(Path(__file__).parent.parent / "benchmarks" / "results" / "spine-bert.json")
    kept, path = msgspec.structs.replace(committed, schema_version="2.0.0", findings=[]), tmp_path / "old.json"
    kept.save(path)
    assert main([command[0], str(path), *command[1:]]) == 0
    shown = capsys.readouterr().out
    assert "Attention falls back" in shown and "findings are of today's rules: a review of schema 2.0.0" in shown
    assert main(["show", str(path), "--format", "json"]) == 0
    assert decode(capsys.readouterr().out.encode(), "stdout") == kept
