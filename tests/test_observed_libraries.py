"""The registry against what an H200's libraries themselves reported (tests/data/observed_h200.json).

The file holds every distinct call of ``taxbreak verify probes`` and what disagreed in the models beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taxbreak_fx import families
from taxbreak_fx.families import classify_kernel
from taxbreak_fx.family_inputs import parse_inputs
from taxbreak_fx.library_calls import COMPLETE, LibraryCall
from taxbreak_fx.verify import Seen, compare

FILE = Path(__file__).parent / "data" / "observed_h200.json"


@pytest.fixture(scope="module")
def observed() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return data


def runs(observed: dict[str, Any]) -> list[Seen]:
    kernels = observed["kernels"]
    return [
        Seen(
            step="",
            op=row["op"],
            inputs=row["inputs"],
            dtype=row["dtype"],
            calls=tuple(LibraryCall(*call) for call in row["calls"]),
            empty=False,
            kernels=tuple(kernels[number] for number in row["kernels"]),
        )
        for row in observed["ops"]
    ]


def test_the_evidence_says_where_it_is_from(observed: dict[str, Any]) -> None:
    assert {"device", "torch", "cuda", "cudnn"} <= set(observed["machine"]) and observed["date"] == "2026-11-23"
    assert set(observed["hears"]) == COMPLETE
    keys = [(row["op"], row["dtype"], row["inputs"]) for row in observed["ops"]]
    assert len(set(keys)) == len(keys) > 390
    assert {number for row in observed["ops"] for number in row["kernels"]} == set(range(len(observed["kernels"])))


def test_the_registry_agrees_with_every_observation(observed: dict[str, Any]) -> None:
    checks = compare(runs(observed), frozenset(observed["hears"]), set())
    assert len(checks) == len(observed["ops"])
    assert [(check.op, check.inputs, check.problem) for check in checks if check.problem] == []
    libraries = {library for check in checks for library in check.observed}
    assert libraries >= {
        *("cuBLAS", "cuBLASLt", "cuDNN", "cuFFT", "cuSOLVER", "cuSPARSE", "cuSPARSELt"),
        *("CUTLASS-in-ATen", "FlashAttention-in-ATen", "MAGMA"),
    }


def test_without_the_inputs_the_registry_would_disagree(observed: dict[str, Any]) -> None:
    """What op and dtype cannot tell is really told by the inputs: each such condition decides an observation."""
    blind = runs(observed)
    for run in blind:
        run.inputs = ""
    wrong = {check.op for check in compare(blind, frozenset(observed["hears"]), set()) if check.problem}
    assert wrong >= {"aten.addmm.default", "aten.convolution.default", "aten.mm.default", "aten.cholesky_solve.default"}


def test_every_observed_kernel_is_known(observed: dict[str, Any]) -> None:
    unknown = [name for name in observed["kernels"] if classify_kernel(name).family == "unknown"]
    assert unknown == []


def test_at_most_one_condition_holds_of_a_call(observed: dict[str, Any]) -> None:
    """Where two held, the order of the tables would decide."""
    for row in observed["ops"]:
        inputs = parse_inputs(row["inputs"])
        assert inputs is not None, row
        name = next(n for n in families._spellings(families._op_name(row["op"])) if (n, "cuda") in families._TABLE)
        rules = families._TABLE[name, "cuda"]
        assert sum(rule.when is not None and rule.when.holds(inputs) for rule in rules) <= 1, row
