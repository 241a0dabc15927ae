"""The test of the whole decomposition: a spin of known length comes out in its own term, and in no other."""

from __future__ import annotations

import pytest

from taxbreak_fx.errors import UsageError
from taxbreak_fx.known_delay import TOLERANCE, Delay, Place, known_delay


@pytest.mark.parametrize("place", ["module", "guard"])
def test_a_known_delay_lands_in_its_term_and_nowhere_else(place: Place) -> None:
    found = known_delay(place, "cpu")
    assert found.met, found.shares


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["module", "guard", "library", "launch"])
def test_a_known_delay_lands_in_its_term_on_the_gpu(place: Place) -> None:
    found = known_delay(place, "cuda")
    assert found.met, found.shares


def test_a_share_that_is_off_or_elsewhere_is_not_met() -> None:
    def delay(**shares: float) -> Delay:
        return Delay(place="launch", variant="eager", target="launch", injected_us=200.0, pairs=4, shares=shares)

    off = TOLERANCE + 0.01
    assert delay(launch=1.0, python=0.05).met
    assert not delay(launch=1.0 - off, python=0.0).met
    assert not delay(launch=1.0, python=off).met
    assert not delay(launch=1.0, ct=-off).met


def test_there_is_no_library_to_delay_on_the_cpu() -> None:
    with pytest.raises(UsageError, match="there is no library to delay on cpu; places there: module, guard"):
        known_delay("library", "cpu")
