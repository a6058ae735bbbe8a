"""Folders come, go, move and lie: the table lists exactly the files that are there, each under its own UID."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dicom_sets
import pyarrow.parquet as pq
import pytest

from aneurysm_ray import rundir
from aneurysm_ray.data import catalogue, identity, store, urls, work
from aneurysm_ray.data.lock import LOCK
from aneurysm_ray.distributed import prepare as preparation
from aneurysm_ray.distributed.prepare import prepare
from aneurysm_ray.errors import RequestError, RunDirError
from aneurysm_ray.overrides import build

KEY = b"a test's key"
CONFIG = build({"volume.spacing_mm": (10.0, 10.0, 10.0)})
A, B, C = (dicom_sets.series_uid(number) for number in (1, 2, 3))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare in this process: what is tested is what the driver makes of what workers say."""

    def run(tasks: list[work.Task], config: Any, data: str) -> Iterator[dict[str, Any]]:
        for task in tasks:
            yield work.prepare(work.Task.from_json(task.to_json()))

    monkeypatch.setenv(identity.KEY_VARIABLE, KEY.decode())
    monkeypatch.setattr(preparation, "_run", run)
    monkeypatch.setattr(preparation.session, "connect", contextlib.nullcontext)


def add(folder: Path, uid: str, *, slices: int = 9, prefix: str = "", patient: str = "") -> None:
    """Add slices of a series to a folder; a patient's name is the series' UID, so that a volume tells whose it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(slices):
        image = dicom_sets.image(uid, index, patient=patient or uid)
        image.save_as(folder / f"{prefix}{index:03d}", enforce_file_format=True)


def held(data: Path, out: Path) -> dict[str, str]:
    """Prepare and return the name of each volume with the UID of its voxels, after all that must hold of any set."""
    summary = prepare(str(data), str(out), CONFIG)
    table = store.volumes_table(out)
    assert sorted(table["path"]) == sorted(str(p.relative_to(out)) for p in out.glob("??/*.parquet"))
    pictures = {store.picture_path(uid) for uid in table["series_uid"]}
    assert pictures == {str(p.relative_to(out)) for p in out.glob("pictures/*/*")}
    assert len(list(out.glob("status/*/*.json"))) == summary.prepared + summary.rejected
    assert not list(out.rglob("*.tmp")) and not (out / LOCK).exists()
    owners = {identity.patient_hash(KEY, uid, ""): uid for uid in (A, B, C)}
    found = {}
    for row in table.to_dict("records"):
        volume = store.read_volume(out / row["path"])
        assert volume.series_uid == row["series_uid"] == Path(row["path"]).stem
        found[row["series_uid"]] = owners[volume.patient]
        # The name is the voxels' own, or its second, third, ...
        assert row["series_uid"] in (found[row["series_uid"]], *(f"{found[row['series_uid']]}.{n}" for n in (2, 3)))
    return found


Change = Callable[[Path], None]


def move(old: str, new: str) -> Change:
    def change(data: Path) -> None:
        (data / new).parent.mkdir(parents=True, exist_ok=True)
        (data / old).rename(data / new)

    return change


def both(*changes: Change) -> Change:
    def change(data: Path) -> None:
        for one in changes:
            one(data)

    return change


def zipped(data: Path) -> None:
    shutil.make_archive(str(data / "a"), "zip", data / "a")
    shutil.rmtree(data / "a")


START = both(lambda data: add(data / "a", A), lambda data: add(data / "b", B))
TWICE = both(START, lambda data: add(data / "c", B))
NESTED = both(lambda data: add(data / "a", A), lambda data: add(data / "a" / "inner", B, slices=14))
STRAY = both(lambda data: add(data / "b", A, slices=1, prefix="0"), lambda data: add(data / "b", B, prefix="1"))
SCENARIOS: dict[str, tuple[Change, dict[str, str], Change, dict[str, str]]] = {
    "renamed": (START, {A: A, B: B}, move("a", "z"), {A: A, B: B}),
    "all renamed": (START, {A: A, B: B}, both(move("a", "y"), move("b", "z")), {A: A, B: B}),
    "swapped": (START, {A: A, B: B}, both(move("a", "t"), move("b", "a"), move("t", "b")), {A: A, B: B}),
    "added": (START, {A: A, B: B}, lambda data: add(data / "0", C), {A: A, B: B, C: C}),
    "a second one added before": (START, {A: A, B: B}, lambda data: add(data / "0", A), {A: A, f"{A}.2": A, B: B}),
    "the first of two removed": (
        *(TWICE, {A: A, B: B, f"{B}.2": B}),
        *(lambda data: shutil.rmtree(data / "b"), {A: A, f"{B}.2": B}),
    ),
    "removed": (START, {A: A, B: B}, lambda data: shutil.rmtree(data / "a"), {B: B}),
    "nested": (START, {A: A, B: B}, move("b", "a/b"), {A: A, B: B}),
    "taken out": (NESTED, {A: A, B: B}, move("a/inner", "inner"), {A: A, B: B}),
    "a stray first file": (STRAY, {B: B}, lambda data: (data / "b" / "0000").unlink(), {B: B}),
    "a stray first file added": (
        *(START, {A: A, B: B}),
        *(lambda data: add(data / "b", C, slices=1, prefix=" "), {A: A, B: B}),
    ),
    "two stray first files": (
        *(both(STRAY, lambda data: shutil.copytree(data / "b", data / "c")), {B: B, f"{B}.2": B}),
        *(lambda data: add(data / "a", A), {A: A, B: B, f"{B}.2": B}),
    ),
    "another series in its place": (
        *(START, {A: A, B: B}),
        *(both(lambda data: shutil.rmtree(data / "a"), lambda data: add(data / "a", C)), {B: B, C: C}),
    ),
    "its place taken and itself moved": (
        *(START, {A: A, B: B}),
        *(both(move("a", "c"), lambda data: add(data / "a", C)), {A: A, B: B, C: C}),
    ),
    "packed": (START, {A: A, B: B}, zipped, {A: A, B: B}),
    "linked": (START, {A: A, B: B}, lambda data: (data / "z").symlink_to(data / "a"), {A: A, f"{A}.2": A, B: B}),
    "no volume any more": (
        *(START, {A: A, B: B}),
        *(lambda data: [path.unlink() for path in sorted((data / "a").iterdir())[1:]], {B: B}),  # type: ignore[return-value]
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_whatever_happens_to_folders_the_table_lists_what_is_there(tmp_path: Path, name: str) -> None:
    begin, first, change, second = SCENARIOS[name]
    data, out = tmp_path / "data", tmp_path / "volumes"
    begin(data)
    assert held(data, out) == first
    assert held(data, out) == first
    change(data)
    assert held(data, out) == second
    before = dicom_sets.contents(out)
    assert held(data, out) == second
    assert dicom_sets.contents(out) == before


@pytest.mark.parametrize("name", ["two stray first files", "a second one added before"])
def test_names_do_not_depend_on_where_a_run_was_interrupted(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, _, change, _ = SCENARIOS[name]
    data = tmp_path / "data"
    begin(data)
    change(data)
    expected = held(data, tmp_path / "undisturbed")
    whole = preparation._run
    for stop in range(5):

        def stopped(tasks: list[work.Task], config: Any, place: str, stop: int = stop) -> Iterator[dict[str, Any]]:
            for number, status in enumerate(whole(tasks, config, place)):
                if number == stop:
                    raise KeyboardInterrupt
                yield status

        out = tmp_path / f"stopped {stop}"
        monkeypatch.setattr(preparation, "_run", stopped)
        with contextlib.suppress(KeyboardInterrupt):
            prepare(str(data), str(out), CONFIG)
        monkeypatch.setattr(preparation, "_run", whole)
        assert held(data, out) == expected
        assert dicom_sets.contents(out) == dicom_sets.contents(tmp_path / "undisturbed")


def test_a_series_without_a_uid_has_one_made_of_its_place(tmp_path: Path) -> None:
    for folder, uid in (("Doe, Jane", None), ("x", "hashed0a1b")):
        add(tmp_path / "data" / folder, A)
        for path in (tmp_path / "data" / folder).iterdir():
            image = dicom_sets.image(A, int(path.name))
            with warnings.catch_warnings(action="ignore"):
                if uid:
                    image.SeriesInstanceUID = uid
                else:
                    del image.SeriesInstanceUID
                image.save_as(path, enforce_file_format=True)
    prepare(str(tmp_path / "data"), str(tmp_path / "out"), CONFIG)
    table = store.volumes_table(tmp_path / "out")
    assert sorted(table["series_uid"]) == sorted(identity.made_uid(KEY, name) for name in ("Doe, Jane", "x"))
    assert all("series_uid_assumed" in codes for codes in table["quality"])


def test_a_folder_that_is_no_uid_names_no_series_of_the_layout(tmp_path: Path) -> None:
    add(tmp_path / "data" / "series" / "Doe, Jane", A)
    add(tmp_path / "data" / "series" / C, B)
    prepare(str(tmp_path / "data"), str(tmp_path / "out"), CONFIG)
    assert store.volumes_table(tmp_path / "out")["series_uid"].tolist() == sorted([A, C])


def test_names_by_hand() -> None:
    def source(key: str, own: str | None, uid: str | None = None) -> catalogue.Source:
        return catalogue.Source(key, key, uid, None, (), (), own_uid=own)

    def names(*sources: catalogue.Source, **more: Any) -> list[str | None]:
        return [source.series_uid for source in catalogue.named(sources, **more)]

    one, two, other = source("a", "1"), source("b", "1"), source("c", "1.2")
    assert names(one, two) == ["1", "1.2"]
    assert names(one, two, other) == ["1", "1.3", "1.2"], "1.2 is the third one's own"
    assert names(one, two, kept={"b": "1"}) == ["1.2", "1"]
    assert names(one, two, kept={"a": "7", "b": "1.4"}) == ["1", "1.4"]
    assert names(one, two, corrected=["a"]) == ["1.2", "1"]
    assert names(source("t", None, "1"), one) == ["1", "1.2"], "a table's name is its own"
    assert names(source("x", ""), one) == [None, "1"]


def test_another_data_set_is_not_taken_into_a_set(tmp_path: Path) -> None:
    START(tmp_path / "data")
    held(tmp_path / "data", tmp_path / "out")
    before = dicom_sets.contents(tmp_path / "out")
    add(tmp_path / "other" / "q", C)
    with pytest.raises(RunDirError, match="from another data set and holds 2 series"):
        prepare(str(tmp_path / "other"), str(tmp_path / "out"), CONFIG)
    assert dicom_sets.contents(tmp_path / "out") == before
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    assert held(tmp_path / "moved", tmp_path / "out") == {A: A, B: B}


def test_a_set_of_an_earlier_version_is_told_from_another_key(tmp_path: Path) -> None:
    START(tmp_path / "data")
    held(tmp_path / "data", tmp_path / "out")
    facts = rundir.read_json(tmp_path / "out" / rundir.PREPARE)
    facts["patient_key"] = facts.pop("key")
    rundir.write_json(tmp_path / "out" / rundir.PREPARE, facts)
    with pytest.raises(RunDirError, match=r"by an earlier version.*choose another OUT"):
        prepare(str(tmp_path / "data"), str(tmp_path / "out"), CONFIG)


HOLD = """
import sys, time
from aneurysm_ray.data.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_on_a_set_is_refused_until_the_first_one_ended_however(tmp_path: Path) -> None:
    START(tmp_path / "data")
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RequestError, match=rf"is being prepared by another process \({holder.pid} on "):
            prepare(str(tmp_path / "data"), str(out), CONFIG)
        assert [path.name for path in out.iterdir()] == [LOCK]
        holder.send_signal(signal.SIGKILL)
    assert held(tmp_path / "data", out) == {A: A, B: B}


