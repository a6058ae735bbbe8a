"""One volume is one pass: whatever tells two apart, wherever their slices stand, none has a slice of the other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import SERIES_UID, ct_slice, ramp, save, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, MRImageStorage

from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.points import marked_mm
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SeriesError

COUNT = 8
LIFT = 7
"""What a slice of the second pass is above its twin, in stored values."""


def passes(
    tell: Callable[[int, int], dict[str, Any]],
    *,
    off_mm: float = 0.0,
    keep: Callable[[int, int], bool] = lambda p, z: True,
    **tags: Any,
) -> list[Dataset]:
    """Return two passes of a stack; `tell` returns the elements of slice z of pass p, `keep` whether it is there."""
    made = []
    for p in (0, 1):
        for z in range(COUNT):
            place = {"ImagePositionPatient": [-10, -20, 100 + 2 * z + off_mm * p]}
            uid = {"SOPInstanceUID": f"{SERIES_UID}.{p}.{z + 1}"}
            dataset = ct_slice(z, ramp(z) + LIFT * p, **{"InstanceNumber": COUNT * p + z + 1, **place, **uid, **tags})
            for name, value in tell(p, z).items():
                setattr(dataset, name, value)
            if keep(p, z):
                made.append(dataset)
    return made


def pass_of(volume: Volume) -> tuple[int, int]:
    """Return which pass a volume is of and how many slices it has; fails where it mixes passes."""
    found = {uid.rsplit(".", 2)[1] for uid, _ in volume.instances}
    assert len(found) == 1, volume.instances
    lifted = {int(slice_[5, 5]) - (int(ramp(z)[5, 5]) - 1024) for (_, z), slice_ in _placed(volume)}
    assert len(lifted) == 1
    return int(found.pop()), len(volume.voxels)


def _placed(volume: Volume) -> list[tuple[tuple[str, int], Any]]:
    return [
        ((uid, int(uid.rsplit(".", 1)[1]) - 1), s) for (uid, _), s in zip(volume.instances, volume.voxels, strict=True)
    ]


BY_HEADER: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "patient": lambda p, z: {"PatientID": ("Jane", "Joan")[p]},
    "kernel": lambda p, z: {"ConvolutionKernel": ("H30s", "H60s")[p]},
    "series number": lambda p, z: {"SeriesNumber": 3 + p},
    "image type": lambda p, z: {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", ("MONO", "IODINE")[p]]},
    "rescale type": lambda p, z: {"RescaleType": ("HU", "mg/ml")[p]},
    "acquisition": lambda p, z: {"AcquisitionNumber": p + 1},
    "temporal position": lambda p, z: {"TemporalPositionIdentifier": p + 1},
    "trigger time": lambda p, z: {"TriggerTime": 400.0 * p},
    "acquisition time": lambda p, z: {"AcquisitionTime": f"12000{p}"},
    "acquisition date and time": lambda p, z: {"AcquisitionDateTime": f"2020010112000{p}"},
    "a time for each slice": lambda p, z: {"AcquisitionTime": f"12{30 * p + z:02d}00"},
    "an acquisition for each slice": lambda p, z: {"AcquisitionNumber": 100 * p + z},
    "contrast agent": lambda p, z: {"ContrastBolusAgent": "APPLIED"} if p else {},
    "tube voltage": lambda p, z: {"KVP": (80, 140)[p]},
    "slice thickness": lambda p, z: {"SliceThickness": (2, 4)[p]},
    "echo time": lambda p, z: {"EchoTime": (10, 80)[p]},
}


@pytest.mark.parametrize("off_mm", [0.0, 0.05, 1.0], ids=["one place", "0.05 mm off", "half a slice off"])
@pytest.mark.parametrize("name", BY_HEADER)
def test_whatever_a_header_tells_passes_apart_by_one_is_kept_whole(tmp_path: Path, name: str, off_mm: float) -> None:
    volume = read_series(write_series(tmp_path, passes(BY_HEADER[name], off_mm=off_mm, SliceThickness=2)))
    assert pass_of(volume)[1] == COUNT
    assert volume.quality == ("other_passes",)
    assert len(volume.dropped) == COUNT


@pytest.mark.parametrize("off_mm", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("name", ["kernel", "acquisition", "temporal position", "acquisition time", "trigger time"])
def test_a_pass_with_holes_is_not_filled_from_the_other(tmp_path: Path, name: str, off_mm: float) -> None:
    """Of a first pass that lacks its first three slices and a second one that is whole, the second is the volume."""
    made = passes(BY_HEADER[name], off_mm=off_mm, keep=lambda p, z: p == 1 or z > 2, SliceThickness=2)
    assert pass_of(read_series(write_series(tmp_path, made))) == (1, COUNT)


ORDERS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "one after the other": lambda p, z: {"InstanceNumber": COUNT * p + z + 1},
    "there and back": lambda p, z: {"InstanceNumber": COUNT * p + (z if p == 0 else COUNT - z) + 1},
    "content time": lambda p, z: {"InstanceNumber": z + 1, "ContentTime": f"12{30 * p + z:02d}00"},
    "there and back in time": lambda p, z: {
        "InstanceNumber": z + 1,
        "ContentTime": f"12{30 * p + (z if p == 0 else COUNT - z):02d}00",
    },
    "files": lambda p, z: {"InstanceNumber": 1},
}


@pytest.mark.parametrize("name", ORDERS)
def test_where_only_an_order_tells_passes_apart_one_is_kept_whole(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, dataset in enumerate(passes(ORDERS[name])):
        save(dataset, folder / f"{number:03d}.dcm")
    volume = read_series(folder)
    assert pass_of(volume)[1] == COUNT
    assert volume.quality == ("other_passes",)


def test_the_second_pass_begins_where_time_stood_still_longest(tmp_path: Path) -> None:
    """The first pass lacks its lowest slice, so that the second one's would fill it, were it not minutes younger."""
    made = passes(lambda p, z: {"AcquisitionTime": f"12{30 * p + z:02d}00"}, keep=lambda p, z: (p, z) != (0, 0))
    assert pass_of(read_series(write_series(tmp_path, made))) == (1, COUNT)
    made = passes(lambda p, z: {"InstanceNumber": 100 * p + z}, keep=lambda p, z: z > 1 or p == 1)
    assert pass_of(read_series(write_series(tmp_path / "by jump", made))) == (1, COUNT)


