"""Scored tables: columns are checked, defaults filled, Parquet round trips, errors name file and column."""

import dataclasses
import sys
from subprocess import run

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.audit import ScoredPairs, ScoredSamples
from assay.settings import InputError


def small_pairs(**columns):
    given = {
        "prompt_id": ["a", "b", "b"],
        "reward_chosen": [1.0, 2.0, np.nan],
        "reward_rejected": [0.0, 2.0, 1.0],
        "length_chosen": [5, 6, 7],
        "length_rejected": [7, 6, 2],
    }
    return ScoredPairs(**(given | columns))


def test_derived_columns():
    pairs = small_pairs(preference=[1.0, 0.5, 0.8])
    assert len(pairs) == 3
    assert pairs.correct.tolist() == [1.0, 0.5, 0.0]
    assert pairs.failed.tolist() == [False, False, True]
    assert pairs.labelled.tolist() == [True, False, True]
    assert pairs.length_difference.tolist() == [-2, 0, 5]
    assert pairs.select(pairs.failed).prompt_id.tolist() == ["b"]


def test_infinite_rewards_are_failures():
    pairs = small_pairs(reward_chosen=[np.inf, np.inf, 1.0], reward_rejected=[0.0, np.inf, 0.0])
    assert pairs.failed.tolist() == [True, True, False]
    assert pairs.correct.tolist() == [0.0, 0.0, 1.0]


def test_defaults():
    pairs = small_pairs()
    assert pairs.preference.tolist() == [1, 1, 1]
    assert pairs.subset.tolist() == ["", "", ""]
    assert not pairs.truncated_chosen.any()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"length_chosen": [1, 2]}, r"'length_chosen' has shape \(2,\) but prompt_id has 3 rows"),
        ({"length_chosen": [1, -2, 3]}, "'length_chosen' holds lengths; row 1 is below 0"),
        ({"length_rejected": [1, 2.5, 3]}, "'length_rejected' must hold whole numbers"),
        ({"length_rejected": [1, np.nan, 3]}, "'length_rejected' must hold whole numbers"),
        ({"prompt_id": ["a", None, "b"]}, "'prompt_id' has no value in row 1"),
        ({"reward_chosen": ["high", 1, 2]}, "'reward_chosen': could not convert"),
        ({"preference": [1.0, 0.2, 1.0]}, "preference of row 1 is 0.2"),
        ({"preference": [1.0, np.nan, 1.0]}, "preference of row 1 is nan"),
    ],
)
def test_bad_columns(columns, message):
    with pytest.raises(InputError, match=message):
        small_pairs(**columns)


def test_parquet_round_trip(tmp_path):
    pairs = small_pairs(subset=["x", "", "y"], truncated_rejected=[True, False, False], annotator=["u", "v", "w"])
    pairs.save(tmp_path / "pairs.parquet")
    again = ScoredPairs.load(tmp_path / "pairs.parquet")
    samples = ScoredSamples(prompt_id=["a", "a"], reward=[1.0, np.nan], length=[3, 4], text=["yes", "no ☂"])
    samples.save(tmp_path / "samples.parquet")
    assert ScoredSamples.load(tmp_path / "samples.parquet").text.tolist() == ["yes", "no ☂"]
    assert np.isnan(ScoredSamples.load(tmp_path / "samples.parquet").oracle).all()
    for name in (field.name for field in dataclasses.fields(ScoredPairs)):
        np.testing.assert_array_equal(getattr(again, name), getattr(pairs, name))
        assert getattr(again, name).dtype == getattr(pairs, name).dtype


def test_empty_table_round_trip(tmp_path):
    empty = small_pairs().select(np.zeros(3, bool))
    empty.save(tmp_path / "empty.parquet")
    assert len(ScoredPairs.load(tmp_path / "empty.parquet")) == 0


def test_load_errors_name_file_and_column(tmp_path):
    path = tmp_path / "pairs.parquet"
    with pytest.raises(InputError, match=r"pairs\.parquet: no such file"):
        ScoredPairs.load(path)
    path.write_text("not parquet")
    with pytest.raises(InputError, match=r"pairs\.parquet: not a readable Parquet file"):
        ScoredPairs.load(path)
    pq.write_table(pa.table({"prompt_id": ["a"], "rewards": [1.0]}), path)
    with pytest.raises(
        InputError, match=r"pairs\.parquet: scored samples have no column 'rewards'.*Did you mean 'reward'"
    ):
        ScoredSamples.load(path)
    pq.write_table(pa.table({"prompt_id": ["a"], "reward": [1.0]}), path)
    with pytest.raises(InputError, match=r"pairs\.parquet: column 'length' is missing"):
        ScoredSamples.load(path)
    pq.write_table(pa.table({"prompt_id": ["a"], "reward": [1.0], "length": [-1]}), path)
    with pytest.raises(InputError, match=r"pairs\.parquet: scored samples: column 'length' holds lengths"):
        ScoredSamples.load(path)


def test_the_audit_needs_no_torch():
    code = "import sys, assay.audit, assay.audit.probes; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
