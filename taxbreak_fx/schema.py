"""``review.json``: the versioned file form of a ``Review``, in and out.

The rule of versions: a newer minor is read and what it added is ignored; version 1 is brought up to version 2 as it is
read; any other major version is refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from taxbreak_fx.errors import FormatError, OutputError
from taxbreak_fx.machine import Calibration, LaunchPath
from taxbreak_fx.model import SCHEMA_VERSION, Comparison, Removed, Review, Variant
from taxbreak_fx.record import Measured
from taxbreak_fx.variant_record import Breakdown, FamilyReplay, Node

OLDER = "not measured by the version that made this review"
_UPGRADED_MAJOR = 1
OLDER_CONFIDENCE = 0.95  # of the intervals of wall ratios in version 1
_EDITED = "is damaged or was edited; review the model again"
_TIMELINE = re.compile(rb'^( +)("timeline": )(\{\n.*?^\1\})', re.DOTALL | re.MULTILINE)
# The records of a version-1 file that have gained measurements since, or may, by the name under which a file has them.
_MEASURED: dict[str, type[Measured]] = {
    "calibration": Calibration,
    "launch_path": LaunchPath,
    "variants": Variant,
    "breakdown": Breakdown,
    "nodes": Node,
    "replay": FamilyReplay,
    "comparisons": Comparison,
    "removed": Removed,
}

T = TypeVar("T")


class _Header(msgspec.Struct):
    schema_version: str


def encode(review: Review) -> bytes:
    """Indented UTF-8 JSON with a final newline; fields stand in declaration order, so equal reviews give equal bytes.

    Raises ``FormatError`` for what ``decode`` would refuse, a number that is not finite, or text that is not Unicode.
    """
    content = msgspec.to_builtins(review)
    lost = _not_finite(content, "$")
    if lost is not None:
        # msgspec would write null, and null means "not measured".
        raise FormatError(f"review cannot be written: the number at {lost} is not finite; mend what computed it")
    try:
        # The way through the types is the check, and makes an int in a float's place a float.
        checked = msgspec.convert(content, Review)
        return _one_line_timelines(msgspec.json.format(msgspec.json.encode(checked), indent=2)) + b"\n"
    except msgspec.ValidationError as error:
        raise FormatError(f"review cannot be written: {_one_line(error)}; mend what built it") from error
    except UnicodeEncodeError as error:
        raise FormatError(f"review cannot be written: {error.object!r} is not valid Unicode; rename it") from error


def decode(data: bytes, name: str) -> Review:
    """The review in ``data``; ``name`` (a file name) opens the error line.

    Raises ``FormatError`` for malformed JSON, another major schema version, or a field of the wrong type or value.
    """
    header = _decode(data, name, _Header, "is not a review that taxbreak_fx wrote")
    version = header.schema_version
    ours = SCHEMA_VERSION.split(".")[0]
    major = version.split(".")[0]
    if not (major.isascii() and major.isdigit()):
        raise FormatError(f"{name}: schema_version {version!r} is not a version like {SCHEMA_VERSION}")
    if int(major) == _UPGRADED_MAJOR:
        older = _decode(data, name, dict[str, Any], _EDITED)
        return _reading(lambda: msgspec.convert(upgrade(older), Review), name, _EDITED)
    if major != ours:
        newer = int(major) > int(ours)
        mend = "upgrade taxbreak_fx" if newer else "review the model again, or read it with the older taxbreak_fx"
        raise FormatError(
            f"{name}: schema_version {version!r} cannot be read, this taxbreak_fx reads {ours}.x "
            f"({SCHEMA_VERSION}): {mend}"
        )
    return _decode(data, name, Review, _EDITED)


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """A version-1 review as the version of today: a measurement that it lacks is null, with the reason ``OLDER``."""
    return {**_completed(content, None), "schema_version": SCHEMA_VERSION}


def _completed(value: Any, kind: type[Measured] | None) -> Any:
    """``value`` with every measurement of its records there; what is no record of ours the types will judge."""
    if isinstance(value, list):
        return [_completed(item, kind) for item in value]
    if not isinstance(value, dict):
        return value
    if kind is Calibration:
        value = {"launch_path": {}} | value
    if kind is Comparison:
        value = {"ratio_confidence": OLDER_CONFIDENCE} | value
    found = {key: _completed(item, _MEASURED.get(key)) for key, item in value.items()}
    lacking = [name for name in (kind.MEASUREMENTS if kind else ()) if name not in found]
    reasons = found.get("unmeasured", {})
    if lacking and isinstance(reasons, dict):
        found |= dict.fromkeys(lacking) | {"unmeasured": reasons | dict.fromkeys(lacking, OLDER)}
    return found


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``review.json``; ``docs/review.schema.json`` is this dict."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:taxbreak-fx:review:{SCHEMA_VERSION}",
        "title": "taxbreak_fx review",
        "version": SCHEMA_VERSION,
        **msgspec.json.schema(Review),
    }


def json_schema_text() -> str:
    """``json_schema()`` as indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode() + "\n"


def save(review: Review, path: str | os.PathLike[str]) -> None:
    """Write ``review`` to ``path``.  Raises ``FormatError`` as ``encode`` does, ``OutputError`` as ``write`` does."""
    write(path, encode(review))


def load(path: str | os.PathLike[str]) -> Review:
    """The review in the file at ``path``.  Raises ``FormatError`` when it cannot be read or is no readable review."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); give the path of a review.json") from error
    return decode(data, str(path))


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at ``path`` by ``data`` in one step: a reader sees the old content or the new, never a part.

    The folder must exist.  Raises ``OutputError`` when the file cannot be written.
    """
    target = Path(path)
    # In the same folder: os.replace is atomic only within one file system.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _one_line_timelines(text: bytes) -> bytes:
    """``text`` with every timeline on its own line: one number per line would make the file several times as long.

    No string of JSON holds a line break, so a line that begins like this is a field, and the first brace at its own
    indentation closes it.
    """
    return _TIMELINE.sub(lambda found: found[1] + found[2] + msgspec.json.format(found[3], indent=-1), text)


def _decode(data: bytes, name: str, kind: type[T], hint: str) -> T:
    return _reading(lambda: msgspec.json.decode(data, type=kind), name, hint)


def _reading(read: Callable[[], T], name: str, hint: str) -> T:
    try:
        return read()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{name}: {_one_line(error)}; the file {hint}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _not_finite(value: Any, path: str) -> str | None:
    """The path of the first float in ``value`` that is not finite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    if isinstance(value, dict):
        items = ((f"{path}.{key}", item) for key, item in value.items())
    elif isinstance(value, list):
        items = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    else:
        return None
    return next((lost for place, item in items if (lost := _not_finite(item, place)) is not None), None)
