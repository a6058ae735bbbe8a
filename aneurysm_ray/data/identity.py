"""Patients as keyed hashes: one patient stays one word within a set, and nobody without the key can go back.

A plain hash of a patient ID is undone by hashing all IDs there can be; the key prevents that. It is
`prepare.patient_key` or a random one in `<OUT>.patient_key`, beside the set and not in it, so that a set can be given
away without its key.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from aneurysm_ray.data.urls import is_url
from aneurysm_ray.errors import RequestError


def key_path(out: str) -> Path:
    """Return where a set's random key is kept."""
    path = Path(out).absolute()
    return path.with_name(f"{path.name}.patient_key")


def patient_key(out: str, configured: str) -> bytes:
    """Return the key of a set: the configured one, the one kept beside it, or a new one kept from now on.

    Raises RequestError for a set in an object store without a configured key, and for a key that others can read.
    """
    if configured:
        return configured.encode()
    if is_url(out):
        raise RequestError(
            f"{out} is no place for a secret; give one with prepare.patient_key=..., the same for every run on this set"
        )
    path = key_path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Created with its final mode and only if it does not exist: two runs at once end with one key.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    except OSError as error:
        raise RequestError(
            f"{path}: the patient key cannot be written there: {error.strerror}; choose another OUT"
        ) from error
    if path.stat().st_mode & 0o077:
        raise RequestError(f"{path} holds the key of the patient hashes and others can read it; run `chmod 600 {path}`")
    key = path.read_text().strip()
    if not key:
        raise RequestError(f"{path} is empty; restore the key of this set, or delete both the file and the set")
    return key.encode()


def patient_hash(key: bytes, patient_id: str, series_uid: str) -> str:
    """Return 32 hex digits for a patient; a series without Patient ID is a patient of its own."""
    known = patient_id.strip()
    text = f"patient:{known}" if known else f"series:{series_uid}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]
