"""Read DICOM series: one folder of files, however untidy, becomes one `Volume`."""

from aneurysm_ray.data.dicom.localizers import locate, to_patient_mm
from aneurysm_ray.data.dicom.quality import QUALITY
from aneurysm_ray.data.dicom.reader import read_series
from aneurysm_ray.data.dicom.scan import SeriesHeader, scan_series

__all__ = ["QUALITY", "SeriesHeader", "locate", "read_series", "scan_series", "to_patient_mm"]
