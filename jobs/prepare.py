"""Decode a DICOM data set to volumes that every node of the cluster can read.

    aneurysm-ray submit prepare /shared/rsna /shared/volumes
    ray job submit --working-dir . -- python jobs/prepare.py /shared/rsna /shared/volumes

Hardware: CPU workers. A series of 400 slices takes a third of a second of one core and half a GB, one that misbehaves
up to `prepare.timeout_seconds` and `prepare.memory_mb`; the disk is the limit before the cores are. Result:
/shared/volumes with volumes.parquet, rejected.csv and report.html. Run it again to go on where it stopped. Exit code 3:
done, but some series were rejected.
"""

import sys

from aneurysm_ray.cli import main

raise SystemExit(main(["prepare", *sys.argv[1:]]))
