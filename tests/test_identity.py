"""UIDs, keyed hashes of patients and places, and their key."""

import hashlib
import hmac
import multiprocessing
import stat
from pathlib import Path

import pytest

from aneurysm_ray import overrides, rundir
from aneurysm_ray.data import identity
from aneurysm_ray.data.identity import is_uid, key_path, patient_hash, patient_key, place_hash
from aneurysm_ray.errors import ConfigError, RequestError


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(identity.KEY_VARIABLE, raising=False)


@pytest.mark.parametrize("text", ["1.2.840.10008.1", "2.25.0", "7", "1" * 64])
def test_numbers_with_dots_between_are_uids(text: str) -> None:
    assert is_uid(text)


@pytest.mark.parametrize("text", ["", "1" * 65, ".1", "1.", "1..2", "1.2\n", "1.2 ", "../1", "a1.2", "1.2\0", "¹.2"])
def test_anything_else_is_none(text: str) -> None:
    assert not is_uid(text)


def test_the_hash_is_hmac_sha256_of_the_id_without_padding() -> None:
    expected = hmac.new(b"key", b"patient:P-17", hashlib.sha256).hexdigest()[:32]
    assert patient_hash(b"key", "P-17", "1.2") == patient_hash(b"key", " P-17 ", "1.3") == expected


def test_another_key_or_patient_gives_another_hash() -> None:
    hashes = {patient_hash(key, patient, "1.2") for key in (b"a", b"b") for patient in ("P1", "P2")}
    assert len(hashes) == 4


def test_series_without_a_patient_are_patients_of_their_own() -> None:
    assert patient_hash(b"key", "", "1.2") != patient_hash(b"key", " ", "1.3")
    assert patient_hash(b"key", "", "1.2") != patient_hash(b"key", "1.2", "1.2")


def test_places_are_hashed_by_the_key_whatever_bytes_their_names_have() -> None:
    places = ["a/b", "Universit\udce9", "kopf \U0001f9e0"]
    assert len({place_hash(key, place) for key in (b"a", b"b") for place in places}) == 6
    assert is_uid(identity.made_uid(b"key", places[1]))


def test_a_random_key_is_made_once_beside_the_set_for_the_owners_eyes(tmp_path: Path) -> None:
    out = str(tmp_path / "volumes")
    key = patient_key(out)
    assert len(key) == 64 and patient_key(out) == key
    assert patient_key(str(tmp_path / "others")) != key
    assert key_path(out) == tmp_path / "volumes.patient_key"
    assert stat.S_IMODE(key_path(out).stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["others.patient_key", "volumes.patient_key"]


def _made(out: str, keys: "multiprocessing.Queue[bytes]") -> None:
    keys.put(patient_key(out))


def test_of_many_processes_that_begin_at_once_all_have_one_whole_key(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    keys: multiprocessing.Queue[bytes] = spawn.Queue()
    processes = [spawn.Process(target=_made, args=(str(tmp_path / "volumes"), keys)) for _ in range(8)]
    for process in processes:
        process.start()
    found = {keys.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1 and len(found.pop()) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["volumes.patient_key"]


def test_the_environment_goes_before_a_file_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("of the file\n")
    (tmp_path / "key").chmod(0o600)
    out = str(tmp_path / "volumes")
    assert patient_key(out, str(tmp_path / "key")) == b"of the file"
    monkeypatch.setenv(identity.KEY_VARIABLE, "of the environment")
    assert patient_key(out, str(tmp_path / "key")) == b"of the environment"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize(
    ("mode", "content", "words"), [(0o644, "x", "chmod 600"), (0o600, " \n", "is empty"), (0, None, "cannot be read")]
)
def test_a_key_that_others_can_read_or_nobody_can_is_refused(
    tmp_path: Path, mode: int, content: str | None, words: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    with pytest.raises(RequestError, match=words):
        patient_key(str(tmp_path / "volumes"), str(file))


def test_an_object_store_is_no_place_for_a_key() -> None:
    with pytest.raises(RequestError, match=r"prepare\.patient_key_file=FILE or in ANEURYSM_RAY_PATIENT_KEY"):
        patient_key("s3://bucket/volumes")


def test_the_key_is_no_setting_and_an_old_one_goes_no_further(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean prepare\.patient_key_file"):
        overrides.build({"prepare.patient_key": "hunter2"})
    old = tmp_path / "config.toml"
    old.write_text('[prepare]\npatient_key = "hunter2"\nmemory_mb = 5000\n')
    config = overrides.build(overrides.read_toml(old))
    assert config.prepare.memory_mb == 5000
    assert "hunter2" not in repr(config)
    stored = {"prepare": {"patient_key": "hunter2", "memory_mb": 5000}}
    assert "hunter2" not in repr(type(config).model_validate(stored))
    rundir.create(tmp_path / "run", config, {"kind": "train"})
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert b"hunter2" not in written


def test_what_places_stand_behind_hashes_is_kept_beside_the_set_for_the_owners_eyes(tmp_path: Path) -> None:
    out = str(tmp_path / "volumes")
    identity.write_places(out, {"aa": "/data/Doe, Jane"})
    identity.write_places(out, {"bb": "Universit\udce9\nx"})
    assert identity.read_places(out) == {"aa": "/data/Doe, Jane", "bb": "Universit\\udce9\nx"}
    assert stat.S_IMODE(identity.places_path(out).stat().st_mode) == 0o600
    assert identity.read_places(str(tmp_path / "nowhere")) == {}
