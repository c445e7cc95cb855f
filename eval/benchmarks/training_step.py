"""Training steps: bf16 channels-last against plain fp32, torchvision's networks, and gradients exchanged once per step.

    python eval/benchmarks/training_step.py [--quick] [--rounds 5] [--threads 2]

A plain step is what a training script does today: float clips in torch's default layout, normalised by a division, a
forward and a backward pass in fp32, AdamW. Ours is the trainer's own step. Both start from the same weights, and their
logits are compared before anything is timed. The last row starts two processes that are joined by gloo; each makes
both kinds of step in turns.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import Row, argument_parser, finish, interleaved, median_of, prepare, ratio_of
from torch import nn
from torch.nn import functional as F

from two_stream import create_model
from two_stream.config.backbones import ResNet3d
from two_stream.config.heads import AverageHead
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.config.schema import TrainOptions
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.training.losses import Labels
from two_stream.training.optim import Schedule, build_optimizer
from two_stream.training.parallel import build_parallel
from two_stream.training.step import Position, Stepper, protect_short_maps
from two_stream.types import Batch

CPU = torch.device("cpu")
LR = 1e-6
"""so small that a hundred steps change no figure"""
BOUNDS = {"bf16": 1e-1, "fp32": 1e-4}
"""largest difference of the logits, relative to the largest; an untrained network amplifies bf16's rounding"""
ACCUMULATE = 4


class PlainStep:
    """Forward, backward and update as a training script writes them."""

    def __init__(self, model: nn.Module, clips: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> None:
        self.model = model.train()
        self.clips, self.mean, self.std = clips, mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
        self.labels = torch.arange(len(clips)) % 51
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LR)

    def logits(self) -> torch.Tensor:
        """Return the logits of the clips."""
        return self.model((self.clips.float() - self.mean) / self.std)

    def __call__(self) -> None:
        """Make one step."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.logits(), self.labels).backward()
        self.optimizer.step()


class OurStep:
    """The trainer's step."""

    def __init__(self, model: Recognizer, clips: torch.Tensor, **options: Any) -> None:
        self.model = model.channels_last().train()
        protect_short_maps(model, CPU, options.get("precision", "fp32"))
        self.batch = Batch(clips, torch.arange(len(clips)) % 51, [str(index) for index in range(len(clips))])
        given = {"optimizer": {"kind": "adamw", "lr": LR}, "schedule": {"kind": "constant"}, **options}
        chosen = TrainOptions.model_validate(given)
        joined = build_parallel(model, chosen, CPU)
        optimizer = build_optimizer(model, model.stages(), chosen.optimizer, device=CPU)
        schedule = Schedule(chosen.schedule, optimizer, base_lr=LR, steps_per_epoch=1, epochs=1)
        self.stepper = Stepper(joined, optimizer, schedule, chosen, labels=Labels(51), seed=0)
        self.count = chosen.accumulate
        self.precision = chosen.precision

    def logits(self) -> torch.Tensor:
        """Return the logits of the clips, in float32."""
        from two_stream.runtime.device import autocast

        with autocast(CPU, self.precision):
            return self.model(self.batch.clips).float()

    def __call__(self) -> None:
        """Make one step."""
        group = self.count * distributed.world_size()
        batches = iter([self.batch] * self.count)
        self.stepper.run(batches, group, group * len(self.batch.ids), Position(0, 0, 0))


