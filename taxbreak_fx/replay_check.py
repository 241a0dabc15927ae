"""Does every captured call, replayed alone, return the very bits that it returned inside the step?

Needs a ``CallWitness`` at the recording, which copies every argument and result: for checking, never for timing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten

from taxbreak_fx.capture import CapturedCall, freeze
from taxbreak_fx.record import Record
from taxbreak_fx.recorders.bench import one_line
from taxbreak_fx.state import Snapshot

Level = Literal["call", "leaf"]
Outcome = Literal["identical", "writes its input", "random", "uninitialised", "nondeterministic", "different", "failed"]
EMPTY = ("aten.empty", "aten.new_empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty_strided")
# Fused attention returns the state of a dropout that it does not do; nothing writes those outputs.
ATTENTION = ("aten._scaled_dot_product_", "aten._flash_attention", "aten._efficient_attention", "aten._cudnn_attention")


class ReplayCheck(Record, frozen=True, kw_only=True):
    """What became of one replay; bits are compared with those recorded in the step.

    ``identical``: the same, however often it is repeated.  The next three are the same from the remembered arguments
    and generators, and then: ``writes its input`` works on what it wrote when repeated, ``random`` draws other numbers,
    ``uninitialised`` returns memory that nobody has written, alike only in shape and layout.  ``nondeterministic``: two
    replays of one state differ between themselves.  ``different`` and ``failed`` are replays that do not stand for the
    call: ``detail`` says where they differ, or the error.
    """

    key: str
    level: Level
    op: str
    outcome: Outcome
    detail: str = ""

    @property
    def stands(self) -> bool:
        """Whether the replay is the call's work, or a reason other than a fault of ours says why it cannot be."""
        return self.outcome not in ("different", "failed")


@dataclass
class _Evidence:
    """One call as it ran in the step: its arguments before and after, its result, and the generators before."""

    before: Any
    generators: Snapshot
    own: list[tuple[torch.Generator, torch.Tensor]]
    live: Any
    after: Any = None
    result: Any = None
    aliases: tuple[int | None, ...] = ()
    drew: bool = False


class CallWitness:
    """Keeps what ``check_replays`` needs of each captured call; give it to ``record_eager``."""

    def __init__(self) -> None:
        self.evidence: dict[tuple[Level, str], _Evidence] = {}

    def before(self, level: Level, key: str, args: Any, kwargs: Any) -> None:
        """Copy the arguments and remember every generator."""
        own = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Generator)]
        with _disable_current_modes():
            states = [(generator, generator.get_state()) for generator in own]
            self.evidence[level, key] = _Evidence(freeze(args, kwargs, set()), Snapshot([own]), states, (args, kwargs))

    def after(self, level: Level, key: str, result: Any) -> None:
        """Copy the result and what the call left in its arguments."""
        found = self.evidence[level, key]
        args, kwargs = found.live
        found.live = None
        found.aliases = _aliases(result, (args, kwargs))
        found.after, found.result = freeze(args, kwargs, set()), freeze((result,), {}, set())[0][0]
        with _disable_current_modes():
            found.generators.settle()
            drew = any(not torch.equal(generator.get_state(), state) for generator, state in found.own)
        found.drew = drew or found.generators.uses_rng


def check_replays(calls: Iterable[CapturedCall], level: Level, witness: CallWitness) -> list[ReplayCheck]:
    """Replay every call from the arguments and generators it had in the step, and compare bits.

    The generators are left as they were.  Raises ``KeyError`` for a call that ``witness`` did not see.
    """
    state = Snapshot([])
    checks = [_check(call, level, witness.evidence[level, call.key]) for call in calls]
    state.restore()
    return checks


