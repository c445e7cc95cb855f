"""Published trainers: their flags, and the experiment that the flags describe.

`late-temporal` is LateTemporalModeling3DCNN (Kalfaoglu et al., arXiv 2008.01232). Its two trainers differ in optimizer
and defaults: `two_stream2.py` (SGD) and `two_stream_bert2.py` (AdamW). A table, taken from
the README, maps architectures to trainers; names are not parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import BaseModel

from two_stream import zoo
from two_stream.config.load import nearest, validate_settings
from two_stream.config.model import ModelOptions
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError
from two_stream.late_temporal.flags import flag

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
"""architectures that `two_stream2.py` trains; `two_stream_bert2.py` trains all others"""


@dataclass(frozen=True)
class Defaults:
    """Default values of a published trainer."""

    script: str
    batch_size: int
    iter_size: int
    lr: float


SGD = Defaults("two_stream2.py", batch_size=4, iter_size=6, lr=1e-2)
ADAMW = Defaults("two_stream_bert2.py", batch_size=8, iter_size=16, lr=1e-5)


@dataclass(frozen=True)
class Start:
    """Weights that a published network starts from."""

    files: tuple[str, ...]
    """file names in the weights folder: the name in the published code, then the names in the authors' releases"""
    fetch: str
    """name for `two-stream weights fetch`"""


_STARTS = {
    ("resnext3d", "rgb"): Start(
        ("resnext-101-64f-kinetics.pth", "RGB_Kinetics_64f.pth"), "resnext101-64f-rgb"
    ),
    ("resnext3d", "flow"): Start(("Flow_Kinetics_64f.pth",), "resnext101-64f-flow"),
    ("i3d", "rgb"): Start(("rgb_imagenet.pth", "rgb_imagenet.pt"), "i3d-rgb-imagenet-kinetics"),
    ("i3d", "flow"): Start(("flow_imagenet.pth", "flow_imagenet.pt"), "i3d-flow-imagenet-kinetics"),
    ("slowfast", "rgb"): Start(("SLOWFAST_8x8_R50_torch.pth", "SLOWFAST_8x8_R50.pkl"), "slowfast-8x8-r50"),
    ("r2plus1d", "rgb"): Start(
        ("r2plus1d_34_clip32_ig65m_from_scratch-449a7af9.pth",), "r2plus1d34-32f-ig65m"
    ),
}
"""weights by backbone and modality"""

STARTS: dict[str, Start] = {
    record.name.partition("/")[2]: _STARTS[record.options.backbone.kind, record.options.modality]
    for record in zoo.records("late_temporal/*")
}
"""weights that the published code starts each architecture from"""


@dataclass(frozen=True)
class PublishedTraining:
    """Flags of `two_stream2.py` and `two_stream_bert2.py`; `-` and `_` are equivalent, as are `--x 1` and `--x=1`."""

    arch: Annotated[str, flag("-a", metavar="ARCH")] = "rgb_resneXt3D64f101_bert10_FRMB"
    """one of the 27 published names (`two-stream models 'late_temporal/*'`) or any other named model"""
    dataset: Annotated[str, flag("-d")] = "hmdb51"
    """hmdb51, ucf101, or your own data set"""
    split: Annotated[int, flag("-s")] = 1
    """number of the official split"""
    settings: Annotated[Path | None, flag(metavar="DIR")] = None
    """folder of the split lists; if omitted, ./datasets/settings (published) or, if the data set is not there,
    ./settings"""
    batch_size: Annotated[int | None, flag("-b", metavar="INT")] = None
    """number of clips per forward pass; if omitted, the published value: 8 (4 for architectures that are trained with
    SGD)"""
    iter_size: Annotated[int | None, flag(metavar="INT")] = None
    """number of forward passes per optimizer step; if omitted, the published value: 16 (6 with SGD)"""
    lr: Annotated[float | None, flag("--learning-rate", metavar="FLOAT")] = None
    """learning rate; if omitted, the published value: 1e-5 (1e-2 with SGD)"""
    momentum: float = 0.9
    """momentum of SGD; unused by AdamW"""
    weight_decay: Annotated[float, flag("--wd")] = 1e-3
    """weight decay, which also applies to norms and biases"""
    epochs: int = 200
    """number of passes over the training list"""
    workers: Annotated[int, flag("-j")] = 2
    """number of loader processes"""
    pretrained: Annotated[Path | None, flag(metavar="FILE")] = None
    """weights to start from; if omitted, the file that the published code loads, if --weights contains it; not a flag
    of the published code"""
    weights: Annotated[Path, flag(metavar="DIR")] = Path("weights")
    """folder of the Kinetics and IG-65M weights; not a flag of the published code"""
    evaluate: Annotated[bool, tyro.conf.FlagCreatePairsOff, flag("-e")] = False
    """do not train: score the best checkpoint with a single clip and the centre crop"""
    contine: Annotated[bool, tyro.conf.FlagCreatePairsOff, flag("-c", name="continue")] = False
    """resume from the newest checkpoint with bit-identical results (the published code resumes the best epoch)"""
    start_epoch: int = 0
    """ignored: -c reads the epoch from the checkpoint"""
    print_freq: Annotated[int | None, flag(metavar="INT")] = None
    """ignored: every step is in TensorBoard, every epoch in metrics.jsonl"""
    save_freq: Annotated[int | None, flag(metavar="INT")] = None
    """ignored: every epoch is validated and saved; for more checkpoints use --train.checkpoint-every"""
    num_seg: int = 1
    """must be 1: training on several segments of a video is not supported"""


def check_recipe(name: str) -> None:
    """Check the name of a recipe.

    Raises:
        SettingsError: The recipe is unknown; the message suggests the most similar one.
    """
    if name not in RECIPES:
        raise SettingsError(f"unknown recipe {name!r}{nearest(name, list(RECIPES))}")


def split_flags(args: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line into flags of the published trainer and flags of the experiment, each with its values.

    The flags of the experiment are dotted keys (`--train.precision`) and plain values (`--seed`, `--device`).
    """
    fields = Experiment.model_fields.items()
    plain = {name for name, field in fields if not isinstance(field.default, BaseModel)}
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
    """Return the defaults of the published trainer for an architecture, which is named without namespace."""
    return SGD if arch in SGD_ARCHITECTURES else ADAMW


def run_name(dataset: str, arch: str, split: int) -> str:
    """Return the name that the published code gives the folder of a run."""
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

    `arch` is the name without namespace; `dataset` is (name, `data.dataset`, `data.settings_root`); `init` are the
    weights to start from.

    Raises:
        SettingsError: A number is out of range, or `--num-seg` is not 1.
    """
    if flags.num_seg != 1:
        raise SettingsError(
            f"{SOURCE}: --num-seg is {flags.num_seg}: expected 1; instead of segments use a longer clip "
            "(--model.input.clip-length) or multi-clip evaluation"
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
    """Return a line for each given flag that is ignored."""
    found = []
    if flags.start_epoch:
        found.append(f"--start-epoch {flags.start_epoch} is ignored: -c resumes where the run stopped")
    if flags.print_freq is not None:
        found.append("--print-freq is ignored: every step is in TensorBoard, every epoch in metrics.jsonl")
    if flags.save_freq not in (None, 1):
        found.append("--save-freq is ignored: every epoch is validated and saved")
    if defaults_of(arch) is not SGD and flags.momentum != PublishedTraining.momentum:
        found.append(f"--momentum is ignored: {arch} is trained with AdamW, as published")
    return found
