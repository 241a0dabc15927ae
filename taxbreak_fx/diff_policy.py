"""Which reviews can be set against each other, and what must be allowed by an option before they are.  Pure."""

from __future__ import annotations

import re

from taxbreak_fx.errors import UsageError
from taxbreak_fx.model import Review

_LOCAL = re.compile(r"^[./~]|\.py:|\\")  # a path, where hub names and names of ours have at most one slash inside


def check(base: Review, head: Review, *, allow_versions: bool = False, force: bool = False) -> list[str]:
    """What differs and was allowed, one line each; nothing where the two are alike.

    Raises ``UsageError`` for another model, step, device, scope or origin unless ``force``, and for other versions of
    what decides which kernels run unless ``allow_versions`` or ``force``.
    """
    subjects = _differences(_subject(base), _subject(head))
    if subjects and not force:
        raise UsageError(f"{', '.join(subjects)}: not the same step; compare reviews of one step, or add --force")
    versions = _differences(_versions(base), _versions(head))
    if versions and not (allow_versions or force):
        raise UsageError(
            f"{', '.join(versions)}: what runs depends on it, whatever the model does; review the base again with the "
            "head's versions, or add --allow-versions"
        )
    return subjects + versions


def _subject(review: Review) -> dict[str, str]:
    """What was reviewed and on which device; another of these, and a difference says nothing of an edit."""
    step = review.step
    options = {f"option {name}": value for name, value in sorted(step.options.items())}
    # A review of which only some variants were predicted rests on measurements all the same.
    predicted = review.origin == "predicted" and all(v.origin == "predicted" for v in review.variants)
    return {
        "model": _model(review.model),
        "phase": step.phase,
        "batch": str(step.batch),
        "sequence": str(step.seq_len),
        "dtype": step.dtype,
        **options,
        "device": review.machine.device if step.device != "cpu" else "cpu",
        "scope": review.scope,
        "origin": "predicted" if predicted else "ingested" if review.origin == "ingested" else "measured",
    }


def _model(name: str) -> str:
    """A local model by its last part: base and head are checked out in different folders."""
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if _LOCAL.search(name) else name


def versions(review: Review) -> dict[str, str]:
    """Versions of what decided which ops and kernels run: of the machine, or of what recorded a prediction."""
    machine = review.machine
    of_machine = {"torch": machine.torch, "transformers": str(machine.transformers), "triton": str(machine.triton)}
    return of_machine | review.recorded_with


def _versions(review: Review) -> dict[str, str]:
    machine = review.machine
    return {
        **versions(review),
        "Python": ".".join(machine.python.split(".")[:2]),
        "taxbreak_fx": review.tool_version,
        # The same number may have been measured otherwise by the version before.
        "schema": ".".join(review.schema_version.split(".")[:2]),
    }


def _differences(base: dict[str, str], head: dict[str, str]) -> list[str]:
    keys = dict.fromkeys([*base, *head])
    found = [(key, base.get(key, "none"), head.get(key, "none")) for key in keys]
    return [f"{key} {ours} → {theirs}" for key, ours, theirs in found if ours != theirs]
