"""The 14 label columns: their names, their order, their left/right partners and their weight in the score.

Names and order are those of the RSNA 2025 Intracranial Aneurysm Detection tables. Every array with an axis of
14 in this project follows `LABELS`.
"""

LOCATIONS: tuple[str, ...] = (
    "Left Infraclinoid Internal Carotid Artery",
    "Right Infraclinoid Internal Carotid Artery",
    "Left Supraclinoid Internal Carotid Artery",
    "Right Supraclinoid Internal Carotid Artery",
    "Left Middle Cerebral Artery",
    "Right Middle Cerebral Artery",
    "Anterior Communicating Artery",
    "Left Anterior Cerebral Artery",
    "Right Anterior Cerebral Artery",
    "Left Posterior Communicating Artery",
    "Right Posterior Communicating Artery",
    "Basilar Tip",
    "Other Posterior Circulation",
)
"""The 13 sites an aneurysm can have; index i here is channel i of every network's output."""

PRESENT = "Aneurysm Present"
"""The series-level label: the maximum of the 13 locations."""

LABELS: tuple[str, ...] = (*LOCATIONS, PRESENT)
"""All 14 columns in the CSV's order; the series-level label is the last."""

PRESENT_INDEX = LABELS.index(PRESENT)

SCORE_WEIGHTS: tuple[float, ...] = (*(1.0 for _ in LOCATIONS), 13.0)
"""Weight of each label's AUC in the competition's score; they sum to 26."""


def _mirror(label: str) -> str:
    if label.startswith("Left "):
        return "Right " + label.removeprefix("Left ")
    if label.startswith("Right "):
        return "Left " + label.removeprefix("Right ")
    return label


MIRRORED: tuple[int, ...] = tuple(LABELS.index(_mirror(label)) for label in LABELS)
"""`targets[..., MIRRORED]` are the labels of the head mirrored left to right; its own inverse."""

SHORT_NAMES: dict[str, str] = dict(
    zip(
        LABELS,
        (
            *("L ICA infra", "R ICA infra", "L ICA supra", "R ICA supra", "L MCA", "R MCA"),
            *("ACom", "L ACA", "R ACA", "L PCom", "R PCom", "Basilar tip", "Other post.", "Present"),
        ),
        strict=True,
    )
)
"""What a figure with little room writes in place of a label."""
