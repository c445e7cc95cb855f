"""Flags of the published evaluators of LateTemporalModeling3DCNN.

`scripts/eval/spatial_demo3D.py` (multi-clip), `spatial_demo_bert.py` (single clip) and `combined_demo.py` (two streams)
read some choices from flags and others from variables in their source code. Here, all choices are flags.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from two_stream.errors import SettingsError


def flag(*aliases: str, name: str | None = None, metavar: str | None = None) -> Any:
    """Return the annotation of a command-line flag."""
    return tyro.conf.arg(name=name, aliases=list(aliases), metavar=metavar)


@dataclass(frozen=True)
class EvaluatorFlags:
    """Flags of all three evaluators; `-` and `_` are equivalent, as are `--flag X` and `--flag=X`."""

    dataset: Annotated[str, flag("-d")] = "hmdb51"
    """hmdb51, ucf101, or your own data set (a folder under the settings, or a dataset.yaml)"""
    split: Annotated[int, flag("-s")] = 1
    """number of the official split"""
    window: Annotated[int | None, flag("-w", metavar="INT")] = None
    """with --val: number of the list window<N>.txt; if omitted, the published default"""
    window_val: Annotated[bool, tyro.conf.FlagCreatePairsOff, flag("-v", name="val")] = False
    """score the videos of window<N>.txt instead of the videos of the split"""
    ten_crop_enabled: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """published variable; True: ten crops, False: the centre crop"""
    crops: Literal["ten", "center"] | None = None
    """crops of each clip; overrides --ten-crop-enabled; not a flag of the published code"""
    multi_gpu_train: Annotated[bool, tyro.conf.FlagConversionOff, flag("--multiGPUTrain")] = False
    """published variable, ignored: the prefix `module.` in checkpoints of multi-GPU training is removed
    automatically"""
    multi_gpu_test: Annotated[bool, tyro.conf.FlagConversionOff, flag("--multiGPUTest")] = False
    """published variable, ignored: a single device is used, see --device"""
    data: Annotated[Path | None, flag(metavar="DIR")] = None
    """folder of the frame folders; if omitted, ./datasets/<dataset>_frames (published), or the folder in the record"""
    settings: Annotated[Path | None, flag("--settings-root", metavar="DIR")] = None
    """folder that contains <dataset>/ with its lists; if omitted, ./datasets/settings (published), or ./settings"""
    list_file: Annotated[Path | None, flag(name="list", metavar="FILE")] = None
    """list of videos with lines `folder num_frames label`; if omitted, the list of the split"""
    protocol: Literal["paper", "standard"] = "paper"
    """paper: choose frames as published, and do not negate flow x in mirrored crops; standard: correct both"""
    limit: Annotated[int | None, flag(metavar="INT")] = None
    """score only this many videos"""
    on_error: Literal["raise", "skip"] = "raise"
    """raise: stop at an unreadable video; skip: omit unreadable videos, with a warning"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; fixed in the published code"""
    workers: Annotated[int, flag("-j")] = 2
    """number of loader processes; 0: read in the main process"""
    batch_views: int = 10
    """number of clips per forward pass"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """autocast type of the forward pass; auto: fp32 with protocol paper, otherwise bf16 if it is clearly faster"""
    out: Annotated[Path | None, flag(metavar="FILE")] = None
    """score file to write; if omitted, results/<dataset>_<arch>_split<N>_<views>_<crops>.npz"""
    evaluate: Annotated[bool, tyro.conf.FlagCreatePairsOff, flag("-e")] = False
    """flag of the trainer, ignored: these scripts only evaluate"""
    contine: Annotated[bool, tyro.conf.FlagCreatePairsOff, flag("-c", name="continue")] = False
    """flag of the trainer, ignored: see `two-stream train --recipe late-temporal -c`"""

    @property
    def chosen_crops(self) -> Literal["ten", "center"]:
        """Crops that the two flags select."""
        return self.crops or ("ten" if self.ten_crop_enabled else "center")

    def check(self) -> None:
        """Check that all numbers are in their range.

        Raises:
            SettingsError: A number is out of range; the message names the flag.
        """
        for name, least in (("split", 1), ("workers", 0), ("batch_views", 1), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"--{name.replace('_', '-')} is {value}: expected {least} or more")

    def remarks(self) -> list[str]:
        """Return a line for each given flag that is ignored."""
        found = []
        if self.multi_gpu_train:
            found.append("--multiGPUTrain is ignored: the `module.` prefix is removed automatically")
        if self.multi_gpu_test:
            found.append("--multiGPUTest is ignored: one device scores; choose it with --device")
        if self.evaluate:
            found.append("-e is ignored: this script only evaluates")
        if self.contine:
            found.append("-c is ignored: resume training with `two-stream train --recipe late-temporal … -c`")
        return found


@dataclass(frozen=True)
class OneStreamFlags(EvaluatorFlags):
    """Flags of the multi-clip and the single-clip evaluator."""

    arch: Annotated[str, flag("-a", metavar="ARCH")] = "rgb_resneXt3D64f101_bert10_FRMB"
    """one of the 27 published names (`two-stream models 'late_temporal/*'`) or any other named model"""
    checkpoint: Annotated[Path | None, flag("--weights", metavar="FILE")] = None
    """checkpoint or run folder; if omitted, ./checkpoint/<dataset>_<arch>_split<N>/model_best.pth.tar, as published"""
    extension: str | None = None
    """published variable: file name pattern of frames, such as img_{0:05d}.jpg or flow_{0}_{1:05d}; if omitted,
    detected"""


@dataclass(frozen=True)
class TwoStreamFlags(EvaluatorFlags):
    """Flags of the two-stream evaluator."""

    arch_flow: Annotated[str, flag("-a", metavar="ARCH")] = "flow_resneXt3D64f101_bert10_FRMB"
    """network of the flow stream"""
    arch_rgb: Annotated[str, flag("-b", metavar="ARCH")] = "rgb_resneXt3D64f101_bert10_FRMB"
    """network of the RGB stream"""
    checkpoint_flow: Annotated[Path | None, flag("--weights-flow", metavar="FILE")] = None
    """checkpoint or run folder of the flow stream; if omitted, the checkpoint of the published trainer"""
    checkpoint_rgb: Annotated[Path | None, flag("--weights-rgb", metavar="FILE")] = None
    """checkpoint or run folder of the RGB stream; if omitted, the checkpoint of the published trainer"""
    multiple_clips_enabled: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """published variable; True: several clips per video, False: one clip"""
    rgb_duration: Literal["flow", "own"] = "flow"
    """number of frames from which RGB clips are chosen; flow: the number in the flow list (published); own: the number
    of RGB frames"""
    rgb_extension: str | None = None
    """file name pattern of RGB frames, such as img_{0:05d}.jpg; if omitted, detected"""
    flow_extension: str | None = None
    """file name pattern of flow frames, such as flow_{0}_{1:05d}.jpg; if omitted, detected"""
