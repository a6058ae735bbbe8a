"""Own data sets that are wrong as spreadsheets, tools and people make them: refused, told first, or read right.

Those of `test_lesions.py` are wrong in space; these are wrong in their tables, names and values.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import learning_sets
import nibabel
import numpy as np
import pytest
from nifti_sets import LEFT, RIGHT, head, mask, places_mm, points_mm, prepared, ras, save, write_bids, write_nnunet

from aneurysm_ray.data import catalogue, inspection, layout, store
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.errors import DatasetError
from aneurysm_ray.labels import PRESENT, PRESENT_INDEX

LMCA = "Left Middle Cerebral Artery"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def table(root: Path, text: str, encoding: str = "utf-8") -> Path:
    """Write a table of images and masks that are there, empty."""
    touch(root, "a.nii.gz", "b.nii.gz", "m.nii.gz", "sub/c.nii.gz")
    (root / "series.csv").write_bytes(text.encode(encoding))
    return root


class TestSpreadsheets:
    @pytest.mark.parametrize(
        "text",
        [
            "\ufeffimage,patient,mask\na.nii.gz,anna,m.nii.gz\n",
            "image,patient,mask\r\na.nii.gz,anna,m.nii.gz\r\n",
            "image,patient,mask\ra.nii.gz,anna,m.nii.gz\r",
            "image, patient,mask ,,\na.nii.gz,anna,m.nii.gz,,\n,,,,\n,,,,\n",
            'image,patient,mask\n"a.nii.gz","anna","m.nii.gz"',
            "\n,,\nimage,patient,mask\n\na.nii.gz,anna,m.nii.gz\n",
        ],
        ids=["bom", "windows", "old mac", "cells without a name", "quoted", "empty lines first"],
    )
    def test_what_programs_write_is_read(self, tmp_path: Path, text: str) -> None:
        (entry,) = layout.open_dataset(table(tmp_path, text)).series
        assert (entry.path.name, entry.patient, entry.domes[0].path.name) == ("a.nii.gz", "anna", "m.nii.gz")

    @pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
    @pytest.mark.parametrize("name", ["series.csv", "p.csv", "participants.tsv"])
    def test_other_encodings_are_a_sentence_with_the_cure(self, tmp_path: Path, name: str, encoding: str) -> None:
        tables = {
            "series.csv": "image,patient\na.nii.gz,Zoë\n",
            "p.csv": "i,j,k,location\n1,2,3,Zürich\n",
            "participants.tsv": "participant_id\tsite\nsub-1\tZürich\n",
        }
        if name == "participants.tsv":
            touch(tmp_path, "sub-1/anat/sub-1_angio.nii.gz")
        else:
            table(tmp_path, "image,points\na.nii.gz,p.csv\n")
        (tmp_path / name).write_bytes(tables[name].encode(encoding))
        with pytest.raises(DatasetError, match=rf"{name} is not a text in UTF-8.*save it again in UTF-8"):
            layout.open_dataset(tmp_path)

    def test_a_mark_of_its_order_in_front_of_json_is_read_over(self, tmp_path: Path) -> None:
        touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
        (tmp_path / "dataset.json").write_bytes(b'\xef\xbb\xbf{"labels": {"background": 0, "aneurysm": 1}}')
        assert len(layout.open_dataset(tmp_path).series) == 1

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("image,mask,mask\na.nii.gz,m.nii.gz,\n", "two columns 'mask', 2 and 3"),
            ("image,patient,\na.nii.gz,anna,1\n", "line 2: cell 3 stands below no name"),
            (f"image,{PRESENT}\na.nii.gz,yes\n", "is 'yes'; it must be 0, 1 or empty"),
            (f"image,{PRESENT},{LMCA}\na.nii.gz,0,1\n", f"line 2: {LMCA} is 1 and {PRESENT} is 0"),
            ("image,patient\na.nii.gz,P007\nb.nii.gz,p7\n", "patient is 'P007' in one line and 'p7' in another"),
            ("image,patient\na.nii.gz,7\nb.nii.gz,7.0\n", "patient is '7' in one line and '7.0' in another"),
            ("image,site\na.nii.gz,Utrecht\nb.nii.gz,UTRECHT\n", "site is 'Utrecht' in one line and 'UTRECHT'"),
            ("image\n/home/anna/a.nii.gz\n", "does not exist on this machine; write paths relative to the table"),
            ("image\nC:\\data\\a.nii.gz\n", "does not exist on this machine; write paths relative to the table"),
            ("image\nsub\\c.nii.gz\n", "write / between folders and files"),
            ("image,mask\na.nii.gz,a.nii.gz\n", "line 2: a.nii.gz stands there as image and as mask"),
            (
                "image,patient,mask\na.nii.gz,x,m.nii.gz\nb.nii.gz,y,m.nii.gz\n",
                "line 3: m.nii.gz is of another patient",
            ),
            ("image,vessels\na.nii.gz,m.nii.gz\nb.nii.gz,m.nii.gz\n", "name the patient in both lines"),
        ],
    )
    def test_what_cannot_be_meant_is_a_sentence(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(DatasetError) as caught:
            layout.open_dataset(table(tmp_path, text))
        assert words in str(caught.value)

    @pytest.mark.parametrize("apart", ["\x0b", "\x0c", "\x85", "\u2028"])
    def test_a_cell_may_hold_what_unicode_parts_lines_by(self, tmp_path: Path, apart: str) -> None:
        (entry,) = layout.open_dataset(table(tmp_path, f"image,patient\na.nii.gz,anna{apart}b\n")).series
        assert entry.patient == f"anna{apart}b"

    def test_two_images_of_one_patient_may_share_a_mask(self, tmp_path: Path) -> None:
        text = "image,patient,mask\na.nii.gz,x,m.nii.gz\nb.nii.gz,x,m.nii.gz\n"
        assert len(layout.open_dataset(table(tmp_path, text)).series) == 2

    def test_names_that_differ_by_more_are_two(self, tmp_path: Path) -> None:
        text = "image,patient,site\na.nii.gz,P10,A\nb.nii.gz,P100,B\nsub/c.nii.gz,P1,C\n"
        assert {entry.patient for entry in layout.open_dataset(table(tmp_path, text)).series} == {"P10", "P100", "P1"}


class TestPlaces:
    def opened(self, root: Path, text: str, lines: str = "a.nii.gz,p.csv\n") -> layout.Dataset:
        (root / "p.csv").write_text(text)
        return layout.open_dataset(table(root, "image,points\n" + lines))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("33,5 32 40\n", "'33,5', not a number; write the decimals behind a point"),
            ("33,5 32,5 40,5\n", "line 1"),
            ("33,5;32,5;40,5\n", "line 1"),
            ('i,j,k\n"33,5",32,40\n', "i is '33,5', not a number; write the decimals behind a point"),
            ("i;j;k\n33,5;32;40\n", "its columns are parted by ';'"),
            ("i,j,k,radius_mm\n1,2,3,-3\n", "radius_mm is '-3'"),
            ("i,j,k,radius_mm\n1,2,3,4000\n", "radius_mm is '4000'"),
            ("image,i,j,k\nA.nii.gz,1,2,3\n", "image 'A.nii.gz' is none of series.csv; did you mean a.nii.gz?"),
            ("image,i,j,k\nsub/a.nii.gz,1,2,3\n", "image 'sub/a.nii.gz' is none of series.csv"),
        ],
    )
    def test_what_cannot_be_meant_is_a_sentence(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(DatasetError) as caught:
            self.opened(tmp_path, text)
        assert words in str(caught.value)

    @pytest.mark.parametrize("text", ["33.5 32 40\n", "33.5,32,40\n", "33.5, 32, 40, 5.2\n", "33.5\t32\t40\n"])
    def test_bare_numbers_however_they_are_parted(self, tmp_path: Path, text: str) -> None:
        ((mark,),) = [entry.marks for entry in self.opened(tmp_path, text).series]
        assert (mark.x, mark.y, mark.z) == (33.5, 32, 40)

    def test_places_find_their_image_however_its_path_is_written(self, tmp_path: Path) -> None:
        text = "image,i,j,k\n./a.nii.gz,1,2,3\nsub\\c.nii.gz,4,5,6\n"
        found = self.opened(tmp_path, text, "a.nii.gz,p.csv\nsub/c.nii.gz,p.csv\n")
        assert [entry.marks[0].x for entry in found.series] == [1, 4]

    def test_places_of_images_that_are_not_listed_are_told(self, tmp_path: Path) -> None:
        found = self.opened(tmp_path, "image,i,j,k\na.nii.gz,1,2,3\nother.nii.gz,4,5,6\n")
        assert "1 places of p.csv are of images that series.csv does not list" in found.notes

    def test_images_of_other_folders_that_are_called_alike_are_others(self, tmp_path: Path) -> None:
        text = "image,i,j,k\nsub/c.nii.gz,1,2,3\nother/c.nii.gz,4,5,6\n"
        found = self.opened(tmp_path, text, "sub/c.nii.gz,p.csv\n")
        assert [mark.x for mark in found.series[0].marks] == [1]
        assert "1 places of p.csv are of images that series.csv does not list" in found.notes

    @pytest.mark.parametrize("short", [("image",), ("place",), ()])
    def test_whole_paths_find_each_other(self, tmp_path: Path, short: tuple[str, ...]) -> None:
        image, place = ("a.nii.gz" if name in short else str(tmp_path / "a.nii.gz") for name in ("image", "place"))
        found = self.opened(tmp_path, f"image,i,j,k\n{place},1,2,3\n", f"{image},p.csv\n")
        assert [mark.x for mark in found.series[0].marks] == [1]

    def test_a_table_without_places_is_anybodys(self, tmp_path: Path) -> None:
        found = self.opened(tmp_path, "image,i,j,k\n", "a.nii.gz,p.csv\nb.nii.gz,p.csv\n")
        assert [entry.marks for entry in found.series] == [(), ()]

    def test_bare_places_of_two_patients_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="another patient's image on line 2"):
            self.opened(tmp_path, "1 2 3\n", "a.nii.gz,p.csv\nb.nii.gz,p.csv\n")


class TestTwoOfOneName:
    @pytest.mark.parametrize(
        "names",
        [
            ("imagesTr/a_0000.nii", "imagesTr/a_0000.nii.gz"),
            ("imagesTr/a_0000.nii", "labelsTr/a.nii", "labelsTr/a.nii.gz"),
            ("sub-1/anat/sub-1_angio.nii", "sub-1/anat/sub-1_angio.nii.gz"),
            ("sub-1/anat/sub-1_angio.nii", "derivatives/x/sub-1_lesion.nii", "derivatives/x/sub-1_lesion.nii.gz"),
        ],
    )
    def test_packed_and_unpacked_side_by_side_are_refused(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        touch(tmp_path, *names)
        (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "aneurysm": 1}}')
        (tmp_path / "participants.tsv").write_text("participant_id\n")
        with pytest.raises(DatasetError, match=r"\.nii and .*\.nii\.gz; which of them counts"):
            layout.open_dataset(tmp_path)


class TestNnunet:
    def test_masks_that_find_no_image_are_told(self, tmp_path: Path) -> None:
        touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a_0000.nii.gz", "labelsTr/b.nii.gz")
        (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "aneurysm": 1}}')
        assert any(
            note.startswith("2 masks in labelsTr are of no image") for note in layout.open_dataset(tmp_path).notes
        )

    def test_images_of_another_format_are_a_sentence(self, tmp_path: Path) -> None:
        touch(tmp_path, "imagesTr/a_0000.nrrd", "labelsTr/a.nrrd")
        (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "aneurysm": 1}}')
        with pytest.raises(DatasetError, match=r"has no image CASE_0000\.nii"):
            layout.open_dataset(tmp_path)

    @pytest.mark.parametrize("balls", [((LEFT[0], LEFT[1], 255),), (LEFT, (RIGHT[0], RIGHT[1], 3))])
    def test_values_that_nothing_names_are_no_sign_of_health(self, tmp_path: Path, balls: tuple[object, ...]) -> None:
        write_nnunet(tmp_path, {"a": (LEFT,)})
        save(tmp_path / "labelsTr" / "a.nii.gz", mask(balls))  # type: ignore[arg-type]
        (volume,) = prepared(tmp_path, tmp_path / "out").values()
        assert isinstance(volume, PreparedVolume) and "mask_unreadable" in volume.quality
        assert np.isnan(volume.targets).all() and volume.points == ()

    def test_values_of_other_things_are_passed_over(self, tmp_path: Path) -> None:
        labels = {"background": 0, "aneurysm": 1, "vessel": 2}
        write_nnunet(tmp_path, {"a": (LEFT, (RIGHT[0], RIGHT[1], 2))}, labels)
        (volume,) = prepared(tmp_path, tmp_path / "out").values()
        assert isinstance(volume, PreparedVolume) and "mask_unreadable" not in volume.quality
        assert len(volume.points) == 1


class TestBids:
    def runs(self, root: Path) -> Path:
        """Two runs of one session: one aneurysm each, at another place; returns the folder of masks, empty."""
        write_bids(root, {"1": (LEFT,)})
        anat = root / "sub-1" / "ses-1" / "anat"
        (anat / "sub-1_ses-1_cta.nii.gz").unlink()
        save(anat / "sub-1_ses-1_run-01_cta.nii.gz", head((LEFT,)))
        save(anat / "sub-1_ses-1_run-02_cta.nii.gz", head((RIGHT,)))
        masks = root / "derivatives" / "manual_masks" / anat.relative_to(root)
        shutil.rmtree(masks)
        return masks

    def test_a_mask_belongs_to_the_run_that_it_names(self, tmp_path: Path) -> None:
        masks = self.runs(tmp_path)
        save(masks / "sub-1_ses-1_run-1_desc-Lesion_1_mask.nii.gz", mask((LEFT,)))
        save(masks / "sub-1_ses-1_run-02_desc-Lesion_1_mask.nii.gz", mask((RIGHT,)))
        first, second = (volume for _, volume in sorted(prepared(tmp_path, tmp_path / "out").items()))
        assert isinstance(first, PreparedVolume) and isinstance(second, PreparedVolume)
        assert np.abs(points_mm(first, first.points) - [LEFT[0]]).max() < 1.25
        assert np.abs(points_mm(second, second.points) - [RIGHT[0]]).max() < 1.25
        assert {"mask_shared", "point_dark"}.isdisjoint({*first.quality, *second.quality})

    @pytest.mark.parametrize(
        ("mask_name", "images", "of"),
        [
            ("sub-1_run-2_lesion", ("sub-1_run-1_angio", "sub-1_run-2_angio"), ("sub-1_run-2_angio",)),
            ("sub-1_run-3_lesion", ("sub-1_run-1_angio", "sub-1_run-2_angio"), ()),
            ("sub-1_angio_lesion", ("sub-1_angio", "sub-1_cta"), ("sub-1_angio",)),
            ("sub-1_space-cta_lesion", ("sub-1_angio", "sub-1_cta"), ("sub-1_cta",)),
            ("sub-1_ce-gad_lesion", ("sub-1_ce-gad_angio", "sub-1_angio"), ("sub-1_ce-gad_angio",)),
            ("sub-1_acq-drawn_lesion", ("sub-1_acq-hires_angio",), ("sub-1_acq-hires_angio",)),
            ("sub-1_run-1_lesion", ("sub-1_angio",), ("sub-1_angio",)),
        ],
    )
    def test_masks_are_of_the_images_that_they_name(
        self, tmp_path: Path, mask_name: str, images: tuple[str, ...], of: tuple[str, ...]
    ) -> None:
        touch(tmp_path, f"derivatives/m/{mask_name}.nii.gz", *(f"sub-1/anat/{name}.nii.gz" for name in images))
        (tmp_path / "participants.tsv").write_text("participant_id\nsub-1\n")
        found = {entry.path.name.removesuffix(".nii.gz"): entry.domes for entry in layout.open_dataset(tmp_path).series}
        assert {name for name, domes in found.items() if domes} == set(of)
        assert not any(dome.shared for domes in found.values() for dome in domes)

    def test_a_mask_that_names_no_run_is_doubted(self, tmp_path: Path) -> None:
        save(self.runs(tmp_path) / "sub-1_ses-1_desc-Lesion_1_mask.nii.gz", mask((LEFT,)))
        for volume in prepared(tmp_path, tmp_path / "out").values():
            assert isinstance(volume, PreparedVolume) and "mask_shared" in volume.quality

    def test_treated_ones_are_ignored_whatever_their_value(self, tmp_path: Path) -> None:
        write_bids(tmp_path, {"1": (LEFT,)})
        (lesion,) = (tmp_path / "derivatives").rglob("*Lesion_1*")
        save(lesion.with_name("sub-1_ses-1_label-treated_mask.nii.gz"), mask(((RIGHT[0], RIGHT[1], 255),)))
        (volume,) = prepared(tmp_path, tmp_path / "out").values()
        assert isinstance(volume, PreparedVolume)
        assert np.abs(points_mm(volume, volume.points) - [LEFT[0]]).max() < 1.25
        assert np.abs(points_mm(volume, volume.ignored) - [RIGHT[0]]).max() < 1.25

    def test_masks_of_a_template_and_hidden_copies_are_left_out(self, tmp_path: Path) -> None:
        anat = "sub-1/anat"
        touch(tmp_path, f"{anat}/sub-1_angio.nii.gz", f"{anat}/._sub-1_angio.nii.gz")
        touch(
            tmp_path, "derivatives/m/._sub-1_lesion.nii.gz", "derivatives/m/sub-1_space-MNI152NLin6Asym_lesion.nii.gz"
        )
        touch(tmp_path, "derivatives/m/sub-1_lesion.nii.gz")
        (tmp_path / "participants.tsv").write_text("participant_id\nsub-1\n")
        found = layout.open_dataset(tmp_path)
        assert [[dome.path.name for dome in entry.domes] for entry in found.series] == [["sub-1_lesion.nii.gz"]]
        assert "1 masks lie in the space of a template, not of their image, by their names" in found.notes

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            ("1\tpatient\n02\tcontrol\n", "speaks of 1, and the folder is called sub-01"),
            ("sub-01\tpatient\nsub-02\tcontrol\nsub-02\tpatient\n", "line 4: sub-02 has an aneurysm in one line"),
        ],
    )
    def test_a_table_of_subjects_that_cannot_be_meant(self, tmp_path: Path, rows: str, words: str) -> None:
        touch(tmp_path, *(f"sub-0{n}/anat/sub-0{n}_angio.nii.gz" for n in (1, 2)))
        (tmp_path / "participants.tsv").write_text("participant_id\tgroup\n" + rows)
        with pytest.raises(DatasetError) as caught:
            layout.open_dataset(tmp_path)
        assert words in str(caught.value)

    def test_a_table_of_subjects_with_semicolons_is_asked_for_tabs(self, tmp_path: Path) -> None:
        touch(tmp_path, "sub-1/anat/sub-1_angio.nii.gz")
        (tmp_path / "participants.tsv").write_text("participant_id;group\nsub-1;patient\n")
        with pytest.raises(DatasetError, match="must be a table with tabs between its columns"):
            layout.open_dataset(tmp_path)

    def test_numbers_of_groups_are_not_guessed_and_words_are_told(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"sub-{n}/anat/sub-{n}_angio.nii.gz" for n in (1, 2)))
        (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-1\t1\nsub-2\t2\n")
        found = layout.open_dataset(tmp_path)
        assert all(np.isnan(entry.targets).all() for entry in found.series)
        assert "column group of participants.tsv counts 1, 2" in " ".join(found.notes)
        (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-1\tpatient\nsub-2\tHC\n")
        found = layout.open_dataset(tmp_path)
        assert [entry.targets[PRESENT_INDEX] for entry in found.series] == [1, 0]
        assert "says who has an aneurysm: 'HC' is no (1), 'patient' is yes (1)" in " ".join(found.notes)

    @pytest.mark.parametrize("column", ["aneurysms", "n_aneurysms", "number of aneurysms", "aneurysm_count"])
    def test_numbers_of_aneurysms_say_who_has_one(self, tmp_path: Path, column: str) -> None:
        touch(tmp_path, *(f"sub-{n}/anat/sub-{n}_angio.nii.gz" for n in (1, 2, 3)))
        (tmp_path / "participants.tsv").write_text(f"participant_id\t{column}\nsub-1\t0\nsub-2\t3\nsub-3\t1\n")
        assert [entry.targets[PRESENT_INDEX] for entry in layout.open_dataset(tmp_path).series] == [0, 1, 1]
        (tmp_path / "participants.tsv").write_text(f"participant_id\t{column}\nsub-1\t1\nsub-2\t2\nsub-3\t1\n")
        assert all(np.isnan(entry.targets[PRESENT_INDEX]) for entry in layout.open_dataset(tmp_path).series)


def rounded(root: Path) -> None:
    save(root / "m.nii.gz", mask((LEFT,)).astype(np.float32) * np.float32(0.999))


def smoothed(root: Path) -> None:
    distance = np.linalg.norm(places_mm() - LEFT[0], axis=-1)
    save(root / "m.nii.gz", np.clip(1.5 - distance / LEFT[1], 0, 1).astype(np.float32))  # 0.5 at its radius


def another_grid(root: Path) -> None:
    grid = np.diag([-3.0, -3.0, 3.0, 1.0])
    grid[:3, 3] = 120, 120, -60
    lps = (np.moveaxis(np.indices((80, 80, 60)), 0, -1) @ grid[:3, :3].T + grid[:3, 3]) * [-1, -1, 1]
    inside = np.linalg.norm(lps - LEFT[0], axis=-1) < LEFT[1]
    nibabel.save(nibabel.Nifti1Image(inside.astype(np.uint8), grid), root / "m.nii.gz")


def form_of_a_template(root: Path) -> None:
    save(root / "m.nii.gz", mask((LEFT,)))
    for path in (root / "a.nii.gz", root / "m.nii.gz"):
        image = nibabel.load(path)
        sheared = ras()
        sheared[0, 1] = 0.3 * sheared[1, 1]
        image.set_sform(sheared, 4)
        nibabel.save(image, path)


@pytest.mark.parametrize("write", [rounded, smoothed, another_grid, form_of_a_template])
def test_masks_as_tools_write_them_are_right(tmp_path: Path, write: Callable[[Path], None]) -> None:
    save(tmp_path / "a.nii.gz", head((LEFT,)))
    write(tmp_path)
    (tmp_path / "series.csv").write_text("image,mask\na.nii.gz,m.nii.gz\n")
    (volume,) = prepared(tmp_path, tmp_path / "out").values()
    assert isinstance(volume, PreparedVolume) and volume.targets[PRESENT_INDEX] == 1
    assert np.abs(points_mm(volume, volume.points) - [LEFT[0]]).max() < 1.25
    assert {"mask_unreadable", "mask_moved", "mask_misses"}.isdisjoint(volume.quality)


def probabilities(inside: np.ndarray) -> np.ndarray:
    return inside.astype(np.float32) * np.float32(0.4)


def shares_of_255(inside: np.ndarray) -> np.ndarray:
    return inside.astype(np.float32) / np.float32(255)


def between_labels(inside: np.ndarray) -> np.ndarray:
    return np.where(inside, 2, np.where(np.roll(inside, 1, axis=2), 1.2, 0)).astype(np.float32)


def no_numbers(inside: np.ndarray) -> np.ndarray:
    return np.where(inside, 1, np.nan).astype(np.float32)


def colours(inside: np.ndarray) -> np.ndarray:
    values = np.zeros(inside.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    values["R"] = 255 * inside
    return values


def complex_numbers(inside: np.ndarray) -> np.ndarray:
    return inside.astype(np.complex64)


@pytest.mark.parametrize("made", [probabilities, shares_of_255, between_labels, no_numbers, colours, complex_numbers])
def test_a_mask_without_labels_is_no_sign_of_health(tmp_path: Path, made: Callable[[np.ndarray], np.ndarray]) -> None:
    save(tmp_path / "a.nii.gz", head((LEFT,)))
    image = nibabel.Nifti1Image(np.ascontiguousarray(made(mask((LEFT,)) > 0).T), ras())
    nibabel.save(image, tmp_path / "m.nii.gz")
    (tmp_path / "series.csv").write_text("image,mask,ignored\na.nii.gz,m.nii.gz,2\n")
    (volume,) = prepared(tmp_path, tmp_path / "out").values()
    assert isinstance(volume, PreparedVolume) and "mask_unreadable" in volume.quality
    assert np.isnan(volume.targets).all() and volume.points == ()


def test_a_point_where_the_table_says_none_is_told(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", head((LEFT,)))
    (tmp_path / "p.csv").write_text("x_lps_mm,y_lps_mm,z_lps_mm,location\n{},{},{},{}\n".format(*LEFT[0], LMCA))
    (tmp_path / "series.csv").write_text(f"image,points,{PRESENT},{LMCA}\na.nii.gz,p.csv,1,0\n")
    (volume,) = prepared(tmp_path, tmp_path / "out").values()
    assert isinstance(volume, PreparedVolume) and "label_contradicts" in volume.quality


def test_a_set_without_a_series_says_what_was_seen(tmp_path: Path) -> None:
    (tmp_path / "series.csv").write_text("image,patient\n")
    with pytest.raises(DatasetError, match="data set of one table: 0 images"):
        catalogue.find_sources(str(tmp_path))


def test_one_scan_by_two_names_is_told_first(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", head((LEFT,)))
    save(tmp_path / "b.nii.gz", head((RIGHT,)))
    image = nibabel.load(tmp_path / "a.nii.gz")
    (tmp_path / "sub").mkdir()
    nibabel.save(image, tmp_path / "sub" / "c.nii")
    (tmp_path / "series.csv").write_text("image,patient\na.nii.gz,x\nb.nii.gz,y\nsub/c.nii,z\n")
    made = prepared(tmp_path, tmp_path / "out")
    rows = [store.table_row(volume, 1) for volume in made.values() if isinstance(volume, PreparedVolume)]
    store.write_table(tmp_path / "out", rows)
    table = store.volumes_table(tmp_path / "out").set_index("series_uid")
    told = {
        key: "scan_repeated" in table.loc[volume.series_uid, "quality"]
        for key, volume in made.items()
        if isinstance(volume, PreparedVolume)
    }
    assert told == {"a.nii.gz": True, "b.nii.gz": False, "sub/c.nii": True}
    assert len(inspection.inspect(tmp_path / "out")["look first at"]) == 2


def test_a_set_that_an_earlier_version_began_knows_nothing_of_some_scans(tmp_path: Path) -> None:
    rows = [
        store.table_row(replace(learning_sets.volume(0, True), series_uid=f"1.2.{n}", patient=f"p{n}"), 1)
        for n in range(3)
    ]
    known = rows[2]["scan"]
    del rows[0]["scan"], rows[1]["scan"]
    for _ in range(2):  # as made, and as read back
        store.write_table(tmp_path, rows)
        table = store.volumes_table(tmp_path)
        assert list(table["scan"]) == ["", "", known]
        assert not any(len(codes) for codes in table["quality"])
        rows = table.to_dict("records")  # type: ignore[assignment]


def test_one_patients_scan_may_be_there_twice(tmp_path: Path) -> None:
    rows = [store.table_row(replace(learning_sets.volume(0, True), series_uid=f"1.2.{n}"), 1) for n in (1, 2)]
    assert not any("scan_repeated" in row["quality"] for row in store.with_repeated(rows))
    blank = [
        store.table_row(replace(learning_sets.volume(n, True), voxels=np.full((4, 5, 6), 255 * n, np.uint8)), 1)
        for n in (0, 0, 1)
    ]
    blank[1]["patient"] = "another"
    assert not any("scan_repeated" in row["quality"] for row in store.with_repeated(blank)), "nothing is shown"
    rows[1]["patient"] = "another"
    again = store.with_repeated(store.with_repeated(rows))
    assert [row["quality"].count("scan_repeated") for row in again] == [1, 1]
    assert not any("scan_repeated" in row["quality"] for row in store.with_repeated(again[:1])), "the other has gone"
