"""The default model for tests that need a real one."""

import functools
import os

import pytest

from assay.engine.catalog import DEFAULT_MODEL, resolve_model
from assay.settings import InputError


@functools.cache
def default_model() -> str:
    """The default model's folder, made when it isn't there yet; skips where it can't be had, fails in CI."""
    try:
        return resolve_model(DEFAULT_MODEL).path
    except InputError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
