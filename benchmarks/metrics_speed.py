"""How long do a report's statistics take at the real size: 4,348 series × 14 labels × 1,000 bootstraps?

Run: python benchmarks/metrics_speed.py
Beside ours: scikit-learn's roc_auc_score on resampled copies, the usual way, timed on a few draws and scaled up.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from aneurysm_ray.labels import LABELS, PRESENT
from aneurysm_ray.learning import calibration, curves, froc, metrics

SERIES, DRAWS, PEER_DRAWS = 4348, 1000, 10


def table(seed: int = 0) -> pd.DataFrame:
    """Return random predictions with ties, at the competition's size and prevalence."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((SERIES, 14)) < 0.038).astype(float)
    targets[:, -1] = targets[:, :-1].max(axis=1)
    frame = pd.DataFrame({"series_uid": [f"s{i}" for i in range(SERIES)], "patient": [f"p{i}" for i in range(SERIES)]})
    frame["fold"] = np.arange(SERIES) % 5
    frame["modality"] = rng.choice(["CTA", "MRA", "MRI T2", "MRI T1post"], SERIES)
    frame["plane"] = rng.choice(["axial", "coronal", "sagittal"], SERIES, p=[0.965, 0.02, 0.015])
    frame[list(LABELS)] = np.round(1 / (1 + np.exp(-rng.normal(size=targets.shape) - targets)), 3)
    frame[[f"target/{label}" for label in LABELS]] = targets
    return frame


def candidates(frame: pd.DataFrame, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return 20 random candidates a series, and a point for every positive."""
    rng = np.random.default_rng(seed)
    found = pd.DataFrame({"series_uid": np.repeat(frame["series_uid"].to_numpy(), 20)})
    found[["x_mm", "y_mm", "z_mm"]] = rng.uniform(0, 60, (len(found), 3))
    found["probability"] = rng.random(len(found))
    points = frame.loc[frame[f"target/{PRESENT}"] > 0.5, ["series_uid"]].copy()
    points[["x_mm", "y_mm", "z_mm"]] = rng.uniform(0, 60, (len(points), 3))
    return found, points


def by_scikit_learn(frame: pd.DataFrame) -> None:
    """Resample the table and score every label anew."""
    targets, probabilities = metrics.targets_of(frame), metrics.probabilities_of(frame)
    rng = np.random.default_rng(0)
    for _ in range(PEER_DRAWS):
        rows = rng.integers(0, len(frame), len(frame))
        for label in range(14):
            roc_auc_score(targets[rows, label], probabilities[rows, label])


def seconds(work: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """Return the median wall time and processor time of a call; they differ where others use the machine."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return statistics.median(wall for wall, _ in times), statistics.median(cpu for _, cpu in times)


def main() -> None:
    """Print a row a part, the sum, and the peer."""
    frame = table()
    found, points = candidates(frame)
    targets, probabilities, patients = (
        metrics.targets_of(frame),
        metrics.probabilities_of(frame),
        metrics.patients_of(frame),
    )

    def all_curves() -> None:
        for label in range(14):
            ranking = curves.rank(targets[:, label], probabilities[:, label], patients)
            assert ranking is not None
            curves.roc(ranking)
            curves.precision_recall(ranking)

    def calibrated() -> None:
        mended = calibration.calibrate_out_of_fold(targets[:, -1], probabilities[:, -1], frame["fold"])
        calibration.reliability(targets[:, -1], mended)

    parts: dict[str, Callable[[], object]] = {
        "score, 14 labels, folds, 1,000 bootstraps": lambda: metrics.summarise(frame, draws=DRAWS),
        "7 subgroups, 1,000 bootstraps": lambda: metrics.subgroups(frame, draws=DRAWS),
        "FROC of 87,000 candidates, 1,000 bootstraps": lambda: froc.froc(found, points, frame, DRAWS),
        "28 curves with bands, 300 bootstraps": all_curves,
        "calibration out of fold": calibrated,
    }
    times = {name: seconds(work) for name, work in parts.items()}
    peer = [value * DRAWS / PEER_DRAWS for value in seconds(lambda: by_scikit_learn(frame), 1)]
    print(f"| {SERIES:,} series × 14 labels | seconds | CPU seconds |\n|---|---:|---:|")
    for name, (wall, cpu) in times.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |")
    wall, cpu = (sum(column) for column in zip(*times.values(), strict=True))
    print(f"| **the whole report** | **{wall:.2f}** | **{cpu:.2f}** |")
    ours = next(iter(times.values()))
    print(
        f"| scikit-learn, resampled copies, score alone ({PEER_DRAWS} draws, scaled) | {peer[0]:.0f} | {peer[1]:.0f} |"
    )
    print(f"| ratio, score alone | {peer[0] / ours[0]:.0f} × | {peer[1] / ours[1]:.0f} × |")


if __name__ == "__main__":
    main()
