"""Clock reads generated into bytecode: the eager step's own, a captured graph's, or that of Inductor's wrapper.

In the eager step they stand around each instruction that dispatches an ATen op, elsewhere around each recorded call.

A function mode reaches every torch call too, but costs microseconds at each, and its first layer more than any further
one, so that its cost cannot be measured and removed.  Two clock reads in the code cost a fifth of a microsecond.
The bytecode is rewritten with the tools that Dynamo itself uses; functions get the rewritten code for the length of one
pass and their own code back after it.
"""

from __future__ import annotations

import bisect
import contextlib
import dis
import gc
import itertools
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.fx
import torch.overrides

from taxbreak_fx.errors import CaptureError
from taxbreak_fx.probes import ClockProbe, Probe
from taxbreak_fx.sources import ours

Spot = tuple[types.CodeType, int]  # a code object and the offset of one of its instructions, as frames report it

_OVERRIDES = torch.overrides.__file__
_ACTS = ("CALL", "BINARY_", "UNARY_", "COMPARE_OP", "CONTAINS_OP", "IS_OP", "LOAD_ATTR", "STORE_SUBSCR", "STORE_SLICE")
_PREFIXES = ("KW_NAMES", "PRECALL")  # prepare the call that follows: nothing may come between
_JUMPS_ON_TRUTH = "POP_JUMP"  # a tensor's truth is read by a jump: no instruction follows on both ways


def call_spots(frame: types.FrameType | None) -> list[Spot]:
    """Where a torch function was called from, innermost first, up to this package: ``frame`` called the function mode.

    A Python function of torch's hands over to the mode from inside itself; without the mode it runs on, so the spot is
    its caller's.
    """
    if frame is not None and frame.f_code.co_filename == _OVERRIDES:
        delegating = frame.f_back
        frame = delegating.f_back if delegating is not None else None
    spots = []
    while frame is not None and not ours(frame.f_code.co_filename):
        spots.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return spots


@dataclass(frozen=True)
class _Swap:
    """The functions that run ``own``, and what they may run instead for one pass."""

    functions: list[types.FunctionType]
    own: types.CodeType
    clocked: types.CodeType
    routed: types.CodeType

    def put(self, code: types.CodeType) -> None:
        for function in self.functions:
            function.__code__ = code


def innermost_spot(frame: types.FrameType | None) -> list[Spot]:
    """Where the first code that is not this package's stands, seen from ``frame``; a stack of one for ``Ticks``."""
    while frame is not None and ours(frame.f_code.co_filename):
        frame = frame.f_back
    return [] if frame is None else [(frame.f_code, frame.f_lasti)]


def node_spots(gm: torch.fx.GraphModule) -> list[Sequence[Spot]]:
    """Where the generated code of ``gm`` makes each call node's call; a stack of one for each, in order.

    A node's statement ends by storing the result under the node's name, right after the call, or after naming what the
    call wrote: ``x += y; iadd = x``.  Raises ``CaptureError`` where the code does not look so.
    """
    code = type(gm).forward.__code__
    made = [item for item in dis.get_instructions(code) if item.opcode != dis.EXTENDED_ARG]
    stores: dict[str, int] = {}
    for index, item in enumerate(made):
        if item.opname.startswith("STORE_FAST"):
            name = item.argval[0] if isinstance(item.argval, tuple) else item.argval
            stores.setdefault(name, index)
    spots: list[Sequence[Spot]] = []
    for node in gm.graph.nodes:
        if node.op.startswith("call_"):
            at = stores.get(node.name, 0) - 1
            while at >= 0 and made[at].opname.startswith(("LOAD_FAST", "STORE_FAST")):
                at -= 1
            if at < 0 or not made[at].opname.startswith(_ACTS):
                raise CaptureError(f"the generated code of node {node.name} is not a call and a store")
            spots.append([(code, made[at].offset)])
    return spots


