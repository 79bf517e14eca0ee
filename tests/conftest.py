"""Set before any test is collected: one thread, no network, shapes checked at run time."""

import os

# Read by torch, BLAS and transformers when they are imported, and inherited by the processes that tests start.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", MPLBACKEND="agg")

import random
import sys

import pytest
from jaxtyping import install_import_hook

install_import_hook(["assay.losses", "assay.algorithms"], "beartype.beartype")


@pytest.fixture(autouse=True)
def _same_random_numbers_in_any_order() -> None:
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
