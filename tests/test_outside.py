"""Outside tests: what a run must not have seen, scored once by all its folds; and folds that hold out whole sites."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from learning_sets import describe_set, fold_without_ray, small_config, volume, write_set

from aneurysm_ray import rundir
from aneurysm_ray.cli import main
from aneurysm_ray.config import Config, FoldsConfig
from aneurysm_ray.data import folds, store
from aneurysm_ray.distributed import begin, outside, predict, train
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LABELS, PRESENT
from aneurysm_ray.learning import ensemble, evaluation, export
from aneurysm_ray.reporting import run_page


def write_sites(folder: Path, count: int, seed: int, sites: int) -> Path:
    """Write a set whose volumes come from several sites in turn; return its folder."""
    made = [replace(volume(i, i % 2 == 0, seed), site=f"site {i // 2 % sites}") for i in range(count)]
    identity = json.dumps(Config().volume.model_dump(mode="json"), sort_keys=True)
    rows = [store.table_row(v, store.write_volume(folder, v, identity).stat().st_size) for v in made]
    store.write_table(folder, rows)
    describe_set(folder, Config())
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("outside")
    return write_sites(root / "here", 8, 0, 2), write_sites(root / "elsewhere", 8, 1, 2)


@pytest.fixture(scope="module")
def run(ray_session: None, sets: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both folds of a run over one set, tested on the other."""
    out = tmp_path_factory.mktemp("runs") / "run"
    config = small_config(sets[0], folds__count=2, folds__by="site", optim__epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_run_fold", fold_without_ray)
        patch.setattr(predict, "FEW", 8)  # in this process, too
        train.train(sets[0], out, config, folds="all", tests=[sets[1]])
    return out


def test_a_test_is_scored_by_the_mean_of_all_folds(run: Path, sets: tuple[Path, Path]) -> None:
    table = rundir.read_csv(run / "test_elsewhere.csv")
    assert len(table) == 8
    trained = export.load(run)
    assert len(trained.models) == 2
    prepared = store.read_volume(sets[1] / store.volume_path("1.2.1.3"))
    answer = ensemble.score_volume(trained.models, prepared, trained.config, "cpu").probabilities
    row = table[table["series_uid"] == "1.2.1.3"].iloc[0]
    np.testing.assert_allclose(row[list(LABELS)].to_numpy(float), answer, atol=1e-6)
    assert (row[f"target/{PRESENT}"], row["site"]) == (0, "site 1")
    summary = rundir.read_json(run / rundir.SUMMARY)
    known = evaluation.evaluate(run / "test_elsewhere.csv", sets[1])
    assert [(t["name"], t["n"], t["n_positive"]) for t in summary["tests"]] == [("elsewhere", 8, 4)]
    assert summary["tests"][0]["score"]["value"] == pytest.approx(known["score"]["value"])
    # The score of the run itself is still that of its folds.
    assert summary["n"] == 8 and summary["score"] == evaluated(run / rundir.PREDICTIONS, sets[0])


def evaluated(predictions: Path, data: Path) -> object:
    return evaluation.evaluate(predictions, data)["score"]


def test_the_page_has_its_section_by_modality_and_site(run: Path) -> None:
    page = run_page.page(run)
    section = next(section for section in page.sections if section.key == "outside")
    groups = next(block for block in section.blocks if block.key == "outside-elsewhere-table")
    rows = [(row[0], row[1], row[4]) for row in groups.rows]  # type: ignore[union-attr]
    assert ("modality", "CTA", 8) in rows and ("site", "site 0", 4) in rows and ("site", "site 1", 4) in rows
    assert any("On the outside test elsewhere (8 series, 4 with an aneurysm)" in told for told in page.summary)
    froc = next(block for block in section.blocks if block.key == "outside-elsewhere-froc")
    assert [row[0] for row in froc.rows] == ["0.125", "0.25", "0.5", "1", "2", "4", "8"]  # type: ignore[union-attr]
    own_froc = next(block for block in page.sections[0].blocks if block.key == "froc-table")
    assert [row[0] for row in own_froc.rows] == [row[0] for row in froc.rows]  # type: ignore[union-attr]
    chart = next(block for block in section.blocks if block.key == "outside-elsewhere-groups")
    assert "an AUC is an anecdote" in chart.caption  # type: ignore[union-attr]
    own = next(s for s in page.sections if s.key == "groups")
    table = next(block for block in own.blocks if block.key == "group-table")
    assert {row[0] for row in table.rows} >= {"modality", "site"}  # type: ignore[union-attr]


def test_the_page_does_not_promise_what_other_keys_hide(run: Path, sets: tuple[Path, Path]) -> None:
    def told() -> str:
        return next(section for section in run_page.page(run).sections if section.key == "outside").text

    assert "hashed by another key" not in told()
    facts = rundir.read_json(sets[1] / rundir.PREPARE)
    rundir.write_json(sets[1] / rundir.PREPARE, {**facts, "key": "another"})
    assert "Of elsewhere that is known for scans alone: its patients are hashed by another key" in told()
    rundir.write_json(sets[1] / rundir.PREPARE, facts)


def test_a_fold_holds_out_a_site(run: Path, sets: tuple[Path, Path]) -> None:
    dealt = rundir.read_csv(run / rundir.FOLDS)
    sites = store.volumes_table(sets[0]).set_index("series_uid")["site"]
    held_out = {fold: set(sites[list(part["series_uid"])]) for fold, part in dealt.groupby("fold")}
    assert held_out == {0: {"site 0"}, 1: {"site 1"}}


def test_a_finished_test_is_not_scored_again(run: Path, sets: tuple[Path, Path]) -> None:
    before = (run / "test_elsewhere.csv").stat().st_mtime_ns
    config = small_config(sets[0], folds__count=2, folds__by="site", optim__epochs=1)
    train.train(sets[0], run, config, folds="all", resume=True, tests=[sets[1]])
    assert (run / "test_elsewhere.csv").stat().st_mtime_ns == before
    with pytest.raises(RequestError, match="was scored by 2 of this run's folds already"):
        outside.check_done(run, [sets[1]], [0, 1, 2])


def test_two_predictions_of_a_test_are_compared_paired(
    run: Path, sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better = rundir.read_csv(run / "test_elsewhere.csv")
    for label in LABELS:
        better[label] = 0.1 + 0.8 * better[f"target/{label}"]
    rundir.write_csv(tmp_path / "better.csv", better)
    first, second = run / "test_elsewhere.csv", tmp_path / "better.csv"
    found = evaluation.compare(first, second, sets[1])
    alone = [evaluation.evaluate(path, sets[1])["score"]["value"] for path in (first, second)]
    assert alone[1] == 1 and found["series"] == 8
    assert found["score"]["value"] == pytest.approx(alone[1] - alone[0])
    assert evaluation.compare(first, first, sets[1])["score"] == {"value": 0, "low": 0, "high": 0}
    assert main(["evaluate", str(first), str(sets[1]), "--against", str(second)]) == 0
    assert "on 8 series that are in both" in capsys.readouterr().out


def check(test: Path, volumes: Path) -> list[Path]:
    return outside.check([test], volumes, store.volumes_table(volumes), "lesions")


def test_what_is_no_outside_test_is_refused(sets: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"8 patients of .* are in .* too"):
        check(sets[0], sets[0])
    other = write_sites(tmp_path / "other", 4, 2, 1)
    settings = {**Config().volume.model_dump(mode="json"), "dtype": "int16"}
    rundir.write_json(other / rundir.PREPARE, {"kind": "volumes", "volume": settings})
    with pytest.raises(RequestError, match=r"volume\.dtype='int16', the training set with 'uint8'"):
        check(other, sets[0])
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    store.write_table(unlabelled, [store.table_row(replace(volume(0, False, 3), targets=np.full(14, np.nan)), 1)])
    describe_set(unlabelled, Config())
    with pytest.raises(RequestError, match="no volume has labels"):
        check(unlabelled, sets[0])
    (tmp_path / "again").mkdir()
    with pytest.raises(RequestError, match="have one name"):
        outside.check(
            [sets[1], write_sites(tmp_path / "again" / "elsewhere", 2, 5, 1)],
            sets[0],
            pd.DataFrame({"patient": [], "series_uid": [], "quality": [], "shape": [], "affine": []}),
            "lesions",
        )


def test_files_at_equal_places_of_two_sets_are_not_one_series(tmp_path: Path) -> None:
    """NIfTI files have no UID: one is made of a file's place in its set, and many sets have a sub-01/anat."""
    folders = []
    for seed, codes in ((0, ("series_uid_assumed",)), (1, ("series_uid_assumed",)), (2, ())):
        folder = tmp_path / f"set{seed}"
        made = replace(volume(0, True, seed), series_uid="2.25.7", quality=codes)
        store.write_table(folder, [store.table_row(made, store.write_volume(folder, made, "{}").stat().st_size)])
        describe_set(folder, Config())
        folders.append(folder)
    assert check(folders[1], folders[0]) == [folders[1].resolve()]
    brought = tmp_path / "brought"
    store.write_table(brought, [store.table_row(replace(volume(0, True, 3), series_uid="2.25.7"), 1)])
    describe_set(brought, Config())
    with pytest.raises(RequestError, match=r"1 series of .* are in .* too, such as 2\.25\.7"):
        check(brought, folders[2])


def test_a_scan_of_the_training_set_is_known_under_another_name(
    sets: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sets prepared with keys of their own hash one patient to two names."""
    made = volume(2, True, 0)
    # As NIfTI of the same scan: rounded otherwise, here and there.
    voxels, affine = made.voxels.copy(), made.affine.copy()
    voxels[::3] ^= 1
    affine[:3, 3] += 0.0031
    renamed = replace(made, series_uid="9.9", patient="someone", voxels=voxels, affine=affine)
    folder = tmp_path / "renamed"
    store.write_table(folder, [store.table_row(renamed, store.write_volume(folder, renamed, "{}").stat().st_size)])
    described = {"kind": "volumes", "volume": Config().volume.model_dump(mode="json"), "key": "another"}
    rundir.write_json(folder / rundir.PREPARE, described)
    with pytest.raises(RequestError, match=r"series 9.9 .* is 1.2.0.2 .* voxel for voxel"):
        check(folder, sets[0])
    rundir.write_json(sets[1] / rundir.PREPARE, described)
    with caplog.at_level("INFO", "aneurysm_ray"):
        assert check(sets[1], sets[0]) == [sets[1].resolve()]
    assert "by different keys" in caplog.text
    describe_set(sets[1], Config())


def sites_table(sites: list[str], patients: list[str] | None = None) -> pd.DataFrame:
    patients = patients or [f"p{i}" for i in range(len(sites))]
    return pd.DataFrame({"series_uid": [f"1.{i}" for i in range(len(sites))], "patient": patients, "site": sites})


def test_sites_share_folds_by_their_size_when_there_are_more_of_them() -> None:
    table = sites_table(["a"] * 5 + ["b"] * 3 + ["c"] * 2 + ["d"])
    dealt = folds.assign(table, FoldsConfig(count=2, by="site"))
    assert dealt["fold"].tolist() == [0] * 5 + [1] * 3 + [1] * 2 + [0]
    # The order of rows is nothing to it.
    turned = folds.assign(table[::-1].reset_index(drop=True), FoldsConfig(count=2, by="site"))
    assert turned.set_index("series_uid")["fold"].to_dict() == dealt.set_index("series_uid")["fold"].to_dict()


@pytest.mark.parametrize(
    ("table", "config", "told"),
    [
        (
            sites_table(["a", "", "b"]),
            FoldsConfig(count=2, by="site"),
            "1 of 3 labelled series have no site, such as 1.1",
        ),
        (sites_table(["a", "b"]), FoldsConfig(count=3, by="site"), "use folds.count=2"),
        (sites_table(["a", "a"]), FoldsConfig(count=2, by="site"), "need two sites"),
        (sites_table(["a", "b"], ["p", "p"]), FoldsConfig(count=2, by="site"), "patient p was scanned at a and b"),
        (sites_table(["a", "b"]), FoldsConfig(count=2, by="site", file="x.csv"), "keep one of them"),
    ],
)
def test_sites_that_cannot_be_held_out_are_told(table: pd.DataFrame, config: FoldsConfig, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        folds.assign(table, config)


def test_a_set_without_sites_is_what_it_was(tmp_path: Path) -> None:
    """Tables and volumes that were written before there were sites are read as having none."""
    import pyarrow.parquet as pq

    folder = write_set(tmp_path / "set", 2)
    for path in (folder / rundir.VOLUMES, folder / store.volume_path("1.2.0.0")):
        old = pq.read_table(path).drop_columns(["site"])
        pq.write_table(old, path)
    assert store.volumes_table(folder)["site"].tolist() == ["", ""]
    assert store.read_volume(folder / store.volume_path("1.2.0.0")).site == ""
    # A run that was begun before there were sites goes on with such a set, and not with one that has got sites since.
    table = store.volumes_table(folder)
    before = begin.deal(folder, table.drop(columns="site"), Config(folds=FoldsConfig(count=2)))[begin.CONTENT]
    assert begin.deal(folder, table, Config(folds=FoldsConfig(count=2)))[begin.CONTENT].tolist() == before.tolist()
    named = table.assign(site="a")
    assert begin.deal(folder, named, Config(folds=FoldsConfig(count=2)))[begin.CONTENT].tolist() != before.tolist()