def test_of_many_that_want_a_set_one_has_it(tmp_path: Path) -> None:
    program = "import sys\nfrom aneurysm_ray.data.lock import locked\nfrom pathlib import Path\nimport time\n"
    program += (
        "while True:\n try:\n  with locked(sys.argv[1]):\n   file = Path(sys.argv[2])\n   n = int(file.read_text())\n"
    )
    program += "   time.sleep(0.01)\n   file.write_text(str(n + 1))\n  break\n except Exception:\n  time.sleep(0.003)\n"
    (tmp_path / "count").write_text("0")
    words = [sys.executable, "-c", program, str(tmp_path / "out"), str(tmp_path / "count")]
    processes = [subprocess.Popen(words) for _ in range(6)]
    assert [process.wait(120) for process in processes] == [0] * 6
    assert (tmp_path / "count").read_text() == "6"


def test_temporary_files_of_the_living_stay_and_those_of_the_dead_go(tmp_path: Path) -> None:
    import socket

    host = socket.gethostname()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        f"a.parquet.{host}.{os.getpid()}.tmp": True,
        f"a.parquet.{host}.{dead.pid}.tmp": False,
        f"b.parquet.another-host.{dead.pid}.tmp": True,
        f"c.parquet.another-host.{dead.pid}.tmp": False,
        "of an earlier version.123.tmp": True,
    }
    (tmp_path / "3f").mkdir()
    for name in names:
        (tmp_path / "3f" / name).touch()
    old = time.time() - urls.ABANDONED_SECONDS - 60
    os.utime(tmp_path / "3f" / f"c.parquet.another-host.{dead.pid}.tmp", (old, old))
    urls.remove_abandoned(str(tmp_path))
    assert {path.name for path in (tmp_path / "3f").iterdir()} == {name for name, stays in names.items() if stays}


