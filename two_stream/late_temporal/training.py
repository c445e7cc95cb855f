"""Published trainers in their own words: their flags, and the experiment those describe.

`late-temporal` is LateTemporalModeling3DCNN (Kalfaoglu et al., arXiv 2008.01232), whose two trainers differ in their
optimizer and defaults: `two_stream2.py` (SGD) and `two_stream_bert2.py` (AdamW). Which architecture belongs to which is
a table, as in its README; no name is parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import BaseModel

from two_stream.config.load import nearest, validate_settings
from two_stream.config.model import ModelOptions
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError

RECIPES = ("late-temporal",)
SOURCE = "two-stream train --recipe late-temporal"

SGD_ARCHITECTURES = frozenset(
    {
        "rgb_resneXt3D64f101",
        "flow_resneXt3D64f101",
        "rgb_slowfast64f_50",
        "rgb_I3D64f",
        "flow_I3D64f",
        "rgb_r2plus1d_32f_34",
    }
)
"""those `two_stream2.py` trains; all others go with `two_stream_bert2.py`"""


@dataclass(frozen=True)
class Defaults:
    """What a published trainer does when a flag is left out."""

    script: str
    batch_size: int
    iter_size: int
    lr: float


SGD = Defaults("two_stream2.py", batch_size=4, iter_size=6, lr=1e-2)
ADAMW = Defaults("two_stream_bert2.py", batch_size=8, iter_size=16, lr=1e-5)


@dataclass(frozen=True)
class Start:
    """Weights a published network starts from."""

    files: tuple[str, ...]
    """names in the weights folder: the one the published code opens, then those its authors released it under"""
    fetch: str
    """its name for `two-stream weights fetch`"""


_KINETICS_RGB = Start(("resnext-101-64f-kinetics.pth", "RGB_Kinetics_64f.pth"), "resnext101-64f-rgb")
_KINETICS_FLOW = Start(("Flow_Kinetics_64f.pth",), "resnext101-64f-flow")
_I3D_RGB = Start(("rgb_imagenet.pth", "rgb_imagenet.pt"), "i3d-rgb-imagenet-kinetics")
_I3D_FLOW = Start(("flow_imagenet.pth", "flow_imagenet.pt"), "i3d-flow-imagenet-kinetics")
_SLOWFAST = Start(("SLOWFAST_8x8_R50_torch.pth", "SLOWFAST_8x8_R50.pkl"), "slowfast-8x8-r50")
_IG65M = Start(("r2plus1d_34_clip32_ig65m_from_scratch-449a7af9.pth",), "r2plus1d34-32f-ig65m")

STARTS: dict[str, Start] = {
    **dict.fromkeys(
        (
            "rgb_resneXt3D64f101",
            "rgb_resneXt3D64f101_adamw",
            "rgb_resneXt3D64f101_FRMB_adamw",
            "rgb_resneXt3D64f101_bert10_FRAB",
            "rgb_resneXt3D64f101_bert10_FRMB",
            "rgb_resneXt3D64f101_FRMB_lstm",
            "rgb_resneXt3D64f101_concatenation",
            "rgb_resneXt3D64f101_FRMB_NLB_concatenation",
        ),
        _KINETICS_RGB,
    ),
    **dict.fromkeys(
        (
            "flow_resneXt3D64f101",
            "flow_resneXt3D64f101_bert10_FRAB",
            "flow_resneXt3D64f101_bert10_FRMB",
        ),
        _KINETICS_FLOW,
    ),
    **dict.fromkeys(
        ("rgb_I3D64f", "rgb_I3D64f_bert2", "rgb_I3D64f_bert2_FRAB", "rgb_I3D64f_bert2_FRMB"), _I3D_RGB
    ),
    **dict.fromkeys(
        ("flow_I3D64f", "flow_I3D64f_bert2", "flow_I3D64f_bert2_FRAB", "flow_I3D64f_bert2_FRMB"), _I3D_FLOW
    ),
    **dict.fromkeys(
        (
            "rgb_slowfast64f_50",
            "rgb_slowfast64f_50_bert10_FRAB_late",
            "rgb_slowfast64f_50_bert10_FRAB_early",
            "rgb_slowfast64f_50_bert10_FRMB_early",
            "rgb_slowfast64f_50_bert10_FRMB_late",
        ),
        _SLOWFAST,
    ),
    **dict.fromkeys(
        ("rgb_r2plus1d_32f_34", "rgb_r2plus1d_32f_34_bert10", "rgb_r2plus1d_64f_34_bert10"), _IG65M
    ),
}
"""What the published code starts each architecture from."""


def _flag(*aliases: str, name: str | None = None, metavar: str | None = None) -> Any:
    return tyro.conf.arg(name=name, aliases=list(aliases), metavar=metavar)


@dataclass(frozen=True)
class PublishedTraining:
    """Flags of `two_stream2.py` and `two_stream_bert2.py`; `-` and `_` are one, so are `--flag X` and `--flag=X`."""

    arch: Annotated[str, _flag("-a", metavar="ARCH")] = "rgb_resneXt3D64f101_bert10_FRMB"
    """one of the 27 published names (`two-stream models 'late_temporal/*'`) or any other named model"""
    dataset: Annotated[str, _flag("-d")] = "hmdb51"
    """hmdb51, ucf101, or a data set of your own"""
    split: Annotated[int, _flag("-s")] = 1
    """number of the official split"""
    settings: Annotated[Path | None, _flag(metavar="DIR")] = None
    """folder of the split lists; none: ./datasets/settings (published) where the data set is there, else ./settings"""
    batch_size: Annotated[int | None, _flag("-b", metavar="INT")] = None
    """clips per forward pass; none: as published, 8 (4 for the architectures trained with SGD)"""
    iter_size: Annotated[int | None, _flag(metavar="INT")] = None
    """forward passes per optimizer step; none: as published, 16 (SGD: 6)"""
    lr: Annotated[float | None, _flag("--learning-rate", metavar="FLOAT")] = None
    """learning rate; none: as published, 1e-5 (SGD: 1e-2)"""
    momentum: float = 0.9
    """momentum of SGD; AdamW has none"""
    weight_decay: Annotated[float, _flag("--wd")] = 1e-3
    """weight decay, on norms and biases too"""
    epochs: int = 200
    """passes over the training list"""
    workers: Annotated[int, _flag("-j")] = 2
    """loader processes"""
    pretrained: Annotated[Path | None, _flag(metavar="FILE")] = None
    """ours: weights to start from; none: the file the published code loads, when it is in --weights"""
    weights: Annotated[Path, _flag(metavar="DIR")] = Path("weights")
    """ours: folder the Kinetics and IG-65M weights are looked for in"""
    evaluate: Annotated[bool, tyro.conf.FlagCreatePairsOff, _flag("-e")] = False
    """train nothing: score the best checkpoint with a single clip and the centre crop"""
    contine: Annotated[bool, tyro.conf.FlagCreatePairsOff, _flag("-c", name="continue")] = False
    """go on with the run, bit for bit, from its newest checkpoint (the published one takes the best epoch)"""
    start_epoch: int = 0
    """left out here: -c knows the epoch"""
    print_freq: Annotated[int | None, _flag(metavar="INT")] = None
    """left out here: every step is in TensorBoard, every epoch in metrics.jsonl"""
    save_freq: Annotated[int | None, _flag(metavar="INT")] = None
    """left out here: every epoch is validated and saved; within one use --train.checkpoint-every"""
    num_seg: int = 1
    """1; several segments of a video at once are not trained here"""


def check_recipe(name: str) -> None:
    """Refuse an unknown recipe.

    Raises:
        SettingsError: Tells the nearest one.
    """
    if name not in RECIPES:
        raise SettingsError(f"unknown recipe {name!r}{nearest(name, list(RECIPES))}")


def own_flags(args: list[str]) -> tuple[list[str], list[str]]:
    """Divide a command line into the published trainer's flags and those of an experiment, each with its values.

    An experiment's are its dotted keys (`--train.precision`) and those of its plain values (`--seed`, `--device`).
    """
    plain = {
        name for name, field in Experiment.model_fields.items() if not isinstance(field.default, BaseModel)
    }
    published: list[str] = []
    ours: list[str] = []
    into = published
    for arg in args:
        if re.match(r"-(-|[A-Za-z])", arg):  # a flag, not a negative number
            name = arg.partition("=")[0].removeprefix("--").replace("-", "_").removeprefix("no_")
            into = ours if arg.startswith("--") and ("." in name or name in plain) else published
        into.append(arg)
    return published, ours


def defaults_of(arch: str) -> Defaults:
    """Return the defaults of the published trainer that goes with an architecture (by its bare name)."""
    return SGD if arch in SGD_ARCHITECTURES else ADAMW


def run_name(dataset: str, arch: str, split: int) -> str:
    """Return how the published code names the folder of a run."""
    return f"{dataset}_{arch}_split{split}"


def describe_training(
    flags: PublishedTraining,
    model: ModelOptions,
    *,
    arch: str,
    dataset: tuple[str, str, Path],
    init: Path | None,
) -> Experiment:
    """Return the experiment that the published trainer would run.

    Args:
        flags: Its flags.
        model: The network.
        arch: Its bare name.
        dataset: Name, what `data.dataset` says, `data.settings_root`.
        init: Weights to start from.

    Raises:
        SettingsError: A number is out of range, or several segments are asked for.
    """
    if flags.num_seg != 1:
        raise SettingsError(
            f"{SOURCE}: --num-seg is {flags.num_seg}: expected 1; a longer clip (--model.input.clip-length) or "
            "multi-clip evaluation takes the place of segments"
        )
    name, record, settings_root = dataset
    usual = defaults_of(arch)
    optimizer: dict[str, Any] = {
        "kind": "sgd" if usual is SGD else "adamw",
        "lr": usual.lr if flags.lr is None else flags.lr,
        "weight_decay": flags.weight_decay,
        "decay_all": True,
    }
    if usual is SGD:
        optimizer |= {"momentum": flags.momentum, "dampening": 0.9}
    train = {
        "epochs": flags.epochs,
        "batch_size": usual.batch_size if flags.batch_size is None else flags.batch_size,
        "accumulate": usual.iter_size if flags.iter_size is None else flags.iter_size,
        "last_group": "drop",
        "optimizer": optimizer,
        "schedule": {"kind": "plateau", "factor": 0.1, "patience": 5},
        "selection": "paper",
        "init": init,
        "new_classifier": init is not None,
    }
    data = {
        "dataset": record,
        "settings_root": settings_root,
        "split": flags.split,
        "workers": flags.workers,
        "sampling": "paper",
        "augment": {
            "crop": "multiscale",
            "scales": (1.0, 0.875, 0.75, 0.66),
            "flip": 0.5,
            "protocol": "paper",
        },
    }
    made = {"name": run_name(name, arch, flags.split), "model": model, "data": data, "train": train}
    return validate_settings(Experiment, made | {"evaluate": {"views": "multi", "crops": "ten"}}, SOURCE)


def training_remarks(flags: PublishedTraining, arch: str) -> list[str]:
    """Return a line for each given flag that has no meaning here."""
    found = []
    if flags.start_epoch:
        found.append(f"--start-epoch {flags.start_epoch} is left out: -c goes on where the run stopped")
    if flags.print_freq is not None:
        found.append("--print-freq is left out: every step is in TensorBoard, every epoch in metrics.jsonl")
    if flags.save_freq not in (None, 1):
        found.append("--save-freq is left out: every epoch is validated and saved")
    if defaults_of(arch) is not SGD and flags.momentum != PublishedTraining.momentum:
        found.append(f"--momentum is left out: {arch} is trained with AdamW, as published")
    return found