@torch.no_grad()
def _check(call: CapturedCall, level: Level, seen: _Evidence) -> ReplayCheck:
    def verdict(outcome: Outcome, detail: str = "") -> ReplayCheck:
        return ReplayCheck(key=call.key, level=level, op=call.op, outcome=outcome, detail=detail)

    try:
        first, args = _run(call, seen)
        found = _difference(call, first, args, seen)
        if all(op.startswith(EMPTY) for op in call.op.split("+")):
            return verdict("uninitialised" if "bits" in found or not found else "different", found)
        if found:
            second, _ = _run(call, seen)
            if _compare(second, first, "result"):
                return verdict("nondeterministic", found)
            # Outputs beyond the first of a fused attention: nothing writes them unless it drops out.
            fused = call.op.startswith(ATTENTION) and not found.startswith("result[0]")
            return verdict("uninitialised" if fused else "different", found)
        first = freeze((first,), {}, set())[0][0]  # a repeat may write into what the first call returned
        repeated = _compare(call.function(*args[0], **args[1]), first, "result") or _compare(
            args, seen.after, "argument"
        )
    except Exception as error:  # any op may refuse any replay: the entry carries the reason
        return verdict("failed", one_line(error))
    if not repeated:
        return verdict("identical")
    if seen.drew:
        return verdict("random", repeated)
    wrote = _compare(seen.after, seen.before, "argument")
    return verdict("writes its input" if wrote else "nondeterministic", repeated)


def _run(call: CapturedCall, seen: _Evidence) -> tuple[Any, Any]:
    """The call on fresh copies of its arguments: the result and the arguments."""
    args, kwargs = seen.before
    args, kwargs = freeze(args, kwargs, set())
    seen.generators.restore()
    return call.function(*args, **kwargs), (args, kwargs)


def _difference(call: CapturedCall, result: Any, args: Any, seen: _Evidence) -> str:
    """Where a replay and the step part ways, in words; empty when they are the same."""
    if call.op.endswith(".out") and "out" not in call.kwargs:  # replayed by the overload that allocates its result
        return _compare(result, seen.result, "result", layout=False)
    found = _compare(result, seen.result, "result") or _compare(args, seen.after, "argument")
    if not found and _aliases(result, args) != seen.aliases:
        found = "the result shares memory with other arguments"
    return found


def _compare(a: Any, b: Any, what: str, layout: bool = True) -> str:
    first, second = tree_flatten(a)[0], tree_flatten(b)[0]
    if len(first) != len(second):
        return f"{what}: {len(first)} values, not {len(second)}"
    for number, (x, y) in enumerate(zip(first, second, strict=True)):
        where = f"{what}[{number}]"
        if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
            same = x is y or (type(x) is type(y) and (x == y or x != x))  # NaN is itself
            if not same:
                return f"{where}: {x!r}, not {y!r}"[:200]
            continue
        if (x.dtype, x.shape, x.layout) != (y.dtype, y.shape, y.layout):
            return f"{where}: {x.dtype} {list(x.shape)}, not {y.dtype} {list(y.shape)}"
        if layout and x.layout is torch.strided and x.stride() != y.stride():
            return f"{where}: strides {x.stride()}, not {y.stride()}"
        if not _same_bits(x, y):
            return f"{where}: other bits"
    return ""


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bytes, not values: NaN equals itself, and −0 is not 0."""
    if a.layout is not torch.strided:
        return torch.equal(a.to_dense(), b.to_dense())
    first, second = (_bytes(tensor) for tensor in (a, b))
    return torch.equal(first, second)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    # Not contiguous(): a single element with a stride of its own counts as contiguous, and cannot be viewed as bytes.
    return flat.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _aliases(result: Any, args: Any) -> tuple[int | None, ...]:
    """Per tensor of the result, the number of the first argument whose memory it shares."""
    places: dict[int, int] = {}
    for number, leaf in enumerate(tree_flatten(args)[0]):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
            places.setdefault(leaf.untyped_storage()._cdata, number)
    strided = [r for r in tree_flatten(result)[0] if isinstance(r, torch.Tensor) and r.layout is torch.strided]
    return tuple(places.get(tensor.untyped_storage()._cdata) for tensor in strided)
