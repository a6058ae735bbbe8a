"""Where a result comes from: versions, code state, hardware, command, and digests of what went in."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from aneurysm_ray import __version__, location

_PACKAGES = ("ray", "torch", "monai", "optuna", "pydicom", "imagecodecs", "numpy", "pandas", "pyarrow", "scikit-learn")


def describe(kind: str, **facts: Any) -> dict[str, Any]:
    """Describe a run that starts now; `kind` is what `rundir.kind` will say of its directory."""
    return {
        "kind": kind,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join(["aneurysm-ray", *sys.argv[1:]]),
        "versions": _versions(),
        "git": _git(),
        "hardware": _hardware(),
        **facts,
    }


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with location.fetched(path) as here, here.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    versions = {"aneurysm-ray": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> str:
    """Return the commit of the code, with `+` when it has uncommitted changes; empty outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changes else "")


def _hardware() -> dict[str, Any]:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory_gb, 1),
    }
