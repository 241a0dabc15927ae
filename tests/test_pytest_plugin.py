"""``assert_review``: limits on a review, and pytest finding it by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
import torch
from sample_review import interval, sample_review

from taxbreak_fx import schema
from taxbreak_fx.errors import UsageError
from taxbreak_fx.pytest_plugin import assert_review

ROOT = Path(__file__).parent.parent
replace = msgspec.structs.replace


def test_limits_that_hold_return_the_review(tmp_path: Path) -> None:
    # The sample: inductor makes 8 launches in 500 [495 510] µs; two graphs, one of them broken off.
    review = sample_review()
    path = tmp_path / "review.json"
    schema.save(review, path)
    assert assert_review(review, launches="<=8", graphs=2) == review
    assert assert_review(path, variant="eager", launches=20, limits={"exposed.ft_us": "<=560us"}) == review
    assert assert_review(str(path), t_wall_us="<=500us") == review  # 495 … 510 may be within


def test_what_is_beyond_its_limit_is_named_with_its_lines() -> None:
    with pytest.raises(AssertionError) as error:
        assert_review(sample_review(), variant="eager", launches="<=19", graph_breaks=0, kernels=20)
    lines = str(error.value).splitlines()
    assert lines[:3] == ["toy, eager:", "launches: wanted <=19, got 20", "graph_breaks: wanted ==0, got 1"]
    assert "data-dependent branch" in lines[3] and lines[3].endswith("modeling_toy.py:60)")
    assert "12 launches: aten.linear.default" in lines[4] and lines[4].endswith("modeling_toy.py:41)")


def test_a_time_fails_only_with_its_whole_interval() -> None:
    review = sample_review()
    later = [
        replace(v, t_wall_us=interval(505, 501, 510)) if v.name == "inductor" else v for v in review.variants
    ]  # fmt: skip
    with pytest.raises(AssertionError, match=r"wanted <=500us, got 501 … 510"):
        assert_review(replace(review, variants=later), t_wall_us="<=500us")


def test_what_was_not_measured_fails_with_its_reason() -> None:
    with pytest.raises(AssertionError, match="ft_us: wanted <=1us, but it is not known: the drained pass"):
        assert_review(sample_review(), variant="reduce-overhead", ft_us="<=1us")
    with pytest.raises(AssertionError, match="cudagraphs failed: CUDA out of memory"):
        assert_review(sample_review(), variant="cudagraphs", launches=1)
    with pytest.raises(AssertionError, match="no variant of the review was captured"):
        assert_review(replace(sample_review(), graphs=[]), graph_breaks=0)
    with pytest.raises(AssertionError, match=r"schema 2\.1\.0 keeps no findings"):
        assert_review(replace(sample_review(), schema_version="2.1.0"), findings=0)


def test_mistakes_are_refused() -> None:
    for arguments, problem in (
        ({}, "checks nothing"),
        ({"launchs": 3}, "did you mean launches"),
        ({"launches": "many"}, "expected <="),
        ({"launches": 3, "variant": "nope"}, "no variant 'nope'; the review has eager"),
        ({"limits": {"findings.new": 0}}, "of a single review"),
    ):
        with pytest.raises(UsageError, match=problem):
            assert_review(sample_review(), **arguments)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no further arguments"):
        assert_review(sample_review(), torch.zeros(1), launches=1)


def test_a_callable_is_reviewed_here() -> None:
    # relu(x @ x) is two ops; the CPU device has no launches to count, and says so.
    def step(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ x)

    review = assert_review(step, torch.ones(4, 4), variant="dynamo", ops=2, graphs=1, graph_breaks=0)
    assert [variant.name for variant in review.variants] == ["eager", "dynamo"]
    with pytest.raises(AssertionError, match="launches: wanted <=2, but it is not known"):
        assert_review(review, variant="eager", launches="<=2")


def test_pytest_loads_it_without_torch(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it(assert_review):\n"
        "    loaded = [name for name in ('torch', 'numpy', 'taxbreak_fx.model') if name in sys.modules]\n"
        "    assert not loaded and callable(assert_review)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "taxbreak_fx.pytest_plugin", "-p", "no:cacheprovider"]
    # Without the entry point of an installed copy: the same module must not be registered under two names.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_entry_point_names_the_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"taxbreak": "taxbreak_fx.pytest_plugin"}