SECRETS = ("Xq7ZJane", "19470311")


def test_names_of_folders_files_and_members_are_in_no_output(tmp_path: Path) -> None:
    """Readable series, refused ones of every sort, archives, notes: what may be handed on knows places as hashes."""
    data, out = tmp_path / "Xq7ZJane data", tmp_path / "volumes"
    secret = "Xq7ZJane 19470311"
    add(data / f"{secret} good", A)
    for path in list((data / f"{secret} good").iterdir()):
        path.rename(path.with_name(f"{secret}{path.name}"))
    add(data / f"{secret} one", B, slices=1)
    (data / f"{secret} text").mkdir()
    (data / f"{secret} text" / f"{secret}.txt").write_text(secret)
    (data / f"{secret} links").mkdir()
    (data / f"{secret} links" / secret).symlink_to(f"/nowhere/{secret}")
    add(data / f"{secret} spacing", C)
    for path in (data / f"{secret} spacing").iterdir():
        image = dicom_sets.image(C, int(path.name))
        image.save_as(path, enforce_file_format=True)
        path.write_bytes(path.read_bytes().replace(b"5.0\\5.0", b"Xq7ZJan"))
        path.rename(path.with_name(f"{secret}{path.name}.dcm"))
    shutil.make_archive(str(data / f"{secret} packed"), "zip", data / f"{secret} good")
    (data / f"{secret} broken.zip").write_bytes((data / f"{secret} packed.zip").read_bytes()[:-700])
    (data / f"{secret} loose").write_text("beside the series")
    prepare(str(data), str(out), CONFIG)
    from aneurysm_ray.reporting import pages

    pages.write_report(out)
    rejected = rundir.read_csv(out / rundir.REJECTED)
    assert len(rejected) >= 5 and len(store.volumes_table(out)) == 2
    texts = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for path in out.rglob("*.parquet"):
        texts[f"{path.name} as a table"] = repr(
            [{**r, "voxels": b""} for r in pq.read_table(path).to_pylist()]
        ).encode()
    found = {name for name, text in texts.items() for secret in SECRETS if secret.encode() in text or secret in name}
    assert found == set()
    # Who prepared the set can still tell which series is which.
    places = identity.read_places(str(out))
    assert {places[name] for name in rejected["source"]} <= {str(p.relative_to(data)) for p in data.rglob("*")}
    assert str(data) in places.values()
