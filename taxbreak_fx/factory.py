"""A step that the user's own code makes: ``file.py:factory`` or ``pkg.mod:factory``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils import _pytree as pytree

from taxbreak_fx.errors import CaptureError, UsageError
from taxbreak_fx.model import StepInfo
from taxbreak_fx.request import ReviewRequest, closest
from taxbreak_fx.workload import Workload


def first_line(error: BaseException) -> str:
    """The error's type and the first line of its message: what fits into a ``TaxbreakError``."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Random numbers from ``seed`` inside; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device == "cuda" else ()):
        torch.manual_seed(seed)
        yield


def from_factory(request: ReviewRequest, device: str) -> Workload:
    """The workload that ``request.model``, a ``file.py:factory`` or ``pkg.mod:factory``, makes.

    The factory returns ``(callable, args, kwargs)``: one step is ``callable(*args, **kwargs)``.  Its parameters may be
    any of device (str), dtype (torch.dtype), batch, seq_len, phase and seed: it gets the request's values for those
    that it names.  The seed is also set around the call.

    Raises ``UsageError`` when it cannot be found, asks for something else or returns something else, ``CaptureError``
    when its own code raises.
    """
    where, _, name = request.model.rpartition(":")
    module = _import_user_module(where)
    factory = getattr(module, name, None)
    if not callable(factory):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{where} has no function {name!r}{closest(name, names)}")
    offered: dict[str, Any] = {
        "device": device,
        "dtype": getattr(torch, request.dtype),
        "batch": request.batch,
        "seq_len": request.seq_len,
        "phase": request.phase,
        "seed": request.seed,
    }
    parameters = inspect.signature(factory).parameters
    for parameter in parameters.values():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if not optional and (parameter.name not in offered or parameter.kind is parameter.POSITIONAL_ONLY):
            raise UsageError(f"{request.model} wants {parameter.name!r}; a factory may take {', '.join(offered)}")
    try:
        with seeded(request.seed, device):
            made = factory(**{key: value for key, value in offered.items() if key in parameters})
    except torch.OutOfMemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise CaptureError(f"{request.model} raised {first_line(error)}") from error
    call, args, kwargs = _checked(request.model, made)
    dtype, actual = _tensor_facts(call, args, kwargs)
    if actual not in (None, device):
        raise UsageError(
            f"{request.model} made tensors on {actual}, the review runs on {device}: give the factory a "
            "'device' parameter, or choose --device"
        )
    return Workload(
        call=call,
        model=request.model,
        step=StepInfo(phase="forward", batch=None, seq_len=None, dtype=dtype, device=device),
        args=args,
        kwargs=kwargs,
        seed=request.seed,
    )


def _import_user_module(where: str) -> ModuleType:
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is not None and (where == error.name or where.startswith(error.name + ".")):
                raise UsageError(f"no module {where!r}: run where it can be imported, or give file.py:name") from error
            raise CaptureError(f"importing {where} raised {first_line(error)}") from error
        except (Exception, SystemExit) as error:
            raise CaptureError(f"importing {where} raised {first_line(error)}") from error
    path = Path(where).resolve()
    if not path.is_file():
        raise UsageError(f"no file {where}: name it relative to the current directory, or absolutely")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as ``python file.py`` does, so that the file can import its neighbours
    # A name of our own: a file called ``json.py`` must not take the standard library's place.
    spec = importlib.util.spec_from_file_location(f"taxbreak_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # true of every path that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise CaptureError(f"importing {where} raised {first_line(error)}") from error
    return module


def _checked(model: str, made: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    if not isinstance(made, tuple) or len(made) != 3:
        raise UsageError(f"{model} returned {type(made).__name__}, not (callable, args, kwargs)")
    call, args, kwargs = made
    if not callable(call):
        raise UsageError(f"{model}: the first of (callable, args, kwargs) is a {type(call).__name__}, not callable")
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, Mapping):
        raise UsageError(
            f"{model}: args must be a tuple and kwargs a dict, not {type(args).__name__} and {type(kwargs).__name__}"
        )
    return call, tuple(args), dict(kwargs)


def _tensor_facts(call: Any, args: Any, kwargs: Any) -> tuple[str, str | None]:
    """The floating dtype and the device type of a step's first tensors: parameters first, then inputs."""
    tensors: list[torch.Tensor] = list(call.parameters()) if isinstance(call, torch.nn.Module) else []
    tensors += [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    dtype = str(floating[0]).removeprefix("torch.") if floating else "none"
    # Single numbers may stay on the host: torch itself lets a GPU op take them.
    devices = [tensor.device.type for tensor in tensors if tensor.dim() > 0]
    return dtype, devices[0] if devices else None
