"""A step as a plain graph of its ops: what they compute over, what they read and write, where they were written.

No torch here.  ``op_graph`` fills these records from a running step; ``fusion`` and ``capturable`` read them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from taxbreak_fx.record import Record, SourceLine

# What a generator of fused kernels can do with an op.  "row": each row of the domain is reduced and then written out in
# full (softmax, layer norm).  "view" and "alloc" launch nothing.  "extern": nothing, it stays a call of its own.
Role = Literal["pointwise", "reduction", "row", "view", "alloc", "extern", "sync"]


class Operand(Record, frozen=True, kw_only=True):
    """A tensor that an op reads: the op that made it, or else the input by name, and the bytes really read of it."""

    op: int | None = None
    input: str | None = None
    bytes: int = 0


class Op(Record, frozen=True, kw_only=True):
    """One op of the step.

    ``shape``: of its first result, None where it is known only from the data.  ``domain``: the sizes it iterates over,
    ``reduced`` the positions in it that it sums up.  ``after``: ops that must run first although nothing of theirs is
    read (they read what this one overwrites, or wrote it).  ``writes_in_place``: it overwrites an existing tensor;
    ``mutates``: the inputs of the step among those.  ``escapes``: its result outlives the step or its graph.
    ``graph``: ordinal of the captured graph call.  ``origin``: the node of Dynamo's graph it came from.  ``launches``:
    kernels it launches on a GPU.  ``dynamic``: a size in it varies between calls.  ``data_dependent``: its shape hangs
    on the data.  ``unsafe``: why a CUDA graph cannot hold it.  Times in microseconds of host time per step.
    """

    op: str
    role: Role
    family: str
    library: str
    i_lib: bool
    shape: tuple[int, ...] | None
    dtype: str | None
    devices: tuple[str, ...] = ()
    domain: tuple[int, ...] = ()
    reduced: tuple[int, ...] = ()
    operands: tuple[Operand, ...] = ()
    after: tuple[int, ...] = ()
    writes_in_place: bool = False
    mutates: tuple[str, ...] = ()
    escapes: bool = False
    source: SourceLine | None = None
    module_path: str | None = None
    graph: int = 0
    origin: str | None = None
    launches: int | None = None
    written_bytes: int = 0
    dynamic: bool = False
    data_dependent: bool = False
    unsafe: str | None = None
    ft_us: float | None = None
    ct_us: float | None = None
    kt_us: float | None = None

    @property
    def read_bytes(self) -> int:
        """Bytes it reads, over all its operands."""
        return sum(operand.bytes for operand in self.operands)

    @property
    def device(self) -> str | None:
        """The device it works on: that of its first tensor."""
        return self.devices[0] if self.devices else None


class StepInput(Record, frozen=True, kw_only=True):
    """A tensor that the step reads and did not make.  ``static``: it keeps its address from step to step (parameters,
    buffers, tensors marked static); ``dynamic``: its sizes vary."""

    name: str
    bytes: int
    device: str
    static: bool
    dynamic: bool = False


class Break(Record, frozen=True, kw_only=True):
    """Why capture ended in a graph: Dynamo's words, and the author's line.  ``graph``: ordinal of that graph call."""

    graph: int
    reason: str
    source: SourceLine | None


class StepGraph(Record, frozen=True, kw_only=True):
    """The ops in issue order: an operand or predecessor always stands before the op itself.

    Raises ``ValueError`` where one does not.
    """

    ops: list[Op]
    inputs: list[StepInput] = []
    breaks: list[Break] = []
    notes: list[str] = []

    def __post_init__(self) -> None:
        for index, op in enumerate(self.ops):
            if any(o.op is not None and not 0 <= o.op < index for o in op.operands) or any(
                not 0 <= before < index for before in op.after
            ):
                raise ValueError(f"op {index} ({op.op}) depends on an op that does not stand before it")


class HostCost(Record, frozen=True, kw_only=True):
    """Host time of one op or kernel by term, microseconds; ``launches``: kernels it launches."""

    ft_us: float
    ct_us: float
    kt_us: float
    launches: int


def priced(graph: StepGraph, cost_of: Callable[[Op], HostCost | None]) -> StepGraph:
    """``graph`` with the cost of every op that ``cost_of`` knows; the others keep what they have."""
    ops = []
    for op in graph.ops:
        cost = cost_of(op)
        ops.append(op if cost is None else msgspec.structs.replace(op, **msgspec.structs.asdict(cost)))
    return msgspec.structs.replace(graph, ops=ops)


def producers(graph: StepGraph) -> list[list[tuple[int, int]]]:
    """Per op: the ops whose results it reads, views looked through, each with the bytes read; in operand order.

    A view's own entry is what it is a view of.
    """
    found: list[list[tuple[int, int]]] = []
    for op in graph.ops:
        mine: list[tuple[int, int]] = []
        for operand in op.operands:
            if operand.op is None:
                continue
            if graph.ops[operand.op].role == "view":
                mine += [(base, operand.bytes) for base, _ in found[operand.op]]
            else:
                mine.append((operand.op, operand.bytes))
        found.append(list(dict.fromkeys(mine)))
    return found
