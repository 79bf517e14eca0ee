"""Keep freed memory for the next step instead of handing it back to the operating system."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc, malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc not to return pages between steps; False where the C library is another one.

    A training step frees and asks for the same gigabytes again; page faults on fresh pages cost more than a third
    of a CPU step of a small model. Peak memory stays what it was.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    done = [libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1), libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)]
    done.append(libc.mallopt(M_TOP_PAD, 2**28))
    return all(done)
