"""The other end of `assay.rewards.apart`: programmatic rewards asked over a pipe, a JSON line each way. No torch."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from assay.rewards.rules import combine
from assay.settings import InputError


def main(places: Sequence[str]) -> None:
    """Answer until the pipe closes. What the rewards print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    questions = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8")
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())  # programs that a reward starts must not read the questions
    for number in (signal.SIGINT, signal.SIGTERM):  # to a whole job: when this process ends is the parent's affair
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the programs that a reward starts would inherit
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    rules = combine([(1.0, place) for place in places])
    answers.write("ready\n")
    answers.flush()
    for line in questions:
        asked = json.loads(line)
        try:
            told = {"parts": rules.score_parts(asked["prompts"], asked["responses"], **asked["columns"])}
        except InputError as error:
            told = {"error": str(error)}
        answers.write(json.dumps(told) + "\n")
        answers.flush()
    os.killpg(0, signal.SIGKILL)  # with what the rewards left running


def end_with(parent: int) -> None:
    """Kill this process and what it started once the parent is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
