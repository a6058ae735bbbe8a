"""Search hyperparameters: as many trials at a time as there are GPUs, bad ones stopped early.

    aneurysm-ray submit tune /shared/volumes --preset v5 --trials 64 --then-train --out /shared/runs/search
    ray job submit --working-dir . -- python jobs/tune.py /shared/volumes --trials 64 --out /shared/runs/search

Hardware: a GPU per trial, or a share: `resources.gpus_per_worker=0.5` runs two on each. On a cluster that grows,
`tune.concurrent=8` asks for eight GPUs. Result: best.toml, trials.csv, optuna.journal, report.html. Add --resume to go
on with a search, with more --trials to make it longer. Exit code 3: done, but some trials failed.
"""

import sys

from aneurysm_ray.cli import main

raise SystemExit(main(["tune", *sys.argv[1:]]))
