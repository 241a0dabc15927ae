"""Host memory that is kept for the steps, so that none of them pays for getting it from the system.

CPython gives an arena (1 MiB) back as soon as nothing in it is in use, and glibc the top of its heap.  A step whose
objects just do not fit into what is left then gets the memory anew each time, and pays for every page: 14 µs on a
virtual machine, 150 to 300 pages in OLMoE's step under Inductor (H200's host, 2026-11-23).  Whether it does is chance:
in one process the plain steps paid, in another only those with clock reads in them, by which two times of one step
differed by 30 to 60 %.  A process that has run for a while has pieces in use everywhere, and keeps its memory.
"""

from __future__ import annotations

KEPT_MIB = 16
_SMALL = 479  # with its header the largest object that lies in an arena
_CHUNK = 1 << 16  # below what glibc maps on its own
_WITHIN = 18  # log2 of a part of an arena: at least one whole part lies in each


def kept_memory(mebibytes: int = KEPT_MIB) -> list[object]:
    """Objects that hold so much free memory, MiB each, in CPython's arenas and in the heap, as long as they live.

    One small object stays in every arena, and one chunk at the top of the heap.
    """
    chunks = [bytearray(_CHUNK) for _ in range((mebibytes << 20) // _CHUNK)]
    small = [bytes(_SMALL) for _ in range((mebibytes << 20) // (_SMALL + 33))]
    return [chunks[-1], *{id(one) >> _WITHIN: one for one in small}.values()]
