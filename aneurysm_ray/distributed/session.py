"""Connect to a Ray cluster, or start a quiet Ray of this machine's own for as long as a command runs."""

import contextlib
import inspect
import itertools
import logging
import math
import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.util
import yaml

from aneurysm_ray.distributed import addresses, progress
from aneurysm_ray.distributed.room import Cluster, Growth
from aneurysm_ray.errors import AneurysmRayError, RequestError

OBJECT_STORE_BYTES = 512 * 2**20
"""Of a local Ray: only status rows and metrics pass through it, never voxels."""

_LOCAL_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's default is to repeat for ever a task that the memory monitor killed.
    "RAY_task_oom_retries": "1",
    # Without it every print of a Train worker appears twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Nobody takes the nodes of one machine back with notice; the watcher is a process more for every run.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_PORTS = range(20_000, 32_768)
"""Of which a local Ray takes one: above those of Ray's workers, below those that systems hand out by themselves."""
_STARTS = 3
"""Another program may take a port between the moment when it is found and that when Ray takes it."""
_NODE_SECONDS = 240.0
"""Time in which the node of a local Ray has to start."""
_AGENT_MS = str(int(1000 * _NODE_SECONDS))
_AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
"""Of the processes that Ray's node starts first."""
_ROOMLESS = ("PENDING", "RESCHEDULING")
"""States of a placement group that holds nothing, or not all, of what it asks for."""
_ANSWER_SECONDS = 8.0
"""Time in which a cluster's head has to answer."""

LAUNCHER_FILE = "ray_bootstrap_config.yaml"
"""Name that Ray's cluster launcher gives its file on the head."""

log = logging.getLogger(__name__)

_KUBERAY = "RAY_USAGE_STATS_KUBERAY_IN_USE"
"""Variable that KubeRay sets in each of its pods."""

_DATA_THREADS = ("iter_threaded", "Prefetcher", "ray-data-metadata-prefetch", "StreamingExecutor")
"""How the names of Ray Data's threads begin."""
_DATA_SECONDS = 3.0


def _disconnect() -> None:
    """Disconnect from Ray when Ray Data's threads have ended.

    They outlive the iterator that they serve by a moment, in which they let go of objects. Ray 2.60 ends the process,
    with exit code 1, when one does so after the disconnection.
    """
    until = time.monotonic() + _DATA_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith(_DATA_THREADS):
            thread.join(max(0.0, until - time.monotonic()))
    ray.shutdown()


@contextlib.contextmanager
def connect(*, dashboard: bool = False) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, else start a local Ray and stop it at the end.

    A Ray that this process is connected to already is used as it is and left running. `dashboard` starts the dashboard
    of a local Ray: Train nested in Tune asks it which workers died.
    Raises RequestError when the named cluster does not answer.
    """
    if ray.is_initialized():
        yield
        return
    # Ray answers SIGTERM by an exit in the midst of whatever runs.
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if named := os.environ.get("RAY_ADDRESS"):
        address = addresses.checked(named, _ANSWER_SECONDS)
        log.info("* joining the Ray cluster at %s", address)
        try:
            with progress.told("joining it"):
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise addresses.silent(address, error) from error
        _answer_sigterm(on_sigterm)
        try:
            yield
        finally:
            with progress.told("leaving it"):
                _disconnect()
        return
    log.info("* starting a Ray of this machine's own")
    # Ray's sockets lie below this folder and may have no more than 107 bytes in their paths. Only its user may enter
    # it: Ray opens its own folder, with the sockets of its object store, to everybody.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp" if len(tempfile.gettempdir()) > 20 else None)
    with environment(_private()):
        try:
            with progress.told("starting Ray"):
                _start(os.path.join(folder, "r"), dashboard)
            _answer_sigterm(on_sigterm)
            yield
        finally:
            with progress.told("ending Ray"):
                _disconnect()
                shutil.rmtree(folder, ignore_errors=True)
    _read_environment()


def _private() -> dict[str, str]:
    """Return the variables of a Ray of this process's own; what the user has set stays as it is.

    It listens on all interfaces, as Ray does, so that only a secret keeps others from running what they like as this
    user: a token that is drawn anew each time and handed to its own processes alone.
    """
    wanted = _LOCAL_DEFAULTS | {"RAY_AUTH_MODE": "token"}
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    if os.environ.get("RAY_AUTH_MODE", "token") == "token":
        missing["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return missing


def _start(folder: str, dashboard: bool) -> None:
    """Start a local Ray whose processes know its address: beside another Ray they could not tell which is theirs.

    Raises AneurysmRayError where none can be started.
    """
    _read_environment()
    for attempt in range(_STARTS):
        port = _unused_port()
        address = f"{ray.util.get_node_ip_address()}:{port}"
        try:
            told = {
                "RAY_GCS_SERVER_PORT": str(port),
                "RAY_ADDRESS": address,
                "RAY_agent_register_timeout_ms": _AGENT_MS,
            }
            with environment(told), _patience():
                ray.init(
                    address="local",
                    include_dashboard=dashboard,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=folder,
                )
            return
        except Exception as error:  # Ray raises plain ones too
            ray.shutdown()
            died = isinstance(error, _NodeDied)
            if attempt == _STARTS - 1 or (_is_unused(port) and not died):
                first = next(iter(str(error).splitlines()), type(error).__name__)
                raise AneurysmRayError(
                    f"Ray could not be started on this machine: {first}; `aneurysm-ray doctor` examines it"
                ) from error
            if died:
                log.info("  Ray's node died while it started; trying again")
            else:
                log.info("  another program has taken port %d before Ray did; trying another", port)


class _NodeDied(Exception):
    """The node that is waited for will not come."""


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Let a node that starts take its time: after 30 s, which is little on a busy machine, Ray 2.60 gives it up.

    The node in turn ends itself when after 15 s its first processes have not told it their ports, unless it knows them.
    """
    services: Any = ray._private.services
    once, start = services.get_node, services.start_raylet
    until = time.monotonic() + _NODE_SECONDS

    def asked_again(*words: Any) -> Any:
        while True:
            try:
                return once(*words)
            except RuntimeError as error:  # not there yet
                if time.monotonic() > until:
                    raise
                if _node_has_died():
                    raise _NodeDied("its node died while it started") from error
            time.sleep(0.1)

    def with_ports(*words: Any, **options: Any) -> Any:
        told = inspect.signature(start).bind(*words, **options).arguments
        unused = _unused_ports(len(_AGENT_PORTS))
        ports = {name: options.get(name) or port for name, port in zip(_AGENT_PORTS, unused, strict=True)}
        for name, port in ports.items():
            ray._raylet.persist_port(told["session_dir"], told["node_id"], name, port)
        return start(*words, **options | ports)

    services.get_node, services.start_raylet = asked_again, with_ports
    try:
        yield
    finally:
        services.get_node, services.start_raylet = once, start


