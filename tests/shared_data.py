"""Where tests find real human feedback, which is never part of the project."""

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    """The path of a file of real feedback, in ASSAY_SHARED_DATA or beside the project.

    Without it a test is skipped; where the variable CI is set it fails, so that it cannot be skipped for ever.
    """
    folder = Path(os.environ.get("ASSAY_SHARED_DATA") or BESIDE)
    path = folder / name
    if path.exists():
        return path
    advice = f"{name} is not in {folder}: set ASSAY_SHARED_DATA to the folder of real feedback"
    if os.environ.get("CI"):
        pytest.fail(advice)
    pytest.skip(advice)
