"""Hand-made op graphs: a few words per op, everything else filled in."""

from __future__ import annotations

from typing import Any

from taxbreak_fx.record import SourceLine
from taxbreak_fx.step_graph import Op, Operand, Role, StepGraph, StepInput

ROWS, COLUMNS = 4, 8
FLOAT = 4  # bytes
FULL_BYTES, ROW_BYTES = ROWS * COLUMNS * FLOAT, ROWS * FLOAT
FAMILIES: dict[str, tuple[str, str, bool]] = {
    "extern": ("gemm", "cuBLAS", True),
    "sync": ("host-sync", "ATen", False),
    "view": ("view", "ATen", False),
    "alloc": ("view", "ATen", False),
    "reduction": ("reduction", "ATen", False),
    "row": ("softmax", "ATen", False),
}


class Maker:
    """Adds ops one after another; every method returns the op's index, to be read by later ones."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.inputs: dict[str, StepInput] = {}

    def op(self, role: Role, *reads: int | str, shape: tuple[int, ...] = (ROWS, COLUMNS), **fields: Any) -> int:
        """An op of ``role`` over ``shape`` that reads these ops and inputs, each in full; its line is its index."""
        family, library, i_lib = FAMILIES.get(role, ("elementwise", "ATen", False))
        index = len(self.ops)
        size = FLOAT
        for length in shape:
            size *= length
        for name in reads:
            if isinstance(name, str):
                self.inputs.setdefault(name, StepInput(name=name, bytes=64, device="cuda:0", static=False))
        operands = tuple(
            Operand(input=each, bytes=64) if isinstance(each, str) else Operand(op=each, bytes=self._bytes(each))
            for each in reads
        )
        defaults: dict[str, Any] = {
            "op": f"aten.{role}", "family": family, "library": library, "i_lib": i_lib, "shape": shape,
            "dtype": "float32", "devices": ("cuda:0",), "domain": shape, "operands": operands,
            "source": SourceLine(file="model.py", line=index), "origin": f"n{index}",
            "launches": 0 if role in ("view", "alloc") else 1, "written_bytes": 0 if role == "view" else size,
        }  # fmt: skip
        self.ops.append(Op(role=role, **(defaults | fields)))
        return index

    def _bytes(self, index: int) -> int:
        """Bytes of an op's result: a view's are those of what it shows."""
        op = self.ops[index]
        return op.operands[0].bytes if op.role == "view" else op.written_bytes

    def pointwise(self, *reads: int | str, **fields: Any) -> int:
        """Full-size, elementwise."""
        return self.op("pointwise", *reads, **fields)

    def mean(self, *reads: int | str, **fields: Any) -> int:
        """Sums each row: 4 × 8 → 4 × 1."""
        return self.op("reduction", *reads, reduced=(1,), written_bytes=ROW_BYTES, **fields)

    def extern(self, *reads: int | str, **fields: Any) -> int:
        """A library call."""
        return self.op("extern", *reads, **fields)

    def view(self, read: int, **fields: Any) -> int:
        """A view of another op's result."""
        return self.op("view", read, **fields)

    def graph(self, **fields: Any) -> StepGraph:
        """What was added."""
        return StepGraph(ops=self.ops, inputs=list(self.inputs.values()), **fields)
