"""Optuna's journal in an object store, which cannot append: each of its writes is an object.

A study has one writer, the driver of its search, so that what it has written need not be read again. When the journal
is opened its many objects become one, which Optuna's own file journal can read.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from aneurysm_ray import location
from aneurysm_ray.errors import OutputError


class ObjectJournal(BaseJournalBackend):
    """The lines of a journal: those in an object, and those in the objects below `<object>.d/`."""

    def __init__(self, path: Path) -> None:
        """Read what there is, and put it into one object. Raises OutputError when it cannot be written."""
        self.path = path
        self.parts = path.with_name(f"{path.name}.d")
        self.logs = _lines(location.read_bytes(path)) if path.exists() else []
        parts = sorted(self.parts.iterdir(), key=lambda part: part.name) if self.parts.exists() else []
        for part in parts:
            first, lines = int(part.name), _lines(location.read_bytes(part))
            # A kill after the whole was written and before its parts were removed leaves them to be skipped.
            self.logs += lines[max(0, len(self.logs) - first) :]
        if parts:
            self._write(path, self.logs)
            location.remove_tree(self.parts)

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return the lines from a number on."""
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write some lines as one object, named by the number of the first. Raises OutputError."""
        self._write(self.parts / f"{len(self.logs):010d}", logs)
        self.logs += logs

    def _write(self, path: Path, logs: list[dict[str, Any]]) -> None:
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        try:
            path.write_bytes(data)
        except Exception as error:  # every object store has errors of its own
            raise OutputError(f"{path} cannot be written: {error}; the search goes on with --resume") from error


def _lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]
