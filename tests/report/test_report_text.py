import math
import unicodedata

import pytest

from assay.report.text import interval, number, shortened, size, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Ünï, 漢字, 👍🏽, العربية", "plain, Ünï, 漢字, 👍🏽, العربية"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("dos\r\nline", "dos\nline"),
        ("over\rwritten", "over⟦U+000D⟧written"),
        ("\x1b[31mred\x1b[0m", "⟦U+001B⟧[31mred⟦U+001B⟧[0m"),
        ("nul\x00 bell\x07 del\x7f c1\x9b", "nul⟦U+0000⟧ bell⟦U+0007⟧ del⟦U+007F⟧ c1⟦U+009B⟧"),
        ("a\u202egpj.exe", "a⟦U+202E⟧gpj.exe"),
        ("zero\u200bwidth\ufeff", "zero⟦U+200B⟧width⟦U+FEFF⟧"),
        ("tag\U000e0041", "tag⟦U+E0041⟧"),
        ("half\ud83d", "half⟦U+D83D⟧"),
        ("heart \u2764\ufe0f", "heart \u2764\ufe0f"),
    ],
)
def test_hidden_characters_are_written_out(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown


def test_no_control_or_format_character_stays():
    every = "".join(map(chr, range(0x110000)))
    kept = {c for c in visible(every) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")}
    # What is left of category Cf is printed: Arabic number signs, Kaithi's, hieroglyph joiners.
    assert kept - {"\t", "\n"} <= set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2") | {
        chr(code) for code in (0x110BD, 0x110CD, *range(0x13430, 0x13440))
    }
    assert visible(every).encode()  # no surrogate is left either


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.7142857, "0.714"), (-0.31, "−0.310"), (0.041, "0.0410"), (12.3456, "12.3"), (412, "412"), (412.0, "412"),
        (12345, "12,345"), (1234.5, "1,234"), (2.5e7 + 0.5, "2.50e+07"), (1e-6, "1.00e−06"), (0.0, "0"), (-0.0, "0"),
        (None, "–"), (math.nan, "–"), (math.inf, "–"),
    ],
)  # fmt: skip
def test_numbers(value, shown):
    assert number(value) == shown


def test_signs_intervals_sizes_and_cuts():
    assert number(0.26, signed=True) == "+0.260"
    assert number(-3, signed=True) == "−3"
    assert interval((-0.1, 0.25)) == "−0.100 to 0.250"
    assert interval(None) == "–"
    assert size(999) == "999 B"
    assert size(1_530_000) == "1.53 MB"
    assert shortened("abcdef", 4) == ("abcd", 2)
    assert shortened("abc", 4) == ("abc", 0)
