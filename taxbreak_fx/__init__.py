"""Where the host time of a PyTorch step goes, and what each way of compiling it removes.

``import taxbreak_fx`` alone is light: ``review`` (and torch with it) is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taxbreak_fx.api import review
    from taxbreak_fx.model import Review

__version__ = "0.1.0"
__all__ = ["Review", "__version__", "review"]


def __getattr__(name: str) -> Any:
    if name == "review":
        from taxbreak_fx.api import review

        return review
    if name == "Review":
        from taxbreak_fx.model import Review

        return Review
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