def test_passes_in_folders_of_their_own_are_not_mixed(tmp_path: Path) -> None:
    for p in (0, 1):
        folder = tmp_path / "in" / "ba"[p]
        folder.mkdir(parents=True)
        for dataset in passes(lambda p, z: {"InstanceNumber": z + 1})[COUNT * p : COUNT * (p + 1)]:
            save(dataset, folder / f"{hash((p, dataset.InstanceNumber)) % 10**9}.dcm")
    assert pass_of(read_series(tmp_path / "in"))[1] == COUNT


def test_passes_that_share_heights_but_not_places_are_not_mixed(tmp_path: Path) -> None:
    """Another field of view or table height: the pictures lie elsewhere in their planes, also where a gantry leans."""
    for name, lean in (("upright", 0.0), ("leaning", 0.7)):
        made = passes(lambda p, z: {"InstanceNumber": z + 1 if p == 0 else COUNT - z})
        for number, dataset in enumerate(made):
            p, z = divmod(number, COUNT)
            dataset.ImagePositionPatient = [-10 + 9 * p, -20 - 5 * p + lean * z, 100 + 2 * z]
        volume = read_series(write_series(tmp_path / name, made))
        assert pass_of(volume)[1] == COUNT
        assert set(volume.quality) == {"other_passes"} | ({"gantry_tilt"} if lean else set())


