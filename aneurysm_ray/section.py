"""What groups of settings are made of: a frozen section that refuses unknown keys, and the kinds of numbers in it."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _rising(window: tuple[float, float]) -> tuple[float, float]:
    if not window[0] < window[1]:
        raise ValueError(f"the first value must be below the second, {window[0]:g} is not below {window[1]:g}")
    return window


Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Triple = tuple[Positive, Positive, Positive]
VoxelTriple = tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]]
Window = Annotated[tuple[float, float], AfterValidator(_rising)]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
