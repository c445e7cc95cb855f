"""Write the table of `docs/streaming.md`: which networks can stream, and the cost of a prediction.

python eval/documentation/streaming_table.py            # about a minute, on the meta device
python eval/documentation/streaming_table.py --check    # write nothing; exit code 1 if the table is outdated
"""

from __future__ import annotations

import argparse
import sys

import torch
from tables import ROOT, markdown, update

from two_stream import zoo
from two_stream.errors import SettingsError
from two_stream.profiling.costs import meta_model, multiply_adds
from two_stream.streaming import convert, multiply_adds_per_prediction

PAGE = ROOT / "docs" / "streaming.md"
CLASSES = 400
NAMES = (
    "co3d/x3d_xs",
    "co3d/x3d_s",
    "co3d/x3d_m",
    "co3d/x3d_l",
    "co3d/slow_8x8_r50",
    "co3d/i3d_8x8_r50",
    "co3d/r2plus1d_18",
    "co3d/slowfast_8x8_r50",
    "late_temporal/rgb_resneXt3D64f101",
    "late_temporal/rgb_resneXt3D64f101_bert10_FRMB",
    "late_temporal/rgb_resneXt3D64f101_FRMB_lstm",
    "late_temporal/rgb_resneXt3D64f101_concatenation",
    "late_temporal/rgb_slowfast64f_50",
    "late_temporal/rgb_I3D64f_bert2",
    "late_temporal/rgb_r2plus1d_64f_34_bert10",
    "3dresnets/resnet18",
    "3dresnets/preresnet50",
    "3dresnets/densenet121",
    "efficient3d/resnet18_A",
    "efficient3d/mobilenet_1.0x",
    "efficient3d/mobilenetv2_1.0x",
    "efficient3d/shufflenet_g3_1.0x",
    "efficient3d/shufflenetv2_1.0x",
    "efficient3d/squeezenet_1.1",
    "efficient3d/c3d",
    "compressed/csn50_ip",
    "timm/resnet50_tsn",
    "timm/resnet50_tsm",
    "timm/resnet18_i3d",
    "torchvision/mc3_18",
    "torchvision/swin3d_t",
    "transformers/videomae_base",
)
"""At least one network of each family in the zoo."""
HEAD = ("network", "clip", "every", "delay", "sees", "G mult-adds")


def row(name: str) -> list[str]:
    """Return the cells of a network."""
    model = meta_model(zoo.resolve(name), CLASSES)
    try:
        stream = convert(model)
    except SettingsError:
        return [f"`{name}`", str(model.spec.clip_length), "–", "–", "–", "cannot stream"]
    clip, each = multiply_adds(model), multiply_adds_per_prediction(model)
    field = "all" if stream.receptive_field is None else str(stream.receptive_field)
    frames = [str(model.spec.clip_length), str(stream.stride), str(stream.delay), field]
    costs = [f"{cost / 1e9:#.3g}".rstrip(".") for cost in (clip, each)]
    return [f"`{name}`", *frames, "\u00a0→\u00a0".join(costs)]


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    given = parser.parse_args()
    torch.set_num_threads(1)
    return update([PAGE], lambda _: markdown(HEAD, map(row, NAMES)), check=given.check)


if __name__ == "__main__":
    sys.exit(main())
