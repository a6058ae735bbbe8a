"""Cross-validate one configuration: five folds, side by side where there are GPUs.

    aneurysm-ray submit train /shared/volumes --preset v5 --fold all --out /shared/runs/v5
    ray job submit --working-dir . -- python jobs/train.py /shared/volumes --preset v5 --fold all --out /shared/runs/v5

Hardware: a GPU per fold; `resources.workers=2` takes two. Any node may be lost: a fold goes on from its last epoch.
Result: /shared/runs/v5 with the out-of-fold score and its interval in summary.json, checkpoints, report.html.
Add --resume to go on with a run.
"""

import sys

from aneurysm_ray.cli import main

raise SystemExit(main(["train", *sys.argv[1:]]))
