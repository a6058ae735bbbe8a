"""An S3 on this machine for the tests, which speaks to whatever is started while it runs."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_running: dict[str, Any] = {}
"""Servers by their addresses."""


@contextmanager
def s3(bucket: str) -> Iterator[str]:
    """Serve an empty bucket; yield its URL. Whoever reads the environment finds the server."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    _running[address] = server
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(bucket)
        yield f"s3://{bucket}"
    s3fs.S3FileSystem.clear_instance_cache()
    _running.pop(address).stop()


def stop() -> None:
    """Let the server of `s3` answer nobody any more."""
    _running[os.environ["AWS_ENDPOINT_URL"]].stop()


@contextmanager
def away(seconds: float) -> Iterator[None]:
    """Let the server of `s3` answer nobody for so long, beginning with the block; what it holds it has again after."""
    from moto.server import ThreadedMotoServer

    address = os.environ["AWS_ENDPOINT_URL"]
    host, _, port = address.removeprefix("http://").rpartition(":")
    stop()
    yield
    time.sleep(seconds)
    _running[address] = ThreadedMotoServer(ip_address=host, port=int(port), verbose=False)
    _running[address].start()
