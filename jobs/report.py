"""Write the page of a prepared set, a run or a search again; of several, their comparison.

    aneurysm-ray submit report /shared/runs/v4 /shared/runs/v5 --out /shared/runs/v4_v5.html
    ray job submit --working-dir . -- python jobs/report.py /shared/runs/v5

Hardware: one CPU of the head node, seconds. Result: report.html in the directory, or the page that --out names.
"""

import sys

from aneurysm_ray.cli import main

raise SystemExit(main(["report", *sys.argv[1:]]))
