"""Text that a model or a stranger wrote, and numbers, as a report may show them."""

import math
import re

# What a reader cannot see but a browser or terminal obeys: control characters except tab and newline (ANSI escapes
# start with one), lone surrogates, line separators, private use, noncharacters, and Unicode's default-ignorable
# characters (bidi controls, zero-width, fillers, tags), emoji's own variation selectors U+FE0E and U+FE0F excepted.
# Source: Unicode 16, DerivedCoreProperties.txt, Default_Ignorable_Code_Point.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
)


def visible(text: str) -> str:
    """The text with every hidden or controlling character written out, e.g. U+202E as '⟦U+202E⟧'.

    A line end of two characters (CR LF) becomes one. What is left needs HTML escaping only.
    """
    return _HIDDEN.sub(lambda found: f"⟦U+{ord(found.group()):04X}⟧", text.replace("\r\n", "\n"))


MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def shortened(text: str, limit: int) -> tuple[str, int]:
    """The first `limit` characters, and how many were left out."""
    return text[:limit], max(0, len(text) - limit)


def number(value: float | None, *, signed: bool = False) -> str:
    """Three significant digits, thousands grouped, a real minus sign; '–' for what is missing or not finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e9:
        text = f"{value:,.0f}"
    elif abs(value) >= 1e6 or abs(value) < 1e-4:
        text = f"{value:.2e}"
    else:
        decimals = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{decimals}f}"
    return ("+" if signed and value > 0 else "") + text.replace("-", MINUS)


def interval(pair: tuple[float, float] | None, *, signed: bool = False) -> str:
    """'0.51 to 0.63'; '–' without one."""
    return MISSING if pair is None else f"{number(pair[0], signed=signed)} to {number(pair[1], signed=signed)}"


def size(num_bytes: int) -> str:
    """A file size in the decimal units that people read."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{number(value)} {unit}"
