"""What is known of a step that was never run: its op stream, and what Inductor would launch for it.

Counts and bytes here follow from shapes; no time is among them.  Whoever predicts times joins these with a profile.
"""

from __future__ import annotations

from typing import Literal

from taxbreak_fx.model import StepInfo
from taxbreak_fx.record import Record, SourceLine
from taxbreak_fx.recording import Site


class FakeOp(Record, frozen=True, kw_only=True):
    """One ATen op that eager dispatches below autograd, in order.

    ``inputs`` and ``outputs`` are texts as ``capture.signature`` writes them and ``family_inputs`` reads them.
    ``site`` indexes ``FakeStep.sites``: source line and module path are there; None: dispatched outside every call.
    ``device`` is where the op runs.  ``read_bytes`` and ``written_bytes`` count each addressed element once, whatever
    a cache would spare or a kernel repeat.  ``flops``: floating-point operations, a multiply-add being two; None where
    no formula is known.  ``kernels``: device kernels launched; None where shapes do not decide it (a library may split
    a product).  ``memops``: device copies that launch no kernel.
    """

    op: str
    inputs: str
    outputs: str
    dtype: str | None
    site: int | None
    device: Literal["cuda", "cpu"]
    read_bytes: int
    written_bytes: int
    flops: int | None
    kernels: int | None
    memops: int

    @property
    def key(self) -> str:
        """The op with its inputs, as ``Site.leaf_keys`` names it."""
        return f"{self.op}({self.inputs})"


class FakeStep(Record, frozen=True, kw_only=True):
    """The eager step as ``target`` would run it: the author's calls, and the ops under them.

    ``assumptions``: what was taken as given because no data was there, one line each.  ``weight_bytes``: parameters
    and buffers.  ``modules`` and ``functions``: calls of modules and other Python functions of the author's code.
    ``seconds``: what recording took.
    """

    model: str
    target: str
    step: StepInfo
    sites: list[Site]
    ops: list[FakeOp]
    modules: int
    functions: int
    assumptions: list[str]
    weight_bytes: int
    versions: dict[str, str]
    seconds: float


class Origin(Record, frozen=True, kw_only=True):
    """A node of the captured graph that a launch was made from: its ATen op, and where the author wrote it."""

    node: str
    op: str
    source: SourceLine | None
    module_path: str | None


class PlannedLaunch(Record, frozen=True, kw_only=True):
    """One line of Inductor's wrapper code that launches: a generated kernel, or a call out to a library or ATen.

    ``target`` as in the measured ``Site``: ``triton:NAME``, ``extern:mm`` or ``aten.sort.default``.  ``inputs`` of an
    extern call are a text as in ``FakeOp`` (None: a generated kernel), and so are its ``outputs`` (None also where the
    call returns several).  ``numels``: elements per dimension that a generated kernel iterates over (``xnumel``,
    ``r0_numel``); its grid is these over a block size that Triton chooses by timing on the device.  ``arguments``:
    positional ones of a generated kernel's launch (None: an extern call).  ``read_bytes`` and ``written_bytes`` follow
    from its loads and stores, or from the buffers that a call is given; None: not known.
    ``origins`` in graph order; the last stores the result.
    """

    kind: Literal["kernel", "extern"]
    target: str
    dtype: str | None
    inputs: str | None
    outputs: str | None
    numels: dict[str, int]
    arguments: int | None
    read_bytes: int | None
    written_bytes: int | None
    origins: list[Origin]


class PlannedAllocation(Record, frozen=True, kw_only=True):
    """One buffer that the wrapper code allocates; ``before`` indexes the launch that it precedes."""

    buffer: str
    size_bytes: int
    before: int


class PlannedGraph(Record, frozen=True, kw_only=True):
    """One graph of the compiled step.  ``ops``: call nodes of Dynamo's graph; ``break_reason``: why it ends early, and
    ``source`` the author's line at which it does.

    ``reused``: buffers that took over the memory of a dead one.  ``copied`` and ``copied_bytes``: inputs on the GPU
    that may change their address between calls, so that a CUDA graph copies them in.  ``guards``: guards that Dynamo
    checks on every call of the frame.  None where that is not known.
    """

    compile_id: str
    ops: int
    break_reason: str | None
    launches: list[PlannedLaunch]
    allocations: list[PlannedAllocation]
    reused: int
    copied: int | None
    copied_bytes: int | None
    guards: int | None
    source: SourceLine | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """Generated kernels and extern calls per step."""
        kernels = sum(launch.kind == "kernel" for launch in self.launches)
        return kernels, len(self.launches) - kernels


class DryRun(Record, frozen=True, kw_only=True):
    """What Inductor would launch for the step on ``target``; nothing was compiled for it, nothing run.

    ``peak_memory_bytes``: largest resident set of the process that compiled.  ``seconds``: what it took, imports
    included.
    """

    model: str
    target: str
    step: StepInfo
    graphs: list[PlannedGraph]
    assumptions: list[str]
    versions: dict[str, str]
    seconds: float
    peak_memory_bytes: int

    @property
    def counts(self) -> tuple[int, int]:
        """Generated kernels and extern calls per step, over all graphs."""
        kernels, externs = zip(*(graph.counts for graph in self.graphs), strict=True) if self.graphs else ((), ())
        return sum(kernels), sum(externs)
