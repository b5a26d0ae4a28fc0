"""Memory available to this process within the limits of machine, container and user."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import psutil

from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.system.cgroup import memory_left, memory_limit
from rescoldo.units import gigabytes

LOW_SHARE = 0.04  # fraction of the total; below it the kernel may kill processes at any time
LOW_BYTES = 200_000_000


def memory_total() -> int:
    """The bytes that processes here can use together: the machine's memory, or the container's limit."""
    total = int(psutil.virtual_memory().total)
    return min(total, memory_limit() or total)


_ceiling: int | None = None  # for this process, set by the user


def limit_process(gigabytes: float | None) -> None:
    """Make memory_available behave as if this process could grow to this size at most (10⁹ bytes); None: no limit.
    Mapped files count, as in the process's resident size."""
    global _ceiling
    _ceiling = None if gigabytes is None else int(gigabytes * 1e9)


def memory_available() -> int:
    """The bytes that this process can still allocate without swapping, within the container's limit and the user's."""
    available, left = int(psutil.virtual_memory().available), memory_left()
    if _ceiling is not None:
        available = min(available, _ceiling - int(psutil.Process().memory_info().rss))
    return max(0, available if left is None else min(available, left))


def low_mark() -> int:
    """Free bytes below which memory is considered low."""
    return int(max(LOW_SHARE * memory_total(), min(LOW_BYTES, 0.2 * memory_total())))


def own_memory() -> int:
    """The bytes that this process holds privately. Pages of mapped files (the base model's) do not count, because the
    system can reclaim them."""
    try:
        with open("/proc/self/status", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
        return 1024 * sum(int(lines[name].split()[0]) for name in (b"RssAnon", b"RssShmem"))
    except (OSError, KeyError, ValueError, IndexError):
        return int(psutil.Process().memory_info().rss)


# texts of PyTorch's allocator, C++, the dynamic loader and the thread library
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",
    "can't allocate memory",
    "failed to map segment",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory has run out, whatever raised it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | ImportError | OSError) and any(
        text in str(error) for text in _OUT_OF_MEMORY
    )


@contextlib.contextmanager
def memory_errors_in_words() -> Iterator[None]:
    """Turns out-of-memory errors inside the block into a RescoldoError that names the limit."""
    try:
        yield
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        bound, remedy = _address_space(), "end other programs"
        what = "there is no memory left"
        if bound is not None:
            what, remedy = f"{what} within the {gigabytes(bound)} of `ulimit -v`", "ulimit -v unlimited"
        elif memory_limit() is not None:
            what = f"{what} within the container's limit of {gigabytes(memory_limit() or 0)}"
        remedy += ", or need less: --quantization int8 or nf4, a smaller --max-length, --batch-size or base model"
        raise RescoldoError(what, where="memory", fix=remedy, exit_code=EXIT_FAILURE) from error


def _address_space() -> int | None:
    """The limit of this process's address space in bytes; None without one."""
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit
