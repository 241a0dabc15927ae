"""A repro script runs by itself, holds the review's values as data only, and is refused where it could not run."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sample_review import sample_review
from test_report import HOSTILE, hostile_review

from taxbreak_fx.errors import UsageError
from taxbreak_fx.model import Review
from taxbreak_fx.report.repro import repro
from taxbreak_fx.request import CUDA_VARIANTS, ReviewRequest
from taxbreak_fx.variant_record import Prediction

ROOT = Path(__file__).parent.parent
INJECTION = '\'"""\n}{0}{about}\\\nimport os; os.abort()  # '


def tiny(model: str = "llama-tiny", **step: Any) -> Review:
    """The sample as a review of a tiny model on the CPU."""
    sample = sample_review()
    fields = {"device": "cpu", "dtype": "float32", "seq_len": 12, "options": {"cache": "static", "weights": "random"}}
    return msgspec.structs.replace(sample, model=model, step=msgspec.structs.replace(sample.step, **(fields | step)))


def values(script: str) -> dict[str, Any]:
    """What the script assigns at its top, as Python reads it, and the arguments of its request."""
    found: dict[str, Any] = {}
    for node in ast.parse(script).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if isinstance(node.value, ast.Call):
                found |= {word.arg: ast.literal_eval(word.value) for word in node.value.keywords if word.arg}
            else:
                found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def test_the_script_runs(tmp_path: Path) -> None:
    name, path = "inductor", tmp_path / "repro.py"
    path.write_text(repro(tiny(), name), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "reviewed step: llama-tiny, decode, batch 1, sequence 12, float32" in done.stdout
    assert re.search(r"^eager: wall [\d.]+ us, host [\d.]+ us, medians of 30$", done.stdout, re.MULTILINE)
    assert re.search(rf"^{name}: wall [\d.]+ us, host [\d.]+ us, medians of 30$", done.stdout, re.MULTILINE)
    assert re.search(rf"^wall ratio, {name} / eager: [\d.]+", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", CUDA_VARIANTS)
def test_every_variant_has_a_script_that_is_python_and_makes_the_step_again(name: str) -> None:
    script = repro(tiny(device="cuda", batch=3), name)
    compile(script, "repro.py", "exec")
    found = values(script)
    assert (found["VARIANT"], found["DEVICE"]) == (name, "cuda")
    request = {field: found[field] for field in ReviewRequest.__struct_fields__ if field in found}
    assert ReviewRequest(**request) == ReviewRequest(
        model="llama-tiny", phase="decode", batch=3, seq_len=12, dtype="float32", cache="static", seed=0
    )
    assert ("cudagraph_mark_step_begin" in script) == (name in ("reduce-overhead", "cudagraphs"))


def test_options_of_the_step_come_back() -> None:
    options = {
        "weights": "pretrained",
        "attn_implementation": "sdpa",
        "experts_implementation": "eager",
        "cache": "dynamic",
    }
    found = values(repro(tiny("org/model", options=options), "eager"))
    assert (found["weights"], found["attn_implementation"], found["experts_implementation"], found["cache"]) == (
        True, "sdpa", "eager", "dynamic",
    )  # fmt: skip
    image = values(repro(tiny("vit-tiny", phase="prefill", seq_len=None, options={}), "eager"))
    assert "seq_len" not in image and "cache" not in image and image["phase"] == "prefill"
    factory = values(repro(tiny("dir/model.py:make", phase="forward", batch=None, seq_len=None, dtype="none"), "eager"))
    assert {"phase", "batch", "dtype"}.isdisjoint(factory) and factory["model"] == "dir/model.py:make"


@pytest.mark.parametrize("text", [HOSTILE, INJECTION])
def test_names_stay_data(text: str) -> None:
    review = tiny(text + ":make", dtype=text, options={"cache": text, "attn_implementation": text, text: text})
    machine = msgspec.structs.replace(review.machine, device=text, torch=text, transformers=text, date=text)
    script = repro(msgspec.structs.replace(review, machine=machine), "inductor")
    plain = repro(tiny(), "inductor")
    assert values(script)["model"] == text + ":make" and values(script)["REVIEWED"]["device"] == text

    def shape(code: str) -> list[str]:
        """Every statement and call but the values."""
        names = (ast.Constant, ast.keyword)
        return [type(node).__name__ for node in ast.walk(ast.parse(code)) if not isinstance(node, names)]

    assert shape(script) == shape(plain)


def test_what_cannot_be_made_again_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no variant 'inducter'; did you mean inductor"):
        repro(tiny(), "inducter")
    with pytest.raises(UsageError, match="was reviewed from Python"):
        repro(tiny("Block.forward", phase="forward", batch=None), "eager")
    with pytest.raises(UsageError, match="was reviewed from Python"):
        repro(msgspec.structs.replace(tiny(), scope="captured graphs"), "eager")
    made = Prediction(base="eager", changes=["graph"], base_error=0.0, wall_change=-0.5, orchestration_change=None)
    eager = msgspec.structs.replace(tiny().variants[0], name="eager + graph", origin="predicted", prediction=made)
    with pytest.raises(UsageError, match="ask for --variant 'eager'"):
        repro(msgspec.structs.replace(tiny(), variants=[eager], comparisons=[]), "eager + graph")
    with pytest.raises(UsageError, match="no variant that this taxbreak_fx can build"):
        repro(hostile_review(), hostile_review().variants[1].name)
