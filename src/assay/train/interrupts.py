"""Ctrl-C and SIGTERM while a run trains: nothing that was computed is lost."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self, TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\nthis step is finished and saved first; once more stops at once\n"


class Interrupts:
    """Within it the first of the two signals sets `asked`, and only what is done `at_once` is broken off.

    A second signal does what it did before. Programs that a reward starts share the terminal, and Ctrl-C ends them:
    what was asked of rewards meanwhile is broken off, or `undisturbed`, never believed.
    """

    def __init__(self, saving: bool) -> None:
        """With `saving` off there is nothing to wait for: signals are left alone, as in any thread but the main one."""
        self.asked = False
        self.saving = saving
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.asked = False
        main = threading.current_thread() is threading.main_thread()
        for number in SIGNALS if self.saving and main else ():
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):  # None: not Python's to put back
                self._before[number] = signal.signal(number, self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A stretch that the first signal ends with KeyboardInterrupt, whatever becomes of it on the way up."""
        try:
            self._at_once = True
            if self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False
        if self.asked:
            raise KeyboardInterrupt

    def undisturbed(self, call: Callable[[], T]) -> T:
        """What the call gives, asked again where a signal came meanwhile."""
        before = self.asked
        found = call()
        return found if self.asked == before else call()

    def _first(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        self._put_back()
        if self._at_once:
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):  # who read it may have gone, by the same signal
            os.write(2, NOTICE)  # not `print`, which a signal may have come in the middle of

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
