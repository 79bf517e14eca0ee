"""Rules for what lies in the repository."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In two parts each, so that this file holds none of them.
FOREIGN = ["/wo" + "rk/", "/fa" + "rm/", "/ro" + "ot/", "bash_" + "jobs", "/tmp/b" + "rief", "work" + "place"]


def in_repository() -> list[Path]:
    """The files that git tracks or would offer to."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: nothing says which files belong to the repository")
    return in_repository()


def test_no_file_is_large(files: list[Path]) -> None:
    assert [str(file.relative_to(ROOT)) for file in files if file.stat().st_size > 1_000_000] == []


def test_the_project_speaks_of_itself_alone(files: list[Path]) -> None:
    texts = {file.relative_to(ROOT): file.read_text(errors="replace") for file in files}
    found = [(str(name), word) for name, text in texts.items() for word in FOREIGN if word in text.lower()]
    assert found == []


def test_the_listing_is_real(files: list[Path]) -> None:
    assert {ROOT / "pyproject.toml", Path(__file__)} <= set(files)
