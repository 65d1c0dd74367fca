"""What this process may use of the machine: affinity, and the limits of a container; and since when it has been up.
Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
BOOT = Path("/proc/sys/kernel/random/boot_id")


def usable_cores(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """At least 1; a share of a core does not count."""
    # Only Linux says which cores a process may use.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for folder in _folders("cpu", groups, membership):
        # Microseconds of all cores together in every period; "max" or -1 where there is no limit.
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with suppress(OSError, ValueError):
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                if int(quota) > 0:
                    cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def usable_memory(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _folders("memory", groups, membership):
        for name in ("memory.max", "memory.limit_in_bytes"):
            # "max" where there is no limit.
            with suppress(OSError, ValueError):
                memory = min(memory, int((folder / name).read_text()))
    return memory


def boot_id() -> str | None:
    """Another whenever the machine was started anew; None where the system has no such name (all but Linux)."""
    with suppress(OSError):
        return BOOT.read_text().strip()
    return None


def _folders(controller: str, groups: Path, membership: Path) -> Iterator[Path]:
    """The process's control groups, from its own to the root, of both versions. In a container the path of its own is
    often the host's, and only the root is there to be read."""
    with suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            for root in {groups / controllers, groups / (controller if controllers else "")}:
                own = Path(path.lstrip("/"))
                yield from (root / each for each in (own, *own.parents))
