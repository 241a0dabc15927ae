"""The house rules that reading the source can prove: who may import whom, and who may touch torch, os.environ, print.

``LAYERS`` is the one-way order of the modules.  A module imports only lower layers; modules of one layer may import
each other as long as no cycle results.  Imports inside functions count like all others.
"""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "taxbreak_fx"

# Patterns, so that a room may be split (capture_ops) without a new row; the first that matches decides.
LAYERS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (0, ("errors", "record", "machine", "model", "request", "recording", "predicted", "step_graph", "step_timeline")),
    (0, ("finding", "generate_record", "variant_record")),
    (1, ("families", "family_*", "hardware", "hardware_peaks", "hardware_scale", "hardware_shapes", "schema", "stats")),
    (
        2,
        (
            "decompose",
            "merge",
            "kinds",
            "matching",
            "nodes",
            "draft",
            "ft_parts",
            "breakdown",
            "breakdown_*",
            "timeline",
            "timeline_store",
            "library_events",
            "hardware_costs",
        ),
    ),
    (
        3,
        (
            "compare",
            "predict",
            "predict_*",
            "whatif",
            "whatif_*",
            "findings",
            "findings_*",
            "diff",
            "diff_*",
            "gates",
            "fusion",
            "fusion_*",
            "capturable",
        ),
    ),
    (4, ("workload", "state", "capture", "sources", "wrapper_lines", "variants", "variant_*", "probes", "observe")),
    (4, ("call_counts", "graph_facts", "ticks", "tick_cost", "op_graph", "op_roles", "inductor_kernels")),
    (
        5,
        (
            "recorders",
            "recorders.*",
            "native",
            "interpose",
            "launch_path",
            "device_path",
            "verify",
            "verify_*",
            "host_reference",
            "replay",
            "replay_check",
            "library_calls",
            "calibrate",
            "null_kernel",
            "trace",
            "absent_gpu",
            "known_values",
            "op_facts",
            "sdpa_policy",
            "target_ops",
            "fake_step",
            "call_stack",
            "turn",
            "step_whatif",
        ),
    ),
    (6, ("stages", "pipeline", "supervisor", "generate_review")),
    (7, ("api", "known_delay", "backend", "backend_*", "models", "model_configs", "factory", "worker")),
    (7, ("generate_loop",)),
    (7, ("absent_step", "dry_run", "dry_run_*")),
    (7, ("profile_measure", "profile_measure_*")),
    (8, ("cli", "cli_*", "__main__", "pytest_plugin")),
)
# Beside the layers: reports see a finished Review and nothing that produced it.
REPORT = ("report", "report.*")
REPORT_MAY_IMPORT = 3
REPORT_MAY_BE_IMPORTED_BY = ("api", "backend", "cli", "cli_*", "__main__")

# Upward imports that are allowed, inside functions only: a Review's convenience methods (save, to_markdown) reach for
# the rooms that do the work when they are called.
LAZY_UPWARD = {"model": ("schema", *REPORT)}

MAY_IMPORT_TORCH = range(4, 9)
MAY_READ_ENVIRONMENT = ("cli", "backend", "worker")
MAY_PRINT = ("cli", "cli_*", "worker", "recorders", "recorders.*", *REPORT)
# The supervisor outlives a poisoned CUDA context because only its worker process ever loads torch or a model.
TORCH_FREE = ("supervisor", "stages", "generate_review")


@dataclass(frozen=True)
class Import:
    """``target`` is a module of ours without the package's name, or another package's top-level name."""

    target: str
    ours: bool
    lazy: bool
    line: int


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def layer_of(name: str) -> int | None:
    """The layer of a module; None for one that the table lacks."""
    return next((layer for layer, patterns in LAYERS if matches(name, patterns)), None)