def test_where_nothing_tells_passes_apart_there_is_no_volume(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(4)
    for number, dataset in zip(rng.permutation(2 * COUNT), passes(lambda p, z: {"InstanceNumber": 1}), strict=True):
        dataset.SOPInstanceUID = f"1.2.{rng.integers(10**9)}"
        save(dataset, folder / f"{number:03d}.dcm")
    with pytest.raises(SeriesError) as refusal:
        read_series(folder)
    assert refusal.value.reason == "mixed_passes"
    assert "2 different images stand at" in str(refusal.value)


def test_unmarked_copies_in_any_order_are_copies(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(4)
    for number in rng.permutation(2 * COUNT).tolist():
        z = number % COUNT
        save(ct_slice(z, InstanceNumber=1, SOPInstanceUID=f"1.2.{rng.integers(10**9)}"), folder / f"{number:03d}.dcm")
    volume = read_series(folder)
    assert (volume.shape[0], volume.quality) == (COUNT, ("duplicate_files",))


@pytest.mark.parametrize("beside_mm", [1.2, 0.4, -5.0, 31.0], ids=["between", "close", "below", "far above"])
def test_a_lone_locator_slice_is_no_slice_of_the_volume(tmp_path: Path, beside_mm: float) -> None:
    stack = [ct_slice(z, AcquisitionNumber=2) for z in range(COUNT)]
    height = 100 + 8 + beside_mm if beside_mm > 0 else 100 + beside_mm
    lone = ct_slice(
        40, AcquisitionNumber=1, SliceThickness=10, ImagePositionPatient=[-10, -20, height], SOPInstanceUID="1.2.3"
    )
    volume = read_series(write_series(tmp_path, [lone, *stack]))
    assert volume.shape[0] == COUNT
    assert volume.quality == ("other_passes",)
    np.testing.assert_allclose(volume.origins_mm[:, 2], 100 + 2 * np.arange(COUNT))


def test_monitoring_images_at_one_place_are_no_slices(tmp_path: Path) -> None:
    """Bolus tracking: ten images at one height, each an acquisition of its own, before the scan."""
    stack = [ct_slice(z, AcquisitionNumber=11) for z in range(COUNT)]
    watch = [
        ct_slice(4, ramp(50 + t), AcquisitionNumber=t, ImagePositionPatient=[-10, -20, 109], SOPInstanceUID=f"1.2.{t}")
        for t in range(COUNT)
    ]
    volume = read_series(write_series(tmp_path, watch + stack))
    assert (volume.shape[0], volume.quality) == (COUNT, ("other_passes",))


def test_parts_of_one_scan_stay_together(tmp_path: Path) -> None:
    """Posterior fossa thin and the rest thick; steps of a table; slices scanned in two packages; a time for each."""
    parts: dict[str, Callable[[int], dict[str, Any]]] = {
        "thickness": lambda z: {
            "SliceThickness": 2 if z < 5 else 4,
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "AB"[z < 5]],
        },
        "table": lambda z: {"AcquisitionNumber": z // 4, "AcquisitionTime": f"12{z // 4:02d}00"},
        "packages": lambda z: {"AcquisitionNumber": z % 2, "AcquisitionTime": f"12{30 * (z % 2) + z:02d}00"},
        "kernel": lambda z: {"ConvolutionKernel": "AB"[z < 5]},
        "random times": lambda z: {
            "AcquisitionTime": f"12{(z * 7) % 10:02d}00",
            "ContentTime": f"12{(z * 3) % 10:02d}00",
        },
        "files": lambda z: {"InstanceNumber": (z * 7) % 10},
    }
    for name, tell in parts.items():
        made = [ct_slice(z) for z in range(COUNT)]
        for z, dataset in enumerate(made):
            for keyword, value in tell(z).items():
                setattr(dataset, keyword, value)
        volume = read_series(write_series(tmp_path / name, made))
        assert (name, volume.shape[0], volume.quality) == (name, COUNT, ())


def test_uneven_slices_with_a_number_each_stay_together(tmp_path: Path) -> None:
    heights = [0, 4, 8, 12, 13, 20, 27, 34]
    made = [
        ct_slice(z, AcquisitionNumber=z, AcquisitionTime=f"12{z:02d}00", ImagePositionPatient=[0, 0, height])
        for z, height in enumerate(heights)
    ]
    volume = read_series(write_series(tmp_path, made))
    assert (volume.shape[0], volume.quality) == (len(heights), ("uneven_slices",))


def test_slabs_that_overlap_a_little_are_cut_in_the_middle(tmp_path: Path) -> None:
    """Time-of-flight angiography in slabs: every height is of one of them, and the head is whole."""
    tags = {"Modality": "MR", "SOPClassUID": MRImageStorage, "ImageType": ["ORIGINAL", "PRIMARY", "M", "TOF"]}
    made = [
        ct_slice(z, ramp(z + slab), AcquisitionNumber=slab, SOPInstanceUID=f"1.{slab}.{z + 1}", **tags)
        for slab in range(3)
        for z in range(10 * slab, 10 * slab + 12)
    ]
    volume = read_series(write_series(tmp_path, made))
    assert (volume.shape[0], volume.quality) == (32, ("other_passes",))
    slabs = [uid.split(".")[1] for uid, _ in volume.instances]
    assert slabs == sorted(slabs) and len(set(slabs)) == 3


def enhanced(path: Path, p: int, *, backwards: bool, **groups: Callable[[int], Dataset]) -> None:
    """Write an enhanced MR file of pass p."""
    whole = ct_slice(
        0, ImagePositionPatient=None, Modality="MR", SOPInstanceUID=f"{SERIES_UID}.{p}.1", InstanceNumber=p
    )
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    whole.NumberOfFrames = COUNT
    order = list(range(COUNT))[:: -1 if backwards else 1]
    whole.PixelData = b"".join((ramp(z) + LIFT * p).astype(np.uint16).tobytes() for z in order)
    frames = []
    for z in order:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-10, -20, 100 + 2 * z]
        frame.PlanePositionSequence = Sequence([position])
        for name, item in groups.items():
            setattr(frame, name, Sequence([item(z)]))
        frames.append(frame)
    whole.PerFrameFunctionalGroupsSequence = Sequence(frames)
    save(whole, path)


def test_frames_of_two_multi_frame_files_are_not_mixed(tmp_path: Path) -> None:
    enhanced(tmp_path / "b", 0, backwards=False)
    enhanced(tmp_path / "a", 1, backwards=True)
    volume = read_series(tmp_path)
    assert volume.quality == ("other_passes",)
    assert len({uid for uid, _ in volume.instances}) == 1
    assert len({int(s[5, 5]) - int(ramp(z)[5, 5]) for z, s in enumerate(volume.voxels)}) == 1


def test_frames_of_one_file_are_told_apart_by_their_groups(tmp_path: Path) -> None:
    whole = ct_slice(0, ImagePositionPatient=None, Modality="MR")
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    whole.NumberOfFrames = 2 * COUNT
    whole.PixelData = b"".join((ramp(z) + LIFT * p).astype(np.uint16).tobytes() for z in range(COUNT) for p in (0, 1))
    frames = []
    for number in range(2 * COUNT):
        frame, position, cardiac = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [-10, -20, 100 + 2 * (number // 2)]
        cardiac.NominalCardiacTriggerDelayTime = 400.0 * (number % 2)
        frame.PlanePositionSequence = Sequence([position])
        frame.CardiacSynchronizationSequence = Sequence([cardiac])
        frames.append(frame)
    whole.PerFrameFunctionalGroupsSequence = Sequence(frames)
    volume = read_series(save(whole, tmp_path / "a"))
    assert volume.quality == ("other_passes",)
    assert [index for _, index in volume.instances] == list(range(0, 2 * COUNT, 2))


def vessel(z: int, p: int) -> Any:
    """A head with noise, skull and, in the second phase, bright vessels."""
    rng = np.random.default_rng([z, p])
    image = np.full((64, 64), 1060) + rng.normal(0, 8, (64, 64))
    image[:, :3] = 24
    image[10:14] = 2000
    if p:
        image[30:33, 30:33] += 300
    return image.clip(0, 4000).astype(np.uint16)


@pytest.mark.parametrize("bright", [0, 1])
def test_of_two_ct_phases_the_one_with_bright_vessels_is_the_volume(tmp_path: Path, bright: int) -> None:
    made = passes(lambda p, z: {"AcquisitionNumber": p + 1})
    for number, dataset in enumerate(made):
        p, z = divmod(number, COUNT)
        dataset.Rows = dataset.Columns = 64
        dataset.PixelData = vessel(z, int(p == bright)).tobytes()
    volume = read_series(write_series(tmp_path, made))
    assert {int(uid.rsplit(".", 2)[1]) for uid, _ in volume.instances} == {bright}
    assert "other_passes" in volume.quality


def test_of_two_ct_phases_the_one_that_names_its_contrast_is_the_volume(tmp_path: Path) -> None:
    made = passes(lambda p, z: {"AcquisitionNumber": p + 1, "ContrastBolusAgent": ("NONE", "Iomeron 400")[p]})
    assert pass_of(read_series(write_series(tmp_path, made))) == (1, COUNT)


def test_hounsfield_units_go_before_other_maps(tmp_path: Path) -> None:
    made = passes(lambda p, z: {"RescaleType": ("mg/ml", "HU")[p]})
    assert pass_of(read_series(write_series(tmp_path, made))) == (1, COUNT)


def test_slices_that_cannot_be_read_are_not_taken_from_another_pass(tmp_path: Path) -> None:
    folder = write_series(tmp_path, passes(BY_HEADER["acquisition"]))
    for z in (3, 6):  # two of ten: the other pass has all and is taken whole
        file = next(
            f
            for f in folder.iterdir()
            if f".0.{z + 1}\0".encode() in f.read_bytes() or f".0.{z + 1}\x08".encode() in f.read_bytes()
        )
        file.write_bytes(file.read_bytes()[:-200])
    volume = read_series(folder)
    assert pass_of(volume) == (1, COUNT)


def test_few_slices_beyond_a_wide_gap_are_left_out_and_many_are_kept(tmp_path: Path) -> None:
    made = [ct_slice(z) for z in range(22)]
    made[21].ImagePositionPatient = [-10, -20, 100 + 2 * 20 + 55]
    volume = read_series(write_series(tmp_path / "one", made))
    assert (volume.shape[0], volume.quality) == (21, ("far_slices",))
    for z in range(11, 22):
        made[z].ImagePositionPatient = [-10, -20, 100 + 2 * z + 55]
    volume = read_series(write_series(tmp_path / "many", made))
    assert volume.shape[0] == 22
    assert {"wide_gap"} <= set(volume.quality) <= {"wide_gap", "uneven_slices", "missing_slices"}


def test_clicks_on_what_was_left_out_are_placed_by_its_own_geometry(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path, passes(BY_HEADER["acquisition"], off_mm=0.7)))
    kept, other = pass_of(volume)[0], 1 - pass_of(volume)[0]
    for p, here in ((kept, True), (other, False)):
        found = marked_mm(volume, f"{SERIES_UID}.{p}.4", x=7.5, y=11)
        assert found is not None
        # rows are 0.5 mm apart, columns 0.4 mm, slices 2 mm
        np.testing.assert_allclose(found[0], [-10 + 3, -20 + 5.5, 106 + 0.7 * p])
        assert found[1] is here
    assert marked_mm(volume, "1.2.3", 1, 1) is None


def test_a_click_on_a_copy_or_a_scout_is_not_lost(tmp_path: Path) -> None:
    copies = [ct_slice(z, SOPInstanceUID=f"1.{c}.{z + 1}") for c in (1, 2) for z in range(4)]
    scout = ct_slice(
        9,
        SOPInstanceUID="1.9",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
    )
    volume = read_series(write_series(tmp_path, [*copies, scout]))
    assert set(volume.quality) == {"duplicate_files", "localizers"}
    found = marked_mm(volume, "1.2.3", x=1, y=2)
    assert found is not None
    np.testing.assert_allclose(found[0], [-9.6, -19, 104])
    found = marked_mm(volume, "1.9", x=0, y=10)
    assert found is not None
    np.testing.assert_allclose(found[0], [-10, -20, 118 - 5])
