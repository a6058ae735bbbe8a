"""A run lies in a folder or in an object store, and is read and written alike."""

import concurrent.futures
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import object_store
import optuna
import pandas as pd
import pytest
import torch
from learning_sets import small_config, write_set

from aneurysm_ray import location, overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import store, urls
from aneurysm_ray.distributed import begin, driver, prepare, record, search_tables, space, trial_process
from aneurysm_ray.distributed.object_journal import ObjectJournal
from aneurysm_ray.errors import AneurysmRayError, OutputError, RequestError, RunDirError
from aneurysm_ray.learning import cache, cases, checkpoint, ensemble, models


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store.s3("runs") as url:
        yield url


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "disk":
        return tmp_path / "run"
    return location.place(f"{request.getfixturevalue('bucket')}/{request.node.name}/run")


def test_places_are_paths_and_travel(bucket: str, tmp_path: Path) -> None:
    assert location.place("runs/a") == Path("runs/a")
    assert location.place(f"file://{tmp_path}") == tmp_path
    remote = location.place(f"{bucket}/a/b/")
    assert location.is_remote(remote) and not location.is_remote(tmp_path)
    assert str(remote) == f"{bucket}/a/b" and str(remote / "c" / "d") == f"{bucket}/a/b/c/d" and remote.name == "b"
    assert location.absolute(remote) == remote == pickle.loads(pickle.dumps(remote))
    assert location.place(remote) == remote


def test_files_of_a_run_come_back(folder: Path) -> None:
    rundir.create(folder, overrides.build({"optim.lr": 0.5}), {"kind": "train"})
    assert rundir.kind(folder) == "train" and rundir.read_config(folder).optim.lr == 0.5
    with pytest.raises(RunDirError, match="already holds a run"):
        rundir.check(folder, Config())
    table = pd.DataFrame({"series_uid": ["1.10", "2"], "value": [0.1, 0.25]}).astype({"series_uid": "string"})
    rundir.write_csv(folder / "deep" / "a.csv", table)
    rundir.append_csv(folder / "deep" / "a.csv", table)
    twice = pd.concat([table, table], ignore_index=True)
    pd.testing.assert_frame_equal(rundir.read_csv(folder / "deep" / "a.csv"), twice)
    with pytest.raises(RunDirError, match="cannot be read"):
        rundir.read_json(folder / "absent.json")
    with pytest.raises(ZeroDivisionError), rundir.atomic(folder / "half.txt") as file:
        file.write("half")
        raise ZeroDivisionError
    assert sorted(path.name for path in folder.iterdir()) == ["config.toml", "deep", "provenance.json"]
    location.remove_tree(folder / "deep")
    location.remove_tree(folder / "deep")
    assert not (folder / "deep").exists()


def test_what_another_process_wrote_is_seen_at_once(folder: Path) -> None:
    rundir.write_text(folder / "a", "1")
    names = [path.name for path in folder.iterdir()]
    assert names == ["a"] and not (folder / "b").exists()
    other = location.place(str(folder))
    rundir.write_text(other / "b", "2")
    assert (folder / "b").exists() and sorted(path.name for path in folder.iterdir()) == ["a", "b"]


def test_a_file_is_created_once(folder: Path) -> None:
    rundir.write_text(folder / "there", "")
    assert location.create(folder / "lock", b"first")
    assert not location.create(folder / "lock", b"second")
    assert location.read_bytes(folder / "lock") == b"first"


def test_one_driver_holds_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "BEAT_SECONDS", 0.1)
    with driver.alone(folder) as token:
        assert driver.holds(folder, token)
        with pytest.raises(RequestError, match="still runs"), driver.alone(folder):
            pass
    assert not (folder / rundir.DRIVER).exists()


def test_the_log_is_kept(folder: Path) -> None:
    log = logging.getLogger("aneurysm_ray.test")
    for number in (1, 2):
        with pytest.raises(ZeroDivisionError), rundir.keep_log(folder):
            log.info("turn %d", number)
            raise ZeroDivisionError("by nought")
    text = location.read_bytes(folder / rundir.LOG).decode()
    assert text.count("turn 1") == text.count("turn 2") == 1 and text.count("by nought") == 4


