"""What a reader's viewer opens: candidates as a DICOM SR, the heat map as a DICOM SEG and as NIfTI."""