def modules(package: Path) -> dict[str, ast.Module]:
    """Parsed sources by module name, without the package's own ``__init__`` (the face: lazy, checked by running it)."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return found


def imports(name: str, tree: ast.Module, known: dict[str, ast.Module], package: str) -> Iterator[Import]:
    """Every import of a module, with relative and ``importlib.import_module("…")`` ones resolved."""
    is_package = any(other.startswith(name + ".") for other in known)
    lazy_nodes = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [package, *name.split(".")] + (["__init__"] if is_package else [])
                base = ".".join([*here[: -node.level], *filter(None, [base])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
            targets = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        for target in targets:
            yield from _resolved(target, node, known, package, lazy=node in lazy_nodes)


def _resolved(
    target: str, node: ast.AST, known: dict[str, ast.Module], package: str, *, lazy: bool
) -> Iterator[Import]:
    line: int = getattr(node, "lineno", 0)
    top, _, inside = target.partition(".")
    if top != package:
        yield Import(top, ours=False, lazy=lazy, line=line)
        return
    # "report.text.render" is the module report.text; names of the package itself are __version__, review and Review.
    while inside and inside not in known:
        inside = inside.rpartition(".")[0]
    face = {f"{package}.review": "api", f"{package}.Review": "model"}
    module = inside or face.get(target)
    if module is not None:
        yield Import(module, ours=True, lazy=lazy, line=line)


def violations(package: Path) -> list[str]:
    """Every breach of the table in ``package``, one line each."""
    known = modules(package)
    found = {name: list(imports(name, tree, known, package.name)) for name, tree in known.items()}
    problems = []
    for name, tree in known.items():
        if layer_of(name) is None and not matches(name, REPORT):
            problems.append(f"{name}: not in the table of tests/test_layers.py; give it a layer there")
            continue
        for item in found[name]:
            reason = _forbidden(name, item)
            if reason:
                problems.append(f"{name}:{item.line} imports {item.target}: {reason}")
        problems += _misused(name, tree)
    return problems + _cycles(found) + _torch_reached(found)


def _forbidden(name: str, item: Import) -> str | None:
    own, report = layer_of(name), matches(name, REPORT)
    if not item.ours:
        allowed = own in MAY_IMPORT_TORCH and not matches(name, TORCH_FREE)
        return (
            "torch belongs to layers 4-8 (and not to the supervisor)"
            if item.target == "torch" and not allowed
            else None
        )
    if matches(item.target, LAZY_UPWARD.get(name, ())):
        return None if item.lazy else "allowed inside a function only"
    other = layer_of(item.target)
    if matches(item.target, REPORT):
        allowed = report or matches(name, REPORT_MAY_BE_IMPORTED_BY)
        return None if allowed else f"only {', '.join(REPORT_MAY_BE_IMPORTED_BY)} import report"
    if other is None:
        return None  # reported where it is defined
    if report:
        return None if other <= REPORT_MAY_IMPORT else f"report imports layers 0-{REPORT_MAY_IMPORT} only, not {other}"
    assert own is not None
    return f"layer {own} imports layer {other}" if other > own else None


def _misused(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        environment = text in ("os.environ", "os.getenv", "os.putenv")
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            environment = any(alias.name in ("environ", "getenv", "putenv") for alias in node.names)
        if environment and not matches(name, MAY_READ_ENVIRONMENT):
            yield f"{name}:{getattr(node, 'lineno', 0)} touches the environment: only {MAY_READ_ENVIRONMENT} may"
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if called and not matches(name, MAY_PRINT):
            yield f"{name}:{getattr(node, 'lineno', 0)} prints: only {MAY_PRINT} may"


def _graph(found: dict[str, list[Import]]) -> networkx.DiGraph:
    graph: networkx.DiGraph = networkx.DiGraph()
    for name, items in found.items():
        allowed = LAZY_UPWARD.get(name, ())
        graph.add_edges_from((name, item.target) for item in items if item.ours and not matches(item.target, allowed))
    # A package's own parts import the package, and its __init__ re-exports them: that is one room, not a cycle.
    graph.remove_edges_from(
        [(a, b) for a, b in graph.edges if a == b or a.startswith(b + ".") or b.startswith(a + ".")]
    )
    return graph


def _cycles(found: dict[str, list[Import]]) -> list[str]:
    return [f"import cycle: {' -> '.join([*cycle, cycle[0]])}" for cycle in networkx.simple_cycles(_graph(found))]


def _torch_reached(found: dict[str, list[Import]]) -> list[str]:
    """Torch-free modules must not load torch through another module of ours either, nor import ``models`` at all."""
    loads_torch = {name for name, items in found.items() if any(i.target == "torch" and not i.lazy for i in items)}
    eager = {name: [item for item in items if not item.lazy] for name, items in found.items()}
    graph = _graph(eager)
    problems = []
    for name in TORCH_FREE:
        if name in graph:
            reached = sorted(networkx.descendants(graph, name) & loads_torch)
            problems += [f"{name} loads torch through {other}" for other in reached]
        if any(item.target in ("models", "factory") for item in found.get(name, ())):
            problems.append(f"{name} imports models: its worker process does that")
    return problems


def test_the_package_keeps_the_table() -> None:
    problems = violations(PACKAGE)
    assert not problems, "\n" + "\n".join(problems)


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_importing_the_package_is_light() -> None:
    code = "import sys, taxbreak_fx; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


BREACHES = {
    "unknown module": ({"novelty": ""}, "novelty: not in the table"),
    "upward": ({"stats": "from taxbreak_fx.compare import x", "compare": ""}, "stats:1 imports compare: layer 1"),
    "upward, lazy": ({"stats": "def f():\n  import taxbreak_fx.compare", "compare": ""}, "stats:2 imports compare"),
    "upward, relative": ({"stats": "from . import compare", "compare": ""}, "stats:1 imports compare: layer 1"),
    "upward, from a package": (
        {"recorders.__init__": "from ..pipeline import run", "recorders.a": "", "pipeline": ""},
        "recorders:1 imports pipeline: layer 5 imports layer 6",
    ),
    "upward, by name": (
        {"stats": "import importlib\nimportlib.import_module('taxbreak_fx.api')", "api": ""},
        "stats:2 imports api: layer 1",
    ),
    "upward, through the face": ({"stats": "from taxbreak_fx import review", "api": ""}, "stats:1 imports api"),
    "cycle": ({"compare": "import taxbreak_fx.whatif", "whatif": "import taxbreak_fx.compare"}, "import cycle"),
    "torch too low": ({"decompose": "import torch.fx"}, "decompose:1 imports torch"),
    "torch in a report": ({"report.text": "from torch import nn"}, "report.text:1 imports torch"),
    "report from below": ({"pipeline": "from taxbreak_fx.report import text", "report.text": ""}, "imports report"),
    "report from above": ({"report.text": "import taxbreak_fx.capture", "capture": ""}, "report imports layers 0-3"),
    "model, not lazy": ({"model": "import taxbreak_fx.schema", "schema": ""}, "allowed inside a function only"),
    "supervisor loads torch": (
        {"supervisor": "import taxbreak_fx.capture", "capture": "import torch"},
        "supervisor loads torch through capture",
    ),
    "supervisor imports torch": ({"supervisor": "def f():\n  import torch"}, "supervisor:2 imports torch"),
    "environment": ({"capture": "import os\nos.environ['A'] = '1'"}, "capture:2 touches the environment"),
    "environment, from": ({"capture": "from os import getenv"}, "capture:1 touches the environment"),
    "print": ({"pipeline": "print('hello')"}, "pipeline:1 prints"),
}


def _write(folder: Path, sources: dict[str, str]) -> Path:
    package = folder / "taxbreak_fx"
    for name, text in sources.items():
        path = package.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


@pytest.mark.parametrize(("sources", "problem"), BREACHES.values(), ids=BREACHES.keys())
def test_a_breach_is_found(tmp_path: Path, sources: dict[str, str], problem: str) -> None:
    assert any(problem in found for found in violations(_write(tmp_path, sources)))


def test_what_is_allowed_is_not_a_breach(tmp_path: Path) -> None:
    sources = {
        "model": "def save():\n  from taxbreak_fx import schema\n  from taxbreak_fx.report import text",
        "schema": "from taxbreak_fx.model import Review\nfrom taxbreak_fx import __version__",
        "report.__init__": "from .text import render",
        "report.text": "from taxbreak_fx.model import Review\nprint(1)",
        "variant_graph": "import torch\nfrom taxbreak_fx.capture import x",
        "capture": "import torch",
        "cli": "import os, torch\nfrom taxbreak_fx import report, review\nprint(os.environ)",
        "api": "from taxbreak_fx.report.text import render",
    }
    assert violations(_write(tmp_path, sources)) == []
