"""How a command ends: the sentence of an error, its exit code, the words that make the same command go on.

Exit codes: 0 done; 1 the work failed; 2 the request is wrong, found before Ray starts; 3 finished, but some inputs or
trials failed (listed in a file); 130 interrupted, by Ctrl-C or by SIGTERM, which SLURM, docker and Kubernetes send.
"""

import contextlib
import logging
import shlex
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import typer

from aneurysm_ray.errors import AneurysmRayError, did_you_mean

log = logging.getLogger("aneurysm_ray")

INTERRUPTED = 130


class PartlyFailed(Exception):
    """Finished, but some inputs or trials failed: exit code 3."""


class _Interrupted(Exception):
    """Stopped by Ctrl-C; the text is the words that make the same command go on."""


@contextlib.contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Name the directory in the command that goes on after Ctrl-C, also when it was not typed."""
    try:
        yield
    except KeyboardInterrupt:
        raise _Interrupted(shlex.join(["--out", str(out), "--resume"])) from None


def run(command: Callable[[], object], words: Sequence[str], names: Sequence[str]) -> int:
    """Run a command, say how it ended, and return its exit code; `words` were typed, `names` are all commands."""
    try:
        with _sigterm_as_ctrl_c():
            code = command()
        if code == INTERRUPTED and words[0] != "submit":  # typer's word for Ctrl-C; a job goes on without us
            return _fail(f"interrupted; to go on: {again(words, '')}", INTERRUPTED)
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        return _fail(_usage_sentence(error, names), 2)
    except PartlyFailed as error:
        log.info("* %s", error)
        return 3
    except AneurysmRayError as error:
        log.debug("%s", traceback.format_exc())
        return _fail(str(error), error.exit_code)
    except _Interrupted as error:
        return _fail(f"interrupted; to go on: {again(words, str(error))}", INTERRUPTED)
    except Exception as error:
        log.error("%s", traceback.format_exc())
        return _fail(f"{type(error).__name__}: {error} (a fault of aneurysm-ray; the lines above say where)", 1)


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does at that moment; a second one does not break the first one's clearing up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        answer = signal.getsignal(signal.SIGINT)
        # A shell starts jobs of its background with SIGINT ignored.
        (answer if callable(answer) else signal.default_int_handler)(signal.SIGINT, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(sentence: str, code: int) -> int:
    log.error("error: %s", sentence)
    return code


def _usage_sentence(error: typer.TyperException, names: Sequence[str]) -> str:
    """Say what is wrong with the words typed, with the nearest command."""
    message = error.format_message()
    if message.startswith("No such command"):
        word = message.split("'")[1] if "'" in message else ""
        return f"no command {word!r}{did_you_mean(word, names)}   (aneurysm-ray --help lists them)"
    return message


def again(words: Sequence[str], addition: str) -> str:
    """Return the command that goes on with the work: the words typed, with the directory and --resume once."""
    kept = list(words)
    if addition and "--out" in kept:
        at = kept.index("--out")
        del kept[at : at + 2]
    kept = [word for word in kept if not addition or (word != "--resume" and not word.startswith("--out="))]
    return " ".join(["aneurysm-ray", shlex.join(kept), addition]).strip()
