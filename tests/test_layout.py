"""Layouts of data sets: which one it is, what belongs together, what words mean; no voxel is read here."""

import json
from pathlib import Path

import numpy as np
import pytest

from aneurysm_ray.data import catalogue, layout, series_table
from aneurysm_ray.data.dataset import DomeMask
from aneurysm_ray.data.meanings import IGNORED, OTHER, REST, UNPLACED, meaning_of, modality_of
from aneurysm_ray.data.points import Mark
from aneurysm_ray.errors import DatasetError
from aneurysm_ray.labels import LABELS, PRESENT, PRESENT_INDEX

BASILAR = "Basilar Tip"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("aneurysm", UNPLACED),
        ("desc-Lesion_1_mask", UNPLACED),
        ("Segmentation_Aneurysm-Only", UNPLACED),
        ("untreated_aneurysm", UNPLACED),
        ("treated aneurysm", IGNORED),
        ("ignore", IGNORED),
        ("coil", IGNORED),
        ("basilar_tip", BASILAR),
        ("Left Middle Cerebral Artery aneurysm", "Left Middle Cerebral Artery"),
        ("Segmentation Aneurysm-with-Parent-Artery", None),
        ("desc-angio_N4bfc_brain_mask", None),
        ("vessel", None),
        ("mask", None),
    ],
)
def test_names_of_labels_mean_what_they_say(name: str, meaning: str | None) -> None:
    assert meaning_of(name) == meaning


def test_names_of_channels_and_suffixes_tell_the_modality() -> None:
    found = {
        name: modality_of(name)
        for name in ("CT", "CTA", "ct angio", "MRA", "TOF", "angio", "T2w", "T1w", "T1 post", "PET")
    }
    assert found == {
        **dict.fromkeys(("CT", "CTA", "ct angio"), "CTA"),
        **dict.fromkeys(("MRA", "TOF", "angio"), "MRA"),
        **{"T2w": "MRI T2", "T1w": "MR", "T1 post": "MRI T1post", "PET": None},
    }


