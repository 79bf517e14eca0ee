"""Ctrl-C and SIGTERM while a step is computed: it is finished and saved first."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\nthis step is finished and saved first; once more stops at once\n"


class Interrupts:
    """Within it the first of the two signals only sets `asked`; the next one does what it did before."""

    def __init__(self, saving: bool) -> None:
        """With `saving` off there is nothing to wait for: signals are left alone, as in any thread but the main one."""
        self.asked = False
        self._saving = saving and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS if self._saving else ():
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):  # None: not Python's to put back
                self._before[number] = signal.signal(number, self._first)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _first(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        for each, handler in self._before.items():
            signal.signal(each, handler)
        os.write(2, NOTICE)  # not `print`, which a signal may have come in the middle of
