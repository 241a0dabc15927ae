"""Which library the registry predicts for each op of a step, beside the library that was really called.

The step runs once, uncompiled, below autograd, with the libraries' own loggers on and under torch.profiler: the calls
heard while a leaf op runs are that op's.  A library without a complete logger (cuFFT, cuSOLVER, cuSPARSE, NCCL) is
judged by the names of the device kernels that the op launched.  Nothing is timed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from taxbreak_fx import trace
from taxbreak_fx.capture import main_dtype, signature
from taxbreak_fx.errors import CaptureError, DeviceError, MeasurementError, UsageError
from taxbreak_fx.families import classify_kernel, classify_op
from taxbreak_fx.library_calls import LibraryCall, listening
from taxbreak_fx.record import Record
from taxbreak_fx.recorders.bench import one_line
from taxbreak_fx.recorders.tracing import named_range, profiled
from taxbreak_fx.state import Snapshot
from taxbreak_fx.variant_record import Classification
from taxbreak_fx.workload import Workload

Evidence = Literal["logger", "kernel names", "logger, kernel names", "silence"]

OUTSIDE = "(outside any op)"
_OP, _WHOLE = "taxbreak.verify.op.", "taxbreak.verify.whole"

# Compiled into torch, so only their kernels' names can tell them from ATen's own code.
_IN_ATEN = frozenset({"CUTLASS-in-ATen", "FlashAttention-in-ATen", "MAGMA"})

# What a library may call inside itself: such a call is not the op's own.
_NESTED = {
    "cuSOLVER": frozenset({"cuBLAS", "cuBLASLt", "cuSPARSE"}),
    "cuSPARSE": frozenset({"cuBLAS", "cuBLASLt"}),
    "cuDNN": frozenset({"cuBLAS", "cuBLASLt"}),
    "MAGMA": frozenset({"cuBLAS"}),
}


class Ears(Protocol):
    """Whatever hears library calls: ``calls`` grows; the silence of a library in ``hears`` means no call."""

    @property
    def calls(self) -> list[LibraryCall]:
        """The working calls heard so far, in order."""

    @property
    def hears(self) -> frozenset[str]:
        """Libraries none of whose working calls goes unheard."""


Listen = Callable[[], AbstractContextManager[Ears]]
Profile = Callable[[Callable[[], None]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Step:
    """A step to observe.  An ``optional`` one that cannot run is left out with its reason; any other is an error.

    ``restore`` puts back what the step mutates.
    """

    name: str
    run: Callable[[], Any]
    optional: bool = False
    restore: Callable[[], None] = lambda: None


class OpCheck(Record, frozen=True, kw_only=True):
    """Equal runs of one op: what was predicted, what was heard, and ``problem`` where the two disagree.

    ``inputs`` are shapes, strides, dtypes and scalars; ``functions`` the library functions and ``kernels`` the device
    kernels of one run; ``runs`` counts the runs.
    """

    step: str
    op: str
    inputs: str
    dtype: str | None
    runs: int
    predicted: Classification
    observed: tuple[str, ...]
    functions: tuple[str, ...]
    kernels: tuple[str, ...]
    evidence: Evidence
    problem: str | None

    @property
    def calls(self) -> int:
        """Library calls heard in all runs."""
        return self.runs * len(self.functions)


class Control(Record, frozen=True, kw_only=True):
    """One op deliberately given a wrong library: ``found`` says whether that was called a mismatch, as it must be."""

    op: str
    library: str
    mislabelled: str
    found: bool


class Verification(Record, frozen=True, kw_only=True):
    """Predicted × observed for every op of a step.  ``skipped``: the optional steps that could not run, and why."""

    model: str
    checks: list[OpCheck]
    control: Control
    hears: list[str]
    skipped: dict[str, str] = {}

    @property
    def ops(self) -> int:
        """Leaf ops that ran."""
        return sum(check.runs for check in self.checks)

    @property
    def calls(self) -> int:
        """Library calls heard."""
        return sum(check.calls for check in self.checks)

    @property
    def mismatches(self) -> list[OpCheck]:
        """The checks that disagree."""
        return [check for check in self.checks if check.problem]


@dataclass
class Seen:
    """One run of a leaf op: the library calls heard during it, and the kernels it launched."""

    step: str
    op: str
    inputs: str
    dtype: str | None
    calls: tuple[LibraryCall, ...]
    empty: bool
    kernels: tuple[str, ...] = ()


class LeafWatch(TorchDispatchMode):
    """Appends a ``Seen`` per leaf op, in issue order, with a profiler range of that number around it."""

    def __init__(self, ears: Ears) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Seen] = []
        self.step = ""
        self._ears, self._heard = ears, len(ears.calls)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.catch_up()
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
        empty = any(tensor.numel() == 0 for tensor in tensors)
        run = Seen(self.step, str(func), signature(args, kwargs), main_dtype(args, kwargs), (), empty)
        self.seen.append(run)
        try:
            with named_range(f"{_OP}{len(self.seen) - 1}"):
                return func(*args, **kwargs)
        finally:  # the author may catch what an op raises
            run.calls = tuple(self._ears.calls[self._heard :])
            self._heard = len(self._ears.calls)

    def catch_up(self) -> None:
        """Put what was heard since the last op on record: a library that no op called."""
        stray = tuple(self._ears.calls[self._heard :])
        self._heard = len(self._ears.calls)
        if stray:
            self.seen.append(Seen(self.step, OUTSIDE, "", None, stray, empty=False))


def require_cuda() -> Literal["cuda"]:
    """The device to verify on.  Raises ``DeviceError`` where there is none."""
    if not torch.cuda.is_available():
        raise DeviceError(
            f"library calls can be observed only on a CUDA device, and torch {torch.__version__} finds none: "
            "run verify on a machine with an NVIDIA GPU"
        )
    return "cuda"


def verify_workload(workload: Workload, mislabel: str | None = None) -> Verification:
    """Observe one step of ``workload`` on a CUDA device and compare.

    ``mislabel`` names an op whose predicted library is made wrong on purpose: it must come out as a mismatch.  Raises
    ``CaptureError`` when the step fails, ``UsageError`` when ``mislabel`` is no op of it, ``MeasurementError`` when a
    known call or kernel is not seen.
    """
    snapshot = Snapshot([workload.call, workload.args, dict(workload.kwargs), *workload.state])
    return verify_steps(workload.model, [Step(workload.model, workload.run, restore=snapshot.restore)], mislabel)


def verify_steps(
    model: str,
    steps: Sequence[Step],
    mislabel: str | None = None,
    listen: Listen | None = None,
    profile: Profile | None = None,
) -> Verification:
    """As ``verify_workload``, of several steps in turn; ``listen`` and ``profile`` stand in for the real ones."""
    ready, skipped = _warm_up(steps)
    seen, hears = observe(ready, listen or listening, profile or _profile_on_device)
    if not seen:
        raise MeasurementError(f"{model}: no op was dispatched: {_reasons(skipped) or 'the step is empty'}")
    wrong = {run.op for run in seen if mislabel and mislabel in (run.op, run.op.rpartition(".")[0])}
    if mislabel and not wrong:
        raise UsageError(f"--mislabel {mislabel}: no such op in the step; one of its ops is {seen[0].op}")
    return Verification(
        model=model,
        checks=compare(seen, hears, wrong),
        control=control(seen, hears),
        hears=sorted(hears),
        skipped=skipped,
    )


def _warm_up(steps: Sequence[Step]) -> tuple[list[Step], dict[str, str]]:
    """Run each step once, since libraries are loaded by their first call and only loaded ones can be heard."""
    ready, skipped = [], {}
    for step in steps:
        try:
            with torch.no_grad():
                step.run()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                step.restore()
            ready.append(step)
        except Exception as error:  # whatever the step raises is its author's to mend
            if not step.optional:
                raise CaptureError(f"the step fails when run as it is: {one_line(error)}") from error
            skipped[step.name] = one_line(error)
    return ready, skipped


def _reasons(skipped: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in skipped.items())


def _profile_on_device(run: Callable[[], None]) -> list[dict[str, Any]]:
    def drained() -> None:
        run()
        torch.cuda.synchronize()

    return profiled(drained)


def observe(steps: Sequence[Step], listen: Listen, profile: Profile) -> tuple[list[Seen], frozenset[str]]:
    """Run each step once, observed: every leaf op's run, and the libraries whose silence counts.

    Raises ``MeasurementError`` when the profiler returns no kernel.
    """
    with torch.no_grad(), listen() as ears:
        watch = LeafWatch(ears)

        def run() -> None:
            with named_range(_WHOLE):
                for step in steps:
                    watch.step = step.name
                    with watch:
                        step.run()
                    watch.catch_up()

        _add_kernels(watch.seen, profile(run))
    for step in steps:
        step.restore()
    return watch.seen, ears.hears


def _add_kernels(seen: Sequence[Seen], events: list[dict[str, Any]]) -> None:
    """Give every run the names of the kernels that it launched, from the trace of the whole pass."""
    kernels: dict[int, list[str]] = {}
    for whole in trace.traced_steps(events, trace.spans(events, _WHOLE), trace.spans(events, _OP)):
        for activity in whole.activities:
            if activity.kind == "kernel" and activity.site is not None:
                kernels.setdefault(activity.site, []).append(activity.name)
    if seen and not kernels:
        raise MeasurementError("the profiler returned no kernel of the step; is another CUPTI client in this process?")
    for index, names in kernels.items():
        seen[index].kernels = tuple(names)


def observed_libraries(run: Seen, hears: frozenset[str]) -> tuple[frozenset[str], Evidence]:
    """The libraries at work in one run of an op, and how they are known.

    Loggers name the call itself.  Kernel names count for the libraries that the loggers do not wholly cover, and for
    what is compiled into ATen: cuBLAS and cuBLASLt share kernels, so there a name would not tell them apart.
    """
    heard = frozenset(call.library for call in run.calls)
    kinds = [classify_kernel(name) for name in run.kernels]
    named = frozenset(kind.library for kind in kinds if kind.i_lib or kind.library in _IN_ATEN) - hears
    if heard and named - heard:
        return heard | named, "logger, kernel names"
    return heard | named, "logger" if heard else "kernel names" if named else "silence"


def judge(predicted: Classification, observed: frozenset[str], run: Seen) -> str | None:
    """Why prediction and observation disagree, in one line, or None."""
    library = predicted.library
    others = sorted(observed - {library} - _NESTED.get(library, frozenset()))
    if others:
        return f"predicted {library} ({predicted.code}), observed {', '.join(sorted(observed))}"
    idle = run.empty and not run.kernels  # a product of empty tensors needs no library
    if (predicted.i_lib or library in _IN_ATEN) and library not in observed and not idle:
        return f"predicted {library} ({predicted.code}), observed none"
    return None


def predict(run: Seen) -> Classification:
    """What the registry says of the op, as the breakdown asks it."""
    if run.op == OUTSIDE:
        return Classification(
            family="unknown", library="none", i_lib=False, code="outside", reason="no op should call between ops"
        )
    return classify_op(run.op, "cuda", dtype=run.dtype, inputs=run.inputs)


def mislabelled(kind: Classification) -> Classification:
    """``kind`` with a wrong library: ATen for a vendor's, cuBLAS for everything else."""
    library = "ATen" if kind.i_lib else "cuBLAS"
    return Classification(
        family=kind.family, library=library, i_lib=not kind.i_lib, code="mislabelled", reason="wrong on purpose"
    )


