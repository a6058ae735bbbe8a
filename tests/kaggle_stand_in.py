"""A stand-in for the competition's `kaggle_evaluation`: the same classes and calls, in one process, without a network.

As the real one, the gateway shuffles the rows of test.csv, copies one series at a time into a shared folder, asks the
endpoint named `predict` from another thread, and refuses what is no one-row frame of the 14 columns.
"""

import os
import random
import shutil
import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from aneurysm_ray.labels import LABELS


class Gateway:
    """Walks the test set and asks for each series."""

    def __init__(self, data_paths: tuple[Path, Path], file_share_dir: Path) -> None:
        self.table, self.series = pd.read_csv(data_paths[0], dtype=str), Path(data_paths[1])
        self.share = file_share_dir
        self.left_behind: list[Path] = []

    def run(self, ask: Callable[[str, str], object]) -> pd.DataFrame:
        uids = list(self.table["SeriesInstanceUID"])
        rows = []
        for uid in random.Random(0).sample(uids, len(uids)):
            shared = self.share / (self.series / uid).relative_to(self.series.anchor)
            for file in sorted((self.series / uid).glob("*.dcm")):
                shared.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, shared / file.name)
            prediction = ask("predict", str(shared))
            assert isinstance(prediction, pd.DataFrame), f"predict returned {type(prediction)}"
            assert prediction.shape == (1, len(LABELS)), prediction.shape
            assert list(prediction.columns) == list(LABELS)
            self.left_behind += [path for path in self.share.rglob("*") if path.is_file()]
            rows.append(prediction.assign(SeriesInstanceUID=uid))
        return pd.concat(rows, ignore_index=True).loc[:, ["SeriesInstanceUID", *LABELS]]


class RSNAInferenceServer:
    """Answers a gateway; `serve` answers the one a competition rerun starts, here `gateway_of_rerun`."""

    data_paths: tuple[Path, Path]
    file_share_dir: Path
    submission: pd.DataFrame | None = None
    gateway: Gateway
    rerun = threading.Event()

    def __init__(self, *endpoint_listeners: Callable[[str], object]) -> None:
        self.endpoints = {listener.__name__: listener for listener in endpoint_listeners}

    def serve(self) -> None:
        assert os.environ.get("KAGGLE_IS_COMPETITION_RERUN"), "serve() returns at once outside a rerun"
        type(self).rerun.set()
        self.run_local_gateway()

    def run_local_gateway(self) -> None:
        kind = type(self)
        kind.gateway = Gateway(kind.data_paths, kind.file_share_dir)
        with ThreadPoolExecutor(1) as thread:
            kind.submission = kind.gateway.run(
                lambda name, *values: thread.submit(self.endpoints[name], *values).result()
            )


def install(monkeypatch: pytest.MonkeyPatch, test_csv: Path, series: Path, share: Path) -> type[RSNAInferenceServer]:
    """Make `kaggle_evaluation.rsna_inference_server` importable for one test; return its server class."""
    server = type("RSNAInferenceServer", (RSNAInferenceServer,), {"rerun": threading.Event()})
    server.data_paths, server.file_share_dir = (test_csv, series), share
    module = types.ModuleType("kaggle_evaluation.rsna_inference_server")
    module.RSNAInferenceServer = server  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kaggle_evaluation", types.ModuleType("kaggle_evaluation"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return server
