"""Numbers as words: durations, counts, names in a row."""

from collections.abc import Sequence

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


def percent(share: float) -> str:
    """Write a share as whole percent."""
    return f"{100 * share:.0f} %"
