"""Train and tune 3D detectors of intracranial aneurysms from DICOM, on one machine or a Ray cluster."""

__version__ = "0.1.0"
