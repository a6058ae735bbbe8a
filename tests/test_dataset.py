"""The tables of a data set, with the quirks of the competition's two releases."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian

from aneurysm_ray.data.dataset import DomeMask, Localizer, open_dataset
from aneurysm_ray.errors import DatasetError
from aneurysm_ray.labels import LABELS

HEADER = (
    "SeriesInstanceUID,PatientAge,PatientSex,Modality,Left Infraclinoid Internal Carotid Artery,"
    "Right Infraclinoid Internal Carotid Artery,Left Supraclinoid Internal Carotid Artery,"
    "Right Supraclinoid Internal Carotid Artery,Left Middle Cerebral Artery,Right Middle Cerebral Artery,"
    "Anterior Communicating Artery,Left Anterior Cerebral Artery,Right Anterior Cerebral Artery,"
    "Left Posterior Communicating Artery,Right Posterior Communicating Artery,Basilar Tip,"
    "Other Posterior Circulation,Aneurysm Present"
)
LEFT_MCA = LABELS.index("Left Middle Cerebral Artery")


def train_row(uid: str, *positive: int, modality: str = "MRA") -> str:
    labels = ["1" if index in positive or (index == 13 and positive) else "0" for index in range(14)]
    return ",".join([uid, "60", "Female", modality, *labels])


def make(root: Path, rows: list[str], localizers: list[str] | None = None, folders: tuple[str, ...] = ()) -> Path:
    (root / "train.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    if localizers is not None:
        (root / "train_localizers.csv").write_text(
            "\n".join(["SeriesInstanceUID,SOPInstanceUID,coordinates,location", *localizers]) + "\n"
        )
    for uid in folders:
        (root / "series" / uid).mkdir(parents=True)
    return root


def write_multiframe(path: Path, frames: int) -> None:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = EnhancedMRImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = path.stem
    data.NumberOfFrames, data.BitsAllocated = frames, 16
    data.PixelData = b"\0\0"
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def test_rows_and_points_meet_their_series(tmp_path: Path) -> None:
    make(
        tmp_path,
        [train_row("1.2", LEFT_MCA), train_row("1.3", modality="CTA")],
        ["1.2,9.9,\"{'x': 258.36, 'y': 261.35}\",Left Middle Cerebral Artery"],
        ("1.2", "1.3"),
    )
    data = open_dataset(tmp_path)
    first, second = data.series
    assert (first.series_uid, first.modality, first.path) == ("1.2", "MRA", tmp_path / "series" / "1.2")
    assert np.flatnonzero(first.targets).tolist() == [LEFT_MCA, 13]
    assert first.points == (Localizer("9.9", 258.36, 261.35, None, "Left Middle Cerebral Artery"),)
    assert second.targets.sum() == 0 and second.modality == "CTA" and second.points == ()
    assert data.notes == ()


@pytest.mark.parametrize(
    ("frames", "expected", "word"),
    [
        ((0, 5), (0, 5), "from 0 (a 0 occurs)"),
        ((3, 8), (2, 7), "from 1"),
        ((3, 5), (3, 5), "nothing tells which"),
    ],
)
def test_base_of_frames_is_found_over_the_whole_file(
    tmp_path: Path, frames: tuple[int, int], expected: tuple[int, int], word: str
) -> None:
    lines = [f"1.2,7.7,\"{{'x': 1.0, 'y': 2.0, 'f': {f}}}\",Basilar Tip" for f in frames]
    make(tmp_path, [train_row("1.2", LABELS.index("Basilar Tip"))], lines, ("1.2",))
    write_multiframe(tmp_path / "series" / "1.2" / "7.7.dcm", frames=8)
    data = open_dataset(tmp_path)
    assert tuple(point.frame for point in data.series[0].points) == expected
    assert len(data.notes) == 1 and word in data.notes[0]


def test_the_base_of_frames_can_be_told(tmp_path: Path) -> None:
    lines = [f"1.2,7.7,\"{{'x': 1.0, 'y': 2.0, 'f': {f}}}\",Basilar Tip" for f in (3, 5)]
    make(tmp_path, [train_row("1.2", LABELS.index("Basilar Tip"))], lines, ("1.2",))
    for base, expected in ((0, [3, 5]), (1, [2, 4])):
        data = open_dataset(tmp_path, base)
        assert [point.frame for point in data.series[0].points] == expected
        assert data.notes == (f"localizers count frames from {base}, as prepare.frame_base says",)
    with (tmp_path / "train_localizers.csv").open("a") as table:
        table.write("1.2,7.7,\"{'x': 1.0, 'y': 2.0, 'f': 0}\",Basilar Tip\n")
    with pytest.raises(
        DatasetError, match=r"has an f of 0, so frames do not count from 1; leave prepare\.frame_base out"
    ):
        open_dataset(tmp_path, 1)


def test_a_localizer_that_stands_twice_counts_once_and_is_told(tmp_path: Path) -> None:
    line = "1.2,9.9,\"{'x': 1.5, 'y': 2}\",Basilar Tip"
    other = "1.2,9.9,\"{'x': 9.5, 'y': 2}\",Basilar Tip"
    make(tmp_path, [train_row("1.2", LABELS.index("Basilar Tip"))], [line, other, line], ("1.2",))
    data = open_dataset(tmp_path)
    assert [point.x for point in data.series[0].points] == [1.5, 9.5]
    assert data.notes == ("1 localizers stand in the table more than once; each counts once",)


def test_a_radius_is_kept_where_the_table_has_one(tmp_path: Path) -> None:
    make(tmp_path, [train_row("1.2", LABELS.index("Basilar Tip"))], [], ("1.2",))
    table = tmp_path / "train_localizers.csv"
    head = "SeriesInstanceUID,SOPInstanceUID,coordinates,location,radius_mm\n"
    lines = [f"1.2,9.9,\"{{'x': {x}, 'y': 2}}\",Basilar Tip,{radius}\n" for x, radius in ((1, "2.75"), (9, ""))]
    table.write_text(head + "".join(lines))
    assert [point.radius_mm for point in open_dataset(tmp_path).series[0].points] == [2.75, None]
    for wrong in ("-1", "0", "big", "nan", "1000"):
        table.write_text(head + lines[0].replace("2.75", wrong))
        with pytest.raises(DatasetError, match=f"line 2: radius_mm is '{wrong}'"):
            open_dataset(tmp_path)


def test_both_layouts_of_segmentations(tmp_path: Path) -> None:
    make(tmp_path, [train_row("1.2"), train_row("1.3"), train_row("1.4")], None, ("1.2", "1.3", "1.4"))
    new = tmp_path / "segmentations" / "1.2_cowseg.nii"
    old = tmp_path / "segmentations" / "1.3" / "1.3_cowseg.nii"
    old.parent.mkdir(parents=True)
    for path in (new, old, tmp_path / "segmentations" / "1.4.nii", tmp_path / "segmentations" / "1.4_dome.nii.gz"):
        path.touch()
    series = open_dataset(tmp_path).series
    assert [entry.vessels for entry in series] == [new, old, None]
    assert [entry.domes for entry in series] == [(), (), (DomeMask(tmp_path / "segmentations" / "1.4_dome.nii.gz"),)]


def test_disagreements_are_noted_and_not_fatal(tmp_path: Path) -> None:
    make(
        tmp_path,
        [train_row("1.2", LEFT_MCA), train_row("1.5"), train_row("1.3")],
        ["1.3,9.9,\"{'x': 1, 'y': 2}\",Basilar Tip", "1.8,9.9,\"{'x': 1, 'y': 2}\",Basilar Tip"],
        ("1.2", "1.3", "1.4"),
    )
    data = open_dataset(tmp_path)
    by_uid = {entry.series_uid: entry for entry in data.series}
    assert list(by_uid) == ["1.2", "1.3", "1.4"]
    assert np.isnan(by_uid["1.4"].targets).all() and by_uid["1.4"].modality is None
    text = "\n".join(data.notes)
    assert "1 rows of train.csv have no folder in series/ and are left out: 1.5" in text
    assert "1 series have no row in train.csv; their labels are unknown: 1.4" in text
    assert "1 positive series have no localizer: 1.2" in text
    assert "1 series have localizers but no folder: 1.8" in text
    assert "1 series have a localizer at a location labelled 0: 1.3" in text


def test_present_that_is_not_the_maximum_is_noted(tmp_path: Path) -> None:
    make(tmp_path, [train_row("1.2")[:-1] + "1"], None, ("1.2",))
    assert any("not the maximum" in note for note in open_dataset(tmp_path).notes)


def test_empty_labels_are_unknown(tmp_path: Path) -> None:
    make(tmp_path, ["1.2,60,Female,," + "," * 13], None, ("1.2",))
    (entry,) = open_dataset(tmp_path).series
    assert np.isnan(entry.targets).all() and entry.modality is None


def test_a_folder_without_tables_is_a_data_set(tmp_path: Path) -> None:
    for name in ("a/one", "b", "b/deep", "empty"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for name in ("a/one/1", "b/2.dcm", "b/deep/3", "readme.txt", "empty/.hidden"):
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    data = open_dataset(tmp_path)
    assert [entry.path for entry in data.series] == [tmp_path / "a/one", tmp_path / "b", tmp_path / "b/deep"]
    assert all(entry.series_uid is None and np.isnan(entry.targets).all() for entry in data.series)
    assert "1 files directly in" in data.notes[0]


def test_files_directly_in_the_folder_are_one_series(tmp_path: Path) -> None:
    (tmp_path / "1.dcm").touch()
    assert [entry.path for entry in open_dataset(tmp_path).series] == [tmp_path]


def test_archives_are_series_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ("x/a.zip", "x/b.tar.gz", "c.zip"):
        (tmp_path / name).touch()
    assert [entry.path.name for entry in open_dataset(tmp_path).series] == ["c.zip", "a.zip", "b.tar.gz"]


def test_series_folder_without_train_table(tmp_path: Path) -> None:
    (tmp_path / "series" / "1.2").mkdir(parents=True)
    (entry,) = open_dataset(tmp_path).series
    assert entry.series_uid == "1.2" and np.isnan(entry.targets).all()


@pytest.mark.parametrize(
    ("row", "localizer", "words"),
    [
        (train_row("../../etc"), None, "is not a UID"),
        (train_row("1.2", modality="PET"), None, "Modality 'PET'"),
        (train_row("1.2")[:-1] + "2", None, "Aneurysm Present is '2'"),
        (train_row("1.2"), "1.2,9.9,\"{'x': 1, 'y': 2}\",Basilar Tipp", "did you mean Basilar Tip?"),
        (train_row("1.2"), '1.2,9.9,"__import__(1)",Basilar Tip', "coordinates are '__import__(1)'"),
        (train_row("1.2"), "1.2,9.9,\"{'x': 1}\",Basilar Tip", "coordinates are"),
        (train_row("1.2"), "1.2,9.9,\"{'x': 1, 'y': 1e999}\",Basilar Tip", "coordinates are"),
    ],
)
def test_wrong_tables_say_line_and_value(tmp_path: Path, row: str, localizer: str | None, words: str) -> None:
    make(tmp_path, [row], [localizer] if localizer else None, ("1.2",))
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path)
    assert words in str(caught.value) and "line 2" in str(caught.value)


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "train.csv").write_text(HEADER.replace("Modality", "Modalities") + "\n")
    with pytest.raises(DatasetError, match="no column 'Modality'; did you mean Modalities"):
        open_dataset(tmp_path)


def test_two_rows_for_one_series_are_refused(tmp_path: Path) -> None:
    make(tmp_path, [train_row("1.2"), train_row("1.2", 3)], None, ("1.2",))
    with pytest.raises(DatasetError, match="has a row already"):
        open_dataset(tmp_path)


def test_tables_without_series_and_missing_folders_are_refused(tmp_path: Path) -> None:
    make(tmp_path, [train_row("1.2")])
    with pytest.raises(DatasetError, match="no folder series/"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match="is not a folder"):
        open_dataset(tmp_path / "nowhere")
