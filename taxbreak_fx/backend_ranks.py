"""Several ranks measure the same graph the same way, or none does.

Collectives inside a graph hang when ranks run it unequally often, so nothing is measured before all ranks have said
what they are about to do.  Every decision is one compare-and-set in the process group's store: whichever rank decides
first, for or against, decides for all, and a rank that comes late finds the decision made.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from taxbreak_fx.record import Record

_GO = "go"


class Offer(Record, frozen=True, kw_only=True):
    """What one rank is about to measure: the fingerprint of its options and graph, and the variants that compiled."""

    fingerprint: str
    variants: list[str]


class Ranks:
    """The other ranks, through ``store``; ``timeout_s`` bounds every wait."""

    def __init__(self, store: Any, rank: int, size: int, timeout_s: float) -> None:
        self._store, self.rank, self._size = store, rank, size
        self._timeout = datetime.timedelta(seconds=timeout_s)
        self._topics = itertools.count()
        self._refused: str | None = None

    def agree(self, fingerprint: str, variants: Sequence[str]) -> tuple[list[str], str | None]:
        """The variants that every rank can run, in this rank's order; or none, and the reason.

        After one refusal there is no further wait: ranks that went apart once do not meet again.
        """
        if self._refused is not None:
            return [], self._refused
        topic = f"agree/{next(self._topics)}"
        own = Offer(fingerprint=fingerprint, variants=list(variants))
        self._store.set(f"{topic}/{self.rank}", msgspec.json.encode(own).decode())
        offers, verdict = self._offers(topic)
        if offers:
            different = [rank for rank, offer in enumerate(offers) if offer.fingerprint != offers[0].fingerprint]
            verdict = f"rank {different[0]} has other options or another graph than rank 0" if different else _GO
        decision = self._decide(f"{topic}/decision", verdict)
        if decision != _GO:
            self._refused = f"ranks do not agree: {decision}"
            return [], self._refused
        if not offers:  # the others decided while this rank gave up waiting
            offers, _ = self._offers(topic)
        return [name for name in variants if all(name in offer.variants for offer in offers)], None

    def choose(self, value: str, default: str) -> str:
        """Rank 0's ``value``, on every rank; ``default``, on every rank, when it does not come in time."""
        topic = f"choose/{next(self._topics)}"
        if self.rank == 0:
            return self._decide(topic, value)
        try:
            self._store.wait([topic], self._timeout)
        except RuntimeError:  # torch's DistStoreError: nothing came in time
            return self._decide(topic, default)
        return self._decide(topic, default)

    def _offers(self, topic: str) -> tuple[list[Offer], str]:
        keys = [f"{topic}/{rank}" for rank in range(self._size)]
        try:
            self._store.wait(keys, self._timeout)
        except RuntimeError:
            return [], f"rank {self.rank} waited {self._timeout.total_seconds():g} s in vain for the others"
        return [msgspec.json.decode(self._store.get(key), type=Offer) for key in keys], _GO

    def _decide(self, key: str, proposal: str) -> str:
        """``proposal`` if nobody has decided yet, else what was decided."""
        decided: bytes = self._store.compare_set(key, "", proposal)
        return decided.decode()


def connect(timeout_s: float) -> Ranks | None:
    """The other ranks of the default process group, or None where there is no group or this process is all of it."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() < 2:
        return None
    store = distributed.distributed_c10d._get_default_store()
    store = distributed.PrefixStore("taxbreak", store)  # type: ignore[attr-defined]
    return Ranks(store, distributed.get_rank(), distributed.get_world_size(), timeout_s)


def fingerprint(*parts: str) -> str:
    """A digest that is equal on two ranks when all the parts are."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
