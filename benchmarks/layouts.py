"""Do the same heads come out the same from every layout of a data set?

    python benchmarks/layouts.py OUT --count 24

Writes phantoms with masks of their domes in the challenge's layout, and the same series as NIfTI: as BIDS, as nnU-Net
raw, and with one table whose places are those of the clicks. Prepares all four without Ray and compares voxels, points
(in patient space, in units of a stored voxel: those of tables with the clicks, those of masks with the middles of the
domes, which clicks miss), labels and folds by one file. Then trains a small grid network on each, two thirds of the
heads for training; series are called by their case there, as patches are drawn in the order of names and NIfTI has
none. The challenge's layout and the table know the same, and so do BIDS and nnU-Net: numbers within a pair are
compared digit by digit.
"""

import argparse
import csv
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

from aneurysm_ray import overrides, phantom, rundir
from aneurysm_ray.config import Config, FoldsConfig, VolumeConfig
from aneurysm_ray.data import catalogue, dataset, domes, doubts, identity, masks, own_folds, store, work
from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.points import marked_mm
from aneurysm_ray.labels import LABELS, PRESENT_INDEX
from aneurysm_ray.learning.engine import fit

EPOCHS = 3
KNOWN_ALIKE = (("challenge", "table"), ("bids", "nnunet"))
KEY = b"layouts"
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
VOLUME = VolumeConfig(spacing_mm=(1.5, 1.5, 1.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=24)
    arguments = parser.parse_args()
    out: Path = arguments.out
    options = phantom.PhantomOptions(count=arguments.count, seed=3, spacing_mm=1.2, domes=True, workers=2, min_mm=4)
    phantom.write_dataset(out / "challenge", options)
    names = write_copies(out)
    sets = {name: prepare(out / name, out / f"{name}_out") for name in ("challenge", "bids", "nnunet", "table")}
    by_case = {name: by_patient(found, names, name) for name, found in sets.items()}
    print(
        "| layout | volumes | equal bit by bit | box moved, mm | points | farthest point, voxels | labels that differ "
        "| doubts | same folds |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    first = by_case["challenge"]
    for name, found in by_case.items():
        print(f"| {name} | " + " | ".join(compare(found, first, names, name, out)) + " |", flush=True)
    print("\n| layout | " + " | ".join(f"loss, epoch {n + 1}" for n in range(EPOCHS)) + " | probabilities |")
    print("|---|" + "---:|" * EPOCHS + "---|")
    for one, other in KNOWN_ALIKE:
        expected, told = (trained(known(by_case[name], first, name), out / f"{name}_trained") for name in (one, other))
        print(f"| {one} | " + " | ".join(f"{loss!r}" for loss, _ in expected) + " | |")
        apart = float(np.abs(expected[-1][1] - told[-1][1]).max())
        judged = "equal" if apart == 0 else f"{apart:.1e} apart"
        print(f"| {other} | " + " | ".join(f"{loss!r}" for loss, _ in told) + f" | {judged} |", flush=True)


def known(
    found: dict[str, store.PreparedVolume], first: dict[str, store.PreparedVolume], layout: str
) -> dict[str, store.PreparedVolume]:
    """Return volumes by what both layouts of a pair know: nnU-Net's cannot say that a series is T2, whose vessels are
    dark and are looked for as such, so that these are left out; the names of the other modalities are given."""
    if layout not in ("bids", "nnunet"):
        return found
    return {
        case: replace(volume, modality=first[case].modality)
        for case, volume in found.items()
        if "T2" not in first[case].modality
    }


def trained(found: dict[str, store.PreparedVolume], out: Path) -> list[tuple[float, np.ndarray]]:
    """Return for each epoch the training loss and the probabilities of the heads that were held out."""
    shutil.rmtree(out, ignore_errors=True)
    config = overrides.build(
        {
            "model.name": "resnet3d18",
            "model.head": "grid",
            "model.width": 8,
            "patch.size": (32, 48, 48),
            "volume.spacing_mm": VOLUME.spacing_mm,
            "sampler.patches_per_volume": 2,
            "inference.overlap": 0.25,
            "optim.epochs": EPOCHS,
            "optim.batch_size": 8,
            "optim.precision": "float32",
            "optim.deterministic": True,
            "feed.cache_dir": str(out / "cache"),
        },
        {},
        {},
    )
    rows = []
    for number, volume in enumerate(found[case] for case in sorted(found)):
        named = replace(volume, series_uid=f"1.2.{number}", patient=f"p{number}", source_digest="")
        rows.append(store.table_row(named, store.write_volume(out, named, "{}").stat().st_size))
    store.write_table(out, rows)
    rundir.write_json(out / rundir.PREPARE, {"kind": "volumes", "volume": config.volume.model_dump(mode="json")})
    table = store.volumes_table(out)
    return list(epochs(config, out, table))


def epochs(config: Config, out: Path, table: pd.DataFrame) -> Iterator[tuple[float, np.ndarray]]:
    held_out = np.arange(len(table)) % 3 == 0
    for result in fit(config, out, table[~held_out], table[held_out]):
        yield result.metrics["train/loss"], result.predictions.sort_values("series_uid")[list(LABELS)].to_numpy()


def write_copies(out: Path) -> dict[str, str]:
    """Write the NIfTI copies and return the case of each series."""
    entries = dataset.open_dataset(out / "challenge").series
    names = {str(entry.series_uid): f"case{number:03d}" for number, entry in enumerate(entries)}
    rows, places = [], []
    people = ["participant_id\tgroup"]
    for entry in entries:
        case, volume = names[str(entry.series_uid)], read_series(entry.path)
        image = nibabel.Nifti1Image(volume.voxels.T, RAS @ volume.affine[:, [2, 1, 0, 3]])
        anat = out / "bids" / f"sub-{case}" / "anat"
        suffix = {"CTA": "cta", "MRA": "angio", "MRI T2": "T2w"}.get(entry.modality or "", "T1w")
        ce = "_ce-gadolinium" if entry.modality == "MRI T1post" else ""
        table = out / "table"
        for path in (anat, out / "nnunet" / "imagesTr", out / "nnunet" / "labelsTr", table):
            path.mkdir(parents=True, exist_ok=True)
        nibabel.save(image, anat / f"sub-{case}{ce}_{suffix}.nii.gz")
        os.link(anat / f"sub-{case}{ce}_{suffix}.nii.gz", out / "nnunet" / "imagesTr" / f"{case}_0000.nii.gz")
        os.link(anat / f"sub-{case}{ce}_{suffix}.nii.gz", table / f"{case}.nii.gz")
        present = int(entry.targets[PRESENT_INDEX])
        people.append(f"sub-{case}\t{'patient' if present else 'control'}")
        mask_name = ""
        if entry.domes:
            mask_name = f"{case}_mask.nii.gz"
            mask = on_image(entry.domes[0].path, image)
            nibabel.save(mask, table / mask_name)
        else:
            mask = nibabel.Nifti1Image(np.zeros(volume.shape[::-1], np.uint8), image.affine)
        folder = out / "bids" / "derivatives" / "masks" / f"sub-{case}" / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        nibabel.save(mask, folder / f"sub-{case}_desc-aneurysm_mask.nii.gz")
        nibabel.save(mask, out / "nnunet" / "labelsTr" / f"{case}.nii.gz")
        for click in entry.points:
            placed = marked_mm(volume, click.sop_uid, click.x, click.y, click.frame)
            assert placed is not None
            x, y, z = placed[0]
            places.append([f"{case}.nii.gz", x, y, z, click.location])
        known = (int(target) for target in entry.targets)
        vessels = os.path.relpath(entry.vessels, table) if entry.vessels else ""
        rows.append([f"{case}.nii.gz", case, entry.modality, mask_name, vessels, "places.csv", *known])
    (out / "bids" / "participants.tsv").write_text("\n".join(people) + "\n")
    facts = {"channel_names": {"0": "scan"}, "labels": {"background": 0, "aneurysm": 1}}
    (out / "nnunet" / "dataset.json").write_text(json.dumps(facts))
    write(out / "table" / "series.csv", ["image", "patient", "modality", "mask", "vessels", "points", *LABELS], rows)
    write(out / "table" / "places.csv", ["image", "x_lps_mm", "y_lps_mm", "z_lps_mm", "location"], places)
    return names


def on_image(path: Path, image: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    """Return a mask of aneurysms as 0 and 1, in the order of its image's voxels, as these layouts want it."""
    given = nibabel.load(path)
    assert isinstance(given, nibabel.Nifti1Image)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(given.affine), nibabel.io_orientation(image.affine)
    )
    turned = given.as_reoriented(turn)
    assert np.allclose(turned.affine, image.affine, atol=1e-2) and turned.shape == image.shape
    return nibabel.Nifti1Image((np.asarray(turned.dataobj) > 0).astype(np.uint8), image.affine)


def middles(entry: dataset.SeriesEntry) -> np.ndarray:
    """Return (n, 3): the middles of the domes of a series in patient mm."""
    mask = masks.read_mask(entry.domes[0].path)
    return np.array([dome.centre_mm for dome in domes.domes_of(mask.labels, mask.affine)]).reshape(-1, 3)


def write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def prepare(data: Path, out: Path) -> list[tuple[str, store.PreparedVolume]]:
    """Prepare a data set without Ray: the place and the volume of each series."""
    found, _ = catalogue.find_sources(str(data))
    made = [
        replace(source, own_uid=identity.made_uid(KEY, source.key)) if source.own_uid == "" else source
        for source in found
    ]
    volumes = []
    for source in catalogue.named(made):
        status = work.prepare(work.Task(source, str(out), VOLUME.model_dump(mode="json"), KEY.hex(), False))
        assert "row" in status, status
        volumes.append((source.key, store.read_volume(out / status["row"]["path"])))
    return volumes


def by_patient(
    found: list[tuple[str, store.PreparedVolume]], names: dict[str, str], layout: str
) -> dict[str, store.PreparedVolume]:
    """Return the volumes by their case."""
    cases = sorted(names.values())
    if layout == "challenge":
        return {names[volume.series_uid]: volume for _, volume in found}
    return {next(case for case in cases if case in place): volume for place, volume in found}


def compare(
    found: dict[str, store.PreparedVolume],
    first: dict[str, store.PreparedVolume],
    names: dict[str, str],
    layout: str,
    out: Path,
) -> list[str]:
    """Return the cells of a row: a layout against the challenge's."""
    equal = sum(same(found[case], volume) for case, volume in first.items())
    farthest, moved, points, differ, doubtful = 0.0, 0.0, 0, 0, 0
    entries = {names[str(entry.series_uid)]: entry for entry in dataset.open_dataset(out / "challenge").series}
    for case, volume in first.items():
        places = in_space(found[case])
        points += len(places)
        doubtful += bool(set(found[case].quality) & set(doubts.GRAVE[: doubts.FIRST]))
        moved = max(moved, float(np.abs(found[case].affine[:3, 3] - volume.affine[:3, 3]).max()))
        wanted = in_space(volume) if layout in ("challenge", "table") else middles(entries[case])
        assert len(wanted) == len(places), case
        for place in wanted:
            apart = np.linalg.norm(places - place, axis=1).min(initial=np.inf) / VOLUME.spacing_mm[0]
            farthest = max(farthest, float(apart))
        known = ~np.isnan(found[case].targets)
        differ += int((found[case].targets[known] != volume.targets[known]).sum())
    folds = {case: number % 3 for number, case in enumerate(sorted(found))}
    path = out / f"{layout}_splits.csv"
    prefix = {"bids": "sub-"}.get(layout, "")
    of_series = {names[uid]: uid for uid in names}
    named = [(of_series[c] if layout == "challenge" else f"{prefix}{c}", f) for c, f in folds.items()]
    write(path, ["series_uid" if layout == "challenge" else "patient", "fold"], [list(row) for row in named])
    table = pd.DataFrame(
        {"series_uid": [v.series_uid for v in found.values()], "patient": [v.patient for v in found.values()]}
    )
    read = own_folds.read(path, table, FoldsConfig(count=3), lambda name: identity.patient_hash(KEY, name, ""))
    alike = list(read["fold"]) == [folds[case] for case in found]
    told = [len(found), equal, f"{moved:.2f}", points, f"{farthest:.2f}", differ, doubtful, "yes" if alike else "no"]
    return [str(each) for each in told]


def same(one: store.PreparedVolume, other: store.PreparedVolume) -> bool:
    """Whether two volumes have the same voxels, the same masks of domes, and the same place, bit by bit."""
    domes_alike = one.domes is other.domes is None or (
        one.domes is not None and other.domes is not None and np.array_equal(one.domes, other.domes)
    )
    return np.array_equal(one.voxels, other.voxels) and np.array_equal(one.affine, other.affine) and domes_alike


def in_space(volume: store.PreparedVolume) -> np.ndarray:
    """Return (n, 3): a volume's points in patient mm."""
    voxels = np.array([(p.z, p.y, p.x) for p in volume.points]).reshape(-1, 3)
    return voxels @ volume.affine[:3, :3].T + volume.affine[:3, 3]


if __name__ == "__main__":
    main()
