"""Fields of likelihoods that mean nothing are refused by name, before anything is trained."""

import math

import pytest

from assay.cli import WRONG_INPUT, main
from assay.rewards.likelihoods import LIKELIHOODS
from assay.settings import InputError


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("rao_kupper", "threshold", 0.0),
        ("rao_kupper", "threshold", math.nan),
        ("davidson", "nu", 0.0),
        ("davidson", "nu", -1.0),
        ("thurstone", "scale", 0.0),
        ("thurstone", "scale", math.inf),
        ("bradley_terry", "label_smoothing", -0.1),
        ("bradley_terry", "label_smoothing", 0.5),
        ("categorical", "levels", 1),
        ("ordinal", "high", 1),
    ],
)
def test_a_field_out_of_range_is_named(name, field, value):
    with pytest.raises(InputError, match=rf"likelihood\.{field} must .*; got {value}"):
        LIKELIHOODS[name](**{field: value})


def test_from_the_command_line(tmp_path, capsys):
    words = ["reward", "--run", str(tmp_path), "--likelihood", "davidson", "--likelihood.nu", "0"]
    assert main(words) == WRONG_INPUT
    assert "likelihood.nu must be positive; got 0" in capsys.readouterr().err
