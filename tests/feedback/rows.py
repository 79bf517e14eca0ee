"""Small feedback files for the tests of this folder."""

import json
from pathlib import Path
from typing import Any

GOOD = {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Five."}
PAIRS = [GOOD, {"prompt": "Name a number.", "chosen": "Five.", "rejected": "Blue."}]


def lines(path: Path, *rows: Any, end: str = "\n") -> Path:
    """A file with one line per row: bytes as they are, other values as JSON."""
    encoded = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(b"".join(line + end.encode() for line in encoded))
    return path


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]
