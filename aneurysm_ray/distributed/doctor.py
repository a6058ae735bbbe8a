"""What of this machine would make a command fail or crawl, each with a sentence and its cure; starts nothing.

Every check takes what was found as values and returns a `Finding`; `examine` asks the machine. Ray and torch are
imported inside, so that a broken one is a finding and not a traceback.
"""

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from aneurysm_ray.data import urls
from aneurysm_ray.errors import AneurysmRayError, RequestError

PACKAGE = "aneurysm-ray"
GB = 10**9
DISK_GB = (2.0, 20.0)
"""Below the first nothing can be prepared; below the second a set of some hundred series cannot."""
SHM_BYTES = 2**30
"""Ray's object store of a local command takes half of it; below that Ray falls back to the disk, with a warning."""
FILES_BAD, FILES_GOOD = 1024, 8192
"""Ray's processes hold a socket for every worker and a file for every object that is spilled."""
MEMORY_GB = (4.0, 8.0)
SHARED_RIGHTS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    what: str
    state: Literal["good", "doubtful", "bad"]
    """`bad` makes commands fail; `doubtful` makes them slow, or some of them fail."""
    told: str
    cure: str = ""


def examine(places: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Examine this machine and the places that results would be written to, paths or URLs."""
    findings = [Finding("system", "good", f"{platform.platform()}, Python {platform.python_version()}")]
    findings.append(packages(_requirements(), _installed))
    findings += list(_computing())
    usage = shutil.disk_usage(tempfile.gettempdir())
    findings.append(disk(tempfile.gettempdir(), usage.free / GB))
    findings += [finding for place in places for finding in storage(place)]
    if Path("/dev/shm").is_dir():
        findings.append(shared_memory(shutil.disk_usage("/dev/shm").total))
    findings.append(open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)))
    findings.append(memory(_memory_gb()))
    findings.append(cluster(environment.get("RAY_ADDRESS", "")))
    findings.append(token(environment, Path.home()))
    return findings


def render(findings: Sequence[Finding]) -> str:
    """Write findings as the lines a terminal shows, a cure below what needs it."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:8}  {finding.what:{width}}  {finding.told}")
        if finding.cure:
            lines.append(f"{'':8}  {'':{width}}  → {finding.cure}")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> str:
    """Write findings as a JSON list of objects with what, state, told and cure."""
    return json.dumps([asdict(finding) for finding in findings], indent=2)


def packages(required: Sequence[str], installed: Any) -> Finding:
    """Compare required packages, as in a wheel's metadata, with those `installed(name)` returns the version of."""
    wrong = []
    for line in required:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        cure = "pip install -c constraints.txt -e . in a fresh virtual environment"
        return Finding("packages", "bad", "; ".join(wrong), cure)
    shown = ", ".join(f"{name} {installed(name)}" for name in ("ray", "torch", "monai", "numpy", "pydicom"))
    return Finding("packages", "good", shown)


def convolutions(torch: str, cudnn: int) -> Finding:
    """Judge 3D convolutions in bfloat16 on a GPU by the versions of torch and of cuDNN (as torch gives it: 91002).

    cuDNN 9.8 to 9.12 gives wrong results for large ones (pytorch issue 163539). torch 2.9 goes round cuDNN before 9.15
    because of it, at several times the memory and time (166122, 166643); 2.9.0 goes round every cuDNN.
    """
    version = Version(torch)
    major, minor = divmod(cudnn, 10000)[0], cudnn % 10000 // 100
    told = f"torch {torch} with cuDNN {major}.{minor}.{cudnn % 100}"
    cure = "install torch 2.10 or newer; or set optim.precision=float32"
    if version.release[:2] == (2, 9) and (version.release == (2, 9, 0) or cudnn < 91500):
        return Finding(
            "convolutions", "doubtful", f"{told} computes 3D convolutions in bfloat16 without cuDNN, far slower", cure
        )
    if 90800 <= cudnn < 91300 and version.release[:2] < (2, 9):
        return Finding("convolutions", "bad", f"{told} gives wrong results of large 3D convolutions in bfloat16", cure)
    return Finding("convolutions", "good", told)


def disk(place: str, free_gb: float, name: str = "disk") -> Finding:
    """Judge the room at a place."""
    told = f"{place} has {free_gb:,.1f} GB free"
    if free_gb >= DISK_GB[1]:
        return Finding(name, "good", told)
    cure = f"make room, or point {'TMPDIR' if name == 'disk' else 'OUT'} to a disk that has {DISK_GB[1]:g} GB"
    return Finding(name, "bad" if free_gb < DISK_GB[0] else "doubtful", told, cure)


def shared_memory(size: int) -> Finding:
    """Judge /dev/shm, in bytes; containers have 64 MB unless told otherwise."""
    told = f"/dev/shm has {size / GB:.1f} GB"
    if size >= SHM_BYTES:
        return Finding("shared memory", "good", told)
    return Finding(
        "shared memory",
        "doubtful",
        f"{told}, less than Ray's object store takes, which then goes to the disk",
        "docker run --shm-size=4g, or an emptyDir of medium Memory at /dev/shm in Kubernetes",
    )


def open_files(soft: int, hard: int) -> Finding:
    """Judge the limits of open files of a process; -1 is none."""
    told = f"a process may have {'any number of' if soft < 0 else soft} files open"
    if soft < 0 or soft >= FILES_GOOD:
        return Finding("open files", "good", told)
    reach = "65536" if hard < 0 or hard >= 65536 else str(hard)
    cure = f"ulimit -n {reach} before the command" + ("" if hard < 0 or hard > soft else ", after the system's limit")
    return Finding("open files", "bad" if soft < FILES_BAD else "doubtful", told, cure)


