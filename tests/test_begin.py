"""What must be as it was for a run to go on: its data and its first weights, wherever they lie now."""

import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from learning_sets import small_config, volume, write_set

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import identity, store
from aneurysm_ray.distributed import begin
from aneurysm_ray.errors import RequestError, RunDirError


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", 12)


def run(volumes: Path, out: Path, config: Config | None = None) -> begin.Run:
    config = config or small_config(Path("/nowhere"), folds__count=3)
    return begin.Run("train", volumes, begin.deal(volumes, begin.labelled(volumes), config), out, config)


def begun(volumes: Path, out: Path, config: Config | None = None) -> pd.DataFrame:
    first = run(volumes, out, config)
    first.check(resume=False)
    first.open()
    return rundir.read_csv(out / rundir.FOLDS)


def rewrite(volumes: Path, table: pd.DataFrame) -> None:
    store.write_table(volumes, table.to_dict("records"))


def test_one_more_series_is_refused_and_the_folds_stay(volumes: Path, tmp_path: Path) -> None:
    """The whole deal would change with it, and patients that a fold has learnt from would become its judges."""
    folds = begun(volumes, tmp_path / "run")
    rows = store.volumes_table(volumes).to_dict("records")
    more = volume(99, positive=True)
    store.write_table(volumes, [*rows, store.table_row(more, 1)])
    moved = run(volumes, tmp_path / "run").dealt.set_index("series_uid")["fold"]
    assert (moved.loc[folds["series_uid"]].to_numpy() != folds["fold"].to_numpy()).mean() > 0.2
    with pytest.raises(RunDirError, match=rf"1 series \({more.series_uid}\) is new\. Resume it with the set as it was"):
        run(volumes, tmp_path / "run").check(resume=True)
    pd.testing.assert_frame_equal(rundir.read_csv(tmp_path / "run" / rundir.FOLDS), folds)


def test_what_changed_is_said(volumes: Path, tmp_path: Path) -> None:
    begun(volumes, tmp_path / "run")
    table = store.volumes_table(volumes)
    uids = list(table["series_uid"])
    table.loc[1, "patient"] = "another"
    table.loc[2, "Basilar Tip"] = 1 - table.loc[2, "Basilar Tip"]
    table.at[3, "points"] = [{"z": 1.0, "y": 2.0, "x": 3.0, "location": "Basilar Tip"}]
    table.loc[4, "source_digest"] = "other pixels"
    rewrite(volumes, table.drop(index=0))
    with pytest.raises(RunDirError) as refused:
        run(volumes, tmp_path / "run").check(resume=True)
    text = str(refused.value)
    assert f"1 series ({uids[0]}) is gone" in text
    assert f"1 series ({uids[1]}) is of another patient" in text
    assert f"4 series ({', '.join(uids[1:4])}, ...) are other in label, point or volume" in text
    assert "new" not in text


def test_a_set_that_was_prepared_otherwise_is_refused(volumes: Path, tmp_path: Path) -> None:
    rundir.write_json(volumes / rundir.PREPARE, {"volume": {"window_hu": [0, 400]}, "seconds": 1.0})
    begun(volumes, tmp_path / "run")
    rundir.write_json(volumes / rundir.PREPARE, {"volume": {"window_hu": [0, 400]}, "seconds": 2.0})
    run(volumes, tmp_path / "run").check(resume=True)
    rundir.write_json(volumes / rundir.PREPARE, {"volume": {"window_hu": [0, 700]}, "seconds": 2.0})
    with pytest.raises(RunDirError, match=r"12 series .* other in label, point or volume"):
        run(volumes, tmp_path / "run").check(resume=True)


def test_what_is_not_learned_from_may_come_and_go(volumes: Path, tmp_path: Path) -> None:
    folds = begun(volumes, tmp_path / "run")
    table = store.volumes_table(volumes)
    unknown = table.iloc[[0]].assign(series_uid="9.9", patient="x", **{"Aneurysm Present": float("nan")})
    reversed_and_kept_otherwise = table.iloc[::-1].assign(bytes=7, path="elsewhere/" + table["path"])
    rewrite(volumes, pd.concat([reversed_and_kept_otherwise, unknown]))
    again = run(volumes, tmp_path / "run")
    again.check(resume=True)
    again.open()
    pd.testing.assert_frame_equal(rundir.read_csv(tmp_path / "run" / rundir.FOLDS), folds)


