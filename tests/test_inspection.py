"""What `inspect` says of a series, a data set, a prepared set and a run."""

from dataclasses import replace
from pathlib import Path

import pytest
from learning_sets import volume, write_set
from nifti_sets import LEFT, head, mask, save

from aneurysm_ray import rundir
from aneurysm_ray.data import inspection, store
from aneurysm_ray.errors import RequestError


def test_a_prepared_set_is_counted(tmp_path: Path) -> None:
    facts = inspection.inspect(write_set(tmp_path / "set", 6))
    assert (facts["kind"], facts["volumes"], facts["patients"]) == ("volumes", 6, 6)
    assert facts["modality"] == {"CTA": 6}
    assert facts["positive"]["Aneurysm Present"] == 3
    assert "volumes: 6" in inspection.render(facts)


def test_a_prepared_set_names_the_series_to_look_at_first(tmp_path: Path) -> None:
    rows = []
    told = {0: ("missing_slices",), 1: ("junk_files",), 2: ("point_outside", "junk_files"), 3: ()}
    for index, quality in told.items():
        prepared = replace(volume(index, index == 2), quality=quality)
        rows.append(store.table_row(prepared, store.write_volume(tmp_path, prepared, "{}").stat().st_size))
    store.write_table(tmp_path, rows)
    facts = inspection.inspect(tmp_path)
    assert list(facts["look first at"].items()) == [
        ("1.2.0.2", "point outside, junk files"),
        ("1.2.0.0", "missing slices"),
    ]
    text = inspection.render(facts)
    assert "point_outside: 1   (a point lies outside the stored volume)" in text
    assert "  1.2.0.2: point outside, junk files" in text


def test_images_of_one_name_are_told_apart_and_masks_count_as_labels(tmp_path: Path) -> None:
    for patient, balls in (("1", (LEFT,)), ("2", ())):
        save(tmp_path / patient / "TOF.nii.gz", head(balls))
        save(tmp_path / patient / "mask.nii.gz", mask(balls))
    save(tmp_path / "alone.nii.gz", head())
    (tmp_path / "series.csv").write_text(
        "image,mask\n1/TOF.nii.gz,1/mask.nii.gz\n2/TOF.nii.gz,2/mask.nii.gz\nalone.nii.gz,\n"
    )
    facts = inspection.inspect(tmp_path)
    assert (facts["series"], facts["labelled"], facts["aneurysm masks"]) == (3, 2, 2)
    assert [line.split(":")[0].strip() for line in inspection.render(facts).splitlines()[-3:]] == [
        "1/TOF.nii.gz",
        "2/TOF.nii.gz",
        "alone.nii.gz",
    ]


def test_a_run_is_its_summary(tmp_path: Path) -> None:
    rundir.write_json(tmp_path / rundir.SUMMARY, {"kind": "train", "score": {"value": 0.5}})
    assert inspection.inspect(tmp_path)["score"] == {"value": 0.5}


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist; give a series"):
        inspection.inspect(tmp_path / "absent")


def test_a_folder_of_notes_is_a_series_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    facts = inspection.inspect(tmp_path)
    assert (facts["kind"], facts["status"], facts["reason"]) == ("series", "rejected", "no_images")


def test_a_data_set_with_notes_beside_its_series_is_read_series_by_series(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("about these series")
    for name in ("q_plain", "q_single_slice"):
        (tmp_path / name).mkdir()
        for file in (shared_data / "dicom" / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    facts = inspection.inspect(tmp_path)
    assert (facts["kind"], facts["series"], facts["rejected"]) == ("dataset", 2, {"single_slice": 1})
    readable = next(row for row in facts["each"] if row["status"] == "readable")
    assert (readable["modality"], readable["shape"], readable["plane"]) == ("CT", [12, 128, 112], "axial")
    assert "q_single_slice: rejected, single_slice" in inspection.render(facts)
