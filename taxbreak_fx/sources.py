"""Where the model author wrote it: source line and module path of an eager call or an FX node."""

from __future__ import annotations

import os
import re
import types
from typing import Any

import torch

from taxbreak_fx.record import SourceLine

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(__file__) + os.sep
# It stands for the loop of transformers' generate(): a line there is one of the step that is reviewed.
_LOOP = os.path.join(os.path.dirname(__file__), "generate_loop.py")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def foreign(filename: str) -> bool:
    """Whether the file is neither torch's nor ours: a line the model's author (or their library) wrote."""
    return filename == _LOOP or not filename.startswith((_TORCH, _OURS, "<"))


def ours(filename: str) -> bool:
    """Whether the file is this package's."""
    return filename.startswith(_OURS)


def frame_source(frame: types.FrameType | None) -> SourceLine | None:
    """The innermost frame outside torch and this package, or None."""
    while frame is not None:
        if foreign(frame.f_code.co_filename):
            return SourceLine(file=frame.f_code.co_filename, line=frame.f_lineno)
        frame = frame.f_back
    return None


def stack_source(stack: str | None) -> SourceLine | None:
    """The innermost line outside torch of a stack printed by Python, or None."""
    for filename, line in reversed(_FRAME.findall(stack or "")):
        if foreign(filename):
            return SourceLine(file=filename, line=int(line))
    return None


def node_source(node: torch.fx.Node) -> SourceLine | None:
    """The author's line of an FX node, from the stack that Dynamo keeps on it."""
    return stack_source(node.meta.get("stack_trace"))


def node_module_path(node: torch.fx.Node) -> str | None:
    """The path of the innermost module the node came from, as ``named_modules`` spells it, or None."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    path = str(next(reversed(stack.values()))[0])
    path = re.sub(r"^[LG]\['\w+'\]\.?|^self\.?", "", path)  # the variable that holds the model, local or global
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path).replace("._modules", "")
    return path.lstrip(".") or None


def module_names(roots: list[Any]) -> dict[int, str]:
    """Path of every submodule of the modules among ``roots``, by identity."""
    names: dict[int, str] = {}
    for root in roots:
        if isinstance(root, torch.nn.Module):
            for path, module in root.named_modules():
                names.setdefault(id(module), path)
    return names