def test_a_set_that_moved_is_accepted_and_its_new_place_kept(
    volumes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun(volumes, tmp_path / "run")
    before = rundir.read_json(tmp_path / "run" / rundir.PROVENANCE)
    moved = shutil.move(volumes, tmp_path / "elsewhere")
    again = run(Path(moved), tmp_path / "run")
    again.check(resume=True)
    with caplog.at_level("INFO"):
        again.open()
    assert f"the volumes lie in {moved} now; they were in {volumes}" in caplog.text
    assert rundir.read_json(tmp_path / "run" / rundir.PROVENANCE) == {**before, "volumes": str(moved)}


def test_first_weights_that_changed_are_refused(volumes: Path, tmp_path: Path) -> None:
    weights = tmp_path / "pretrained.pt"
    torch.save({"conv1.weight": torch.zeros(1)}, weights)
    config = overrides.build({"init": str(weights)}, base=small_config(tmp_path, folds__count=3))
    begun(volumes, tmp_path / "run", config)
    run(volumes, tmp_path / "run", config).check(resume=True)
    torch.save({"conv1.weight": torch.ones(1)}, weights)
    with pytest.raises(RunDirError, match=r"pretrained\.pt is not the file of first weights"):
        run(volumes, tmp_path / "run", config).check(resume=True)


def test_a_run_that_was_killed_before_it_had_folds_can_go_on(volumes: Path, tmp_path: Path) -> None:
    folds = begun(volumes, tmp_path / "run")
    (tmp_path / "run" / rundir.FOLDS).unlink()
    again = run(volumes, tmp_path / "run")
    again.check(resume=True)
    again.open()
    pd.testing.assert_frame_equal(rundir.read_csv(tmp_path / "run" / rundir.FOLDS), folds)


def test_folds_of_ones_own_are_kept_by_a_run(volumes: Path, tmp_path: Path) -> None:
    table = begin.labelled(volumes)
    key = identity.patient_key(str(volumes))
    names = [f"sub-{number}" for number in range(len(table))]
    table["patient"] = [identity.patient_hash(key, name, "") for name in names]
    rewrite(volumes, table)
    splits = tmp_path / "splits.csv"
    splits.write_text("patient,fold\n" + "".join(f"{name},{number % 2}\n" for number, name in enumerate(names)))
    config = small_config(Path("/nowhere"), folds__count=2, folds__file=str(splits))
    folds = begun(volumes, tmp_path / "run", config)
    assert list(folds["fold"]) == [number % 2 for number in range(len(table))]
    assert list(folds["series_uid"]) == list(table["series_uid"])
    run(volumes, tmp_path / "run", config).check(resume=True)
    splits.write_text("patient,fold\n" + "".join(f"{name},{number // 6}\n" for number, name in enumerate(names)))
    with pytest.raises(RunDirError, match=r"6 series .* are in another fold\. .*the set and folds\.file as they were"):
        run(volumes, tmp_path / "run", config).check(resume=True)


def test_patients_who_share_a_scan_are_dealt_to_one_fold(
    volumes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fold would be judged by what it was trained on, and no name would tell."""
    caplog.set_level(logging.INFO, "aneurysm_ray")
    table, config = store.volumes_table(volumes), small_config(volumes, folds__count=3)
    before = begin.deal(volumes, table, config)
    assert not caplog.messages
    scans = table["scan"].tolist()
    scans[0] = scans[3] = "one"  # of 0 and 3; 3 and 7 share another, so that all three are one
    table.loc[8, "patient"] = table.loc[3, "patient"]
    scans[8] = scans[7] = "other"
    dealt = begin.deal(volumes, table.assign(scan=scans), config)
    assert dealt["fold"].iloc[[0, 3, 7, 8]].nunique() == 1
    assert list(dealt["patient"]) == list(table["patient"]) and list(dealt["series_uid"]) == list(before["series_uid"])
    assert any("2 patient(s) have a scan" in line for line in caplog.messages)
    splits = tmp_path / "splits.csv"
    splits.write_text("series_uid,fold\n" + "".join(f"{uid},{n % 3}\n" for n, uid in enumerate(table["series_uid"])))
    twice = table.assign(patient=before["patient"], scan=["one" if n < 2 else scan for n, scan in enumerate(scans)])
    with pytest.raises(RequestError, match="are one scan, voxel for voxel, of two patients by name"):
        begin.deal(volumes, twice, small_config(volumes, folds__count=3, folds__file=str(splits)))
    # A set of an earlier version says nothing of it.
    assert begin.deal(volumes, table.assign(scan=""), config)["fold"].nunique() == 3
