"""Base class of all settings, and types for positive numbers and fractions."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Rate = Annotated[float, Field(gt=0.0, le=1000.0)]
"""frames per second"""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Options(BaseModel):
    """Immutable settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)
