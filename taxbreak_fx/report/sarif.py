"""The findings as SARIF 2.1.0, for GitHub's code scanning and every other tool that reads it."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from taxbreak_fx.finding import Finding
from taxbreak_fx.model import Review
from taxbreak_fx.record import package_path
from taxbreak_fx.report.content import headline
from taxbreak_fx.report.findings import message
from taxbreak_fx.report.format import plain

VERSION = "2.1.0"
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
FINGERPRINT = "taxbreak/v1"
SOURCE_ROOT, PACKAGES = "SRCROOT", "PACKAGES"


def sarif(review: Review, root: str | None = None) -> str:
    """The findings as a SARIF log, ending in a newline; paths below ``root`` (a folder) become relative to it.

    A finding without a line is a notification of the run, not a result: GitHub refuses results without a location.
    """
    rules = {rule: index for index, rule in enumerate(dict.fromkeys(f.rule for f in review.findings))}
    placed = [finding for finding in review.findings if finding.source is not None]
    log = {
        "$schema": SCHEMA,
        "version": VERSION,
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "taxbreak_fx",
                        "semanticVersion": _semantic(review.tool_version),
                        "version": plain(review.tool_version),
                        "rules": [_rule(rule, review.findings) for rule in rules],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "originalUriBaseIds": {
                    SOURCE_ROOT: {"description": {"text": "The folder that the report was made in."}},
                    PACKAGES: {"description": {"text": "Where Python's packages are installed."}},
                },
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "toolExecutionNotifications": [_note(f, rules) for f in review.findings if f.source is None],
                    }
                ],
                "properties": {"step": headline(review)},
                "results": [_result(finding, rules, root) for finding in placed],
            }
        ],
    }
    return json.dumps(log, indent=2) + "\n"


def _semantic(version: str) -> str:
    """Three numbers: the schema asks for a semantic version, and Python's have other suffixes."""
    parts = version.split(".")[:3]
    numbers = [part if part.isdecimal() and part.isascii() else "0" for part in parts]
    return ".".join([*numbers, "0", "0", "0"][:3])


def _rule(rule: str, found: list[Finding]) -> dict[str, Any]:
    first = next(finding for finding in found if finding.rule == rule)
    return {
        "id": plain(rule),
        "shortDescription": _message(first.title),
        "help": _message(f"{first.fix} See docs/rules/{rule}.md."),
        "defaultConfiguration": {"level": first.severity},
    }


def _result(finding: Finding, rules: dict[str, int], root: str | None) -> dict[str, Any]:
    assert finding.source is not None
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": _artifact(finding.source.file, root),
            # A line of 0 is a place that torch did not know; SARIF counts from 1.
            "region": {"startLine": max(1, finding.source.line)},
        }
    }
    if finding.module_path:
        location["logicalLocations"] = [{"fullyQualifiedName": plain(finding.module_path), "kind": "module"}]
    return {
        "ruleId": plain(finding.rule),
        "ruleIndex": rules[finding.rule],
        "level": finding.severity,
        "message": _message(_text(finding)),
        "locations": [location],
        "partialFingerprints": {FINGERPRINT: plain(finding.fingerprint)},
        "properties": _properties(finding),
    }


def _note(finding: Finding, rules: dict[str, int]) -> dict[str, Any]:
    return {
        "associatedRule": {"id": plain(finding.rule), "index": rules[finding.rule]},
        "level": finding.severity,
        "message": _message(_text(finding)),
        "properties": {FINGERPRINT: plain(finding.fingerprint), **_properties(finding)},
    }


def _text(finding: Finding) -> str:
    return " ".join([message(finding), *finding.evidence])


def _message(text: str) -> dict[str, str]:
    """A message object; brackets would make links of its text, and braces stand for arguments (SARIF 2.1.0, 3.11)."""
    escaped = plain(text)
    for char, literal in (("\\", "\\\\"), ("[", "\\["), ("]", "\\]"), ("{", "{{"), ("}", "}}")):
        escaped = escaped.replace(char, literal)
    return {"text": escaped}


def _properties(finding: Finding) -> dict[str, Any]:
    return {
        "variant": plain(finding.variant),
        "confidence": finding.confidence,
        "inLibrary": finding.in_library,
        "exposedMicroseconds": finding.exposed_us,
        "shareOfWall": finding.share,
        "savingMicroseconds": {plain(term): us for term, us in finding.saving_us.items()},
        "savingOrigin": finding.saving_origin,
    }


def relative(file: str, root: str | None) -> str | None:
    """``file`` below ``root`` with forward slashes; None where it is not below.  A relative path is below."""
    path = PurePosixPath(file.replace("\\", "/"))
    if ".." in path.parts:
        return None
    if not path.is_absolute() and not _drive(path):
        return str(path)
    if root is None:
        return None
    folder = PurePosixPath(root.replace("\\", "/"))
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else None


def _drive(path: PurePosixPath) -> bool:
    return bool(path.parts) and len(path.parts[0]) == 2 and path.parts[0][1] == ":"


def _artifact(file: str, root: str | None) -> dict[str, str]:
    """Below an installed package, below ``root``, or where the file is."""
    package = package_path(file)
    if package is not None:
        return {"uri": _quoted(package), "uriBaseId": PACKAGES}
    below = relative(file, root)
    if below is not None:
        return {"uri": _quoted(below), "uriBaseId": SOURCE_ROOT}
    path = file.replace("\\", "/")
    return {"uri": f"file://{'' if path.startswith('/') else '/'}{_quoted(path)}"}


def _quoted(path: str) -> str:
    return quote(path, safe="/", errors="replace")
