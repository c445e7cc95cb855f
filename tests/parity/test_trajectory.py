"""Three optimizer steps of the published trainer, through our step, schedule and optimizers.

The double-precision runs are the target (1e-6) and are `slow`; in single precision the first step is compared, since
what follows is chaotic there. Numbers: `shared/fixtures/late_temporal/trajectory.json`.
"""

import gzip
import json

import pytest
import torch
from torch import nn

from two_stream import create_model
from two_stream.config.schema import AdamW, Constant, Sgd, TrainOptions
from two_stream.pretrained.layouts import recognise_layout
from two_stream.training.losses import Labels
from two_stream.training.optim import Schedule, build_optimizer
from two_stream.training.parallel import Parallel
from two_stream.training.step import Position, Stepper
from two_stream.types import Batch

pytestmark = pytest.mark.parity


class OnNormalised(nn.Module):
    """The recognizer without its preprocessing: the fixtures' clips are normalised already."""

    def __init__(self, recognizer: nn.Module) -> None:
        super().__init__()
        self.recognizer = recognizer

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.recognizer.forward_normalised(x_BCTHW)


class Trajectory:
    """A run of the fixture: the model it starts from, its clips and its optimizer."""

    def __init__(self, shared, deterministic, name: str) -> None:
        folder = shared / "fixtures" / "late_temporal"
        self.run = json.loads((folder / "trajectory.json").read_text())["runs"][name]
        arch = self.run["arch"]
        shapes = json.loads(gzip.decompress((folder / "models" / f"{arch}.json.gz").read_bytes()))[
            "state_dict"
        ]
        state = deterministic.state_dict(shapes, self.run["weight_seed"])
        layout = recognise_layout({key: torch.from_numpy(value) for key, value in state.items()})
        model = create_model(arch, self.run["num_classes"], dropout=0.0, **self._quiet(arch))
        model.load_state_dict({layout.translate(key): torch.from_numpy(v) for key, v in state.items()})
        self.dtype = torch.float64 if name.endswith("f64") else torch.float32
        self.model = model.to(self.dtype).train()
        self.ours = {key: layout.translate(key) for key in self.run["before"]["params"]}
        self.start = {key: self._parameter(key).detach().clone() for key in self.ours}
        self.deterministic = deterministic
        self.stepper = self._stepper()

    @staticmethod
    def _quiet(arch: str) -> dict:
        """Options that switch off what is random."""
        return {"head": {"dropout": 0.0, "keep": 1.0}} if "bert" in arch else {}

    def _parameter(self, key: str) -> torch.Tensor:
        return self.model.get_parameter(self.ours[key])

    def _stepper(self) -> Stepper:
        run = self.run
        if "momentum" in run:
            kind = Sgd(lr=run["lr"], momentum=run["momentum"], dampening=run["dampening"], decay_all=True)
        else:
            kind = AdamW(lr=run["lr"], decay_all=True)
        assert kind.weight_decay == run["weight_decay"]
        options = TrainOptions(optimizer=kind, schedule=Constant(), accumulate=run["iter_size"])
        optimizer = build_optimizer(self.model, self.model.stages(), kind)
        schedule = Schedule(Constant(), optimizer, base_lr=kind.lr, steps_per_epoch=3, epochs=1)
        return Stepper(
            Parallel(OnNormalised(self.model), torch.device("cpu")),
            optimizer,
            schedule,
            options,
            labels=Labels(run["num_classes"]),
            seed=0,
        )

    def batches(self):
        for micro in self.run["micro"]:
            clip = torch.from_numpy(self.deterministic.clip(self.run["input_shape"], micro["input_seed"]))
            yield Batch(clip.to(self.dtype), torch.tensor([micro["label"]]), [str(micro["input_seed"])])

    def step(self, batches, number: int, tolerance: float) -> float:
        """Take a step, compare every number the fixture has of it, and return the worst relative error."""
        seen = {}
        hooks = [self.stepper.optimizer.register_step_pre_hook(lambda *_: seen.update(self._gradients()))]
        size = self.run["iter_size"]
        result = self.stepper.run(batches, size, size, Position(0, number, number * size))
        hooks[0].remove()
        expected = self.run["steps"][number]
        pairs = [(result.loss / size, expected["mean_loss"])]
        pairs += [(seen[key], value) for key, value in expected["grad_l2"].items()]
        for key, numbers in expected["params"].items():
            now = self._parameter(key).detach()
            pairs += [(float(now.norm()), numbers["l2"])]
            pairs += [(float((now - self.start[key]).norm()), numbers["delta_l2"])]
        total = sum(float(p.detach().square().sum()) for p in self.model.parameters()) ** 0.5
        pairs.append((total, expected["all_params_l2"]))
        worst = max(abs(got - wanted) / abs(wanted) for got, wanted in pairs)
        assert worst < tolerance
        return worst

    def _gradients(self) -> dict[str, float]:
        return {key: float(self._parameter(key).grad.norm()) for key in self.ours}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_f64", "sgd_f64"])
def test_three_steps_in_double_precision(name, shared, deterministic, parity):
    trajectory = Trajectory(shared, deterministic, name)
    batches = trajectory.batches()
    worst = max(trajectory.step(batches, number, 1e-6) for number in range(3))
    parity(f"trajectory {name}", worst, 1e-6)


@pytest.mark.parametrize("name", ["bert_f32", pytest.param("sgd_f32", marks=pytest.mark.slow)])
def test_first_step_in_single_precision(name, shared, deterministic):
    trajectory = Trajectory(shared, deterministic, name)
    trajectory.step(trajectory.batches(), 0, 5e-3)
