"""The values of fake tensors that do not depend on data: positions, masks, counters.

A model may read such a tensor back in the middle of its step (transformers asks whether positions are consecutive), and
what it does next depends on the answer.  A fake tensor has no content to answer from; here a real tensor on the CPU is
kept beside each small fake one whose content follows from constants alone, and answers for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

MOST_INTEGERS = 1 << 22  # elements; a causal mask over 2048 positions has this many
MOST_FLOATS = 1 << 12
_RANDOM = torch.Tag.nondeterministic_seeded
_UNFILLED = ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
_FILLS = ("fill_", "zero_")


class KnownValues(TorchDispatchMode):
    """Inside, constants are followed through every op; what would need data is answered from them where they reach.

    ``assume_routing``: top-k choices among experts are taken to be uniform, which is said in ``assumptions``.
    """

    def __init__(self, assume_routing: bool = False, seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.assumptions: list[str] = []
        self._known: Any = WeakIdKeyDictionary()
        self._routing = assume_routing
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        values = self._values(func, args, kwargs)
        try:
            made = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            if values is None:
                raise
            made = tree_map(lambda value: _fake(value, args), values[0])
        if values is not None:
            self._learn(made, values[0])
        elif func._schema.is_mutable:
            self._forget(func, args, kwargs)
        elif self._routing and func.overloadpacket is torch.ops.aten.topk:
            self._assume(made[1], args[0].shape[-1])
        return made

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The content of ``tensor``, or None where it depends on data."""
        if not isinstance(tensor, FakeTensor):
            return tensor if tensor.device.type == "cpu" and type(tensor) is torch.Tensor else None
        known: torch.Tensor | None = self._known.get(tensor)
        return known

    def _values(self, func: Any, args: Any, kwargs: Any) -> tuple[Any] | None:
        """What the op returns on known inputs, in a tuple; None where an input or the way to the result is unknown."""
        name = func._schema.name.rpartition("::")[2]
        if func.namespace not in ("aten", "prims") or name in _UNFILLED or _RANDOM in func.tags:
            return None
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if not tensors and not _modest(leaves):
            return None
        with torch.inference_mode(False), torch.no_grad(), _disable_current_modes():
            if name in _FILLS and self.of(args[0]) is None and _modest(args[0].shape):
                self._known[args[0]] = torch.empty(args[0].shape, dtype=args[0].dtype)
            real = [self.of(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            if any(value is None for value, leaf in zip(real, leaves, strict=True) if leaf is not None):
                return None
            real = [torch.device("cpu") if isinstance(leaf, torch.device) else leaf for leaf in real]
            known_args, known_kwargs = tree_unflatten(real, spec)
            result = func(*known_args, **known_kwargs)
        made = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, torch.Tensor)]
        return (result,) if all(_small(tensor) for tensor in made) else None

    def _learn(self, made: Any, values: Any) -> None:
        for fake, value in zip(tree_flatten(made)[0], tree_flatten(values)[0], strict=True):
            if isinstance(fake, FakeTensor):
                self._known[fake] = value
                # torch keeps single values as well and computes with them for real: moving one to a GPU would need it.
                fake.constant = None

    def _forget(self, func: Any, args: Any, kwargs: Any) -> None:
        """What was written with unknown content is unknown, and so is whatever shares its memory."""
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._drop(value)
        for argument in func._schema.arguments:
            if argument.name in kwargs and argument.alias_info is not None and argument.alias_info.is_write:
                self._drop(kwargs[argument.name])

    def _drop(self, written: Any) -> None:
        for tensor in tree_flatten(written)[0]:
            known = self.of(tensor) if isinstance(tensor, FakeTensor) else None
            if known is not None:
                storage = known.untyped_storage()._cdata
                for fake, value in list(self._known.items()):
                    if value.untyped_storage()._cdata == storage:
                        del self._known[fake]

    def _assume(self, chosen: torch.Tensor, experts: int) -> None:
        """Choices of distinct experts for each row, drawn so that as many are hit as one expects to be.

        With T rows that choose k of E uniformly, E·(1 − (1 − k/E)^T) experts are hit on average.
        """
        top = chosen.shape[-1]
        rows = chosen.numel() // top
        expected = round(experts * (1 - (1 - top / experts) ** rows))
        with _disable_current_modes():
            order = torch.randperm(experts, generator=self._generator)[: max(top, expected)]
            # Rows take turns through the experts that are hit, so that each of them is.
            turns = torch.arange(rows * top) % len(order)
            self._known[chosen] = order[turns].reshape(chosen.shape)
        text = (
            f"routing is assumed uniform: {len(order)} of {experts} experts hit by {rows} tokens that choose {top} each"
        )
        if text not in self.assumptions:
            self.assumptions.append(text)


def _fake(value: Any, args: Any) -> Any:
    """A fake tensor of the real one's size, on the device of the op's inputs; what is no tensor as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    device = next(leaf.device for leaf in tree_flatten(args)[0] if isinstance(leaf, torch.Tensor))
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


def _small(tensor: torch.Tensor) -> bool:
    # What it holds, not what it addresses: an expanded mask costs nothing.
    held = tensor.untyped_storage().nbytes() // tensor.itemsize
    return held <= (MOST_FLOATS if tensor.is_floating_point() or tensor.is_complex() else MOST_INTEGERS)


def _modest(leaves: Iterable[Any]) -> bool:
    """Whether a factory makes little enough to be worth following, judged by the numbers that it is given."""
    return math.prod(max(1, abs(leaf)) for leaf in leaves if isinstance(leaf, int)) <= MOST_INTEGERS
