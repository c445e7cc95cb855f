"""Made-up studies with known truth: binary outcomes with effects of source, training and both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm


@dataclass(frozen=True)
class World:
    """Where outcomes come from, as standard deviations of normal effects (video and noise: 1 and 0.7)."""

    groups: int
    seeds: int
    group: float = 0.3
    """how much sources differ in what a variant makes of them"""
    training: float = 0.1
    """how much trainings differ"""
    both: float = 0.2
    """how much trainings differ in what they make of a source"""
    accuracy: float = 0.7
    """true accuracy of every variant"""
    videos: int = 3
    """mean number of videos per source, from 1 to twice that minus 1"""


def outcomes(
    world: World, generator: np.random.Generator, variants: int = 2
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return hits `(variants, V, S)` of variants that are equally good, and each video's source `(V,)`."""
    sizes = generator.integers(1, 2 * world.videos, size=world.groups)
    unit = np.repeat(np.arange(world.groups), sizes)
    shared = generator.normal(size=(len(unit), 1)) + 0.7 * generator.normal(size=(world.groups, 1))[unit]
    sd = np.sqrt(1 + 0.49 + world.group**2 + world.training**2 + world.both**2 + 0.49)
    found = []
    for _ in range(variants):
        own = world.group * generator.normal(size=(world.groups, 1))[unit]
        training = world.training * generator.normal(size=(1, world.seeds))
        both = world.both * generator.normal(size=(world.groups, world.seeds))[unit]
        noise = 0.7 * generator.normal(size=(len(unit), world.seeds))
        found.append(norm.ppf(world.accuracy) * sd + shared + own + training + both + noise > 0)
    return np.stack(found).astype(np.float64), unit
