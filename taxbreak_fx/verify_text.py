"""A ``Verification`` as text: every op, every family, what disagrees in full, and the control."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from tabulate import tabulate

from taxbreak_fx.family_types import VENDOR_LIBRARIES
from taxbreak_fx.verify import OpCheck, Verification

_SHOWN_FUNCTIONS = 4


def verification_text(found: Verification) -> str:
    """The whole report of ``taxbreak verify``, ending in a newline."""
    steps = dict.fromkeys(check.step for check in found.checks)
    parts = [_ops_table(found, several=len(steps) > 1), _family_table(found.checks)]
    parts += [mismatch_text(check) for check in found.mismatches]
    if found.skipped:
        parts.append("\n".join(f"skipped {name}: {why}" for name, why in found.skipped.items()))
    control = found.control
    verdict = "found a mismatch, as it must be" if control.found else "NOT found a mismatch"
    parts.append(f"control: {control.op} ({control.library}) labelled {control.mislabelled}: {verdict}")
    disagree = sum(check.runs for check in found.mismatches)
    parts.append(f"{found.model}: {found.ops} ops, {found.calls} library calls heard, {disagree} mismatches")
    return "\n\n".join(parts) + "\n"


def verification_json(found: Verification) -> str:
    """The record with its counts, as indented JSON."""
    counts = {"ops": found.ops, "calls": found.calls, "mismatches": sum(check.runs for check in found.mismatches)}
    return msgspec.json.format(msgspec.json.encode(counts | msgspec.to_builtins(found))).decode() + "\n"


def mismatch_text(check: OpCheck) -> str:
    """One disagreement in full, so that the registry can be mended from it."""
    heard = _functions(check.functions, len(check.functions)) or "nothing"
    lines = [
        f"MISMATCH {check.op}({check.inputs}) in {check.step}",
        f"  {check.problem}",
        f"  rule {check.predicted.code}: {check.predicted.reason}",
        f"  dtype {check.dtype}, {check.runs} runs; heard: {heard}",
        f"  kernels: {'; '.join(dict.fromkeys(check.kernels)) or 'none'}",
    ]
    return "\n".join(lines)


def _functions(names: Iterable[str], limit: int) -> str:
    counted = collections.Counter(names)
    shown = [f"{name} x{count}" if count > 1 else name for name, count in list(counted.items())[:limit]]
    return ", ".join(shown) + (", …" if len(counted) > limit else "")


def _ops_table(found: Verification, several: bool) -> str:
    """One row per op, dtype, prediction and observation; runs with other shapes fall together."""

    def key(check: OpCheck) -> tuple[Any, ...]:
        return (
            *((check.step,) if several else ()),
            check.op,
            check.dtype or "",
            check.predicted.family,
            check.predicted.library,
            ", ".join(check.observed) or "none",
            check.evidence,
            "MISMATCH" if check.problem else "ok",
        )

    rows = [
        [*values, sum(c.runs for c in checks), sum(c.calls for c in checks),
         _functions((name for c in checks for name in c.functions for _ in range(c.runs)), _SHOWN_FUNCTIONS)]
        for values, checks in _grouped(found.checks, key).items()
    ]  # fmt: skip
    header = ["op", "dtype", "family", "predicted", "observed", "evidence", "verdict", "runs", "calls", "functions"]
    return tabulate(rows, headers=["step", *header] if several else header, disable_numparse=True)


def _family_table(checks: Iterable[OpCheck]) -> str:
    rows = [
        [
            family,
            sum(check.runs for check in group),
            sum(check.runs for check in group if check.predicted.i_lib),
            sum(check.runs for check in group if VENDOR_LIBRARIES.intersection(check.observed)),
            sum(check.calls for check in group),
            sum(check.runs for check in group if check.problem),
        ]
        for family, group in _grouped(checks, lambda check: check.predicted.family).items()
    ]
    header = ["family", "ops", "I_lib=1 predicted", "observed", "calls", "mismatches"]
    return tabulate(sorted(rows), headers=header, disable_numparse=True)


def _grouped(checks: Iterable[OpCheck], key: Callable[[OpCheck], Any]) -> dict[Any, list[OpCheck]]:
    groups: dict[Any, list[OpCheck]] = {}
    for check in checks:
        groups.setdefault(key(check), []).append(check)
    return groups
