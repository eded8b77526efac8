"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.peers.cases import version_of

__all__ = ["available_memory", "machine"]


_PEERS = (
    *(
        "avalanche-lib",
        "diffusers",
        "ema-pytorch",
        "finetuning-scheduler",
        "mergekit",
        "mosaicml",
        "schedulefree",
    ),
    *("timm", "torch-ema", "torchjd"),
)


def machine() -> dict[str, str | int]:
    """Return processor, cores, threads and versions, also of the peers that are here."""
    cpu = Path("/proc/cpuinfo")
    models = [line for line in cpu.read_text().splitlines() if "model name" in line] if cpu.exists() else []
    return {
        "processor": models[0].partition(": ")[2] if models else platform.processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "lightning", "lightning_tricks")},
        **{name: found for name in _PEERS if (found := version_of(name))},
    }


def available_memory() -> int:
    """Return how many bytes this process may still take: what the system has left, or its own group."""
    told, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    left = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if told.exists():  # which also counts what only lies in caches
        found = re.search(r"^MemAvailable: +(\d+) kB", told.read_text(), re.MULTILINE)
        left = int(found[1]) * 1024 if found else left
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
        left = min(left, int(most) - int(used.read_text()))
    return left
