"""Settings of a study: a base experiment, variants, seeds, splits and comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Options, PositiveInt

Changes = dict[str, Any]
"""Dotted settings (`model.head.kind`) or nested ones, over the base experiment."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]
SEPARATOR = " · "
"""Separator of the levels in the name of a variant."""


class DemoData(Options):
    """The generated demo data set, written if the study's data set does not exist."""

    out: Path = Path("demo/study")
    """folder of the data set"""
    theme: Literal["motion", "order", "appearance"] = "motion"
    """motion: the classes of `two-stream demo`; order: classes that differ only in the order of frames; appearance:
    classes that every single frame shows"""
    seed: int = 1
    """seed of the videos"""
    groups: Annotated[int, Field(ge=3)] = 15
    """number of source scenes; each scene has `takes` videos per class"""
    takes: PositiveInt = 1
    """videos per class and source scene"""
    flow: bool = False
    """also compute TV-L1 flow"""


class FeatureOptions(Options):
    """Training of heads on a frozen backbone; its features are computed once per video for all heads and seeds."""

    train_views: PositiveInt = 1
    """number of augmented clips cached per training video; epoch e uses clip e modulo this number"""
    maps: bool = False
    """cache feature maps, which the non-local head needs; false: cache only tokens"""
    backbone: Changes | None = None
    """changes to the base experiment for training the backbone first; every cell then uses the frozen weights of this
    backbone. None: the weights of the base experiment are used (`train.init` or a pretrained backbone)"""


class Reference(Options):
    """A published accuracy of a variant."""

    value: Annotated[float, Field(gt=0.0, le=100.0)]
    """accuracy in per cent"""
    source: str
    """paper and table"""


class Against(Options):
    """A family of comparisons, whose p-values are corrected together."""

    name: str = ""
    """title in the report; if empty, derived from the comparison"""
    baseline: str | None = None
    """variant, or level of `factor`, to compare all others with"""
    factor: str | None = None
    """compare only variants that differ only in this factor of the grid"""
    pairs: list[tuple[str, str]] = Field(default_factory=list)
    """pairs of variants to compare; each difference is the first minus the second"""
    within: dict[str, str] = Field(default_factory=dict)
    """compare only variants with these levels of other factors"""

    @model_validator(mode="after")
    def _one_way(self) -> Against:
        if bool(self.pairs) and (self.baseline is not None or self.factor is not None):
            raise ValueError("`pairs` lists all comparisons; remove `baseline` and `factor`")
        return self


class Study(Options):
    """A study: one question, and the runs that answer it."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.+-]+$")]
    """name of the study and of its folder under `out`"""
    question: str
    """question of the study; the headline of its report"""
    base: Path | None = None
    """experiment to base variants on: a file, relative to the study's file or to the working folder, or the name of an
    experiment (`two-stream settings`); none: the defaults"""
    settings: Changes = Field(default_factory=dict)
    """changes to the base for every variant"""
    variants: dict[str, Changes] = Field(default_factory=dict)
    """name -> changes; with a `grid`, the variants are one more factor, called `variant`"""
    grid: dict[str, dict[str, Changes] | list[Any]] = Field(default_factory=dict)
    """factor -> levels; every combination of levels is a variant. A factor is a name with named levels
    (`{level: changes}`), or a dotted setting with a list of values"""
    exclude: list[str] = Field(default_factory=list)
    """variants to exclude from the grid"""
    baseline: bool = False
    """add a variant called `baseline`: the linear probe of `two-stream baseline` for the modality of the base
    experiment. It is scored with its own protocol, and compared like the other variants but not fused"""
    seeds: list[Seed] = Field(default_factory=lambda: [1, 2, 3], min_length=1)
    """random seeds of the initial weights, the data order, the augmentation and the holdout"""
    splits: list[PositiveInt] = Field(default_factory=lambda: [1], min_length=1)
    """official splits to run"""
    compare: list[Against] = Field(default_factory=list)
    """families of comparisons; if empty, every variant is compared with the first"""
    part: Literal["test", "val"] = "test"
    """part of the data set to score and compare"""
    fusion: Literal["none", "l2", "logits", "probabilities", "rank"] = "none"
    """fuse every RGB variant with every flow variant with this rule; none: no fusion"""
    features: FeatureOptions | None = None
    """study heads on cached features of a frozen backbone"""
    demo: DemoData | None = None
    """write the generated demo data set first and use it"""
    published: dict[str, Reference] = Field(default_factory=dict)
    """variant -> published accuracy, shown next to the measured accuracy"""
    xray: bool = False
    """score all cells again with shuffled, reversed and otherwise changed frames, as `two-stream xray` does"""
    measure_cost: bool = True
    """measure parameters, multiply-adds, latency and memory of each variant"""
    out: Path = Path("runs/studies")
    """folder in which the study's folder is created"""

    @model_validator(mode="after")
    def _whole(self) -> Study:
        if self.baseline and self.part == "val":
            raise ValueError(
                "`baseline: true` trains on the full training list, which includes `part: val`; remove one of them"
            )
        if not self.variants and not self.grid:
            raise ValueError("there is nothing to compare; set `variants` or a `grid`")
        for name in ("seeds", "splits"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"`{name}` contains {sorted(values)}; expected each value once")
        for factor, levels in self.grid.items():
            if not levels:
                raise ValueError(f"`grid.{factor}` has no levels; add some, or remove the factor")
        if "variant" in self.grid and self.variants:
            raise ValueError(
                "`grid` has a factor called `variant`, which `variants` also uses; rename the factor"
            )
        return self
