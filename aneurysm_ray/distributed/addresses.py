"""The address of a cluster to join: whether a Ray answers there, and whose it is."""

import os
import socket
import time
from pathlib import Path

import grpc
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from aneurysm_ray.errors import RequestError


def checked(address: str, seconds: float) -> str:
    """Return the host:port of a cluster's head that answers within some seconds.

    Ray itself waits for more than a minute. Raises RequestError when nothing answers, or something else does, or when
    the token is wrong; and for `auto` when the Ray of this machine is somebody else's.
    """
    if address == "auto":
        address = _mine()
    if address.startswith("ray://"):
        raise RequestError(
            f"RAY_ADDRESS={address} is Ray Client's, through which neither training nor a search can be driven; run "
            "`aneurysm-ray submit`, or name the head as host:6379 on a node of the cluster"
        )
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        raise RequestError(f"RAY_ADDRESS={address} is not host:port, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=seconds).close()
    except OSError as error:
        raise silent(address, error) from error
    if address.startswith("http"):
        raise RequestError(f"RAY_ADDRESS={address} is a dashboard's; {_HEAD}")
    _ask(address, seconds)
    _find_node(address, seconds)
    return address


_HEAD = "give its port of 6379 or as `ray start --head` said it, or `aneurysm-ray submit --address` this one"


def silent(address: str, error: BaseException) -> RequestError:
    """Return what to say of a cluster that does not answer."""
    why = str(error.__cause__ or error).strip().partition("\n")[0]  # Ray says only below what went wrong
    return RequestError(
        f"no Ray cluster answers at {address} ({why}); start one with `ray start --head`, or unset RAY_ADDRESS to "
        "use this machine alone"
    )


def _ask(address: str, seconds: float) -> None:
    channel = init_grpc_channel(address)
    try:
        request = gcs_service_pb2.CheckAliveRequest()
        gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).CheckAlive(request, timeout=seconds)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise RequestError(
                f"the cluster at {address} refuses the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file "
                "~/.ray/auth_token to what `ray get-auth-token` prints on its head node"
            ) from error
        raise RequestError(f"what answers at {address} is not the head of a Ray cluster; {_HEAD}") from error
    finally:
        channel.close()


def _find_node(address: str, seconds: float) -> None:
    """Raise RequestError when none of the cluster's nodes is on this machine; one may be about to start.

    Ray 2.60 runs drivers on nodes alone, and looks for one for a minute. By the port alone no cluster's node is missed:
    a head has several addresses.
    """
    port = address.rpartition(":")[2]
    until = time.monotonic() + seconds
    while not any(found.rpartition(":")[2] == port for found in _running()):
        if time.monotonic() > until:
            raise RequestError(
                f"the Ray cluster at {address} has no node on this machine, and drivers run on nodes alone; run the "
                "command on a node, such as the head, or send it there with `aneurysm-ray submit`"
            )
        time.sleep(0.2)


def _mine() -> str:
    """Return the address of this user's Ray on this machine. Raises RequestError when there is none, or several.

    Whoever joins a Ray runs what its user likes: `auto` means no stranger's.
    """
    found = _running()
    mine = sorted(address for address, owners in found.items() if os.getuid() in owners)
    others = sorted(found.keys() - set(mine))
    if len(mine) == 1:
        return mine[0]
    if mine:
        raise RequestError(f"RAY_ADDRESS=auto could be any of {', '.join(mine)}; name one of them")
    if others:
        raise RequestError(
            f"RAY_ADDRESS=auto finds no Ray of yours here; {', '.join(others)} is another user's. Name it to join it, "
            "or unset RAY_ADDRESS to use this machine alone"
        )
    raise RequestError(
        "RAY_ADDRESS=auto finds no Ray on this machine; start one with `ray start --head`, or unset RAY_ADDRESS"
    )


def _running() -> dict[str, set[int]]:
    """Return the clusters of which a node runs on this machine, each with the users whose nodes they are."""
    found: dict[str, set[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name, *words = (process / "cmdline").read_text(errors="replace").split("\0")
            owner = process.stat().st_uid
        except OSError:  # it has ended, or is hidden
            continue
        if name.endswith("/raylet"):
            for word in words:
                if word.startswith("--gcs-address="):
                    found.setdefault(word.partition("=")[2], set()).add(owner)
    return found