def test_a_folder_written_here_lies_there(folder: Path) -> None:
    with location.folder(folder) as here:
        (here / "deep").mkdir()
        (here / "deep" / "a.bin").write_bytes(b"\0\1")
    assert location.read_bytes(folder / "deep" / "a.bin") == b"\0\1"
    with location.fetched(folder / "deep" / "a.bin") as here:
        assert here.read_bytes() == b"\0\1" and not location.is_remote(here)


def test_states_are_saved_one_after_another(folder: Path) -> None:
    config = small_config(Path("/tmp"))
    network = models.build(config.model)
    saver = checkpoint.Saver(folder / "last")
    for epoch in range(3):
        with torch.no_grad():
            for weights in network.parameters():
                weights.fill_(epoch)
        saver.save({"model": network.state_dict(), "ema": {}, "config": config.model_dump(mode="json"), "epoch": epoch})
        for weights in network.parameters():  # the next step changes what was handed over
            weights.data.fill_(99.0)
    saver.wait()
    state = checkpoint.load(folder / "last")
    assert state["epoch"] == 2 and all((state["model"][name] == 2).all() for name, _ in network.named_parameters())
    loaded, _ = checkpoint.load_model(folder / "last")
    assert {float(weights.detach().max()) for weights in loaded.parameters()} == {2.0}


def test_a_state_that_cannot_be_written_is_said_with_the_next(bucket: str) -> None:
    saver = checkpoint.Saver(location.place("s3://no-such-bucket/run/last"))
    saver.save({"model": {}})
    with pytest.raises(OutputError, match=r"s3://no-such-bucket/run/last/state\.pt cannot be written"):
        saver.save({"model": {}})


