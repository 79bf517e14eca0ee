"""What both sides of the benchmark measure alike, and the one line they answer with. Standard library only."""

import contextlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TextIO

PROTOCOL = 1
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# glibc keeps freed pages instead of returning them, so that the next step does not fault them in again
KEEP_PAGES = {
    "MALLOC_TOP_PAD_": str(256 << 20),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 30),
}


def environment(*, malloc: str, threads: int) -> dict[str, str]:
    """The variables that must stand before Python starts."""
    return {**OFFLINE, "OMP_NUM_THREADS": str(threads), **(KEEP_PAGES if malloc == "keep" else {})}


def start_over_with(wanted: Mapping[str, str]) -> None:
    """Run this program again where a variable is not set as wanted: glibc and OpenMP read theirs only once."""
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **wanted})


def limit_memory(gigabytes: float) -> None:
    """Make an allocation beyond this many GB fail with an error instead of calling the kernel's killer."""
    if gigabytes:
        limit = int(gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def fail(message: str) -> NoReturn:
    """Stop with one line on stderr and exit code 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


@contextlib.contextmanager
def answering() -> Iterator[TextIO]:
    """Send everything that libraries print to stderr; yields the real stdout for the one answer."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(real, "w") as out:
        yield out


def answer(out: TextIO, record: Mapping[str, Any]) -> None:
    """Print the record as one JSON line."""
    print(json.dumps({"protocol": PROTOCOL, **record}), file=out, flush=True)


def without_places(value: Any) -> Any:
    """A record with the names of files and folders, not where they lie."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    return Path(value).name if isinstance(value, str) and "/" in value and Path(value).exists() else value


def peak_memory_gb() -> float:
    """Largest resident size of this process so far (VmHWM), in GB of 1e9 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError("/proc/self/status has no VmHWM")


def versions(*packages: str) -> dict[str, str]:
    """Python's and the packages' versions, and the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "processor": processor,
        "cores": str(os.cpu_count()),
    }


class Contention:
    """How busy other processes keep the machine between `start` and `stop`."""

    def start(self) -> None:
        self.before = self._read()

    def stop(self) -> dict[str, float]:
        """`other_cores`: cores that others used on average; `stolen_cores`: cores the hypervisor took away."""
        wall, busy, stolen, own = (after - before for before, after in zip(self.before, self._read(), strict=True))
        return {"other_cores": round(max(busy - own, 0) / wall, 3), "stolen_cores": round(stolen / wall, 3)}

    @staticmethod
    def _read() -> tuple[float, float, float, float]:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
        tick = os.sysconf("SC_CLK_TCK")
        busy = (user + nice + system + irq + softirq) / tick
        return time.perf_counter(), busy, steal / tick, time.process_time()
