"""Make the starter weights of the package, from synthetic heads alone.

    python benchmarks/starter.py WORK

Writes twice 640 varied phantoms of four modalities (seeds 18 and 20) as DICOM into WORK, prepares them, and trains the
networks of `--preset starter` on 600 of each, one stage after the other, 468,000 patches in all (about two and a half
hours of one core). The last stage sees other heads than those before, so that what was learnt by heart is of no use
there; the networks of the last two stages go into the package together. The other 40 of each set judge. Each step goes
on where it stopped.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from safetensors.torch import load, save

from aneurysm_ray.learning import export, starter

NOTE = (
    "starter weights: learnt from synthetic heads alone, never from a patient; for research and as first weights for "
    "training, and for no decision about anybody"
)
PHANTOM = ["--count", "640", "--varied", "--domes", "--min-mm", "3", "--max-mm", "18"]
VOLUME = ["volume.spacing_mm=[0.8,0.8,0.8]"]
TRAIN = [
    *("--preset", "starter", "--fold", "0", "folds.count=16", "validation.every=99"),
    *("resources.cpus_per_worker=1", "feed.threads=1"),
]


class Stage(NamedTuple):
    """A training that starts from the one before."""

    seed: int
    """Of its phantoms."""
    epochs: int
    words: tuple[str, ...]


STAGES = (
    Stage(18, 6, ("sampler.patches_per_volume=40", "sampler.hard_negative_fraction=0.4", "loss.series_weight=0.05")),
    Stage(18, 5, ("optim.lr=1e-3", "sampler.hard_negative_series=256")),
    Stage(18, 9, ("optim.lr=1.5e-3",)),
    Stage(20, 13, ("optim.lr=1.5e-3",)),
)


def main(work: Path) -> None:
    init: list[str] = []
    for number, stage in enumerate(STAGES):
        volumes, run = work / f"volumes_{stage.seed}", work / f"run_{number}"
        _write(work / f"dicom_{stage.seed}", volumes, stage.seed)
        new = [*TRAIN, "--epochs", str(stage.epochs), *stage.words, *init]
        _run("train", volumes, "--out", run, *(["--resume"] if run.exists() else new))
        init = [f"init={run / 'fold_0' / 'checkpoint_last'}"]
    write([work / f"run_{number}" for number in (len(STAGES) - 1, len(STAGES) - 2)])


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


def _write(dicom: Path, volumes: Path, seed: int) -> None:
    if not (dicom / "train.csv").exists():
        shutil.rmtree(dicom, ignore_errors=True)
        _run("phantom", dicom, *PHANTOM, "--seed", seed)
    _run("prepare", dicom, volumes, *VOLUME)


def _run(*words: object) -> None:
    subprocess.run([Path(sys.executable).with_name("aneurysm-ray"), *map(str, words)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
