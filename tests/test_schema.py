"""review.json: what is written is read back, and what cannot be read is refused in one line that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from sample_review import sample_review

from taxbreak_fx import schema
from taxbreak_fx.errors import FormatError, OutputError
from taxbreak_fx.machine import DevicePath, LaunchPath
from taxbreak_fx.model import SCHEMA_VERSION, Review

DOCS = Path(__file__).parent.parent / "docs"


def as_dict() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(schema.encode(sample_review()))
    return content


def refused(content: Any) -> str:
    """The one line by which ``content`` is refused."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(FormatError) as caught:
        schema.decode(data, "x.json")
    line = str(caught.value)
    assert line.startswith("x.json: ")
    assert "\n" not in line
    return line


def test_round_trip_keeps_every_value_and_byte() -> None:
    review = sample_review()
    data = schema.encode(review)
    assert schema.decode(data, "x") == review
    assert schema.encode(schema.decode(data, "x")) == data
    assert data.startswith(b'{\n  "schema_version": "') and data.endswith(b"}\n")


def test_file_keeps_the_sign_of_a_small_negative() -> None:
    # eager-graph: 28 - 0 - 30 = -2 µs.
    assert as_dict()["variants"][5]["breakdown"]["ft_us"] == -2.0


def test_save_and_load_through_the_review(tmp_path: Path) -> None:
    path = tmp_path / "review.json"
    path.write_text("old")
    sample_review().save(path)
    assert Review.load(path) == sample_review()
    assert [entry.name for entry in tmp_path.iterdir()] == ["review.json"]  # no temporary file is left


def test_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for place in (file / "review.json", tmp_path / "absent" / "review.json"):
        with pytest.raises(OutputError, match=r"review\.json: cannot be written \(.+\); choose another place"):
            schema.save(sample_review(), place)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):  # os.replace fails after the temporary file was written
        schema.save(sample_review(), tmp_path / "folder")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_unreadable_file_is_a_format_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        schema.load(tmp_path / "absent.json")
    with pytest.raises(FormatError, match="cannot be read"):
        schema.load(tmp_path)


@pytest.mark.parametrize(("version", "mend"), [("3.0.0", "upgrade taxbreak_fx"), ("0.9.1", "review the model again")])
def test_another_major_version_is_refused_naming_both(version: str, mend: str) -> None:
    line = refused(as_dict() | {"schema_version": version})
    assert version in line and SCHEMA_VERSION in line and mend in line


def test_version_is_checked_before_the_content() -> None:
    line = refused({"schema_version": "3.0.0", "variants": 3})
    assert "3.0.0" in line and "variants" not in line


def test_newer_minor_and_unknown_fields_are_read() -> None:
    content = as_dict() | {"schema_version": "2.9.0", "added_later": {"a": [1]}}
    content["variants"][0]["added_later"] = 1
    read = schema.decode(json.dumps(content).encode(), "x")
    assert read.variants == sample_review().variants
    assert read.schema_version == "2.9.0"


def version_one() -> dict[str, Any]:
    """The sample as version 1 would have written it: without what version 2 measures besides."""
    content = as_dict() | {"schema_version": "1.0.0"}
    for name in ("launch_path", "launch_source", "device_path"):
        del content["machine"]["calibration"][name]
    for comparison in content["comparisons"]:
        del comparison["ratio_confidence"]
    for variant in content["variants"]:
        del variant["exposed"]
        for row in variant["replay"]:
            del row["leaf_us"]
            row["unmeasured"].pop("leaf_us", None)
        if variant["breakdown"] is not None:
            del variant["breakdown"]["hdbi_untraced"], variant["breakdown"]["ct_families"]
            variant["breakdown"]["unmeasured"].pop("hdbi_untraced", None)
    return content


def test_version_one_is_read_and_what_it_did_not_measure_says_so(tmp_path: Path) -> None:
    read = schema.decode(json.dumps(version_one()).encode(), "x")
    assert read.schema_version == SCHEMA_VERSION
    path = read.machine.calibration.launch_path
    assert path == LaunchPath.unavailable(schema.OLDER)
    expected = sample_review()
    for before, after in zip(expected.variants, read.variants, strict=True):
        assert (after.t_wall_us, after.nodes, after.unmeasured) == (before.t_wall_us, before.nodes, before.unmeasured)
        old, new = before.breakdown, after.breakdown
        assert (old is None) == (new is None)
        if old is not None and new is not None:
            assert (new.hdbi, new.hdbi_untraced, new.ct_families) == (old.hdbi, None, [])
            assert new.unmeasured == old.unmeasured | {"hdbi_untraced": schema.OLDER}
    assert read.comparisons == [msgspec.structs.replace(c, ratio_confidence=0.95) for c in expected.comparisons]
    assert {c.ratio_confidence for c in expected.comparisons} == {0.999}
    file = tmp_path / "r.json"
    read.save(file)
    assert json.loads(file.read_text())["schema_version"] == SCHEMA_VERSION
    assert Review.load(file) == read


