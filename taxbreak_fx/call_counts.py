"""How many Python calls a step makes, above the ops: what its glue is predicted from."""

from __future__ import annotations

import os
import sys
import sysconfig
import types
from collections.abc import Callable
from typing import Any

import torch

from taxbreak_fx.sources import foreign

_PYTHON = sysconfig.get_paths()["stdlib"] + os.sep
_SITE = os.sep + "site-packages" + os.sep
_SYMPY = _SITE + "sympy" + os.sep  # fake tensors compute their shapes with it


def call_counts(run: Callable[[], Any]) -> tuple[int, int]:
    """Module calls and other Python function calls of the author's code (not torch's, Python's or ours) during ``run``.

    A resumed generator counts as a call.  Fake tensors give the same counts as real ones: what their own Python calls
    is torch's, Python's and sympy's.
    """
    modules = functions = 0
    wrapped = torch.nn.Module._call_impl.__code__

    def count(frame: types.FrameType, event: str, _: Any) -> None:
        nonlocal modules, functions
        if event == "call":
            modules += frame.f_code is wrapped
            functions += _authors(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
    return modules, functions


def _authors(filename: str) -> bool:
    standard = filename.startswith(_PYTHON) and _SITE not in filename
    return foreign(filename) and not standard and _SYMPY not in filename
