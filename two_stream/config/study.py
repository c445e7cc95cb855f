"""A study: a base experiment, variants of it, seeds and splits, and what is compared with what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Options, PositiveInt

Changes = dict[str, Any]
"""Dotted settings (`model.head.kind`) or nested ones, over the base experiment."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]
SEPARATOR = " · "
"""Between the levels in the name of a variant."""


class DemoData(Options):
    """The embedded data set, written where the study's data set is absent."""

    out: Path = Path("demo/study")
    """folder of the data set"""
    theme: Literal["motion", "order"] = "motion"
    """motion: the classes of `two-stream demo`; order: classes that differ in the order of frames alone"""
    seed: int = 1
    """seed of the videos"""
    groups: Annotated[int, Field(ge=3)] = 15
    """source scenes: videos per class"""
    takes: PositiveInt = 1
    """videos per class and source"""
    flow: bool = False
    """compute TV-L1 flow too"""


class FeatureOptions(Options):
    """Heads on a frozen backbone: each video goes through it once, for all heads and seeds."""

    train_views: PositiveInt = 1
    """augmented clips stored per training video; epoch e learns from number e modulo this"""
    maps: bool = False
    """store feature maps, which the non-local head looks at; else time tokens only"""
    backbone: Changes | None = None
    """train the backbone first: the base experiment with these changes, its frozen weights then serve every cell; none:
    the base says where weights come from (`train.init` or a pretrained backbone)"""


class Reference(Options):
    """A published accuracy of a variant."""

    value: Annotated[float, Field(gt=0.0, le=100.0)]
    """in per cent"""
    source: str
    """paper and table"""


class Against(Options):
    """A family of comparisons, corrected together."""

    name: str = ""
    """how the report calls it; none: what is compared"""
    baseline: str | None = None
    """variant, or level of `factor`, that others are compared with"""
    factor: str | None = None
    """compare variants that differ in this factor of the grid only"""
    pairs: list[tuple[str, str]] = Field(default_factory=list)
    """compare these, first minus second"""
    within: dict[str, str] = Field(default_factory=dict)
    """only variants with these levels of other factors"""

    @model_validator(mode="after")
    def _one_way(self) -> Against:
        if bool(self.pairs) and (self.baseline is not None or self.factor is not None):
            raise ValueError("`pairs` names every pair; leave `baseline` and `factor` out")
        return self


class Study(Options):
    """One question, many runs."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.+-]+$")]
    """name of the study and of its folder under `out`"""
    question: str
    """what the study is to answer; the headline of its report"""
    base: Path | None = None
    """experiment file that variants depart from, relative to the study's file; none: the defaults"""
    settings: Changes = Field(default_factory=dict)
    """changes to the base for every variant"""
    variants: dict[str, Changes] = Field(default_factory=dict)
    """name -> changes; one more factor, called `variant`, where there is a `grid` too"""
    grid: dict[str, dict[str, Changes] | list[Any]] = Field(default_factory=dict)
    """factor -> levels, every combination is a variant: either `{name: changes}`, or a dotted setting and the list of
    its values"""
    exclude: list[str] = Field(default_factory=list)
    """variants left out of the grid"""
    baseline: bool = False
    """one variant more, called baseline: the linear probe of `two-stream baseline` for the modality of the base, scored
    in its own way; it is compared like the others and takes no part in `fusion`"""
    seeds: list[Seed] = Field(default_factory=lambda: [1, 2, 3], min_length=1)
    """seeds of weights, order, augmentation and holdout"""
    splits: list[PositiveInt] = Field(default_factory=lambda: [1], min_length=1)
    """official splits"""
    compare: list[Against] = Field(default_factory=list)
    """families of comparisons; none: every variant with the first"""
    part: Literal["test", "val"] = "test"
    """what is scored and compared"""
    fusion: Literal["none", "l2", "logits", "probabilities", "rank"] = "none"
    """fuse every RGB variant with every flow variant by this rule; none: do not"""
    features: FeatureOptions | None = None
    """study heads on a frozen backbone through stored features"""
    demo: DemoData | None = None
    """write the embedded data set first and use it"""
    published: dict[str, Reference] = Field(default_factory=dict)
    """variant -> published accuracy, shown beside ours"""
    measure_cost: bool = True
    """measure parameters, multiply-adds, latency and memory of each variant"""
    out: Path = Path("runs/studies")
    """folder under which the study's folder lies"""

    @model_validator(mode="after")
    def _whole(self) -> Study:
        if self.baseline and self.part == "val":
            raise ValueError(
                "`baseline: true` learns from the whole training list, and `part: val` is a piece of it; leave one out"
            )
        if not self.variants and not self.grid:
            raise ValueError("give `variants` or a `grid`: there is nothing to compare")
        for name in ("seeds", "splits"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"`{name}` holds {sorted(values)}: each once is enough")
        for factor, levels in self.grid.items():
            if not levels:
                raise ValueError(f"`grid.{factor}` has no level")
        if "variant" in self.grid and self.variants:
            raise ValueError("a factor called `variant` and `variants` beside it are one too many; rename it")
        return self


__all__ = [
    "SEPARATOR",
    "Against",
    "Changes",
    "DemoData",
    "FeatureOptions",
    "Reference",
    "Study",
]
