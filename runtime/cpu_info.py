"""What this machine's CPU can run: instruction-set levels in order of preference, and how many threads the process may use."""

from __future__ import annotations

import os
import platform
from functools import cache

V3 = {"avx2", "fma", "f16c", "bmi2", "movbe"}
V4 = V3 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"}
AMX = V4 | {"amx_tile", "amx_int8", "amx_bf16"}
LEVELS = ("x86-64-amx", "x86-64-v4", "x86-64-v3", "aarch64")


@cache
def available_levels() -> tuple[str, ...]:
    """The levels that this CPU runs, the fastest first."""
    machine = platform.machine()
    flags: set[str] = set()
    try:
        with open("/proc/cpuinfo") as stream:
            for line in stream:
                if line.startswith(("flags", "Features")):
                    flags = set(line.split(":", 1)[1].split())
                    break
    except OSError:
        return ()
    if machine == "aarch64":
        return ("aarch64",) if {"asimddp", "asimdhp"} <= flags else ()
    if machine != "x86_64":
        return ()
    if flags >= AMX and not _tiles_permitted():
        flags -= AMX - V4
    return tuple(name for name, needs in (("x86-64-amx", AMX), ("x86-64-v4", V4), ("x86-64-v3", V3)) if needs <= flags)


def _tiles_permitted() -> bool:
    """Whether the kernel grants this process AMX tiles, as it does not in some sandboxes: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)."""
    import ctypes

    return bool(ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0)


def cpu_name() -> str:
    """The processor as it calls itself; the architecture where it does not say."""
    try:
        with open("/proc/cpuinfo") as stream:
            return next((line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.machine()


def usable_cpus() -> int:
    """CPUs that this process may run on: its affinity, and its control group's quota."""
    count = len(os.sched_getaffinity(0))
    try:
        with open("/sys/fs/cgroup/cpu.max") as stream:
            quota, period = stream.read().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return count


def memory_limit() -> int:
    """Bytes that this process may use at most: the machine's, or its control group's."""
    limits = [_meminfo("MemTotal")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limits += _number(path)
    return min(limits)


def free_memory() -> int:
    """Bytes that are free, within the machine's memory and the control group's limit."""
    free = _meminfo("MemAvailable")
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        for most, now in zip(_number(limit), _number(used), strict=False):
            free = min(free, max(most - now, 0))
    return free


def _meminfo(key: str) -> int:
    try:
        with open("/proc/meminfo") as stream:
            for line in stream:
                if line.startswith(f"{key}:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30


def _number(path: str) -> list[int]:
    """The number in a file; none where there is no file, or it says "max"."""
    try:
        with open(path) as stream:
            return [int(stream.read())]
    except (OSError, ValueError):
        return []
