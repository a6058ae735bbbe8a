"""Numbers as words: durations, counts, names in a row."""

from collections.abc import Mapping, Sequence
from typing import Any

from aneurysm_ray.learning.bootstrap import Score


def duration(seconds: float) -> str:
    """Write a time span with two units at most."""
    seconds = round(seconds)
    for unit, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{seconds} s"


def count(number: int, one: str, many: str = "") -> str:
    """Write a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """Write names in a row with a final `and`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def interval(score: Score, digits: int = 3) -> str:
    """Write a value with its interval."""
    return f"{score.value:.{digits}f} [{score.low:.{digits}f}, {score.high:.{digits}f}]"


def picked(folds: Sequence[int], unpicked: Mapping[str, Any] | None) -> str:
    """Say by which folds settings were chosen, and what they score without them (`metrics.unpicked`)."""
    which = f"{'fold' if len(folds) == 1 else 'folds'} {listed([str(fold) for fold in folds])}"
    if unpicked is None or unpicked["score"]["value"] is None:
        return f"The settings were chosen by {which}, and there is no score without what chose them: this one flatters."
    return f"Without {which}, by which the settings were chosen, it is {Score.of(unpicked['score'])}."


def percent(share: float) -> str:
    """Write a share as whole percent."""
    return f"{100 * share:.0f} %"
