"""The headers of source images, completed so that derived objects can inherit patient and study from them."""

import copy
import re
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset

from aneurysm_ray import __version__

EQUIPMENT: dict[str, Any] = {
    "manufacturer": "aneurysm_ray",
    "manufacturer_model_name": "aneurysm_ray",
    "software_versions": __version__,
    "device_serial_number": "0",
}
"""General Equipment of everything this program writes; a serial number is required, and software has none."""

# Type 2 of the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): present, possibly empty. De-identified
# series, the competition's among them, have lost most of these.
_TYPE_2 = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_SEXES = ("M", "F", "O", "")
_AGE = re.compile(r"\d{3}[DWMY]")


def completed(headers: Sequence[Dataset]) -> list[Dataset]:
    """Return copies of image headers in which every attribute that a derived object copies is there and valid.

    Raises ValueError when a header lacks what no one can make up: Study, Series or SOP Instance UID.
    """
    return [_completed(header) for header in headers]


def _completed(header: Dataset) -> Dataset:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        if not header.get(keyword):
            raise ValueError(f"the source images have no {keyword}, so nothing can refer to them")
    full = copy.deepcopy(header)
    for keyword in _TYPE_2:
        if keyword not in full or full.get(keyword) is None:
            setattr(full, keyword, "")
    if full.PatientSex not in _SEXES:
        full.PatientSex = ""
    if "PatientAge" in full and not _AGE.fullmatch(str(full.PatientAge or "")):
        del full.PatientAge
    if full.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethodCodeSequence" not in full:
        full.DeidentificationMethod = full.get("DeidentificationMethod") or "not stated"
    # Texts are decoded by what the source declares, and written as UTF-8.
    full.decode()
    full.SpecificCharacterSet = "ISO_IR 192"
    return full
