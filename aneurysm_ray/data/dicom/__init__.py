"""Read DICOM series: one folder of files, however untidy, becomes one `Volume`."""

from aneurysm_ray.data.dicom.quality import QUALITY
from aneurysm_ray.data.dicom.reader import SeriesHeader, read_series, scan_series

__all__ = ["QUALITY", "SeriesHeader", "read_series", "scan_series"]
