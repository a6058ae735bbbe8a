"""The headers of source images, completed so that derived objects can inherit patient and study from them."""

import copy
import datetime
import re
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID

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
_DATE = re.compile(r"(\d{4})[.\-/: ]?(\d{2})[.\-/: ]?(\d{2})")
_TIME = re.compile(r"(\d{2}):?(\d{2})?:?(\d{2})?(\.\d{1,6})?")

RESEARCH_ONLY = "Research only, not for diagnosis"
"""Stands in every object that this program writes for viewers."""


def completed(headers: Sequence[Dataset]) -> list[Dataset]:
    """Return copies of image headers in which every attribute that a derived object copies is there and valid.

    Dates and times of earlier versions of DICOM are written as today's, others left empty, as are ages and sexes.
    Raises ValueError when a header lacks what no one can make up: Study, Series or SOP Instance UID, or a SOP Class.
    """
    return [_completed(header) for header in headers]


def check_named_once(instances: Sequence[tuple[str, int]]) -> None:
    """Raise ValueError when images (SOP Instance UID, frame) share a name, so that nothing can refer to one of them."""
    shared = len(instances) - len(set(instances))
    if shared:
        raise ValueError(f"{shared + 1} source images share a SOP Instance UID, so nothing can refer to one of them")
    if not all(uid for uid, _ in instances):
        raise ValueError("source images have no SOP Instance UID, so nothing can refer to them")


def _completed(header: Dataset) -> Dataset:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        if not header.get(keyword):
            raise ValueError(f"the source images have no {keyword}, so nothing can refer to them")
    if UID(header.SOPClassUID).name == header.SOPClassUID:
        raise ValueError("the source images have a SOP Class UID that is none of DICOM's, so nothing can refer to them")
    full = copy.deepcopy(header)
    for keyword in _TYPE_2:
        if keyword not in full or full.get(keyword) is None:
            setattr(full, keyword, "")
    for element in full:
        if element.VR in ("DA", "TM"):
            element.value = (_date if element.VR == "DA" else _time)(str(element.value or ""))
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


def _date(text: str) -> str:
    """Return a date as YYYYMMDD (PS3.5 6.2), also one that is written YYYY.MM.DD or alike; empty for no date."""
    found = _DATE.fullmatch(text.strip())
    try:
        return datetime.date(*map(int, found.groups())).strftime("%Y%m%d") if found else ""
    except ValueError:
        return ""


def _time(text: str) -> str:
    """Return a time as HHMMSS.FFFFFF (PS3.5 6.2), also one with colons; empty for no time."""
    found = _TIME.fullmatch(text.strip())
    parts = [part or "" for part in found.groups()] if found else [""]
    limits = (23, 59, 59)
    if any(part and int(part) > most for part, most in zip(parts, limits, strict=False)):
        return ""
    return "".join(parts)
