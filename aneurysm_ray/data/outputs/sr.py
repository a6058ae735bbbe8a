"""Candidates as a DICOM Structured Report: TID 1500 Measurement Report in a Comprehensive SR (PS3.16)."""

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pandas as pd
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from aneurysm_ray import __version__
from aneurysm_ray.data.outputs.evidence import EQUIPMENT, RESEARCH_ONLY, completed

SITES: tuple[tuple[str, Code], ...] = (
    ("Internal Carotid", codes.SCT.InternalCarotidArtery),
    ("Middle Cerebral", codes.SCT.MiddleCerebralArtery),
    ("Anterior Communicating", codes.SCT.AnteriorCommunicatingArtery),
    ("Anterior Cerebral", codes.SCT.AnteriorCerebralArtery),
    ("Posterior Communicating", codes.SCT.PosteriorCommunicatingArtery),
    ("Basilar Tip", codes.SCT.BasilarArtery),
    ("Other Posterior Circulation", codes.SCT.CerebralArtery),
)
"""Part of a location's name to the SNOMED CT code of its artery. SNOMED knows the arteries, not all of the segments:
the location's full name stands in the tracking identifier."""


def write_report(
    path: Path,
    candidates: pd.DataFrame,
    headers: Sequence[Dataset],
    *,
    present_probability: float,
    model_digest: str,
    calibrated_probability: float | None = None,
) -> None:
    """Write the candidates of one series as a structured report.

    `candidates` has columns sop_uid, frame (from 0), row, column (indices of pixel centres, from 0), probability and
    location. `headers` are those of the source images, pixels not needed, the ones the candidates name among them.
    The report holds a series-level finding, and one planar region (TID 1410) per candidate: a point in its source
    image, site and laterality. What a network puts out is a score and nothing more; only a probability that was
    calibrated on held-out patients is a certainty, in whole percent.
    Raises ValueError when the headers cannot be referred to.
    """
    evidence = completed(headers)
    by_uid = {header.SOPInstanceUID: header for header in evidence}
    algorithm = sr.AlgorithmIdentification(
        name="aneurysm_ray",
        version=__version__,
        family=codes.DCM.ArtificialIntelligence,
        parameters=[f"model {model_digest[:16]}"],
    )
    named = [by_uid[uid] for uid in dict.fromkeys(candidates["sop_uid"])] or evidence[:1]
    groups: list[sr.Template] = [
        _series_group(evidence[0], _measured(present_probability, calibrated_probability), algorithm)
    ]
    groups += [
        _candidate_group(number, row, by_uid[str(row["sop_uid"])], algorithm)
        for number, (_, row) in enumerate(candidates.iterrows(), start=1)
    ]
    device = sr.DeviceObserverIdentifyingAttributes(uid=hd.UID(), name="aneurysm_ray", model_name="aneurysm_ray")
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=codes.DCM.Device, observer_identifying_attributes=device
            )
        ),
        procedure_reported=_procedure(evidence[0]),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    note = sr.TextContentItem(codes.DCM.Comment, RESEARCH_ONLY, sr.RelationshipTypeValues.CONTAINS)
    report[0].ContentSequence.append(note)
    document = sr.ComprehensiveSR(
        evidence=named if evidence[0] in named else [evidence[0], *named],
        content=report,
        series_instance_uid=hd.UID(),
        series_number=9901,
        series_description="Aneurysm candidates, research only",
        sop_instance_uid=hd.UID(),
        instance_number=1,
        is_complete=True,
        **EQUIPMENT,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    document.save_as(path, enforce_file_format=True)


def site(location: str) -> sr.FindingSite:
    """Return the coded artery and side of a location of `labels.LOCATIONS`."""
    artery = next(code for part, code in SITES if part in location)
    side = (
        codes.SCT.Left if location.startswith("Left ") else codes.SCT.Right if location.startswith("Right ") else None
    )
    return sr.FindingSite(anatomic_location=artery, laterality=side)


def _procedure(header: Dataset) -> Code:
    return Code("24725-4", "LN", "CT Head") if header.get("Modality") == "CT" else Code("24590-2", "LN", "MR Brain")


_SCORE = Code("ANEURYSM_SCORE", "99ANEURYSMRAY", "Detector score, not calibrated")


def _measured(score: float, certainty: float | None = None) -> sr.Measurement:
    """Return a calibrated probability as a certainty, else the score that it would be made of, as such."""
    if certainty is not None:
        # (111012, DCM, "Certainty of Finding") is defined in percent.
        return sr.Measurement(name=codes.DCM.CertaintyOfFinding, value=round(100 * certainty), unit=codes.UCUM.Percent)
    return sr.Measurement(name=_SCORE, value=round(score, 2), unit=codes.UCUM.NoUnits)


def _series_group(
    header: Dataset, measured: sr.Measurement, algorithm: sr.AlgorithmIdentification
) -> sr.MeasurementsAndQualitativeEvaluations:
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=hd.UID(), identifier="Aneurysm present"),
        finding_type=codes.SCT.Aneurysm,
        algorithm_id=algorithm,
        source_images=[sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)],
        measurements=[measured],
    )


def _candidate_group(
    number: int, candidate: "pd.Series[float]", header: Dataset, algorithm: sr.AlgorithmIdentification
) -> sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    frames = [int(candidate["frame"]) + 1] if int(header.get("NumberOfFrames") or 1) > 1 else None
    # SCOORD counts from the corner of the first pixel, whose centre is (0.5, 0.5): PS3.3 C.18.6.1.1.
    point = np.array([[candidate["column"] + 0.5, candidate["row"] + 0.5]])
    region = sr.ImageRegion(
        graphic_type=sr.GraphicTypeValues.POINT,
        graphic_data=point,
        source_image=sr.SourceImageForRegion(
            referenced_sop_class_uid=header.SOPClassUID,
            referenced_sop_instance_uid=header.SOPInstanceUID,
            referenced_frame_numbers=frames,
        ),
    )
    location = str(candidate["location"])
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=hd.UID(), identifier=f"Candidate {number}: {location}"),
        referenced_region=region,
        finding_type=codes.SCT.Aneurysm,
        algorithm_id=algorithm,
        finding_sites=[site(location)],
        measurements=[_measured(float(candidate["probability"]))],
    )
