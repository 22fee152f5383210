"""What a benchmark's record says about the machine and the code it ran on."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil

__all__ = ["ROOT", "commit", "hardware", "peak_rss_bytes", "versions"]

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "duckdb",
    "faiss-cpu",
    "feast",
    "numpy",
    "onnxruntime",
    "pyarrow",
    "redis",
    "scikit-learn",
    "scipy",
    "sqlalchemy",
    "torch",
    "usearch",
)


def peak_rss_bytes() -> int:
    """Return the largest resident memory that this process has had so far."""
    # On Linux ru_maxrss of a started process never falls below what its parent held at that
    # moment (the kernel carries it over exec); VmHWM belongs to this program's memory alone.
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def commit() -> str:
    """Return the checkout's hash, plus ``-dirty`` when tracked files other than results differ."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")


def versions() -> dict[str, str]:
    """Return package -> version of Python and of what the numbers may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str | int | float]:
    """Return cpu, cores (logical, usable by this process), memory_gib, and gpu where used."""
    cpuinfo = Path("/proc/cpuinfo")
    model = None
    if cpuinfo.exists():
        model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text("utf-8"), re.MULTILINE)
    shared = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if shared else os.cpu_count() or 1
    found: dict[str, str | int | float] = {
        "cpu": model.group(1) if model else platform.processor() or platform.machine(),
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        found["gpu"] = sys.modules["torch"].cuda.get_device_name()
    return found