def compare(seen: Iterable[Seen], hears: frozenset[str], wrong: set[str]) -> list[OpCheck]:
    """Predicted × observed, equal runs counted together, in the order they first ran; ``wrong`` ops are mislabelled."""
    runs: dict[tuple[Any, ...], list[Seen]] = {}
    for run in seen:
        observed, evidence = observed_libraries(run, hears)
        key = (run.step, run.op, run.inputs, run.calls, observed, evidence, run.empty)
        runs.setdefault(key, []).append(run)
    checks = []
    for (*_, observed, evidence, _), equal in runs.items():
        first = equal[0]
        predicted = mislabelled(predict(first)) if first.op in wrong else predict(first)
        checks.append(
            OpCheck(
                step=first.step,
                op=first.op,
                inputs=first.inputs,
                dtype=first.dtype,
                runs=len(equal),
                predicted=predicted,
                observed=tuple(sorted(observed)),
                functions=tuple(call.function for call in first.calls),
                kernels=first.kernels,
                evidence=evidence,
                problem=judge(predicted, observed, first),
            )
        )
    return checks


def control(seen: Sequence[Seen], hears: frozenset[str]) -> Control:
    """Give one op a wrong library: a vendor's op where one ran as predicted, else a native one that ran a kernel."""

    def fits(run: Seen) -> tuple[bool, bool]:
        kind, (observed, _) = predict(run), observed_libraries(run, hears)
        works = bool(run.kernels) and not kind.i_lib
        return kind.i_lib and kind.library in observed and judge(kind, observed, run) is None, works

    chosen = max(seen, key=fits)  # the first of the best
    kind = predict(chosen)
    wrong = mislabelled(kind)
    found = judge(wrong, observed_libraries(chosen, hears)[0], chosen) is not None
    return Control(op=chosen.op, library=kind.library, mislabelled=wrong.library, found=found)
