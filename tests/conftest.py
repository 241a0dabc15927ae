"""No test may leave the process changed; tests marked ``gpu`` are skipped where there is no CUDA device."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

# Set by pytest, by torch itself when Inductor first asks for its cache or loads C++ code, or (KMP_*) by scikit-learn,
# which transformers imports where it is installed.
OWN_VARIABLES = {
    "PYTEST_CURRENT_TEST",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "TRITON_PTXAS_PATH",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def own_turns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Under pytest-xdist, reviews of one worker do not wait for the turn of another's: tests have times to keep."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", cache_dir())  # this stays where it is, for all workers
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)
        yield


def global_state() -> dict[str, Any]:
    """Environment variables, and torch's global settings as far as torch is loaded, under readable names."""
    state: dict[str, Any] = {f"os.environ[{key}]": value for key, value in os.environ.items()}
    for key in OWN_VARIABLES:
        state.pop(f"os.environ[{key}]", None)
    torch = sys.modules.get("torch")
    if torch is not None:
        state |= {
            "torch default dtype": torch.get_default_dtype(),
            "torch default device": torch.get_default_device(),
            "torch grad mode": torch.is_grad_enabled(),
            "torch inference mode": torch.is_inference_mode_enabled(),
            "torch num_threads": torch.get_num_threads(),
            "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "torch float32 matmul precision": torch.get_float32_matmul_precision(),
        }
    for name in ("torch._dynamo.config", "torch._inductor.config"):
        if name in sys.modules:
            state |= {f"{name}.{key}": value for key, value in sys.modules[name].get_config_copy().items()}
    return state


def leaks(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What changed, one line each.  Settings of a module that was first imported in between are not changes."""
    changed = [f"{key}: {before[key]!r} -> {after.get(key)!r}" for key in before if before[key] != after.get(key)]
    added = [key for key in after if key.startswith("os.environ") and key not in before]
    return changed + [f"{key}: unset -> {after[key]!r}" for key in added]


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    # Autouse fixtures are set up first and torn down last: what a test's monkeypatch changed is back when we look.
    before = global_state()
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
    found = leaks(before, global_state())
    assert not found, "the test leaked global state: " + "; ".join(found)
