"""The error tree.  The CLI catches only ``TaxbreakError``; everything else is a bug and keeps its traceback.

Exit codes are part of the interface (docs/cli.md): a gate in CI may test them.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_GATE = 9  # a gate of taxbreak diff failed: a result, not an error
EXIT_INTERRUPTED = 130


class TaxbreakError(Exception):
    """One clear line that names the cause and the mend; ``exit_code`` is what the CLI returns."""

    exit_code = 1


class UsageError(TaxbreakError):
    """Unknown model, variant, option or value; a factory that returns the wrong thing."""

    exit_code = 2


class DeviceError(TaxbreakError):
    """The machine lacks what was asked for: no CUDA device, an unsupported accelerator, too little memory."""

    exit_code = 3


class CaptureError(TaxbreakError):
    """The step could not be captured, built or run."""

    exit_code = 4


class MeasurementError(TaxbreakError):
    """A measurement failed its own positive control (for example a profiler that returns no kernel)."""

    exit_code = 5


class FormatError(TaxbreakError):
    """A review, trace or profile that cannot be read: malformed, or of another schema version."""

    exit_code = 6


class UncoveredError(FormatError):
    """A hardware profile knows no cost for something that the step does; the line names what.

    ``lacks``: which kind of time, and of what, for a line that names several.
    """

    def __init__(self, line: str, lacks: tuple[str, str] | None = None) -> None:
        super().__init__(line)
        self.lacks = lacks


class OutputError(TaxbreakError):
    """A result that cannot be written where it was asked for."""

    exit_code = 7


class MismatchError(TaxbreakError):
    """The registry predicted another library than the one that was called."""

    exit_code = 8
