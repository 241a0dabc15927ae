"""No call of a step gets memory for its frame from the system."""

from __future__ import annotations

import resource
import sys

import pytest

from taxbreak_fx.call_stack import with_room

CALLS, DEPTHS = 400, 300
pytestmark = pytest.mark.skipif(not hasattr(resource, "RUSAGE_THREAD"), reason="the system tells no threads apart")


def leaf(a: int) -> int:
    b = a + a
    return b


def step() -> int:
    """Many calls from one place of the stack."""
    total = 0
    for number in range(CALLS):
        total += leaf(number)
    return total


def faults(depth: int) -> int:
    """Pages that ``step`` gets from the system when so many frames lie below it."""
    if depth:
        return faults(depth - 1)
    step()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def worst() -> int:
    return max(faults(depth) for depth in range(DEPTHS))


def test_within_the_room_no_call_pays_at_any_depth() -> None:
    assert with_room(worst) < CALLS / 10


@pytest.mark.skipif(sys.version_info[:2] not in ((3, 11), (3, 12)), reason="seen of Python 3.11 and 3.12")
def test_without_it_every_call_pays_at_some_depth() -> None:
    assert worst() >= CALLS


def test_what_the_function_returns_and_raises_passes_through() -> None:
    def raising() -> None:
        raise KeyError("here")

    assert with_room(lambda: [1, 2]) == [1, 2]
    with pytest.raises(KeyError, match="here"):
        with_room(raising)


def test_rooms_nest() -> None:
    assert with_room(lambda: with_room(worst)) < CALLS / 10
