"""Decode a DICOM data set to volumes that every node of the cluster can read.

    aneurysm-ray submit prepare /shared/rsna /shared/volumes
    ray job submit --working-dir . -- python jobs/prepare.py /shared/rsna /shared/volumes

Hardware: CPU workers; a series takes 1-10 s of one core and up to 6 GB: the 4,348 series of the competition at 5 s each
need six hours of one core, or 12 minutes of 32. Result: /shared/volumes with volumes.parquet, rejected.csv and
report.html. Run it again to go on where it stopped. Exit code 3: done, but some series were rejected.
"""

import sys

from aneurysm_ray.cli import main

raise SystemExit(main(["prepare", *sys.argv[1:]]))
