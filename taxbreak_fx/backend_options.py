"""The options of ``torch.compile(backend="taxbreak")``: what they are, their defaults, how they are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from taxbreak_fx.errors import UsageError
from taxbreak_fx.record import Record
from taxbreak_fx.request import CUDA_VARIANTS, closest

# The captured graph is the backend's base: "eager" would be the author's Python, which only ``taxbreak review`` runs.
CUDA_GRAPH_VARIANTS = ("dynamo", "inductor", "reduce-overhead", "cudagraphs")
CPU_GRAPH_VARIANTS = ("dynamo", "inductor")
NEEDS_PYTHON = "the backend never re-runs the program's own Python; `taxbreak review` measures this variant"
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_RUNS = ("eager", "best", *CUDA_GRAPH_VARIANTS)


class BackendOptions(Record, frozen=True, kw_only=True):
    """``options=`` of ``torch.compile``.

    ``variants``: what to measure; empty means all that the device supports.  ``run``: what calls use afterwards;
    "eager" is the graph as captured, "best" the fastest whose outputs are not known to differ.  ``out``: a folder for
    the journal and ``review.json``.  ``budget_s``: seconds of measuring in all.  ``mode``: Inductor's.  ``quiet``: no
    table.  ``name``: shown as the model's name.  ``timeout_s``: how long a rank waits for the others.
    """

    variants: tuple[str, ...] = ()
    run: str = "best"
    out: str | None = None
    budget_s: float = 60.0
    mode: str = "default"
    quiet: bool = False
    name: str | None = None
    timeout_s: float = 30.0

    def measured(self, device: str) -> tuple[str, ...]:
        """The variants to measure on ``device``, the captured graph first."""
        supported = CUDA_GRAPH_VARIANTS if device == "cuda" else CPU_GRAPH_VARIANTS
        wanted = [name for name in (self.variants or supported) if name in supported]
        return tuple(dict.fromkeys(["dynamo", *wanted]))

    def skipped(self, device: str) -> dict[str, str]:
        """The variants that were asked for and cannot be measured here, with the reason."""
        reasons = {}
        for name in self.variants:
            if name in ("eager", "eager-graph"):
                reasons[name] = NEEDS_PYTHON
            elif name not in self.measured(device):
                reasons[name] = "needs a CUDA device"
        return reasons


KNOWN = tuple(field.name for field in msgspec.structs.fields(BackendOptions))


def parse(options: Mapping[str, Any] | None, mode: str | None) -> BackendOptions:
    """The options as ``torch.compile`` passes them, checked.  Raises ``UsageError`` in the words Inductor uses."""
    given: dict[str, Any] = {}
    for key, value in (options or {}).items():
        name = str(key).replace("-", "_")
        if name not in KNOWN:
            raise UsageError(f"Unexpected optimization option {key}, known options are {list(KNOWN)}")
        given[name] = value
    if mode is not None:
        given["mode"] = mode
    if isinstance(given.get("variants"), str):
        given["variants"] = [name.strip() for name in given["variants"].split(",") if name.strip()]
    for key, value in given.items():
        default = getattr(BackendOptions(), key)
        expected: tuple[type, ...] = (type(default),)
        if key in ("out", "name"):
            expected = (str, type(None))
        elif key == "variants":
            expected = (list, tuple)
        elif key.endswith("_s"):
            expected = (int, float)
        if key == "out" and hasattr(value, "__fspath__"):
            given[key] = value.__fspath__()
        elif not isinstance(value, expected) or (key.endswith("_s") and isinstance(value, bool)):
            kinds = " or ".join(kind.__name__ for kind in expected if kind is not type(None))
            raise UsageError(f"Unexpected type of attr {key}, got {type(value).__name__} should be {kinds}")
    _check(given)
    given["variants"] = tuple(given.get("variants", ()))
    return BackendOptions(**given)


def _check(given: dict[str, Any]) -> None:
    if given.get("mode", "default") not in MODES:
        raise UsageError(f"Unrecognized mode={given['mode']}, should be one of: {', '.join(MODES)}")
    if given.get("run", "best") not in _RUNS:
        raise UsageError(f"Unexpected value of attr run, got {given['run']!r} should be one of {list(_RUNS)}")
    for name in given.get("variants", ()):
        if name not in CUDA_VARIANTS:
            raise UsageError(f"Unexpected value of attr variants: unknown {name!r}{closest(str(name), CUDA_VARIANTS)}")
    for key in ("budget_s", "timeout_s"):
        if key in given and not (math.isfinite(given[key]) and given[key] > 0):
            raise UsageError(f"Unexpected value of attr {key}, got {given[key]} should be a positive number of seconds")
