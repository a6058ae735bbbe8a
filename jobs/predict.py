"""Score a folder of DICOM series with a run's models.

    aneurysm-ray submit predict /shared/runs/v5 /shared/new --out /shared/predictions
    ray job submit --working-dir . -- python jobs/predict.py /shared/runs/v5 /shared/new --out /shared/predictions

Hardware: CPU or GPU workers. Result: predictions.csv (14 probabilities per series), candidates.csv, report.html.
Exit code 3: done, but some series could not be read; they have the training prevalence and a flag.
"""

import sys

from aneurysm_ray.cli import main

raise SystemExit(main(["predict", *sys.argv[1:]]))
