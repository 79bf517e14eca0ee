"""What a start of the package costs, and that tests run as the suite says they do."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "matplotlib", "scipy")


def imported_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has imported after running `code`."""
    show = f"import sys\nprint('heavy:', *(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].removeprefix("heavy:").split())


def test_import_assay_is_light() -> None:
    assert imported_by("import assay") == set()


def test_help_is_light() -> None:
    code = """
import sys
from assay.cli import main
sys.argv = ["assay", "--help"]
try:
    status = main()
except SystemExit as end:
    status = end.code
assert not status, status
"""
    assert imported_by(code) == set()


@pytest.mark.parametrize("package", ["records", "settings", "feedback", "audit", "report"])
def test_packages_without_models_need_no_torch(package: str) -> None:
    assert imported_by(f"import assay.{package}") & {"torch", "transformers"} == set()


def test_a_test_has_one_thread() -> None:
    import torch

    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("package", ["assay.losses", "assay.algorithms"])
def test_shapes_are_checked_in_tests(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from jaxtyping import TypeCheckError

    (tmp_path / "probe.py").write_text(
        "from assay.shapes import TokenFloat\ndef add(a: TokenFloat, b: TokenFloat) -> TokenFloat: return a + b\n"
    )
    monkeypatch.setattr(importlib.import_module(package), "__path__", [str(tmp_path)])
    probe = importlib.import_module(f"{package}.probe")
    monkeypatch.delitem(sys.modules, probe.__name__)
    assert probe.add(torch.ones(2, 3), torch.ones(2, 3)).sum() == 12
    with pytest.raises(TypeCheckError):
        probe.add(torch.ones(2, 3), torch.ones(1, 3))