def _node_has_died() -> bool:
    """Say whether the node that this process has started is dead; Ray waits for it all the same."""
    import psutil  # type: ignore[import-untyped]  # Ray's own

    nodes = [child for child in psutil.Process().children() if child.name() == "raylet"]
    return bool(nodes) and all(node.status() == psutil.STATUS_ZOMBIE for node in nodes)


def _unused_port() -> int:
    return _unused_ports(1)[0]


def _unused_ports(count: int) -> list[int]:
    return list(itertools.islice(filter(_is_unused, random.sample(_PORTS, len(_PORTS))), count))


def _is_unused(port: int) -> bool:
    with socket.socket() as asked:
        try:
            asked.bind(("", port))
        except OSError:
            return False
    return True


def _read_environment() -> None:
    """Let Ray read its variables again: it does so once, when it is imported."""
    import ray._raylet

    core: Any = ray._raylet
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()


def _answer_sigterm(as_before: Any) -> None:
    if callable(as_before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, as_before)


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables by which alone Ray can be told some things, and restore them after."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def free() -> dict[str, float]:
    """Return what nobody has reserved of the connected cluster."""
    return {name: float(amount) for name, amount in ray.available_resources().items()}


def roomless(need: Mapping[str, float]) -> int:
    """Return how many groups of workers that take so much each wait for room in the connected cluster."""
    waiting = [group for group in ray.util.placement_group_table().values() if group["state"] in _ROOMLESS]
    return sum(all(bundle == need for bundle in group["bundles"].values()) for group in waiting)


def cluster() -> Cluster:
    """Return the nodes of the connected cluster, and what may come to them."""
    nodes = tuple(
        {name: float(amount) for name, amount in node["Resources"].items()} for node in ray.nodes() if node["Alive"]
    )
    return Cluster(nodes, growth())


def growth() -> Growth | None:
    """Return what the cluster's autoscaler may add; None on a cluster of fixed size.

    Where Ray tells only the sum of it, that is one node; KubeRay tells nothing.
    """
    from ray._private.state import state  # no public function tells it; Ray Data asks here too

    if limit := state.get_max_resources_from_cluster_config():
        return Growth(({name: float(amount) for name, amount in limit.items()},))
    return _launched() or (Growth() if os.environ.get(_KUBERAY) else None)


def _launched() -> Growth | None:
    """Return the worker nodes of a launcher file; Ray 2.60's own autoscaler tells its limits to nobody else.

    `ray up` leaves its file in the home folder of the head, where the drivers of jobs run.
    """
    path = Path.home() / LAUNCHER_FILE
    if not os.environ.get("RAY_ADDRESS") or not path.exists():
        return None
    config = yaml.safe_load(path.read_text())
    most = config.get("max_workers", 0)
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    nodes: list[dict[str, float]] = []
    for kind in workers.values():
        count = min(kind.get("max_workers", math.inf), most)
        nodes += [{name: float(amount) for name, amount in kind.get("resources", {}).items()}] * count
    return Growth(tuple(nodes), most) if nodes else None


def require(need: Mapping[str, float], what: str, cure: str) -> None:
    """Raise RequestError when the cluster has less than `need` in all: Ray would wait for it without a word.

    `what` is the subject of the sentence and `cure` its end: what would fit.
    """
    there = cluster()
    if there.growth and not there.growth.nodes:
        return  # whatever is asked for may come
    for name, amount in need.items():
        if there.most(name) < amount:
            raise RequestError(f"{what} {amount:g} {name}; the cluster has {there.most(name):g}. {cure}")