def spec_of(model: Recognizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation in pixel values 0..255."""
    low, high = model.spec.value_range
    scale = (high - low) / 255.0
    mean = torch.tensor([(m - low) / scale for m in model.spec.mean])
    return mean, torch.tensor([s / scale for s in model.spec.std])


@torch.no_grad()
def disagreement(plain: PlainStep, ours: OurStep, bound: float) -> tuple[float, str]:
    """Return the largest relative difference of the logits in evaluation mode, and what is wrong with it."""
    plain.model.eval()
    ours.model.eval()
    wanted, found = plain.logits(), ours.logits()
    plain.model.train()
    ours.model.train()
    error = float((wanted - found).abs().max() / wanted.abs().max())
    return error, "" if error < bound else f"logits differ by {error:.1e} (bound {bound:.0e})"


def noise(count: int, frames: int, side: int) -> torch.Tensor:
    """Return uint8 clips of `side`² with smooth spots."""
    spots = torch.rand(count, 3, max(2, frames // 4), side // 8, side // 8) * 255
    return F.interpolate(spots, size=(frames, side, side), mode="trilinear").to(torch.uint8)


def refine(model: nn.Module, last: str) -> None:
    """Let blocks refine by a small scale of their last norm, as trained ones do: random ones enlarge rounding."""
    for key, module in model.named_modules():
        if key.endswith(last):
            nn.init.constant_(module.weight, 0.05)


def settle(model: nn.Module, clips: torch.Tensor) -> None:
    """Give BatchNorm the statistics of the clips: without them an untrained deep network explodes when evaluated."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(clips)
    for norm, momentum in zip(norms, kept):
        norm.momentum = momentum


def compare(name: str, against: str, sides: dict[str, Any], rounds: int, target: float | None) -> list[Row]:
    """Time a plain step and ours in fp32 and bf16 in turns; the target is that of bf16."""
    found = {name: disagreement(sides["plain"], sides[name], BOUNDS[name]) for name in BOUNDS}
    times = interleaved(sides, rounds=rounds)
    clips, rows = len(sides["plain"].clips), []
    for precision, (error, problem) in found.items():
        rates = [clips / median_of(times[side]) for side in ("plain", precision)]
        rows.append(
            Row(
                f"{name}, {precision}",
                against,
                rates[0],
                rates[1],
                ratio_of(times, "plain", precision),
                target if precision == "bf16" else None,
                note=f"batch {clips}; logits agree to {error:.0e} relative",
                unit="clips/s",
                problem=problem,
            )
        )
    return rows


def resnext(given: Any) -> list[Row]:
    """ResNeXt-101 BERT FRMB, 64 frames."""
    torch.manual_seed(0)
    frames, side = (16, 64) if given.smoke else (64, 112)
    size = {"clip_length": frames, "resize": (side, side), "crop": side} if given.smoke else None
    model = create_model("rgb_resneXt3D64f101_bert10_FRMB", 51, **({"input": size} if size else {}))
    refine(model, "bn3")
    clips = noise(2 if given.smoke or not given.quick else 1, frames, side)
    settle(model, clips)
    mean, std = spec_of(model)
    plain = PlainStep(_Plain(copy.deepcopy(model)), clips, mean, std)
    sides = {"plain": plain, **_ours(model, clips)}
    name = f"training step, ResNeXt-101 {frames} frames"
    return compare(name, "fp32, default layout", sides, given.rounds, 3.0)


def torchvision_networks(given: Any) -> list[Row]:
    """R3D-18 and R(2+1)D-18 with torchvision's weights, against torchvision's own modules."""
    from torchvision.models.video import r2plus1d_18, r3d_18

    rows = []
    frames, side = 8 if given.quick else 16, 32 if given.smoke else 112
    r3d = ModelOptions(
        backbone=ResNet3d(depth=18, shortcut="B", stem_kernel=3, stem_stride=1, stem_pool=False),
        head=AverageHead(),
        dropout=0.0,
        input=InputOptions(clip_length=frames, resize=(side, side), crop=side),
    )
    for name, theirs, ours in (
        ("R3D-18", r3d_18(weights=None, num_classes=51), create_model(r3d, 51)),
        ("R(2+1)D-18", r2plus1d_18(weights=None, num_classes=51), create_model("kinetics/r2plus1d_18", 51)),
    ):
        clips = noise(2, frames, side)
        mean, std = spec_of(ours)
        refine(theirs, "conv2.1")
        settle(theirs, (clips.float() - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1))
        adopt(ours, theirs, name)
        sides = {"plain": PlainStep(theirs, clips, mean, std), **_ours(ours, clips)}
        against = f"torchvision's {type(theirs).__name__}, fp32"
        rows += compare(f"training step, {name} {frames}×{side}²", against, sides, given.rounds, None)
    return rows


def adopt(ours: Recognizer, theirs: nn.Module, name: str) -> None:
    """Copy torchvision's weights into ours."""
    if name == "R3D-18":
        ours.load_state_dict({_renamed(key): value for key, value in theirs.state_dict().items()})
        return
    import tempfile
    from pathlib import Path

    from two_stream import load_weights

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r2plus1d_18.pth"
        torch.save(theirs.state_dict(), path)
        load_weights(ours, path)


def _renamed(key: str) -> str:
    for theirs, ours in (
        ("conv1.0.", "conv1."),
        ("conv1.1.", "bn1."),
        ("conv2.0.", "conv2."),
        ("conv2.1.", "bn2."),
    ):
        key = key.replace(theirs, ours)
    return key.replace("fc.", "classifier.") if key.startswith("fc.") else f"backbone.{key}"


class _Plain(nn.Module):
    """A recognizer that takes what it normalises itself otherwise."""

    def __init__(self, model: Recognizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.model.forward_normalised(clips)


def _ours(model: Recognizer, clips: torch.Tensor) -> dict[str, OurStep]:
    return {name: OurStep(copy.deepcopy(model), clips, precision=name) for name in ("bf16", "fp32")}


def exchanges(given: Any) -> Row:
    """Gradient accumulation in two processes: exchanged once per step, or with every micro-batch."""
    name, against = (
        f"step of 2 processes × {ACCUMULATE} micro-batches, gloo",
        "gradients exchanged every time",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, __file__, "--rounds", str(given.rounds), "--worker"]
    command += ["--smoke"] if given.smoke else []
    processes = []
    for rank in range(2):
        environment = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(
                command,
                env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    answers = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        return Row(name, against, None, None, None, problem="a process failed")
    found = json.loads(answers[0].splitlines()[-1])
    rates = {side: 1.0 / median_of(times) for side, times in found["times"].items()}
    return Row(
        name,
        against,
        rates["every"],
        rates["once"],
        ratio_of(found["times"], "every", "once"),
        note=f"R3D-18{' ×0.25' if given.smoke else ''}, clips of 8×32²; weights agree to {found['error']:.0e}",
        unit="steps/s",
        problem="" if found["error"] < 1e-4 else f"weights differ by {found['error']:.1e}",
    )


def worker(rounds: int, backbone: ResNet3d) -> None:
    """Make both kinds of step in turns, joined with the other process, and print the times."""
    distributed.init(cpu_only=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options = ModelOptions(
        backbone=backbone,
        head=AverageHead(),
        dropout=0.0,
        input=InputOptions(clip_length=8, resize=(32, 32), crop=32),
    )
    model = create_model(options, 51)
    clips = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    once = OurStep(copy.deepcopy(model), clips, accumulate=ACCUMULATE, optimizer={"kind": "sgd", "lr": LR})
    every = EveryTime(copy.deepcopy(model).channels_last().train(), clips)
    times = interleaved({"every": every, "once": once}, rounds=rounds)
    pairs = zip(every.model.parameters(), once.model.parameters(), strict=True)
    with torch.no_grad():
        error = max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-6)) for a, b in pairs)
    distributed.shutdown()
    print(json.dumps({"times": times, "error": error}))


class EveryTime:
    """DDP as it is mostly used with accumulation: every backward pass exchanges all gradients."""

    def __init__(self, model: Recognizer, clips: torch.Tensor) -> None:
        self.model, self.clips, self.labels = model, clips, torch.arange(len(clips)) % 51
        self.wrapped = nn.parallel.DistributedDataParallel(model)
        decay = [
            {"params": [p]} if p.ndim > 1 else {"params": [p], "weight_decay": 0.0}
            for p in model.parameters()
        ]
        self.optimizer = torch.optim.SGD(decay, lr=LR, momentum=0.9, weight_decay=1e-3)

    def __call__(self) -> None:
        """Make one step."""
        self.optimizer.zero_grad()
        for _ in range(ACCUMULATE):
            (F.cross_entropy(self.wrapped(self.clips), self.labels) / ACCUMULATE).backward()
        self.optimizer.step()


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argument_parser(__doc__)
    parser.add_argument("--worker", action="store_true", help="used by the script itself")
    given = parser.parse_args(argv)
    prepare(given)
    if given.worker:
        backbone = ResNet3d(depth=18, stem_kernel=3, width=0.25 if given.smoke else 1.0)
        worker(given.rounds, backbone)
        return 0
    measured: list[Callable[[Any], list[Row]]] = [resnext, torchvision_networks]
    rows = [row for measure in measured for row in measure(given)]
    return finish("training_step", [*rows, exchanges(given)], given)


if __name__ == "__main__":
    sys.exit(main())
