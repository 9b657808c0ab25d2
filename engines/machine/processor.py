"""The processor of this machine."""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

_CPUINFO = Path("/proc/cpuinfo")


def model_name() -> str:
    """The model, such as "AMD EPYC 9V74 80-Core Processor"."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def identity() -> str:
    """Architecture, model and instruction sets: everything that packed weights depend on."""
    facts = _cpuinfo()
    known = [facts[name] for name in ("model name", "flags") if name in facts]
    # Other systems than Linux have a word for it.
    return " ".join([platform.machine(), *(known or [platform.processor()])])


def physical_cores() -> int:
    """Number of physical cores: the default number of threads of every backend."""
    return psutil.cpu_count(logical=False) or 1


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical_cores()


def _cpuinfo() -> Mapping[str, str]:
    """The entry of the first processor in /proc/cpuinfo; empty on other systems than Linux."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if not colon:
                break
            facts[name.strip()] = value.strip()
    return facts
