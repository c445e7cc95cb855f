"""Flags of the published evaluators of LateTemporalModeling3DCNN, and what each means here.

`scripts/eval/spatial_demo3D.py` (multi-clip), `spatial_demo_bert.py` (single clip) and `combined_demo.py` (two streams)
read some choices from flags and the rest from variables set by hand in their source; here all of them are flags.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from two_stream.errors import SettingsError


def _flag(*aliases: str, name: str | None = None, metavar: str | None = None) -> Any:
    return tyro.conf.arg(name=name, aliases=list(aliases), metavar=metavar)


@dataclass(frozen=True)
class EvaluatorFlags:
    """What the three evaluators share; `-` and `_` are one, `--flag value` and `--flag=value` too."""

    dataset: Annotated[str, _flag("-d")] = "hmdb51"
    """hmdb51, ucf101, or a data set of your own (a folder under the settings, or a dataset.yaml)"""
    split: Annotated[int, _flag("-s")] = 1
    """number of the official split"""
    window: Annotated[int | None, _flag("-w", metavar="INT")] = None
    """with --val: number of the list window<N>.txt; none: the published default"""
    window_val: Annotated[bool, tyro.conf.FlagCreatePairsOff, _flag("-v", name="val")] = False
    """score the videos of window<N>.txt instead of the split's"""
    ten_crop_enabled: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """published variable: ten crops, or the centre one"""
    crops: Literal["ten", "center"] | None = None
    """ours, the same choice; none: as --ten-crop-enabled says"""
    multi_gpu_train: Annotated[bool, tyro.conf.FlagConversionOff, _flag("--multiGPUTrain")] = False
    """published variable; not needed: the `module.` prefix of such checkpoints is seen and taken off"""
    multi_gpu_test: Annotated[bool, tyro.conf.FlagConversionOff, _flag("--multiGPUTest")] = False
    """published variable; not needed: one device scores, see --device"""
    data: Annotated[Path | None, _flag(metavar="DIR")] = None
    """folder of the frame folders; none: ./datasets/<dataset>_frames (published), else as the data set's record says"""
    settings: Annotated[Path | None, _flag("--settings-root", metavar="DIR")] = None
    """folder that holds <dataset>/ with its lists; none: ./datasets/settings (published), else ./settings"""
    list_file: Annotated[Path | None, _flag(name="list", metavar="FILE")] = None
    """list of videos, lines `folder num_frames label`; none: the split's own"""
    protocol: Literal["paper", "standard"] = "paper"
    """paper: published choice of frames and unsigned flips of flow; standard: both mended"""
    limit: Annotated[int | None, _flag(metavar="INT")] = None
    """score the first so many videos only"""
    on_error: Literal["raise", "skip"] = "raise"
    """skip: leave a broken video out and say so"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; the published code has the GPU's number in its source"""
    workers: Annotated[int, _flag("-j")] = 2
    """loader processes; 0 reads in the main process"""
    batch_views: int = 10
    """clips per forward pass"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """autocast type of the forward pass; auto: fp32 with protocol paper, else bf16 where it is clearly faster"""
    out: Annotated[Path | None, _flag(metavar="FILE")] = None
    """score file to write; none: results/<dataset>_<arch>_split<N>_<views>_<crops>.npz"""
    evaluate: Annotated[bool, tyro.conf.FlagCreatePairsOff, _flag("-e")] = False
    """flag of the trainer; these scripts do nothing else"""
    contine: Annotated[bool, tyro.conf.FlagCreatePairsOff, _flag("-c", name="continue")] = False
    """flag of the trainer: `two-stream train --recipe late-temporal -c`"""

    @property
    def chosen_crops(self) -> Literal["ten", "center"]:
        """Crops, whichever flag said so."""
        return self.crops or ("ten" if self.ten_crop_enabled else "center")

    def check(self) -> None:
        """Refuse numbers out of range.

        Raises:
            SettingsError: Names the flag.
        """
        for name, least in (("split", 1), ("workers", 0), ("batch_views", 1), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"--{name.replace('_', '-')} is {value}: expected {least} or more")

    def remarks(self) -> list[str]:
        """Return a line for each given flag that has no meaning here."""
        found = []
        if self.multi_gpu_train:
            found.append("--multiGPUTrain is not needed: the `module.` prefix is seen and taken off")
        if self.multi_gpu_test:
            found.append("--multiGPUTest is left out: one device scores; choose it with --device")
        if self.evaluate:
            found.append("-e is left out: this script does nothing but evaluate")
        if self.contine:
            found.append(
                "-c is left out: training goes on with `two-stream train --recipe late-temporal … -c`"
            )
        return found


@dataclass(frozen=True)
class OneStreamFlags(EvaluatorFlags):
    """Flags of the multi-clip and the single-clip evaluator."""

    arch: Annotated[str, _flag("-a", metavar="ARCH")] = "rgb_resneXt3D64f101_bert10_FRMB"
    """one of the 27 published names (`two-stream models 'late_temporal/*'`) or any other named model"""
    checkpoint: Annotated[Path | None, _flag("--weights", metavar="FILE")] = None
    """checkpoint or run folder; none: ./checkpoint/<dataset>_<arch>_split<N>/model_best.pth.tar, as published"""
    extension: str | None = None
    """published variable: names of the frames, such as img_{0:05d}.jpg or flow_{0}_{1:05d}; none: found out"""


@dataclass(frozen=True)
class TwoStreamFlags(EvaluatorFlags):
    """Flags of the two-stream evaluator."""

    arch_flow: Annotated[str, _flag("-a", metavar="ARCH")] = "flow_resneXt3D64f101_bert10_FRMB"
    """network of the flow stream"""
    arch_rgb: Annotated[str, _flag("-b", metavar="ARCH")] = "rgb_resneXt3D64f101_bert10_FRMB"
    """network of the RGB stream"""
    checkpoint_flow: Annotated[Path | None, _flag("--weights-flow", metavar="FILE")] = None
    """checkpoint or run folder of the flow stream; none: where the published trainer writes it"""
    checkpoint_rgb: Annotated[Path | None, _flag("--weights-rgb", metavar="FILE")] = None
    """checkpoint or run folder of the RGB stream; none: where the published trainer writes it"""
    multiple_clips_enabled: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """published variable: multi-clip, or one clip"""
    rgb_duration: Literal["flow", "own"] = "flow"
    """flow: RGB clips are chosen by the flow list's number of frames (published); own: by that of the RGB frames"""
    rgb_extension: str | None = None
    """names of RGB frames, such as img_{0:05d}.jpg; none: found out"""
    flow_extension: str | None = None
    """names of flow frames, such as flow_{0}_{1:05d}.jpg; none: found out"""
