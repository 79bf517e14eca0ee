"""The command line: `assay VERB --config file.yaml --dotted.flag value`.

Exit codes: 0 done; 1 a fault of the program; 2 wrong input or settings; 3 refused by the gate; 130 interrupted.
"""

import sys
from pathlib import Path
from typing import Any

VERBS = {
    "collect": "label pairs of sampled answers with a simulated annotator, or import feedback",
    "reward": "train a reward model on comparisons",
    "score": "print a reward model's numbers for conversations",
    "verify": "check that plain transformers gives a reward model's numbers",
    "audit": "put a reward model under test; exit code 3 when it is refused",
    "policy": "train a policy: rloo against a reward, dpo or sft on feedback",
    "evaluate": "compare a policy with its base on held-out prompts",
    "report": "write a run directory's report, one offline HTML file",
    "demo": "the whole line on the embedded default model",
    "models": "list the models at hand and where they came from",
}
OK, FAULT, WRONG_INPUT, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return OK
    if words[0] == "--version":
        from assay import __version__

        print(__version__)
        return OK
    from assay.settings import InputError, nearest

    verb, rest = words[0], words[1:]
    try:
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb!r}.{nearest(verb, VERBS)} `assay --help` lists them")
        return run_verb(verb, rest)
    except InputError as error:
        print(f"assay {verb}: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED


def usage() -> str:
    """What `assay --help` prints."""
    lines = [f"  {verb:<10}{what}" for verb, what in VERBS.items()]
    return "\n".join(
        [
            "Reinforcement learning from human feedback with the reward model under test.",
            "",
            "assay VERB [--config FILE.yaml] [--name.of.setting VALUE ...] [--print-config] [--dry-run]",
            "",
            *lines,
            "",
            "assay VERB --help shows the settings of a verb. Settings on the command line override the file's.",
            "Exit codes: 0 done, 1 fault, 2 wrong input or settings, 3 refused by the gate, 130 interrupted.",
        ]
    )


def run_verb(verb: str, words: list[str]) -> int:
    """Resolve the settings, then run the verb's stage."""
    from assay.config import plain

    words, flags = take_flags(words)
    config = resolve(verb, words, flags.get("config"))
    if "print-config" in flags or "dry-run" in flags:
        from io import StringIO

        from ruamel.yaml import YAML

        text = StringIO()
        YAML().dump(plain(config), text)
        print(text.getvalue(), end="")
        if "dry-run" in flags:
            check_inputs(config)
        return OK
    return dispatch(verb, config)


def take_flags(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Split off --config FILE, --print-config and --dry-run."""
    from assay.settings import InputError

    kept: list[str] = []
    flags: dict[str, str] = {}
    place = 0
    while place < len(words):
        word, _, value = words[place].partition("=")
        if word in ("--print-config", "--dry-run"):
            flags[word[2:]] = ""
        elif word == "--config":
            if not value and place + 1 >= len(words):
                raise InputError("--config needs a file")
            place += not value
            flags["config"] = value or words[place]
        else:
            kept.append(words[place])
        place += 1
    return kept, flags


def resolve(verb: str, words: list[str], config_file: str | None) -> Any:
    """Defaults, then the file, then the command line."""
    import tyro

    from assay.config import config_class, read_yaml, validate

    data = read_yaml(Path(config_file)) if config_file else {}
    algorithm = None
    if verb == "policy":
        algorithm = flag_value(words, "--algorithm.name") or (data.get("algorithm") or {}).get("name")
    kind = config_class(verb, algorithm)
    default = validate(kind, data, config_file or "")
    check_flags(kind, words)
    words = [word.capitalize() if word in ("true", "false") else word for word in words]  # as YAML writes them
    return tyro.cli(
        kind,
        args=words,
        default=default,
        prog=f"assay {verb}",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def flag_value(words: list[str], flag: str) -> str | None:
    """The value of `--flag value` or `--flag=value`."""
    for place, word in enumerate(words):
        if word == flag and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def check_flags(kind: type, words: list[str]) -> None:
    """An unknown flag is one line that names the nearest known one."""
    from assay.settings import InputError, nearest

    known = set(flag_names(kind, ""))
    for word in words:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name not in known | {"help"}:
            head = name.split(".")[0]
            if not any(other == head or other.startswith(head + ".") for other in known) or name not in known:
                raise InputError(f"unknown setting --{name}.{nearest(name, known)}")


def flag_names(kind: Any, prefix: str) -> list[str]:
    """Every setting a config has, dotted."""
    import dataclasses
    import typing

    found: list[str] = []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = hints[field.name]
        if dataclasses.is_dataclass(inner):
            found += flag_names(inner, f"{prefix}{field.name}.")
        elif typing.get_origin(inner) is dict:
            found += [f"{prefix}{field.name}"]
        else:
            found.append(f"{prefix}{field.name}")
    return found


def check_inputs(config: Any) -> None:
    """What can be told before any model loads: do the files that the settings name exist?"""
    from assay.config import DataSettings
    from assay.feedback.read import read_comparisons, read_demonstrations, read_prompts
    from assay.settings import InputError

    for value in vars(config).values() if hasattr(config, "__dict__") else ():
        if isinstance(value, DataSettings) and value.path:
            for reader in (read_comparisons, read_demonstrations, read_prompts):
                try:
                    reader(value.path, split=value.split, on_bad="skip", limit=1)
                    break
                except InputError as error:
                    last = error
            else:
                raise last


def dispatch(verb: str, config: Any) -> int:
    """Run the stage of a verb."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    if verb == "demo":
        from assay.recipes import demo

        demo.run(config)
        return OK
    if verb in ("score", "verify", "report", "models"):
        from assay.stages import score

        {"score": score.score, "verify": score.check, "report": score.report, "models": score.models}[verb](config)
        return OK
    import importlib

    found = importlib.import_module(f"assay.stages.{verb}").run(config)
    return REFUSED if verb == "audit" and not found.verdict.passed else OK


if __name__ == "__main__":
    raise SystemExit(main())
