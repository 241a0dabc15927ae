"""How numbers and names are written in every report.  Values are in µs; reports show ms with three digits."""

from __future__ import annotations

import unicodedata

from taxbreak_fx.record import Interval, Percentiles, SourceLine

MISSING = "–"  # not measured
NEAR_ZERO = "≈0"

# Control and format characters move the cursor, recolour the terminal or reverse the reading order.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def plain(text: str) -> str:
    """``text`` on one line, with every control, format and private character written as a visible escape."""
    return "".join(_escape(char) if unicodedata.category(char) in _UNSAFE else char for char in text)


def _escape(char: str) -> str:
    if char in "\t\n\r":
        return " "
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shorten(text: str, width: int) -> str:
    """The end of ``text`` in at most ``width`` columns: the tail of a path tells more than its head."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def clip(text: str, width: int) -> str:
    """The start of ``text`` in at most ``width`` columns."""
    return text if len(text) <= width else text[: width - 1] + "…"


def count(value: int | None) -> str:
    """A count with thousands separated."""
    return MISSING if value is None else f"{value:,}"


def _decimals(value: float) -> int:
    size = abs(value)
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3


def number(value: float) -> str:
    """Three significant digits, at most three decimals; a value too small for those shows as ``<0.001``."""
    if 0 < abs(value) < 0.0005:
        return "<0.001" if value > 0 else ">-0.001"
    return f"{value:,.{_decimals(value)}f}" if value else "0"


def ms(value_us: float | None) -> str:
    """Microseconds shown as ms, sign kept."""
    return MISSING if value_us is None else number(value_us / 1e3)


def change(value_us: float) -> str:
    """A difference in ms with its sign, a minus sign that is no hyphen."""
    text = ms(value_us)
    return f"+{text}" if text[0].isdigit() and value_us > 0 else text.replace("-", "−", 1)


def term(value_us: float | None, noise_us: float | None) -> str:
    """A cost in ms.  A negative within ``noise_us`` is a residual's noise and shows as ``≈0``; the file keeps it."""
    if value_us is not None and noise_us is not None and -noise_us <= value_us < 0:
        return NEAR_ZERO
    return ms(value_us)


def difference(value_us: float | None, noise_us: float | None) -> str:
    """A difference of two costs in ms; within ``noise_us``, either way, it is no change and shows as ``≈0``."""
    return NEAR_ZERO if value_us is not None and noise_us is not None and abs(value_us) <= noise_us else ms(value_us)


def interval(value: Interval | None, scale: float = 1.0) -> str:
    """``median [low high]`` after multiplication by ``scale``, all three with the decimals of the median; the median
    alone where nothing was repeated and it is known to be all there is."""
    if value is None:
        return MISSING
    middle = abs(value.median * scale)
    digits = _decimals(middle) if middle >= 0.01 else 6  # three decimals would show a small median as 0.000
    median, low, high = (f"{part * scale:,.{digits}f}" for part in (value.median, value.low, value.high))
    return median if value.samples == 0 and low == high else f"{median} [{low} {high}]"


def index(value: float | None) -> str:
    """HDBI, three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def microseconds(value: float | None) -> str:
    """A small time that stays in µs, with its unit."""
    return MISSING if value is None else f"{number(value)} µs"


def percentiles(value: Percentiles | None) -> str:
    """``p50 µs (p5 …, p95 …)``."""
    if value is None:
        return MISSING
    return f"{number(value.p50)} µs (p5 {number(value.p5)}, p95 {number(value.p95)})"


def yes_no(value: bool | None) -> str:
    """A measured yes or no."""
    return MISSING if value is None else "yes" if value else "NO"


def source(line: SourceLine | None) -> str:
    """``folder/file.py:line``, without the folders above; ``–`` when no line of the author's code is known."""
    if line is None:
        return MISSING
    return f"{'/'.join(line.file.replace(chr(92), '/').split('/')[-2:])}:{line.line}"