class TestBids:
    def write(self, root: Path) -> Path:
        """The tree of a real set: sessions, a T1w beside each angiography, one mask a lesion, masks of other things."""
        first, second = "sub-000/ses-20110101/anat/sub-000_ses-20110101", "sub-001/ses-2/anat/sub-001_ses-2"
        touch(root, f"{first}_angio.nii.gz", f"{first}_T1w.nii.gz", f"{first}_angio.json", f"{second}_angio.nii")
        touch(root, "sub-002/anat/sub-002_T2w.nii.gz", "sub-002/dwi/sub-002_dwi.nii.gz")
        masks = "derivatives/manual_masks/"
        touch(root, f"{masks}{first}_desc-Lesion_1_mask.nii.gz", f"{masks}{first}_desc-Lesion_2_mask.nii.gz")
        touch(root, f"derivatives/N4/{first}_desc-angio_N4bfc_brain_mask.nii.gz")
        touch(
            root,
            f"derivatives/{Path(second).parent}/Nifti Aneurysm Only/sub-001_ses-2_acq-Segmentation_Aneurysm-Only.nii",
        )
        touch(
            root, f"derivatives/{Path(second).parent}/x/sub-001_ses-2_acq-Segmentation_Aneurysm-with-Parent-Artery.nii"
        )
        (root / "participants.tsv").write_text(
            "participant_id\tage\tgroup\nsub-000\t50\tpatient\nsub-002\t60\tcontrol\n"
        )
        return root

    def test_images_masks_and_labels_find_each_other(self, tmp_path: Path) -> None:
        found = layout.open_dataset(self.write(tmp_path))
        assert found.notes[0] == "BIDS data set: 3 images of 3 subjects, 2 with masks"
        angio, second, control = found.series
        assert [entry.path.name.split("_")[-1] for entry in found.series] == ["angio.nii.gz", "angio.nii", "T2w.nii.gz"]
        assert [mask.path.name for mask in angio.domes] == [
            "sub-000_ses-20110101_desc-Lesion_1_mask.nii.gz",
            "sub-000_ses-20110101_desc-Lesion_2_mask.nii.gz",
        ]
        assert [mask.path.name for mask in second.domes] == ["sub-001_ses-2_acq-Segmentation_Aneurysm-Only.nii"]
        assert [entry.patient for entry in found.series] == ["sub-000", "sub-001", "sub-002"]
        assert [entry.modality for entry in found.series] == ["MRA", "MRA", "MRI T2"]
        assert angio.targets[PRESENT_INDEX] == 1 and np.isnan(angio.targets[:PRESENT_INDEX]).all()
        assert np.isnan(second.targets).all()
        assert (control.targets == 0).all()

    def test_sites_are_those_of_the_table(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        text = "participant_id\tscanner_site\tcenter\nsub-000\tx\t Utrecht\nsub-002\ty\tn/a\n"
        (tmp_path / "participants.tsv").write_text(text)
        found = layout.open_dataset(tmp_path)
        assert [entry.site for entry in found.series] == ["Utrecht", "", ""]
        assert "column center of participants.tsv says where subjects were scanned" in found.notes

    def test_what_was_assumed_is_told(self, tmp_path: Path) -> None:
        notes = " | ".join(layout.open_dataset(self.write(tmp_path)).notes)
        assert "column group of participants.tsv says who has an aneurysm" in notes
        assert "1 T1w and T2w images are left out" in notes
        assert "2 files below derivatives/ are no masks of aneurysms by their names" in notes

    def test_treated_ones_in_a_file_of_their_own_are_ignored(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        name = "sub-000/ses-20110101/anat/sub-000_ses-20110101_label-treated_mask.nii.gz"
        touch(tmp_path, f"derivatives/manual_masks/{name}")
        values = {mask.path.name[21:]: mask.values for mask in layout.open_dataset(tmp_path).series[0].domes}
        assert values["label-treated_mask.nii.gz"] == ((REST, IGNORED),)
        assert values["desc-Lesion_1_mask.nii.gz"] == ()

    def test_a_table_of_other_columns_is_refused(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        (tmp_path / "participants.tsv").write_text("participant_id,group\nsub-000,patient\n")
        with pytest.raises(DatasetError, match="tabs between its columns"):
            layout.open_dataset(tmp_path)

    def test_subjects_without_the_prefix_are_known_and_absent_ones_told(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        text = "participant_id\tgroup\tsite\n000\tpatient\tA\n002\tcontrol\tB\n003\tcontrol\tB\n"
        (tmp_path / "participants.tsv").write_text(text)
        found = layout.open_dataset(tmp_path)
        assert [entry.site for entry in found.series] == ["A", "", "B"]
        assert [entry.targets[PRESENT_INDEX] for entry in found.series[::2]] == [1, 0]
        assert "1 subjects of participants.tsv have no image that is read" in found.notes


class TestNnunet:
    def write(self, root: Path, labels: object, channels: object = None) -> Path:
        touch(root, *(f"imagesTr/{case}_0000.nii.gz" for case in ("a_1", "b_2")), "labelsTr/a_1.nii.gz")
        (root / "dataset.json").write_text(json.dumps({"channel_names": channels or {"0": "TOF"}, "labels": labels}))
        return root

    def test_cases_and_masks_find_each_other(self, tmp_path: Path) -> None:
        touch(tmp_path, "imagesTr/a_1_0001.nii.gz", "imagesTr/readme.txt", "imagesTs/c_0000.nii.gz")
        found = layout.open_dataset(self.write(tmp_path, {"background": 0, "UIA": 1, "ignore": 2}))
        first, second = found.series
        assert first.domes == (DomeMask(tmp_path / "labelsTr" / "a_1.nii.gz", ((1, UNPLACED), (2, IGNORED))),)
        assert second.domes == () and [first.patient, second.patient] == ["a_1", "b_2"]
        assert first.modality == "MRA" and np.isnan(first.targets).all()
        notes = " | ".join(found.notes)
        for words in (
            "nnU-Net raw data set: 2 cases",
            "1 images of further channels",
            "1 images have no mask",
            "imagesTs",
        ):
            assert words in notes
        assert "label 1 (UIA): an aneurysm" in notes and "label 2 (ignore): ignored" in notes

    @pytest.mark.parametrize(
        ("labels", "values"),
        [
            ({"0": "background", "1": "aneurysm"}, ((1, UNPLACED),)),
            ({"background": 0, "target": 1}, ((1, UNPLACED),)),
            ({"background": 0, "vessel": 1, "aneurysm": 2}, ((1, OTHER), (2, UNPLACED))),
            ({"background": 0, "basilar tip": 5, "treated": 6}, ((5, BASILAR), (6, IGNORED))),
        ],
    )
    def test_labels_of_both_versions(self, tmp_path: Path, labels: object, values: object) -> None:
        assert layout.open_dataset(self.write(tmp_path, labels)).series[0].domes[0].values == values

    def test_masks_of_vessels_alone_are_not_taken_for_aneurysms(self, tmp_path: Path) -> None:
        found = layout.open_dataset(self.write(tmp_path, {"background": 0, "vessel": 1}))
        assert found.series[0].domes == ()
        assert "no label is an aneurysm by its name; all labels are unknown" in found.notes

    @pytest.mark.parametrize("labels", [None, {"background": 0, "whole": [1, 2]}, {"aneurysm": "one", "x": "two"}])
    def test_what_labels_cannot_be_is_a_sentence(self, tmp_path: Path, labels: object) -> None:
        with pytest.raises(DatasetError, match=r"dataset\.json"):
            layout.open_dataset(self.write(tmp_path, labels))


class TestTable:
    def write(self, root: Path, text: str) -> Path:
        touch(root, "a.nii.gz", "b.nii", "m.nii.gz", "dicom/1.dcm")
        (root / "series.csv").write_text(text)
        return root

    def test_every_column_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "p.csv").write_text("i,j,k,location,radius_mm,ignored\n1,2,3,Basilar Tip,2.5,\n4,5,6,,,1\n")
        text = f"image,patient,modality,mask,ignored,points,{PRESENT},{BASILAR}\n"
        text += "a.nii.gz,anna,MRA,m.nii.gz,2;3,p.csv,1,1\n"
        found = layout.open_dataset(self.write(tmp_path, text + "dicom,bert,,,,,0,\nb.nii,,,,,,,\n"))
        first, second, third = found.series
        assert first.domes == (DomeMask(tmp_path / "m.nii.gz", ((2, IGNORED), (3, IGNORED))),)
        assert first.marks == (Mark("voxel", 1, 2, 3, BASILAR, 2.5), Mark("voxel", 4, 5, 6, "", None, True))
        assert (first.patient, first.modality, second.patient, third.patient) == ("anna", "MRA", "bert", None)
        assert first.targets[LABELS.index(BASILAR)] == 1 and np.isnan(first.targets).sum() == 12
        assert (second.targets == 0).all(), "no aneurysm at all is none anywhere"
        assert np.isnan(third.targets).all()
        assert found.notes[0] == "data set of one table: 3 images"

    def test_sites_are_kept_and_another_site_is_another_source(self, tmp_path: Path) -> None:
        table = "image,patient,site\na.nii.gz,anna,Lausanne\nb.nii,bert,\n"
        assert [entry.site for entry in layout.open_dataset(self.write(tmp_path, table)).series] == ["Lausanne", ""]
        found, _ = catalogue.find_sources(str(tmp_path))
        (tmp_path / "series.csv").write_text(table.replace("Lausanne", "Utrecht"))
        again, _ = catalogue.find_sources(str(tmp_path))
        assert [source.site for source in again] == ["Utrecht", ""]
        assert [a.digest == b.digest for a, b in zip(found, again, strict=True)] == [False, True]

    def test_a_location_is_an_aneurysm(self, tmp_path: Path) -> None:
        found = layout.open_dataset(self.write(tmp_path, f"image,{BASILAR}\na.nii.gz,1\n"))
        assert found.series[0].targets[PRESENT_INDEX] == 1

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("path\na.nii.gz\n", "has no column 'image'"),
            (
                "image,Aneurism Present\na.nii.gz,1\n",
                "unknown column 'Aneurism Present'; did you mean Aneurysm Present?",
            ),
            ("image\nc.nii.gz\n", "line 2: image 'c.nii.gz' does not exist below"),
            ("image\na.nii.gz\n./a.nii.gz\n", "line 3: ./a.nii.gz stands on line 2 already"),
            ("image,patient\n,anna\n", "line 2: image is empty"),
            ("image,modality\na.nii.gz,CTT\n", "modality 'CTT' is not one of CTA"),
            (f"image,{PRESENT}\na.nii.gz,yes\n", "it must be 0, 1 or empty"),
            ("image,ignored\na.nii.gz,two\n", "ignored is 'two'"),
            ("image,mask\na.nii.gz,n.nii.gz\n", "mask 'n.nii.gz' does not exist"),
            ("image\na.nii.gz,1,2\n", "more cells than its header"),
            ("image;patient\na.nii.gz;anna\n", "its columns are parted by ';'; part them by commas"),
            ("image\tpatient\na.nii.gz\tanna\n", "its columns are parted by '\\t'; part them by commas"),
        ],
    )
    def test_wrong_tables_are_a_sentence(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(DatasetError) as caught:
            layout.open_dataset(self.write(tmp_path, text))
        assert words in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("x_lps_mm,y_lps_mm,z_lps_mm\n1,2,3.5\n", {"": (Mark("lps", 1, 2, 3.5, ""),)}),
            (
                "image,x_ras_mm,y_ras_mm,z_ras_mm\na,1,2,3\n./b,4,5,6\n",
                {"a": (Mark("ras", 1, 2, 3, ""),), "b": (Mark("ras", 4, 5, 6, ""),)},
            ),
            (
                "233, 132, 80, 5.2\n241, 60, 12, 3\n",
                {"": (Mark("voxel", 233, 132, 80, ""), Mark("voxel", 241, 60, 12, ""))},
            ),
            ("2.330000e+02 1.320000E+02 8.05e+01\n", {"": (Mark("voxel", 233, 132, 80.5, ""),)}),
            ("", {}),
            ("image,i,j,k\n", {}),
        ],
    )
    def test_places_say_what_they_count(self, tmp_path: Path, text: str, found: object) -> None:
        (tmp_path / "p.csv").write_text(text)
        assert series_table.read_marks(tmp_path / "p.csv", tmp_path) == found

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("x,y,z\n1,2,3\n", "unknown column 'x'"),
            ("location\nBasilar Tip\n", "a place without its space could be anywhere"),
            ("i,j,k\n1,2,three\n", "line 2: k is 'three', not a number"),
            ("i,j,k,location\n1,2,3,Basilar\n", "location 'Basilar' is unknown; did you mean Basilar Tip?"),
            ("1 2\n", "2 numbers; expected i, j, k"),
            ("i;j;k\n1;2;3\n", "its columns are parted by ';'"),
        ],
    )
    def test_wrong_places_are_a_sentence(self, tmp_path: Path, text: str, words: str) -> None:
        (tmp_path / "p.csv").write_text(text)
        with pytest.raises(DatasetError) as caught:
            series_table.read_marks(tmp_path / "p.csv", tmp_path)
        assert words in str(caught.value)