def test_version_two_without_exposed_costs_is_read_as_it_is(tmp_path: Path) -> None:
    content = as_dict() | {"schema_version": "2.0.0"}
    content["machine"]["calibration"].pop("device_path")
    for variant in content["variants"]:
        variant.pop("exposed")
    read = schema.decode(json.dumps(content).encode(), "x")
    assert read.machine.calibration.device_path == DevicePath.unavailable("not measured")
    assert read.variants == [msgspec.structs.replace(v, exposed=None) for v in sample_review().variants]
    file = tmp_path / "r.json"
    read.save(file)
    assert Review.load(file) == read


def test_a_waterfall_that_does_not_sum_is_refused() -> None:
    content = as_dict()
    content["variants"][0]["exposed"]["waterfall"]["ft"] = 561.0  # 561 + 180 + 90 + 8 + 152 = 991, not 990
    assert "waterfall: parts sum to 991" in refused(content)


def test_upgrading_leaves_what_it_is_given_as_it_was_and_changes_nothing_twice() -> None:
    content = version_one()
    upgraded = schema.upgrade(content)
    assert content == version_one()
    assert schema.upgrade(upgraded) == upgraded


def test_a_version_one_review_that_was_edited_is_refused_with_the_path() -> None:
    content = version_one()
    content["variants"][2]["launches"] = "eight"
    assert "$.variants[2].launches" in refused(content)
    assert "t_host_us is null without a reason" in refused(
        version_one() | {"variants": [version_one()["variants"][0] | {"t_host_us": None}]}
    )
    for value in (3, [3], {"breakdown": 3}, None):
        assert "$.variants" in refused(version_one() | {"variants": value})
    assert "$.machine" in refused(version_one() | {"machine": {"calibration": {"unmeasured": 3}}})


REVIEWS = sorted((DOCS.parent / "benchmarks" / "results").glob("spine-*.json"))


@pytest.mark.parametrize("path", REVIEWS, ids=lambda path: path.stem)
def test_every_committed_review_is_read(path: Path) -> None:
    review = Review.load(path)
    assert review.variant("eager").nodes and review.schema_version.split(".")[0] == SCHEMA_VERSION.split(".")[0]


def test_there_are_committed_reviews() -> None:
    assert REVIEWS


@pytest.mark.parametrize("version", ["", "x", "²", "1x"])
def test_a_version_that_is_none_is_refused(version: str) -> None:
    assert "is not a version" in refused(as_dict() | {"schema_version": version})


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": "\xff"}', b"{} trailing", b'{"a": ' + b"[" * 100_000],
)
def test_malformed_json_is_refused(data: bytes) -> None:
    refused(data)


def test_wrong_type_names_the_path_of_the_field() -> None:
    content = as_dict()
    content["variants"][2]["launches"] = "eight"
    assert "$.variants[2].launches" in refused(content)


def test_missing_field_is_named() -> None:
    content = as_dict()
    del content["machine"]["torch"]
    line = refused(content)
    assert "`torch`" in line and "$.machine" in line


def test_broken_invariant_is_refused_with_its_path() -> None:
    content = as_dict()
    content["variants"][0]["breakdown"]["ft_parts"]["python"] = 351.0  # 351 + 270 - 20 = 601, not 600
    line = refused(content)
    assert "ft_parts: parts sum to 601" in line and "$.variants[0].breakdown" in line


def test_null_without_reason_is_refused() -> None:
    content = as_dict()
    content["variants"][2]["t_host_us"] = None
    assert "t_host_us is null without a reason" in refused(content)


def test_hostile_text_stays_on_one_line() -> None:
    content = as_dict()
    content["variants"][1]["name"] = "a\nb\nc"
    content["variants"][1]["reason"] = None
    refused(content)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_not_written_as_null(value: float) -> None:
    review = sample_review()
    broken = msgspec.structs.replace(review.variants[0], launch_us=value)
    with pytest.raises(FormatError, match=r"\$\.variants\[0\]\.launch_us is not finite"):
        schema.encode(msgspec.structs.replace(review, variants=[broken]))


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(FormatError, match=r"\$\.variants\[0\]"):
        schema.encode(msgspec.structs.replace(sample_review(), variants=["eager"]))


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(FormatError, match="not valid Unicode"):
        schema.encode(msgspec.structs.replace(sample_review(), model="\udc80"))


def test_json_schema_accepts_the_sample_and_refuses_damage() -> None:
    validator = jsonschema.Draft202012Validator(schema.json_schema())
    validator.check_schema(schema.json_schema())
    validator.validate(as_dict())
    for damage in ({"schema_version": 1}, {"origin": "guessed"}, {"variants": None}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(as_dict() | damage)


def test_json_schema_is_titled_and_versioned() -> None:
    content = schema.json_schema()
    assert content["$id"].endswith(SCHEMA_VERSION)
    assert content["version"] == SCHEMA_VERSION
    assert content["title"]


def test_published_schema_is_the_generated_one() -> None:
    published = (DOCS / "review.schema.json").read_text(encoding="utf-8")
    assert published == schema.json_schema_text(), "regenerate it: taxbreak schema > docs/review.schema.json"
