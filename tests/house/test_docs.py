"""What the README and the documentation show must run."""

import importlib
import re
import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?P<options>[^\n]*)\n(?P<code>.*?)^(?P=indent)```", re.M | re.S)
SHELL_ENDS = {"|", "||", "&", "&&", ";", ">", ">>", "<", "2>"}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what follows that on the line, its text and the line where this starts."""

    language: str
    options: str
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page, those inside lists and tabs too."""
    return [
        Block(
            match["language"], match["options"], textwrap.dedent(match["code"]), text[: match.start("code")].count("\n")
        )
        for match in FENCE.finditer(text)
    ]


def commands(text: str) -> list[list[str]]:
    """Arguments of each line of a bash block that starts with `assay`, up to the first pipe or redirection."""
    found = []
    for block in blocks(text):
        if block.language not in ("bash", "sh", "shell", "console"):
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            if not line.removeprefix("$ ").startswith("assay "):
                continue
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            end = next((place for place, word in enumerate(words) if word in SHELL_ENDS), len(words))
            found.append(words[1:end])
    return found


def in_folder_of_a_reader(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to an empty folder with the page's titled blocks as files, and the repository's examples."""
    for block in blocks(text):
        if title := re.search(r'title="([^"]+)"', block.options):
            (folder / title[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / title[1]).write_text(block.code)
    if (ROOT / "examples").is_dir():
        (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)


@each_page
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text()
    in_folder_of_a_reader(text, tmp_path, monkeypatch)
    namespace = {"__name__": "__main__"}
    for block in blocks(text):
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)


@each_page
def test_commands_are_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verb and flags exist and a config validates: `--print-config` resolves all of that and does nothing more."""
    text = page.read_text()
    in_folder_of_a_reader(text, tmp_path, monkeypatch)
    for arguments in commands(text):
        from assay.cli import main

        shown = arguments if arguments[0].startswith("-") or "--help" in arguments else [*arguments, "--print-config"]
        monkeypatch.setattr(sys, "argv", ["assay", *shown])
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        assert not status, f"assay {shlex.join(arguments)}"


@each_page
def test_links_between_files_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text())
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_blocks_are_found_where_they_are() -> None:
    text = 'Text\n\n```python\nx = 1\n```\n\n- list\n\n    ```yaml title="a.yaml"\n    b: 1\n    ```\n'
    assert blocks(text) == [Block("python", "", "x = 1\n", 3), Block("yaml", ' title="a.yaml"', "b: 1\n", 9)]


def test_commands_are_found_and_cut() -> None:
    first = "assay audit runs/a \\\n  --gate.accuracy 0.6 | tee log"
    second = "assay report 'runs/my run' > /dev/null  # open it"
    text = f"```bash\nmake demo\n{first}\n{second}\n```\n"
    assert commands(text) == [["audit", "runs/a", "--gate.accuracy", "0.6"], ["report", "runs/my run"]]


def test_an_algorithm_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's example has at most 30 lines; with its name in the dictionary the command line knows it."""
    from assay.algorithms import ALGORITHMS
    from assay.cli import main

    shown = next(b for b in blocks((ROOT / "docs/algorithms.md").read_text()) if "mirror_descent.py" in b.options)
    assert len(shown.code.splitlines()) <= 30
    packaged = re.sub("name: str = .*", 'name: Literal["mirror_descent"] = "mirror_descent"', shown.code)
    (tmp_path / "mirror_descent.py").write_text("from typing import Literal\n" + packaged)
    monkeypatch.syspath_prepend(tmp_path)
    command = ["policy", "--run", "runs/mirror", "--data.path", "prompts.jsonl", "--algorithm", "mirror_descent"]
    assert main([*command, "--print-config"]) != 0
    monkeypatch.setitem(ALGORITHMS, "mirror_descent", importlib.import_module("mirror_descent").MirrorDescent)
    assert main([*command, "--algorithm.tau", "0.2", "--print-config"]) == 0


def test_public_sets_are_trained_by_the_lines_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sets = importlib.import_module("real_feedback").SETS
    shown = [words for words in commands((ROOT / "docs/datasets.md").read_text()) if words[0] == "reward"]
    told = {words[words.index("--data.path") + 1].removesuffix(".jsonl"): words[5:] for words in shown}
    assert {name: sorted(words) for name, words in told.items()} == {name: sorted(w) for name, w in sets.items()}
