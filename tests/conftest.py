"""Set before any test is collected: one thread, no network, shapes checked at run time."""

import os

# Read by torch, BLAS and transformers when they are imported, and inherited by the processes that tests start.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", MPLBACKEND="agg")

import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis.configuration import set_hypothesis_home_dir
from jaxtyping import install_import_hook

# Its folder of examples names files of the machine, and would lie in the working tree.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"assay-hypothesis-{os.getuid()}")
install_import_hook(["assay.losses", "assay.algorithms"], "beartype.beartype")


@pytest.fixture(autouse=True)
def _same_random_numbers_in_any_order() -> None:
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command that must be refused says: one line on stderr, exit code 2, no traceback.

    Rows of a file that cannot be used have one line each below the first.
    """
    from assay.cli import WRONG_INPUT, main

    def run(*words: object, lines: int = 1) -> str:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr().err.splitlines()
        assert code == WRONG_INPUT, said
        assert len(said) == lines, said
        assert said[0].startswith(f"assay {words[0]}: ")
        return "\n".join(said)

    return run
