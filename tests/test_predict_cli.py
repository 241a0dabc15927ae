"""``taxbreak predict``: files, exit codes, one line per mistake, and one prediction from the model to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_predict import OPS, TARGETS, fake_step, op, plan, profile

from taxbreak_fx import dry_run, hardware, schema
from taxbreak_fx.cli import main
from taxbreak_fx.errors import CaptureError
from taxbreak_fx.family_types import FAMILIES, VENDOR_LIBRARIES
from taxbreak_fx.hardware import DeviceCosts, FamilyCost, FamilyGrid, LibraryCost, Profile

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "small.json"
    hardware.save(profile(), path)
    return str(path)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the absent GPU's step is, in place of the processes that find it out; an exception is raised."""
    answers: dict[str, Any] = {"step": fake_step(), "captured": fake_step(TARGETS[:2], OPS[:2]), "plan": plan()}

    def answer(name: str) -> Any:
        if isinstance(answers[name], Exception):
            raise answers[name]
        return answers[name]

    def record(*_: Any, capturing: bool = False) -> Any:
        return answer("captured" if capturing else "step")

    monkeypatch.setattr(dry_run, "record_apart", record)
    monkeypatch.setattr(dry_run, "dry_run", lambda *_: answer("plan"))
    return answers


def refused(capsys: Capture, code: int, *argv: str) -> str:
    assert main(["predict", *argv]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.strip().splitlines()) == 1
    return printed.err


def test_a_prediction_is_printed_and_written(
    capsys: Capture, tmp_path: Path, target: str, known: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    assert main(["predict", "three", "--target", target, "--out", str(out), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "eager (predicted)" in printed.out and printed.err == ""
    review = schema.load(out / "review.json")
    assert [(v.name, v.status) for v in review.variants] == [
        ("eager", "ok"), ("inductor", "ok"), ("reduce-overhead", "ok"), ("eager-graph", "ok"),
    ]  # fmt: skip
    assert review.variant("eager-graph").kernels == 2
    assert "predicted" in (out / "report.md").read_text() and "predicted" in (out / "report.html").read_text()


def test_json_and_chosen_variants(capsys: Capture, tmp_path: Path, target: str, known: dict[str, Any]) -> None:
    known["plan"] = AssertionError("nobody asked for the plan")
    chosen = ["--variants", "eager-graph,", "--json", "--out", str(tmp_path / "o")]
    assert main(["predict", "three", "--target", target, *chosen]) == 0
    printed = capsys.readouterr()
    review = schema.decode(printed.out.encode(), "stdout")
    assert [variant.name for variant in review.variants] == ["eager", "eager-graph"]
    assert "wrote" in printed.err


def test_the_host_score_scales(capsys: Capture, tmp_path: Path, target: str, known: dict[str, Any]) -> None:
    walls = []
    for more in ([], ["--host-score", "200"]):
        argv = ["predict", "three", "--target", target, "--variants", "eager", "--out", str(tmp_path / "o"), *more]
        assert main([*argv, "--json"]) == 0
        review = schema.decode(capsys.readouterr().out.encode(), "stdout")
        host = review.variant("eager").t_host_us
        assert host is not None
        walls.append(host.median)
    assert walls[1] == pytest.approx(2 * walls[0])
    assert any("host times × 2" in note for note in review.notes)


def test_eager_survives_a_plan_that_fails(capsys: Capture, tmp_path: Path, target: str, known: dict[str, Any]) -> None:
    known["plan"] = CaptureError("torch 9.9 is not covered")
    known["captured"] = CaptureError("needs data")
    assert main(["predict", "three", "--target", target, "--out", str(tmp_path / "o")]) == 0
    assert "inductor skipped: not planned: torch 9.9 is not covered" in capsys.readouterr().out
    review = schema.load(tmp_path / "o" / "review.json")
    assert review.variant("eager").status == "ok"
    assert review.variant("eager-graph").reason == "not captured: needs data"


def test_mistakes_have_their_codes(capsys: Capture, tmp_path: Path, target: str, known: dict[str, Any]) -> None:
    out = ("--out", str(tmp_path / "o"))
    assert "no hardware profile 'nope'" in refused(capsys, 2, "three", "--target", "nope", *out)
    assert "'dynamo' is not predicted" in refused(capsys, 2, "three", "--target", target, "--variants", "dynamo", *out)
    assert "--host-score" in refused(capsys, 2, "three", "--target", target, "--host-score", "0", *out)
    assert "--batch" in refused(capsys, 2, "three", "--target", target, "--batch", "0", *out)
    other = tmp_path / "other.json"
    other.write_text('{"profile_version": "9.0.0"}')
    assert "profile_version '9.0.0'" in refused(capsys, 6, "three", "--target", str(other), *out)
    known["step"] = fake_step(["torch.fft.rfft"], [op("aten._fft_r2c.default", 0)])
    assert "device time of fft" in refused(capsys, 6, "three", "--target", target, *out)
    known["step"] = CaptureError("aten.nonzero.default needs the data of a tensor")
    assert "needs the data" in refused(capsys, 4, "three", "--target", target, *out)


def full_profile() -> Profile:
    """One that covers any step."""
    names = [family for family in FAMILIES if family != "unknown"]
    return msgspec.structs.replace(
        profile(),
        families=tuple(FamilyCost(family=name, ft_us=5.0) for name in names),
        libraries=tuple(LibraryCost(library=name, family="gemm", ct_us=7.0) for name in sorted(VENDOR_LIBRARIES)),
        device=DeviceCosts(
            copy_gb_s=4_000.0,
            null_us=1.0,
            grids=tuple(FamilyGrid(family=name, dtype="bfloat16", efficiency=0.5) for name in names),
        ),
    )


def test_from_a_model_to_its_prediction(tmp_path: Path, capsys: Capture) -> None:
    """The whole way, on a tiny model: the step recorded, Inductor planned, both in processes of their own."""
    path = tmp_path / "full.json"
    hardware.save(full_profile(), path)
    chosen = ["--seq-len", "16", "--variants", "inductor", "--out", str(tmp_path / "o"), "--json"]
    assert main(["predict", "gpt2-tiny", "--target", str(path), *chosen]) == 0
    review = schema.decode(capsys.readouterr().out.encode(), "stdout")
    eager, inductor = review.variant("eager"), review.variant("inductor")
    assert eager.kernels == eager.launches and eager.kernels is not None and inductor.launches is not None
    assert 0 < inductor.launches < eager.kernels
    assert any((node.source.file if node.source else "").endswith("modeling_gpt2.py") for node in eager.nodes)
    assert [(c.base, c.variant) for c in review.comparisons] == [("eager", "inductor")]
