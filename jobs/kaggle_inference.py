"""Serve an exported model to the competition's gateway, offline.

    aneurysm-ray export runs/my_run model.safetensors      (on the machine that trained)
    python jobs/kaggle_inference.py model.safetensors      (in the competition's notebook)

Hardware: 2×T4, 30 minutes a series, 12 hours in all: about 17 s a series. Unreadable series get the training
prevalence. Outside a rerun the gateway runs locally on the few series the competition ships, as a rehearsal.
"""

import os
import sys
from pathlib import Path

import pandas as pd

from aneurysm_ray.learning.server import Predictor


def main(model: str, share: str = "/kaggle/shared") -> None:
    """Serve until the gateway has asked for every series."""
    # It exists only in the competition's notebooks.
    from kaggle_evaluation.rsna_inference_server import RSNAInferenceServer

    predictor = Predictor(Path(model), share=Path(share))

    def predict(series_path: str) -> pd.DataFrame:  # the gateway calls its endpoint by this name
        return predictor(series_path)

    server = RSNAInferenceServer(predict)
    if os.environ.get("KAGGLE_IS_COMPETITION_RERUN"):
        server.serve()
    else:
        server.run_local_gateway()


if __name__ == "__main__":
    main(*sys.argv[1:])