def test_a_store_that_lets_nobody_in_is_a_sentence(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    location.check_reachable(location.place(f"{bucket}/x"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    closed = location.place(
        f"{bucket}/x", endpoint_url="http://127.0.0.1:1", config_kwargs={"retries": {"max_attempts": 1}}
    )
    with pytest.raises(RequestError, match=r"runs/x cannot be reached \(.*check the address and the credentials"):
        location.check_reachable(closed)


def test_a_preparation_whose_store_is_gone_ends(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    """It would reject every series that is left, as if each had vanished."""
    prepare._check_data_is_there(f"{bucket}/dicom")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(AneurysmRayError, match=r"cannot be reached.* and run the same command to go on"):
        prepare._check_data_is_there(f"{bucket}/dicom")
    monkeypatch.undo()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_what_a_command_died_of_is_said_though_its_store_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver cannot let go of its directory then."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with object_store.s3("gone") as url:
        with pytest.raises(OutputError, match="what it died of"), driver.alone(location.place(f"{url}/run")):
            object_store.stop()
            raise OutputError("what it died of")
        with pytest.raises(RequestError, match="cannot be reached"), driver.alone(location.place(f"{url}/run")):
            pass


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while_is_waited_for(tmp_path: Path) -> None:
    """As when it is started anew; the tools of AWS by themselves give up after ten seconds."""
    with object_store.s3("hospital") as url:
        volumes = write_set(tmp_path / "volumes", 1)
        run, copied = location.place(f"{url}/run"), location.place(f"{url}/volumes")
        rundir.write_json(run / "a.json", {"a": 1})
        for file in sorted(volumes.rglob("*.parquet")):
            location.upload(str(file), copied / file.relative_to(volumes).as_posix())
        place = f"{copied}/{store.volumes_table(copied)['path'][0]}"
        working = {
            "read": lambda: rundir.read_json(run / "a.json"),
            "look": lambda: (run / "a.json").exists(),
            "write": lambda: rundir.write_json(run / "b.json", {"b": 2}),
            "volume": lambda: store.read_volume(place).series_uid,
            "url": lambda: urls.read_bytes(f"{url}/run/a.json"),
        }
        with concurrent.futures.ThreadPoolExecutor(len(working)) as pool:
            with object_store.away(20):
                started = {name: pool.submit(work) for name, work in working.items()}
            done = {name: future.result(timeout=120) for name, future in started.items()}
        assert done["read"] == {"a": 1} == json.loads(done["url"])
        assert done["look"] is True and done["volume"] == "1.2.0.0"
        assert rundir.read_json(run / "b.json") == {"b": 2}


def test_volumes_are_cached_from_wherever_they_lie(tmp_path: Path, bucket: str) -> None:
    write_set(tmp_path / "set", 4)
    remote = location.place(f"{bucket}/volumes")
    with location.folder(remote) as here:
        for file in (tmp_path / "set").rglob("*"):
            if file.is_file():
                (here / file.relative_to(tmp_path / "set")).parent.mkdir(parents=True, exist_ok=True)
                (here / file.relative_to(tmp_path / "set")).write_bytes(file.read_bytes())
    config = small_config(tmp_path)
    for volumes in (tmp_path / "set", remote):
        (first, *_) = cases.from_table(begin.labelled(volumes), volumes)
        kept = cache.open_cache(volumes, config.feed)
        parts = [kept.patch(first, np.zeros(3, np.int64), (20, 20, 20)).voxels for _ in range(2)]
        assert (parts[0] == parts[1]).all() and parts[0].any() and kept.traffic.missed == 1
    config = small_config(tmp_path, folds__count=2)
    here, there = (begin.deal(volumes, begin.labelled(volumes), config) for volumes in (tmp_path / "set", remote))
    pd.testing.assert_frame_equal(here, there)


def settings() -> Config:
    return overrides.build({"optim.epochs": 3, "tune.trials": 3})


def test_a_study_lives_in_a_store_and_survives_a_kill_between_two_of_its_objects(bucket: str) -> None:
    folder = location.place(f"{bucket}/study")
    study = record.open_study(settings().tune, folder)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(0.25, 1)
    record.finish(trial, values=[0.5])
    again = record.open_study(settings().tune, folder)
    assert again.study_name == study.study_name
    assert [t.state.name for t in again.trials] == ["COMPLETE"] and again.trials[0].intermediate_values == {1: 0.25}
    parts = folder / f"{rundir.JOURNAL}.d"
    assert len(list(parts.iterdir())) < 3 < len(ObjectJournal(folder / rundir.JOURNAL).logs), "many objects became one"
    lines = ObjectJournal(folder / rundir.JOURNAL).logs
    # As if a kill had left objects that are in the whole already, and one that is not.
    (parts / f"{len(lines) - 2:010d}").write_bytes(b'{"a":1}\n{"b":2}\n')
    (parts / f"{len(lines):010d}").write_bytes(b'{"new":3}\n')
    assert ObjectJournal(folder / rundir.JOURNAL).logs == [*lines, {"new": 3}]


def test_optunas_own_journal_reads_what_a_store_holds(bucket: str, tmp_path: Path) -> None:
    folder = location.place(f"{bucket}/journal")
    study = record.open_study(settings().tune, folder)
    study.tell(study.ask(), 0.75)
    record.open_study(settings().tune, folder)
    (tmp_path / "optuna.journal").write_bytes(location.read_bytes(folder / rundir.JOURNAL))
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.journal"))
    loaded = optuna.load_study(study_name=study.study_name, storage=optuna.storages.JournalStorage(backend))
    assert loaded.best_value == 0.75


def test_a_trial_goes_on_where_its_folder_stands(folder: Path) -> None:
    from surrogates import fit

    config = settings()
    trial = trial_process.folder_of(folder, 0)
    trial_process.claim(trial, {"study": "s", "number": 0, "params": {"optim.lr": 1e-3}})
    with pytest.raises(RunDirError, match="another sample"):
        trial_process.claim(trial, {"study": "s", "number": 0, "params": {"optim.lr": 2e-3}})
    first = trial_process.epochs(config, trial, fit)
    next(first), next(first)
    first.close()
    list(trial_process.epochs(config, trial, fit))
    assert [row["step"] for row in trial_process.read_rows(trial)] == [1, 2, 3]
    assert not location.matching(trial, "fold_*"), "the states of a trial that has ended are removed"
    rundir.write_csv(folder / rundir.CURVES, search_tables.curves_table(folder, []))
    search_tables.Curves(folder).add(0)
    assert len(rundir.read_csv(folder / rundir.CURVES)) == 3
    assert space.parse(config)


def test_heat_maps_lie_anywhere(folder: Path) -> None:
    import numpy as np

    from aneurysm_ray.reporting import pictures

    heat = ensemble.HeatMap(np.full((2, 3, 4), 0.5, np.float16), np.eye(4))
    ensemble.write_heatmap(folder / "a.npz", heat)
    assert pictures.read_heatmap(folder / "a.npz").grid.shape == (2, 3, 4)
