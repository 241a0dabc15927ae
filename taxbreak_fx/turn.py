"""One review at a time runs anything on a device: others start, or compile, meanwhile.

Two reviews on one GPU, as on a shared runner, would else share its time: a GPU gives each process 1 to 2 ms by turns,
which stood in T_wall, in kernels' times and before graphs' first nodes (H200, 2026-11-23: kernels of 1.7 ms among like
ones of 0.09, a first node after 1,975 µs instead of 18) while only what was timed was kept apart, and not the models
built and the steps warmed up beside it.  The lock is advisory and of this machine; it is released by the kernel when
its process ends, however it ends.
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
from typing import Literal

ASK_AGAIN_S = 0.05
TELL_EVERY_S = 2.0


class Turn:
    """The right to run on ``device``, a name that is the same in every process: a UUID, or ``cpu``.  None: no other is
    waited for.

    ``waiting`` is called when another process has it, again every ``TELL_EVERY_S`` seconds, and once more when it
    has ended.  Where the lock file cannot be opened nothing is waited for, and ``failure`` says why.  ``waited_s``:
    how long this process has waited so far.
    """

    def __init__(self, device: str | None, waiting: Callable[[], None] = lambda: None) -> None:
        self._waiting = waiting
        self._handle: int | None = None
        self.failure: str | None = None
        self.waited_s = 0.0
        name = None if device is None else re.sub(r"[^A-Za-z0-9-]", "_", device)
        self.path = None if name is None else Path(tempfile.gettempdir()) / f"taxbreak-{name}.lock"

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Wait for the turn, and hold it inside.  Not to be nested."""
        self._take()
        try:
            yield
        finally:
            self._end()

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        """Let others have the turn inside, and wait for it again; nothing where it is not held.

        Who is interrupted inside does not wait.
        """
        again = self._handle is not None
        self._end()
        try:
            yield
        except BaseException as error:
            again = again and isinstance(error, Exception)
            raise
        finally:
            if again:
                self._take()

    def _take(self) -> None:
        if self.path is None:
            return
        try:
            # No link is followed: the folder belongs to everybody.
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            self.failure = f"{self.path}: {error.strerror or error}"
            return
        started = time.monotonic()
        try:
            self._acquire(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        self.waited_s += time.monotonic() - started

    def _end(self) -> None:
        if self._handle is not None:
            os.close(self._handle)  # releases it
            self._handle = None

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


def turn_on(device: Literal["cuda", "cpu"], waiting: Callable[[], None] = lambda: None) -> Turn:
    """The turn on the device that this process uses; ``waiting``: as for ``Turn``."""
    if device == "cpu":
        return Turn("cpu", waiting)
    import torch  # this module serves processes that have no use for it

    return Turn(f"gpu-{torch.cuda.get_device_properties(0).uuid}", waiting)
