"""What does it cost to find places on vessels where a set has no masks, and how good are they?

    aneurysm-ray phantom /tmp/phantoms --count 8 --seed 5
    python benchmarks/vesselness.py /tmp/phantoms

CPU time of this process for a series, from its files to what is stored, with and without `vessel_places`, in turns; and
the share of the mask's vessel voxels in a block of `vessel_map`, and in or beside one.
"""

import sys
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import catalogue, picture, preprocess, scans, store, vesselness

TURNS = 7
WITHOUT, WITH = VolumeConfig(masks=False), VolumeConfig(masks=True)


def prepared_in(source: catalogue.Source, config: VolumeConfig) -> tuple[store.PreparedVolume, float]:
    """A series, read, prepared, encoded and drawn, and the CPU seconds that it took."""
    begun = time.process_time()
    volume = scans.read_scan(Path(source.location), deep=source.deep, modality=source.modality)
    vessels = Path(source.vessels) if source.vessels else None
    prepared = preprocess.prepare_series(volume, config, modality=source.modality, vessels=vessels)
    store.encode(prepared, "{}")
    picture.draw(prepared, volume)
    return prepared, time.process_time() - begun


def recall(prepared: store.PreparedVolume) -> tuple[float, float]:
    """Share of the mask's voxels in a block of the map, and in or beside one."""
    assert prepared.vessels is not None
    mask = (prepared.vessels > 0) & (prepared.vessels < 255)
    found = vesselness.vessel_map(prepared.voxels, prepared.spacing_mm, prepared.modality)
    factor = vesselness.factors(prepared.spacing_mm, mask.shape)
    blocks = tuple(np.minimum(np.argwhere(mask) // factor, np.array(found.shape) - 1).T)
    beside = ndimage.binary_dilation(found, np.ones((3, 3, 3)))
    return found[blocks].mean(), beside[blocks].mean()


def main(data: str) -> None:
    """Print a row a series, and the ratio over all."""
    sources, _ = catalogue.find_sources(data)
    search = vesselness.vessel_places
    seconds: dict[bool, list[list[float]]] = {False: [], True: []}
    for _ in range(TURNS):
        for searched, rows in seconds.items():
            vesselness.vessel_places = search if searched else lambda *_: np.empty((0, 3), np.int16)
            rows.append([prepared_in(source, WITHOUT)[1] for source in sources])
    vesselness.vessel_places = search
    without, with_search = (1000 * np.median(seconds[searched], axis=0) for searched in (False, True))
    print("| modality | CPU ms without | with | vessel in blocks | in or beside |\n|---|---:|---:|---:|---:|")
    for source, before, after in zip(sources, without, with_search, strict=True):
        inside, beside = recall(prepared_in(source, WITH)[0])
        print(f"| {source.modality} | {before:.0f} | {after:.0f} | {inside:.2f} | {beside:.2f} |")
    print(f"ratio {with_search.sum() / without.sum():.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
