"""One review at a time measures on a device: others compile meanwhile, and wait where they would time.

Two reviews on one GPU, as on a shared runner, would else read each other's kernels in their wall times.  The lock is
advisory and of this machine; it is released by the kernel when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ASK_AGAIN_S = 0.05
TELL_EVERY_S = 2.0


class Turn:
    """The right to measure on ``device``, a name that is the same in every process: a UUID, or ``cpu``.

    ``waiting`` is called when another process measures, again every ``TELL_EVERY_S`` seconds, and once more when it
    has ended.  Where the lock file cannot be opened nothing is waited for, and ``failure`` says why.
    """

    def __init__(self, device: str, waiting: Callable[[], None]) -> None:
        self._waiting = waiting
        self.failure: str | None = None
        self.path = Path(tempfile.gettempdir()) / f"taxbreak-{re.sub(r'[^A-Za-z0-9-]', '_', device)}.lock"

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Wait for the turn, and hold it inside."""
        try:
            # No link is followed: the folder belongs to everybody.
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            self.failure = f"{self.path}: {error.strerror or error}"
            yield
            return
        try:
            self._acquire(handle)
            yield
        finally:
            os.close(handle)  # releases it

    def _acquire(self, handle: int) -> None:
        told: float | None = None
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if told is None or time.monotonic() - told >= TELL_EVERY_S:
                    self._waiting()
                    told = time.monotonic()
                time.sleep(ASK_AGAIN_S)
                continue
            if told is not None:
                self._waiting()  # whoever counts the seconds of this stage begins anew
            return