class Ticks:
    """The step's functions with clock reads around chosen instructions, put on for one pass at a time.

    ``stacks``: for each torch call that dispatches ops, where it was called from, innermost first; the innermost code
    that belongs to an existing function is chosen.  Raises ``CaptureError`` when a call has no such code.
    """

    def __init__(self, stacks: Iterable[Sequence[Spot]]) -> None:
        stacks = list(stacks)
        owners = _owners({code for stack in stacks for code, _ in stack})
        chosen: dict[types.CodeType, set[int]] = {}
        for stack in stacks:
            spot = next((spot for spot in stack if spot[0] in owners), None)
            if spot is None:
                raise CaptureError("a torch call comes from code that no function owns: it cannot be clocked in place")
            chosen.setdefault(spot[0], set()).add(spot[1])
        self._stamps: list[int] = []
        self._sink: Callable[[bool], None] = _nowhere
        clock = (self._stamps.append, time.perf_counter_ns)
        self._swaps = [
            _Swap(
                functions=owners[code],
                own=code,
                clocked=_ticked(code, spots, clock, clock),
                routed=_ticked(code, spots, (self._enter,), (self._leave,)),
            )
            for code, spots in chosen.items()
        ]
        self._pairs: list[tuple[int, int]] | None = None
        self._length = 0

    @property
    def nested(self) -> list[int]:
        """For each site how many ticks lie inside it: their reads cost time there.  Known after the first pass."""
        assert self._pairs is not None
        return [(leave - enter - 1) // 2 for enter, leave in self._pairs]

    def _enter(self) -> None:
        self._sink(True)

    def _leave(self) -> None:
        self._sink(False)

    @contextlib.contextmanager
    def installed(self, probe: Probe) -> Iterator[None]:
        """Route the sites of the next step to ``probe``: a ``ClockProbe`` by reads in the code, others by calls.

        Ticks inside other ticks belong to the outer site.  The first pass learns their order, so it cannot be a
        ``ClockProbe``'s.  Other threads that run the same code reach no probe; what they read into a ``ClockProbe``'s
        pass spoils it.  Raises ``CaptureError`` at the end of a pass with another number of ticks.
        """
        if type(probe) is ClockProbe:
            assert self._pairs is not None
            self._stamps.clear()
            with self._codes("clocked"):
                yield
            self._check(len(self._stamps))
            probe.stamps[:] = [self._stamps[at] for pair in self._pairs for at in pair]
            return
        pattern: list[bool] = []
        depth, own, current = 0, threading.get_ident(), threading.get_ident

        def sink(entering: bool) -> None:
            nonlocal depth
            if current() != own:
                return
            pattern.append(entering)
            depth += 1 if entering else -1
            if depth == (1 if entering else 0):
                (probe.enter if entering else probe.leave)()

        self._sink = sink
        try:
            with self._codes("routed"):
                yield
        finally:
            self._sink = _nowhere
        if self._pairs is None:
            self._pairs, self._length = _outermost(pattern), len(pattern)
        self._check(len(pattern))

    def _check(self, length: int) -> None:
        if length != self._length:
            raise CaptureError(
                f"the step met {length} clock reads in one pass and {self._length} in another: its work depends on data"
            )

    @contextlib.contextmanager
    def _codes(self, kind: Literal["clocked", "routed"]) -> Iterator[None]:
        try:
            for swap in self._swaps:
                swap.put(swap.clocked if kind == "clocked" else swap.routed)
            yield
        finally:
            for swap in self._swaps:
                swap.put(swap.own)


def _nowhere(entering: bool) -> None:
    """Where ticks go between passes: a function of the step may be called elsewhere meanwhile."""


def _outermost(pattern: list[bool]) -> list[tuple[int, int]]:
    """The index pairs (enter, leave) of the ticks that lie in no other.

    Raises ``CaptureError`` when they are not nested: a call raised inside its ticks and the author caught it.
    """
    pairs, open_at = [], []
    for index, entering in enumerate(pattern):
        if entering:
            open_at.append(index)
        elif not open_at:
            break
        else:
            start = open_at.pop()
            if not open_at:
                pairs.append((start, index))
    else:
        if not open_at:
            return pairs
    raise CaptureError("an exception passes through a torch call of the step: its clock reads do not pair")


def _owners(codes: set[types.CodeType]) -> dict[types.CodeType, list[types.FunctionType]]:
    """The functions that run each code; codes of functions that are made during the step have none that lasts."""
    gc.collect()  # functions made during the step may be garbage that still runs the code
    frozen = gc.get_freeze_count() > 0
    if frozen:  # what is frozen is not searched
        gc.unfreeze()
    try:
        referrers = gc.get_referrers(*codes) if codes else []
    finally:
        if frozen:
            gc.freeze()
    owners: dict[types.CodeType, list[types.FunctionType]] = {}
    for referrer in referrers:
        if isinstance(referrer, types.FunctionType) and referrer.__code__ in codes:
            owners.setdefault(referrer.__code__, []).append(referrer)
    return owners


def _ticked(code: types.CodeType, offsets: set[int], before: tuple[Any, ...], after: tuple[Any, ...]) -> types.CodeType:
    """``code`` with ``f(g(…))`` of ``before`` and ``after`` called around the instructions at ``offsets``."""
    from torch._dynamo import bytecode_transformation as bytecode

    # Dynamo's instructions are renumbered; their order alone is that of the code object.
    order = [item.offset for item in dis.get_instructions(code) if item.opcode != dis.EXTENDED_ARG]

    def rewrite(instructions: list[Any], _: dict[str, Any]) -> None:
        # A frame may report one of the inline cache entries that follow its instruction.
        sites = [_call_of(instructions, bisect.bisect_right(order, at) - 1) for at in offsets]
        _surround(bytecode, instructions, list({id(site): site for site in sites}.values()), before, after)
        for resumed in _resumed(instructions):
            resumed.opcode, resumed.opname = dis.opmap["NOP"], "NOP"

    try:
        made = bytecode.transform_code_object(code, rewrite, safe=True)
    except AssertionError as error:
        raise CaptureError(f"Dynamo's tools cannot rewrite {code.co_qualname}: {error}") from error
    rewritten = made[0] if isinstance(made, tuple) else made
    assert isinstance(rewritten, types.CodeType)
    bare = bytearray(rewritten.co_code)
    for instruction in dis.get_instructions(rewritten):
        if instruction.opname == "RETURN_GENERATOR":
            bare[instruction.offset + 2] = dis.opmap["POP_TOP"]
    return rewritten.replace(co_code=bytes(bare))


def _resumed(instructions: list[Any]) -> list[Any]:
    """The instruction with which a generator drops what it was started with.

    That value is on its stack at the start, which Dynamo's reckoning of the stack leaves out: the instruction stands
    as a NOP, which is as long, until the code is made.
    """
    pairs = itertools.pairwise(instructions)
    return [after for first, after in pairs if first.opname == "RETURN_GENERATOR" and after.opname == "POP_TOP"]


def _call_of(instructions: list[Any], at: int) -> Any:
    """The instruction that acts: specialised prefixes of a call may report their own offset."""
    while instructions[at].opname in _PREFIXES:
        at += 1
    return instructions[at]


def _surround(
    bytecode: Any, instructions: list[Any], sites: list[Any], before: tuple[Any, ...], after: tuple[Any, ...]
) -> None:
    """Put the calls around every site, in one sweep: a captured graph is one function with thousands of sites."""
    places = {id(instruction): at for at, instruction in enumerate(instructions)}
    put_before: dict[int, list[Any]] = {}
    put_after: dict[int, list[Any]] = {}
    entries: dict[int, Any] = {}
    for site in sites:
        first = at = places[id(site)]
        while first and instructions[first - 1].opname in _PREFIXES:
            first -= 1
        entering, leaving = _calls(bytecode, before), _calls(bytecode, after)
        if site.opname.startswith(_JUMPS_ON_TRUTH):
            # The truth is read inside the ticks by a negation, and negated back; the jump then sees a plain bool.
            entering += [bytecode.create_instruction("UNARY_NOT"), *leaving, bytecode.create_instruction("UNARY_NOT")]
            leaving = []
        elif site.target is not None:
            raise CaptureError(f"{site.opname} cannot be clocked: it goes on in two places")
        for made in (*entering, *leaving):
            made.copy_positions(site)
        entries[id(instructions[first])] = entering[0]
        put_before[first], put_after[at] = entering, leaving
    # Jumps to the call now lead to the clock read before it.
    for instruction in instructions:
        if instruction.target is not None:
            instruction.target = entries.get(id(instruction.target), instruction.target)
    instructions[:] = [
        made
        for at, instruction in enumerate(instructions)
        for made in (*put_before.get(at, ()), instruction, *put_after.get(at, ()))
    ]


def _calls(bytecode: Any, functions: tuple[Any, ...]) -> list[Any]:
    """Instructions that call ``f(g(…()))`` and drop the result; the stack is as before."""
    made: list[Any] = []
    for function in functions:
        made += bytecode.add_push_null(bytecode.create_instruction("LOAD_CONST", argval=function))
    for number in range(len(functions)):
        made += bytecode.create_call_function(1 if number else 0, False)
    return [*made, bytecode.create_instruction("POP_TOP")]
