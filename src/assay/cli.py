"""The command line: `assay VERB --config file.yaml --dotted.flag value`.

Exit codes: 0 done; 1 a fault of the program; 2 wrong input or settings; 3 refused by the gate; 130 interrupted.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

VERBS = {
    "collect": "label pairs of answers with a simulated annotator or a judge, or import feedback",
    "reward": "train a reward model on feedback",
    "score": "print a reward model's numbers for conversations",
    "verify": "check that plain transformers gives a reward model's numbers",
    "average": "make one reward model of several by averaging their weights",
    "audit": "put a reward model under test; exit code 3 when it is refused",
    "policy": "train a policy: rloo, ppo, grpo and others against a reward, dpo or sft on feedback",
    "evaluate": "compare a policy with its base on held-out prompts",
    "report": "write a run directory's report, one offline HTML file",
    "demo": "the whole line on the embedded default model",
    "models": "list the models at hand and where they came from",
}
OK, FAULT, WRONG_INPUT, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code."""
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # libgomp's own waits lose most of a core that others use too
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
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs beside is ended too
    try:
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb!r}.{nearest(verb, VERBS)} `assay --help` lists them")
        return run_verb(verb, rest)
    except InputError as error:
        print(f"assay {verb}: {error}", file=sys.stderr)
        return WRONG_INPUT
    except FloatingPointError as error:
        print(f"assay {verb}: {error}", file=sys.stderr)
        return FAULT
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # who read the output has gone, as in `assay models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED
    except OSError as error:  # a folder where a file belongs, no right to write, a full disk
        print(f"assay {verb}: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return WRONG_INPUT


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
    from assay.config_files import plain

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
    from assay.config import CHOICES, config_class
    from assay.config_files import check_numbers, read_yaml, validate
    from assay.settings import InputError

    where = config_file or ""
    data = read_yaml(Path(config_file)) if config_file else {}
    if isinstance(data.get(verb), dict):  # one file for several verbs, as a run directory's config.yaml
        data, where = data[verb], f"{where}: {verb}"
    name = None
    if verb in CHOICES:
        setting = CHOICES[verb][0]
        words = [word.replace(f"--{setting}=", f"--{setting}.name=", 1) for word in words]
        words = [f"--{setting}.name" if word == f"--{setting}" else word for word in words]
        told = data.get(setting, {})
        if not isinstance(told, dict):
            raise InputError(f"{where}: {setting}: write `name: {told}` on a line below it; got {told!r}")
        name = flag_value(words, f"--{setting}.name") or told.get("name")
        if name:
            data = {**data, setting: {**told, "name": name}}
    default = with_streams(validate(config_class(verb, name), data, where), words)
    check_flags(default, words)
    config = parse(verb, words, default)
    check_numbers(config)
    return config


def with_streams(config: Any, words: list[str]) -> Any:
    """The config with an entry for each stream that a flag --streams.NAME.* speaks of."""
    import dataclasses

    from assay.config import DataSettings

    parts = [word.partition("=")[0].split(".") for word in words if word.startswith("--streams.")]
    named = {part[1]: DataSettings() for part in parts if len(part) == 3}
    return dataclasses.replace(config, streams={**named, **config.streams}) if hasattr(config, "streams") else config


def parse(verb: str, words: list[str], default: Any) -> Any:
    """The config with what the flags override; a wrong value is one line that names its flag."""
    from contextlib import redirect_stderr
    from io import StringIO

    import tyro

    from assay.settings import InputError

    told = StringIO()
    try:
        with redirect_stderr(told):
            return tyro.cli(
                type(default),
                args=as_python(words, default),
                default=default,
                prog=f"assay {verb}",
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
                use_underscores=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(first_sentence(told.getvalue())) from None


def as_python(words: list[str], default: Any) -> list[str]:
    """`true` and `false`, as YAML writes them, capitalised; a switch without a value means true."""
    from assay.config_files import leaves

    switches = {name for name, value in leaves(default) if isinstance(value, bool)}
    found: list[str] = []
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        found.append(flag + equals + (value.capitalize() if value in ("true", "false") else value))
        if not equals and flag.removeprefix("--").replace("-", "_") in switches and following.startswith("--"):
            found.append("True")
    return found


def first_sentence(box: str) -> str:
    """What tyro's message says between its title and its first rule, on one line; framed or, without UTF-8, not."""
    lines = box.strip("\n").splitlines()
    found: list[str] = []
    for line in (line.strip("│ ") for line in lines[1 if box.startswith("╭") else 2 :]):
        if not line.strip("─-"):
            break
        found.append(line)
    return " ".join(found)


def flag_value(words: list[str], flag: str) -> str | None:
    """The value of `--flag value` or `--flag=value`."""
    for place, word in enumerate(words):
        if word == flag and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def check_flags(config: Any, words: list[str]) -> None:
    """An unknown flag is one line that names the nearest known one."""
    from assay.config_files import leaves
    from assay.settings import InputError, nearest

    known = [name for name, _ in leaves(config)]
    for word in words:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name not in (*known, "help"):
            raise InputError(f"unknown setting --{name}.{nearest(name, known)}")


def check_inputs(config: Any) -> None:
    """What can be told before any model loads: can the files that the settings name be read?"""
    from assay.config_files import leaves
    from assay.feedback.read import read_comparisons, read_demonstrations, read_prompts, read_texts
    from assay.rewards.principles import read_principles
    from assay.settings import InputError

    told = dict(leaves(config))
    for name, path in told.items():
        if not path or not name.endswith(".path"):
            continue
        if name == "principles.path":
            read_principles(path)
            continue
        said: list[InputError] = []
        for reader in (read_comparisons, read_demonstrations, read_prompts, read_texts):
            try:
                reader(path, split=told[name.removesuffix("path") + "split"], on_bad="skip", limit=1)
                break
            except InputError as error:
                said.append(error)
        else:
            raise said[0]


def dispatch(verb: str, config: Any) -> int:
    """Run the stage of a verb."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    if verb == "demo":
        from assay.recipes import demo

        demo.run(config)
        return OK
    if verb in ("score", "verify", "average", "report", "models"):
        from assay.stages import score

        stages = {"score": score.score, "verify": score.check, "average": score.average}
        {**stages, "report": score.report, "models": score.models}[verb](config)
        return OK
    import importlib

    found = importlib.import_module(f"assay.stages.{verb}").run(config)
    return REFUSED if verb == "audit" and not found.verdict.passed else OK


if __name__ == "__main__":
    raise SystemExit(main())
