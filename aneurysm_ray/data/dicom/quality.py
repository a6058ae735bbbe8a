"""The codes of everything the reader repairs, assumes or leaves out, each with its meaning."""

QUALITY: dict[str, str] = {
    # left out
    "junk_files": "files that are no DICOM images were left out",
    "unreadable_files": "damaged or unsupported DICOM files were left out",
    "colour_files": "colour images were left out",
    "duplicate_files": "files with the same bytes as another were left out",
    "duplicate_positions": "of several images at one position, the lowest Acquisition, then Instance Number was kept",
    "other_series": "images of another Series Instance UID were left out",
    "other_stacks": "images of another orientation, matrix or pixel spacing were left out",
    "localizers": "scout images (Image Type LOCALIZER) were left out",
    "projections": "projections (Image Type PROJECTION IMAGE or MIP) were left out",
    "other_components": "phase, real or imaginary images were left out, the magnitude kept",
    "other_passes": "of several echoes, phases or time points over the same positions, one was kept",
    # geometry
    "missing_slices": "a gap is a multiple of the slice spacing: slices are missing; the true positions are kept",
    "uneven_slices": "the slice spacing varies; the true positions are kept",
    "gantry_tilt": "slices step sideways as well as along their normal; the true positions are kept",
    "shifted_slices": "slices are shifted in their plane against one straight line; the true positions are kept",
    "position_assumed": "no Image Position (Patient): slices stand at their Slice Location, centred on the axis",
    "orientation_assumed": "no Image Orientation (Patient): axial was assumed",
    "orientation_repaired": "direction cosines were not orthonormal and were made so",
    "geometry_assumed": "frames without positions of their own: stored order and nominal spacing were assumed",
    "frames_assumed": "Number of Frames is missing; it was taken from the functional groups or the pixel data's length",
    # pixels
    "masked_bits": "bits above Bits Stored, such as an old overlay, were cleared",
    "rescale_varies": "Rescale Slope or Intercept differ between slices; each slice has its own applied",
    "rescale_assumed": "a CT without Rescale Slope and Intercept: stored values were taken for Hounsfield units",
    "hu_doubtful": "a CT whose smallest value is far from air at -1000 HU: the values may be no Hounsfield units",
    "modality_lut": "values went through a Modality LUT",
    "wide_range": "values do not fit int16, so that the voxels are float32",
    "padding": "voxels with the Pixel Padding Value lie outside the scanned field and were set to background",
    "monochrome1": "Photometric Interpretation is MONOCHROME1; values are kept, as it concerns display only",
    "inverted": "Presentation LUT Shape is INVERSE; stored values were inverted",
    # identity
    "no_preamble": "a file without DICOM preamble was read as a bare data set",
    "repeated_instance_uids": "several files share one SOP Instance UID, so that points cannot be placed by it",
    "point_lost": "a localizer names an image that is not in the volume, or names two; its point was left out",
    # region
    "head_doubtful": "no head was found, as none fits a ball of 48 mm radius; the scan's top was taken for the head's",
    # points and masks
    "point_repeated": "clicks of one location less than 2 mm apart were taken for one",
    "point_outside": "a point lies outside the stored volume",
    "point_side": "a left label's point lies more than 6 mm to the right of the head's middle, or the reverse",
    "point_dark": "nothing within 3 mm of a point is as bright as blood is in such a scan",
    "mask_unreadable": "a mask cannot be read, or holds labels that are no vessels; it was left out",
    "mask_misses": "less than half of what a vessel mask labels lies in the stored volume; it was left out",
    "mask_contradicts": "a vessel mask has its sides swapped, or lies away from the points; it was left out",
    "series_uid_assumed": "no Series Instance UID: the name of the folder or file stands for it",
}
"""Reason codes of `Volume.quality` and what each means."""