def memory(total_gb: float) -> Finding:
    """Judge the memory that this process may have."""
    told = f"{total_gb:,.1f} GB of memory"
    if total_gb >= MEMORY_GB[1]:
        return Finding("memory", "good", told)
    cure = (
        "prepare with a smaller prepare.memory_mb and fewer cores (taskset -c 0), or use a larger machine or container"
    )
    return Finding("memory", "bad" if total_gb < MEMORY_GB[0] else "doubtful", told, cure)


def storage(place: str) -> list[Finding]:
    """Write, read and remove a small file at a place that results would go to, and judge its room."""
    name = f"storage {place}"
    probe = urls.join(place, f".aneurysm-ray-doctor-{socket.gethostname()}-{os.getpid()}")
    made = not urls.is_url(place) and not Path(place).exists()
    try:
        urls.write_bytes(probe, b"doctor")
        back = urls.read_bytes(probe)
        urls.remove(probe)
    # Every object store has errors of its own.
    except Exception as error:
        told = str(error) if isinstance(error, AneurysmRayError) else f"{place}: {type(error).__name__}: {error}"
        cure = "check the address, its credentials (AWS_PROFILE, AWS_ENDPOINT_URL) and its extra: pip install '.[s3]'"
        return [Finding(name, "bad", told, cure if urls.is_url(place) else "choose a folder that you may write")]
    finally:
        if made and Path(place).is_dir() and not any(Path(place).iterdir()):
            Path(place).rmdir()
    if back != b"doctor":
        return [Finding(name, "bad", "what was written there reads back as something else", "use other storage")]
    if urls.is_url(place):
        return [Finding(name, "good", "can be written and read")]
    there = next(path for path in (Path(place), *Path(place).absolute().parents) if path.exists())
    return [disk(place, shutil.disk_usage(there).free / GB, name)]


def cluster(address: str) -> Finding:
    """Judge the cluster that RAY_ADDRESS names; none means a Ray of the command's own."""
    if not address:
        return Finding("ray", "good", "RAY_ADDRESS is not set: every command starts and ends a Ray of its own")
    try:
        from aneurysm_ray.distributed import addresses

        return Finding("ray", "good", f"the head of a Ray cluster answers at {addresses.checked(address, 5.0)}")
    except ImportError as error:
        return Finding("ray", "bad", f"cannot be imported: {error}", "install ray again, as constraints.txt has it")
    except RequestError as error:
        told, _, cure = str(error).partition("; ")
        return Finding("ray", "bad", told, cure or "name the head as host:6379, or unset RAY_ADDRESS")


def token(environment: Mapping[str, str], home: Path) -> Finding:
    """Judge the token that guards a cluster: whoever reaches a Ray without one runs what they like on it."""
    mode = environment.get("RAY_AUTH_MODE", "")
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    if mode == "token":
        if environment.get("RAY_AUTH_TOKEN"):
            return Finding("token", "good", "RAY_AUTH_TOKEN holds one")
        if not file.is_file() or file.stat().st_size == 0:
            cure = "ray get-auth-token --generate on the head node, and the same file on every other"
            return Finding("token", "bad", f"RAY_AUTH_MODE=token, and {file} holds none", cure)
        if file.stat().st_mode & SHARED_RIGHTS:
            return Finding("token", "doubtful", f"{file} can be read by other users", f"chmod 600 {file}")
        return Finding("token", "good", f"{file} holds one")
    if environment.get("RAY_ADDRESS"):
        cure = "export RAY_AUTH_MODE=token, and ray get-auth-token --generate, before ray start on every node"
        return Finding(
            "token", "doubtful", "a cluster is named, and no token guards it (RAY_AUTH_MODE is not set)", cure
        )
    return Finding("token", "good", "none needed: no cluster is named")


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _computing() -> Iterator[Finding]:
    try:
        import torch
    # Besides ImportError, libraries of CUDA that do not fit raise OSError and others.
    except Exception as error:
        yield Finding("torch", "bad", f"cannot be imported: {type(error).__name__}: {error}", "install torch again")
        return
    cores = len(os.sched_getaffinity(0))
    if not torch.cuda.is_available():
        built = torch.version.cuda
        driver = Path("/proc/driver/nvidia/version").exists()
        told = f"no GPU that torch {torch.__version__} can use; {cores} core(s) compute"
        if driver:
            why = f"was built for CUDA {built}, newer than the driver" if built else "was built without CUDA"
            cure = "install the torch that pytorch.org names for this driver (nvidia-smi shows it)"
            yield Finding("gpu", "doubtful", f"there is an NVIDIA driver, but torch {torch.__version__} {why}", cure)
        else:
            yield Finding("gpu", "good", told)
        return
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("gpu", "good", f"{', '.join(names)}; CUDA {torch.version.cuda}, {cores} cores")
    if cores < 4 * len(names):
        told = f"{cores} cores for {len(names)} GPUs: the feed of patches may be slower than the network"
        yield Finding("cores", "doubtful", told, "give the machine or container 4 cores and more for each GPU")
    cudnn: Any = torch.backends.cudnn  # without types
    yield convolutions(torch.__version__, cudnn.version() or 0)


def _memory_gb() -> float:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    for path in limits:
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):  # no such file, or the word max
            continue
    return total / GB
