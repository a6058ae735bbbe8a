"""Make the starter weights of the package, from synthetic heads alone.

    python benchmarks/starter.py WORK

Writes 640 varied phantoms of four modalities (seeds 18 and 20), and 360 with more aneurysms, slabs of CT among them
(seed 21), as DICOM into WORK, prepares them, and trains the network of `--preset starter` on 15 of 16 of each, one
stage after the other (about four hours of one core). A set of other heads follows another, so that what was learnt by
heart is of no use there, and all of them come last; patches are small at first, which a core learns from quickly. What
is left out of each set judges. Each step goes on where it stopped.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from safetensors import safe_open
from safetensors.torch import load, save

from aneurysm_ray.learning import export, starter

NOTE = (
    "starter weights: learnt from synthetic heads alone, never from a patient; for research and as first weights for "
    "training, and for no decision about anybody"
)
PHANTOM = ["--varied", "--domes", "--min-mm", "3", "--max-mm", "18"]
SETS = {
    18: ["--count", "640"],
    20: ["--count", "640"],
    21: ["--count", "360", "--positive", "0.6", "--scans", "head,head,slab"],
}
"""Sets of phantoms by their seed."""
VOLUME = ["volume.spacing_mm=[0.8,0.8,0.8]"]
TRAIN = [
    *("--preset", "starter", "--fold", "0", "validation.every=99"),
    *("resources.cpus_per_worker=1", "feed.threads=1"),
]


class Stage(NamedTuple):
    """A training that starts from the one before."""

    seeds: tuple[int, ...]
    """Of its phantoms."""
    epochs: int
    words: tuple[str, ...] = ()


SMALL = (
    *("patch.size=[32,32,32]", "inference.window=3", "loss.vessel_weight=0.1", "sampler.patches_per_volume=20"),
    *("augment.curve=0", "augment.blur=0.25", "augment.noise=0.04"),
)
"""The quick settings of the first stages."""
FIRST = (
    *("optim.lr=2e-3", "sampler.patches_per_volume=40", "sampler.hard_negative_fraction=0.4"),
    "loss.series_weight=0.05",
)
STAGES = (
    Stage((18,), 6, (*SMALL, *FIRST)),
    Stage((18,), 5, (*SMALL, "optim.lr=1e-3", "sampler.hard_negative_series=256")),
    Stage((18,), 9, SMALL),
    Stage((20,), 13, SMALL),
    Stage((18,), 3),
    Stage((21,), 4, ("sampler.patches_per_volume=45",)),
    Stage((18, 20, 21), 3, ("optim.lr=1e-3", "sampler.patches_per_volume=7", "sampler.hard_negative_series=96")),
)
PACKED = (6, 5, 2)
"""The stages whose networks go into the package together; the first one's is what a training begins with."""


def main(work: Path) -> None:
    init: list[str] = []
    for number, stage in enumerate(STAGES):
        run, volumes = work / f"run_{number}", _prepared(work, stage.seeds)
        new = [*TRAIN, "--epochs", str(stage.epochs), *stage.words, *_folds(work, stage.seeds), *init]
        _run("train", volumes, "--out", run, *(["--resume"] if run.exists() else new))
        init = [f"init={run / 'fold_0' / 'checkpoint_last'}"]
    write([work / f"run_{number}" for number in PACKED])


def write(runs: list[Path]) -> None:
    """Write the networks of some runs of one fold as one model, the first run's first."""
    tensors, metadata = {}, {}
    for number, run in enumerate(runs):
        exported = run / "exported.safetensors"
        export.export_run(run, exported, NOTE)
        for name, tensor in load(exported.read_bytes()).items():
            tensors[f"fold_{number}/{name.partition('/')[2]}"] = tensor
        with safe_open(exported, "pt") as file:
            metadata = metadata or file.metadata()
    # Thresholds were chosen for one network, and are not those of a mean.
    del metadata["operating"]
    starter.FILE.write_bytes(save(tensors, {**metadata, "folds": json.dumps(list(range(len(runs))))}))
    print(f"{starter.FILE} ({starter.FILE.stat().st_size / 1e6:.1f} MB)")


def _prepared(work: Path, seeds: Sequence[int]) -> Path:
    """Write and prepare phantoms, or several sets of them as one, and return the volumes."""
    name = "_".join(map(str, seeds))
    dicom, volumes = work / f"dicom_{name}", work / f"volumes_{name}"
    if len(seeds) > 1:
        _gather([work / f"dicom_{seed}" for seed in seeds], dicom)
    elif not (dicom / "train.csv").exists():
        shutil.rmtree(dicom, ignore_errors=True)
        _run("phantom", dicom, *PHANTOM, *SETS[seeds[0]], "--seed", seeds[0])
    _run("prepare", dicom, volumes, *VOLUME)
    return volumes


def _gather(parts: Sequence[Path], whole: Path) -> None:
    """Make one data set of several: their tables in a row, and links to what they hold."""
    for folder in ("series", "segmentations"):
        (whole / folder).mkdir(parents=True, exist_ok=True)
        for source in (source for part in parts for source in (part / folder).iterdir()):
            link = whole / folder / source.name
            link.unlink(missing_ok=True)
            link.symlink_to(source.resolve())
    for table in ("train.csv", "train_localizers.csv"):
        pd.concat([pd.read_csv(part / table, dtype=str) for part in parts]).to_csv(whole / table, index=False)


def _folds(work: Path, seeds: Sequence[int]) -> list[str]:
    """Return the words that leave out of several sets what the stages before left out of each."""
    if len(seeds) == 1:
        return ["folds.count=16"]
    first = [next(number for number, stage in enumerate(STAGES) if stage.seeds == (seed,)) for seed in seeds]
    dealt = pd.concat([pd.read_csv(work / f"run_{number}" / "folds.csv", dtype=str) for number in first])
    dealt.assign(fold=(dealt["fold"] != "0").astype(int))[["series_uid", "fold"]].to_csv(
        work / "folds.csv", index=False
    )
    return [f"folds.file={work / 'folds.csv'}", "folds.count=2"]


def _run(*words: object) -> None:
    subprocess.run([Path(sys.executable).with_name("aneurysm-ray"), *map(str, words)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
