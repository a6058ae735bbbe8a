"""Small data sets of NIfTI files in every layout: made-up CT heads with bright balls, and masks of these."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scans import HEAD_RADII_MM, head_hu, scan

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import catalogue, identity, store, work

Ball = tuple[tuple[float, float, float], float, int]
"""(patient LPS in mm, radius in mm, value in the mask)."""
LEFT: Ball = ((30.0, -20.0, 40.0), 8.0, 1)
"""Where `scans.head_hu` has its mark."""
RIGHT: Ball = ((-34.0, -10.0, 50.0), 7.0, 1)
TREATED: Ball = ((-20.0, 30.0, 30.0), 6.0, 2)
VOLUME = {"extent_mm": [120, 160, 140], "spacing_mm": [2.0, 2.0, 2.0]}
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
GRID = scan()


def places_mm() -> NDArray[np.float64]:
    """Return the patient places (Z, Y, X, 3) of the scan's voxels."""
    return np.moveaxis(np.indices(GRID.shape), 0, -1) @ GRID.affine[:3, :3].T + GRID.affine[:3, 3]


def ras(affine: NDArray[np.float64] = GRID.affine) -> NDArray[np.float64]:
    """Return an affine of (z, y, x) to LPS as one of (i, j, k) to RAS."""
    return TO_RAS @ affine[:, [2, 1, 0, 3]]


def save(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64] | None = None) -> Path:
    """Write voxels (z, y, x) as NIfTI."""
    image = nibabel.Nifti1Image(np.ascontiguousarray(voxels.T), ras() if affine is None else affine)
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def head(balls: Sequence[Ball] = (LEFT,)) -> NDArray[np.int16]:
    """Return the Hounsfield units of a head with a skull, and with a bright ball at each place and no other."""
    mm = places_mm()
    values = np.where(head_hu(mm) == 600, 40, head_hu(mm))
    shell = np.sqrt(((mm / HEAD_RADII_MM) ** 2).sum(-1))
    values = np.where((shell > 0.9) & (shell < 0.97), 500, values)
    for centre, radius, _ in balls:
        values = np.where(np.linalg.norm(mm - centre, axis=-1) < radius, 600, values)
    return np.rint(values).astype(np.int16)


def mask(balls: Sequence[Ball]) -> NDArray[np.uint8]:
    """Return the mask of some balls."""
    found = np.zeros(GRID.shape, np.uint8)
    for centre, radius, value in balls:
        found[np.linalg.norm(places_mm() - centre, axis=-1) < radius] = value
    return found


def write_nnunet(root: Path, cases: dict[str, Sequence[Ball]], labels: dict[str, object] | None = None) -> Path:
    """Write cases, each with its balls, as nnU-Net does."""
    for case, balls in cases.items():
        save(root / "imagesTr" / f"{case}_0000.nii.gz", head(balls))
        save(root / "labelsTr" / f"{case}.nii.gz", mask(balls))
    facts = {
        "channel_names": {"0": "CT"},
        "labels": labels or {"background": 0, "aneurysm": 1},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(facts))
    return root


def write_bids(root: Path, cases: dict[str, Sequence[Ball]]) -> Path:
    """Write cases as BIDS, a mask for each aneurysm and none for controls."""
    rows = ["participant_id\tgroup"]
    for case, balls in cases.items():
        anat = Path(f"sub-{case}") / "ses-1" / "anat"
        save(root / anat / f"sub-{case}_ses-1_cta.nii.gz", head(balls))
        for number, ball in enumerate(balls, start=1):
            name = f"sub-{case}_ses-1_desc-Lesion_{number}_mask.nii.gz"
            save(root / "derivatives" / "manual_masks" / anat / name, mask([ball]))
        rows.append(f"sub-{case}\t{'patient' if balls else 'control'}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    (root / "dataset_description.json").write_text('{"Name": "made up", "BIDSVersion": "1.8.0"}')
    return root


def write_table(root: Path, cases: dict[str, Sequence[Ball]]) -> Path:
    """Write cases with one table of images and a table of places, in RAS."""
    rows = ["image,patient,modality,mask,points,Aneurysm Present"]
    places = ["image,x_ras_mm,y_ras_mm,z_ras_mm,radius_mm"]
    for case, balls in cases.items():
        save(root / f"{case}.nii.gz", head(balls))
        rows.append(f"{case}.nii.gz,{case},CTA,,places.csv,{int(bool(balls))}")
        places += [f"{case}.nii.gz,{-x},{-y},{z},{radius}" for (x, y, z), radius, _ in balls]
    (root / "series.csv").write_text("\n".join(rows) + "\n")
    (root / "places.csv").write_text("\n".join(places) + "\n")
    return root


def tasks(data: Path, out: Path) -> list[work.Task]:
    """Return the tasks that prepare a data set."""
    volume = VolumeConfig(**VOLUME).model_dump(mode="json")
    found, _ = catalogue.find_sources(str(data))
    made = [replace(source, own_uid=identity.made_uid(b"k", source.key)) for source in found]
    return [work.Task(source, str(out), volume, b"k".hex(), False) for source in catalogue.named(made)]


def prepared(data: Path, out: Path) -> dict[str, store.PreparedVolume | str]:
    """Prepare a data set without Ray and return each series, or why it was refused, by its place."""
    found: dict[str, store.PreparedVolume | str] = {}
    for task in tasks(data, out):
        status = work.prepare(task)
        found[task.source.key] = (
            f"{status['reason']}: {status['message']}"
            if "reason" in status
            else store.read_volume(out / status["row"]["path"])
        )
    return found


def points_mm(volume: store.PreparedVolume, points: Sequence[store.Point]) -> NDArray[np.float64]:
    """Return the patient places of points."""
    zyx = np.array([(point.z, point.y, point.x) for point in points]).reshape(-1, 3)
    return zyx @ volume.affine[:3, :3].T + volume.affine[:3, 3]