def test_a_plain_folder_of_files_is_a_series_each(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b/c.nii", "d/1.dcm", "d/2.dcm")
    found = layout.open_dataset(tmp_path)
    assert [entry.path.relative_to(tmp_path).as_posix() for entry in found.series] == ["a.nii.gz", "b/c.nii", "d"]
    assert all(np.isnan(entry.targets).all() for entry in found.series)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("bids/participants.tsv", "bids/sub-1/anat/sub-1_angio.nii.gz"), "bids is a data set by itself (BIDS)"),
        (("raw/dataset.json", "raw/imagesTr/a_0000.nii.gz"), "raw is a data set by itself (nnU-Net)"),
        (("own/series.csv", "own/a.nii.gz", "b.nii.gz"), "own is a data set by itself (one table)"),
        (("rsna/train.csv", "rsna/series/1.2/1.dcm"), "rsna is a data set by itself (the challenge's layout)"),
        (("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"), "but no dataset.json"),
        (("sub-1/anat/sub-1_angio.nii.gz", "derivatives/sub-1/sub-1_mask.nii.gz"), "but neither participants.tsv"),
    ],
)
def test_a_folder_that_only_holds_a_data_set_is_refused(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DatasetError) as caught:
        layout.open_dataset(tmp_path)
    assert words in str(caught.value)
