"""Who and what a series is: the one rule for UIDs, and keyed hashes of patients and of the places of files.

A plain hash of a patient ID is undone by hashing all IDs there can be; the key prevents that. It comes from the
environment (`ANEURYSM_RAY_PATIENT_KEY`), a file (`prepare.patient_key_file`), or is a random one in
`<OUT>.patient_key`, beside the set and not in it, so that a set can be given away without its key. Names of folders and
files hold those of patients, and dates, as often as headers do: a set, and a prediction too, knows them as hashes of
the same kind, and `<OUT>.sources.csv`, beside it as well, says which hash is which place.
"""

import csv
import hashlib
import hmac
import io
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from aneurysm_ray import rundir
from aneurysm_ray.data.urls import is_url
from aneurysm_ray.errors import RequestError, SeriesError, printable

KEY_VARIABLE = "ANEURYSM_RAY_PATIENT_KEY"
"""Environment variable that holds the key of the patient hashes."""
MADE_ROOT = "2.25."
"""What UIDs begin with that are made and not given (PS3.5 B.2)."""

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_LENGTH = 64


def is_uid(text: str) -> bool:
    """Whether a text is a UID: numbers with dots between them, at most 64 characters (PS3.5 9.1)."""
    return len(text) <= _UID_LENGTH and _UID.fullmatch(text) is not None


def check_uid(series_uid: str) -> str:
    """Return a series UID, which may name a file. Raises SeriesError (`unsafe_path`) for anything else."""
    if not is_uid(series_uid):
        raise SeriesError(
            "unsafe_path",
            f"its Series Instance UID, a text of {len(series_uid)} characters, is not 1 to 64 digits and dots; no file "
            "is named so",
        )
    return series_uid


def key_path(out: str) -> Path:
    """Return where a set's random key is kept."""
    return _beside(out, ".patient_key")


def _beside(out: str, ending: str) -> Path:
    path = Path(out).absolute()
    return path.with_name(path.name + ending)


def patient_key(out: str, key_file: str = "") -> bytes:
    """Return the key of a set, or of a prediction: that of the environment, of a file, the one kept beside it, or a new
    one from now on.

    Raises RequestError for a set in an object store without a key of its own, for a key that cannot be read or is
    empty, and for one that others can read.
    """
    if told := os.environ.get(KEY_VARIABLE, "").strip():
        return told.encode()
    if key_file:
        return _read_key(Path(key_file), f"write the key there, or unset prepare.patient_key_file={key_file}")
    if is_url(out):
        raise RequestError(
            f"{out} is no place for a secret; give one with prepare.patient_key_file=FILE or in {KEY_VARIABLE}, the "
            "same for every run on this set"
        )
    path = key_path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_new_key(path)
    except OSError as error:
        raise RequestError(
            f"{path}: the patient key cannot be written there: {error.strerror}; choose another OUT"
        ) from error
    return _read_key(path, "restore the key of this set, or delete both the file and the set")


def hash_of_patients(out: str, key_file: str = "") -> Callable[[str], str] | None:
    """Return what turns a patient as the data set called them into a prepared set's; None where its key is not here.

    Raises RequestError for a key that cannot be read.
    """
    if not (os.environ.get(KEY_VARIABLE, "").strip() or key_file) and (is_url(out) or not key_path(out).exists()):
        return None
    key = patient_key(out, key_file)
    return lambda name: patient_hash(key, name, "")


def _write_new_key(path: Path) -> None:
    """Write a random key that is whole from the first moment on; of two runs at once, the first one's stays."""
    new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        os.link(new, path)
    except FileExistsError:
        pass
    finally:
        new.unlink(missing_ok=True)


def _read_key(path: Path, cure: str) -> bytes:
    try:
        if path.stat().st_mode & 0o077:
            raise RequestError(
                f"{path} holds the key of the patient hashes and others can read it; run `chmod 600 {path}`"
            )
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: the patient key cannot be read there ({error}); {cure}") from error
    if not key:
        raise RequestError(f"{path} is empty; {cure}")
    return key.encode()


def keyed(key: bytes, text: str | bytes) -> str:
    """Return 32 hex digits that nobody without the key can make of a text: HMAC-SHA256."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return hmac.new(key, data, hashlib.sha256).hexdigest()[:32]


def fingerprint(key: bytes) -> str:
    """Return by what a key is known again."""
    return keyed(key, "fingerprint")[:16]


def patient_hash(key: bytes, patient_id: str, series_uid: str) -> str:
    """Return 32 hex digits for a patient; a series without Patient ID is a patient of its own."""
    known = patient_id.strip()
    return keyed(key, f"patient:{known}" if known else f"series:{series_uid}")


def place_hash(key: bytes, place: str) -> str:
    """Return 32 hex digits for the place of a series in its data set, or of the data set."""
    return keyed(key, f"place:{place}")


def made_uid(key: bytes, place: str) -> str:
    """Return a UID for a series that has none, always the same for one place (PS3.5 B.2)."""
    return uid_of_hash(place_hash(key, place))


def uid_of_hash(place: str) -> str:
    """Return the UID that `made_uid` makes of a place, from its hash."""
    return f"{MADE_ROOT}{int(place, 16)}"


def places_path(out: str) -> Path:
    """Return where the places behind a set's hashes are kept."""
    return _beside(out, rundir.PRIVATE_MAP)


def read_places(out: str) -> dict[str, str]:
    """Return hash to place, for as much as this machine knows of a set."""
    try:
        rows = list(csv.reader(io.StringIO(places_path(out).read_text(encoding="utf-8"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    return {row[0]: row[1] for row in rows[1:] if len(row) == 2}


def write_places(out: str, places: Mapping[str, str]) -> None:
    """Keep the places behind a set's hashes beside it, for the owner's eyes; nothing is kept of a set at a URL.

    Raises RequestError when they cannot be written.
    """
    if is_url(out):
        return
    path = places_path(out)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["hash", "place"])
    writer.writerows(sorted((name, printable(place)) for name, place in {**read_places(out), **places}.items()))
    try:
        with rundir.atomic(path) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text.getvalue())
    except OSError as error:
        raise RequestError(
            f"{path} cannot be written: {error.strerror}; which hash is which folder is not kept"
        ) from error
