"""Which of the author's lines an Inductor wrapper line comes from, read in the wrapper's own comments.

Inductor names above each kernel and extern call the nodes of Dynamo's graph it was made from, also when the wrapper
comes from a cache; those nodes carry the author's stack.  A fused kernel comes from many lines: the last node, the one
whose result it stores, stands for it.
"""

from __future__ import annotations

import re
import types
from collections import defaultdict

import torch

from taxbreak_fx.record import SourceLine
from taxbreak_fx.sources import node_module_path, node_source

Origin = tuple[SourceLine | None, str | None]
_NODES = re.compile(r"^\s*# Topologically Sorted Source Nodes: \[([^\]]*)\]")
_KERNEL = re.compile(r"^(\w+) = async_compile\.")
_EXTERN = re.compile(r"(?:^|\W)(?:(extern_kernels)\.(\w+)|torch\.ops\.(\w+\.\w+\.\w+))\(")


class Origins:
    """Source line and module path of a wrapper's sites: of a kernel by name, of an extern call by its turn."""

    def __init__(self, module: types.ModuleType, gm: torch.fx.GraphModule) -> None:
        nodes = {node.name: (node_source(node), node_module_path(node)) for node in gm.graph.nodes}
        self._kernels: dict[str, Origin] = {}
        self._externs: dict[str, list[Origin]] = defaultdict(list)
        self._turns: dict[str, int] = defaultdict(int)
        origin: Origin = (None, None)
        with open(module.__file__ or "", encoding="utf-8") as file:
            for line in file:
                if comment := _NODES.match(line):
                    names = [name.strip() for name in comment.group(1).split(",")]
                    known = [nodes[name] for name in names if name in nodes and nodes[name][0] is not None]
                    origin = known[-1] if known else (None, None)
                elif kernel := _KERNEL.match(line):
                    self._kernels[kernel.group(1)] = origin
                    origin = (None, None)  # C++ kernels carry no comment: they must not inherit the last one
                elif extern := _EXTERN.search(line):
                    target = f"extern:{extern.group(2)}" if extern.group(1) else extern.group(3)
                    self._externs[target].append(origin)

    def of(self, target: str) -> Origin:
        """The origin of the next site with that target; nothing for allocations and unknown targets."""
        kind, _, name = target.partition(":")
        if kind in ("triton", "cpp"):
            return self._kernels.get(name, (None, None))
        turns = self._externs.get(target)
        if not turns:
            return None, None
        turn = self._turns[target] % len(turns)
        self._turns[target] += 1
        return turns[turn]
