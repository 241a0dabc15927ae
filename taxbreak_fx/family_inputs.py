"""What the text of a call's inputs says: shapes, strides, dtypes, layouts and scalars, read back without torch.

``capture.signature`` writes that text; a leaf's key is ``op(text)``.  A tensor reads ``bfloat16[1536x1x4](4,4,1)``,
``float32[64x64](torch.sparse_csr)`` where it has no strides, with ``:Class`` behind it where it wraps other tensors;
an option reads ``name=value``; lists are written out flat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

_TOKEN = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?"
    r"(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\w+\[[^\]]*\]\([^)]*\)(?::\w+)?|\w+\([^)]*\)|[^,]+)(?:, |$)"
)
_LOOKS_LIKE_TENSOR = re.compile(r"^\w+\[")
_TENSOR = re.compile(r"^(\w+)\[(\d+(?:x\d+)*)?\]\((?:torch\.(\w+)|(\d+(?:,\d+)*)?)\)(?::(\w+))?$")


@dataclass(frozen=True)
class TensorInput:
    """A tensor argument; ``stride`` is in elements, None for a layout without strides (``sparse_csr``).

    ``wrapper`` is the class of a tensor that wraps others (``SparseSemiStructuredTensorCUSPARSELT``), else None.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    layout: str = "strided"
    wrapper: str | None = None


@dataclass(frozen=True)
class Inputs:
    """Positional arguments and options of a call; whatever is no tensor stays text."""

    args: tuple[TensorInput | str, ...] = ()
    options: Mapping[str, TensorInput | str] = field(default_factory=dict)

    @property
    def tensors(self) -> tuple[TensorInput, ...]:
        """The positional tensors, in order."""
        return tuple(arg for arg in self.args if isinstance(arg, TensorInput))


def inputs_of(key: str) -> str | None:
    """The inputs' text of a leaf's key ``op(text)``; None for a key that has none."""
    _, opened, rest = key.partition("(")
    return rest.removesuffix(")") if opened else None


@lru_cache(maxsize=4096)
def parse_inputs(text: str) -> Inputs | None:
    """The inputs that ``text`` tells; None where a tensor in it cannot be read (a symbolic size)."""
    args: list[TensorInput | str] = []
    options: dict[str, TensorInput | str] = {}
    for token in _TOKEN.finditer(text):
        value: TensorInput | str = token["text"]
        if _LOOKS_LIKE_TENSOR.match(token["text"]):
            tensor = _tensor(token["text"])
            if tensor is None:
                return None
            value = tensor
        if token["name"]:
            options[token["name"]] = value
        else:
            args.append(value)
    return Inputs(tuple(args), options)


def _tensor(text: str) -> TensorInput | None:
    match = _TENSOR.match(text)
    if match is None:
        return None
    dtype, shape, layout, stride, wrapper = match.groups()
    return TensorInput(
        dtype=dtype,
        shape=_numbers(shape, "x"),
        stride=None if layout else _numbers(stride, ","),
        layout=layout or "strided",
        wrapper=wrapper,
    )


def _numbers(text: str | None, separator: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(separator)) if text else ()
