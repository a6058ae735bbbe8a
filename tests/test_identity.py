"""Keyed patient hashes, and their key."""

import hashlib
import hmac
import stat
from pathlib import Path

import pytest

from aneurysm_ray.data.identity import key_path, patient_hash, patient_key
from aneurysm_ray.errors import RequestError


def test_the_hash_is_hmac_sha256_of_the_id_without_padding() -> None:
    expected = hmac.new(b"key", b"patient:P-17", hashlib.sha256).hexdigest()[:32]
    assert patient_hash(b"key", "P-17", "1.2") == patient_hash(b"key", " P-17 ", "1.3") == expected


def test_another_key_or_patient_gives_another_hash() -> None:
    hashes = {patient_hash(key, patient, "1.2") for key in (b"a", b"b") for patient in ("P1", "P2")}
    assert len(hashes) == 4


def test_series_without_a_patient_are_patients_of_their_own() -> None:
    assert patient_hash(b"key", "", "1.2") != patient_hash(b"key", " ", "1.3")
    assert patient_hash(b"key", "", "1.2") != patient_hash(b"key", "1.2", "1.2")


def test_a_random_key_is_made_once_beside_the_set_for_the_owners_eyes(tmp_path: Path) -> None:
    out = str(tmp_path / "volumes")
    key = patient_key(out, "")
    assert len(key) == 64 and patient_key(out, "") == key
    assert patient_key(str(tmp_path / "others"), "") != key
    assert key_path(out) == tmp_path / "volumes.patient_key"
    assert stat.S_IMODE(key_path(out).stat().st_mode) == 0o600


def test_a_configured_key_is_used_and_nothing_is_written(tmp_path: Path) -> None:
    assert patient_key(str(tmp_path / "volumes"), "secret") == b"secret"
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "volumes")
    patient_key(out, "")
    key_path(out).chmod(0o644)
    with pytest.raises(RequestError, match="chmod 600"):
        patient_key(out, "")


def test_an_object_store_is_no_place_for_a_key() -> None:
    with pytest.raises(RequestError, match=r"prepare\.patient_key"):
        patient_key("s3://bucket/volumes", "")
