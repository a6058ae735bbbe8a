"""What names of labels, files and columns mean: an aneurysm and its location, what is ignored, CT or MR.

Data sets of NIfTI files say in words of their own what a mask holds; here are those that are understood.
"""

import re

from aneurysm_ray.labels import LOCATIONS

IGNORED = "ignored"
"""Meaning of a mask's value that is neither an aneurysm to find nor its absence, such as a treated one."""
UNPLACED = ""
"""Location of an aneurysm of which nobody says where it is."""

OTHER = "other"
"""Meaning of a value that is something else in the head."""
REST = 0
"""In the place of a value: all that are not named but 0, which is never anything."""

Values = tuple[tuple[int, str], ...]
"""(value, meaning) of a mask: a location, UNPLACED, IGNORED or OTHER. What REST says holds for values that are not
named. Where it says nothing they are aneurysms if only ignored ones are named, or none; else nobody knows them."""

_IGNORED = re.compile(r"ignore|(?<!un)treated|coil|clip|stent|artefact|artifact|uncertain")
_ANEURYSM = re.compile(r"aneurysm|lesion|dome|\bsac\b|\buia\b|\bia\b")
_OTHER = re.compile(r"parent|arter(y|ies)|vessel|brain|head|skull|\bcow\b|willis|vein|sinus|face|tissue")
_CT = re.compile(r"cta?\b|computed")
_MRA = re.compile(r"mra|tof|angio|time.?of.?flight")
_T1 = re.compile(r"t1")
_CONTRAST = re.compile(r"post|gad|\bgd\b|t1c|t1ce|contrast|\bce\b")
_T2 = re.compile(r"t2")


def meaning_of(name: str) -> str | None:
    """Return what a label of this name means - a location, UNPLACED or IGNORED - or None for no aneurysm."""
    words = _plain(name)
    if _IGNORED.search(words):
        return IGNORED
    for location in LOCATIONS:
        if _plain(location) in words:
            return location
    if _ANEURYSM.search(words) and not _OTHER.search(words):
        return UNPLACED
    return None


def is_other(name: str) -> bool:
    """Whether a name is that of something in the head that is no aneurysm."""
    return bool(_OTHER.search(_plain(name)))


def modality_of(name: str) -> str | None:
    """Return CTA, MRA, MRI T2, MRI T1post, MR or None by the name of a channel, a suffix or an entity."""
    words = _plain(name)
    if _MRA.search(words):
        return "CTA" if _CT.match(words) else "MRA"
    if _CT.match(words):
        return "CTA"
    if _T2.search(words):
        return "MRI T2"
    if _T1.search(words):
        return "MRI T1post" if _CONTRAST.search(words) else "MR"
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", " ", name.lower()).strip()
