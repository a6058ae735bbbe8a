"""Open a page in headless Chromium and say what became of it."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Opened:
    """A page after its scripts have run."""

    dom: str
    console: list[str]
    """Whatever was written to the console: errors, warnings, uncaught exceptions."""


def open_page(path: Path) -> Opened:
    """Open a file with all networking off; skips the test where Chromium is not installed."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        switches = (
            *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-component-update"),
            *("disable-background-networking", "disable-sync", "enable-logging=stderr", "v=0", "dump-dom"),
            *(f"user-data-dir={profile}", "window-size=1400,2000", "virtual-time-budget=30000"),
            *("proxy-server=127.0.0.1:9", "host-resolver-rules=MAP * ~NOTFOUND"),
        )
        command = [chromium, *(f"--{switch}" for switch in switches), path.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if re.search(r":CONSOLE[:(]", line)]
    return Opened(done.stdout, console)


def check_in_browser(path: Path) -> str:
    """Assert that a page opens without a word on the console and draws all its figures; return its DOM."""
    opened = open_page(path)
    assert opened.console == []
    figures = re.findall(r"<div[^>]*data-figure=[^>]*>", opened.dom)
    assert figures
    assert [figure for figure in figures if 'data-drawn="yes"' not in figure] == []
    return opened.dom
