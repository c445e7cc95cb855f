"""The settings' unions and the registries name the same parts, and a new part takes two edits."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from two_stream.backbones import BACKBONES
from two_stream.config import backbones, heads
from two_stream.config.base import Options
from two_stream.config.heads import HeadOptions
from two_stream.config.model import ModelOptions
from two_stream.errors import SettingsError
from two_stream.heads import HEADS
from two_stream.recognizer import Recognizer
from two_stream.registry import Registry


def kinds(union: object) -> set[str]:
    return {member.model_fields["kind"].default for member in get_args(get_args(union)[0])}


def missing_halves(union: object, registry: Registry) -> list[str]:
    """Name each kind that has only one of its two halves."""
    options, builders = kinds(union), set(registry)
    lost = [
        f"{registry.what} {kind!r} has options in config but no builder: register one"
        for kind in options - builders
    ]
    lost += [
        f"{registry.what} {kind!r} has a builder but is not in the union of config"
        for kind in builders - options
    ]
    return sorted(lost)


@pytest.mark.parametrize(
    ("union", "registry"), [(backbones.BackboneOptions, BACKBONES), (heads.HeadOptions, HEADS)]
)
def test_schema_and_registry_agree(union, registry):
    assert missing_halves(union, registry) == []


def test_a_missing_half_is_named():
    registry: Registry = Registry("head")
    assert "head 'bert' has options in config but no builder: register one" in missing_halves(
        HeadOptions, registry
    )

    class Orphan(Options):
        kind: str = "orphan"

    registry.register(Orphan)(object)
    assert "head 'orphan' has a builder but is not in the union of config" in missing_halves(
        HeadOptions, registry
    )


def test_a_taken_kind_and_an_unknown_kind_are_errors():
    with pytest.raises(ValueError, match="head 'bert' is already registered"):
        HEADS.register(heads.BertHead)
    with pytest.raises(SettingsError, match="unknown head 'nope'; known: attentive, average, bert"):
        HEADS["nope"]


def test_options_without_a_class_name_both_places():
    registry: Registry = Registry("head", HeadOptions)
    registry.register(heads.LstmHead)(object)
    expected = r"^head 'bert' has options in config/heads.py but no class; register one in two_stream/heads/$"
    with pytest.raises(SettingsError, match=expected):
        registry["bert"]
    with pytest.raises(SettingsError, match=r"^unknown head 'nope'; known: lstm$"):
        registry["nope"]


@pytest.mark.parametrize("page", ["docs/streaming.md", "docs/models/README.md"])
def test_every_head_is_in_the_tables_of_the_docs(repository, page):
    rows = [line for line in (repository / page).read_text().splitlines() if line.startswith("|")]
    named = set(re.findall(r"`(\w+)`", "\n".join(rows)))
    missing = set(HEADS) - named
    assert not missing, f"add {', '.join(sorted(missing))} to the table of heads in {page}"


def test_every_part_has_help_under_its_name():
    for union in (backbones.BackboneOptions, heads.HeadOptions):
        for member in get_args(get_args(union)[0]):
            assert member.__doc__, member
            assert member.__doc__ != ModelOptions.__doc__


@pytest.mark.parametrize("kind", sorted(kinds(backbones.BackboneOptions)))
def test_every_backbone_takes_stacks_of_flow_fields(kind: str) -> None:
    """The weights that see the clip, found as cross-modality finds them, have a channel per field and axis."""
    from two_stream.pretrained.loading import _first_convolutions

    backbone: dict[str, object] = {"kind": kind}
    if kind == "hf_video":
        backbone["config"] = {"num_hidden_layers": 1}
    if kind == "motion_grid":  # nothing to learn, and no first layer
        return
    for stack, channels in ((1, 2), (5, 10)):
        options = ModelOptions.model_validate(
            {"modality": "flow", "backbone": backbone, "head": {"kind": "average"}, "input": {"stack": stack}}
        )
        with torch.device("meta"):
            model = Recognizer(options, 2)
        first = _first_convolutions(model)
        assert first, kind
        weights = model.state_dict()
        assert {weights[name].shape[1] for name in first} == {channels}, kind


TOY_HEAD = '''
"""The largest value over time."""

import torch

from two_stream.config.heads import MaxHead
from two_stream.heads.base import HEADS, Head


@HEADS.register(MaxHead)
class Max(Head):
    """Largest value over time."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, D)`."""
        return x_BTD.amax(1) * self.options.gain
'''
TOY_BACKBONE = '''
"""One convolution."""

from torch import nn

from two_stream.backbones.base import BACKBONES, Backbone
from two_stream.config.backbones import ToyNet


@BACKBONES.register(ToyNet)
class Toy(Backbone):
    """One strided convolution."""

    temporal_stride = (2,)
    spatial_stride = (2,)

    def __init__(self, options, modality, stack=1):
        super().__init__(options, modality, stack)
        self.stem = nn.Conv3d(self.inputs, options.width, 3, stride=2, padding=1)
        self.channels = (options.width,)

    def stages(self):
        return [(name, self.get_submodule(name)) for name in ("stem", "reduction") if name in self._modules]

    def append_block(self, channels):
        self.reduction = nn.Conv3d(self.channels[0], channels, 1)
        self.channels = (channels,)

    replace_last_block = append_block
'''
TOY_NET = '''
class ToyNet(Options):
    """One convolution."""

    kind: Literal["toy"] = "toy"
    width: PositiveInt = 4
    """channels"""


'''
MAX_HEAD = '''
class MaxHead(Options):
    """Largest value over time."""

    kind: Literal["max"] = "max"
    gain: Positive = 1.0
    """factor on the vector"""


'''
USE = """
import torch, two_stream
from two_stream import create_model
from two_stream.config.model import ModelOptions
options = ModelOptions.model_validate(
    {"backbone": {"kind": "toy", "width": 6}, "head": {"kind": "max", "gain": 2.0}, "reduction": "frab",
     "reduced_channels": 5, "dropout": 0.0, "modality": "flow", "input": {"clip_length": 4, "crop": 16}})
model = create_model(options, 3)
assert model.classifier.in_features == 5 and model.spec.clip_length == 4
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
clip, label = torch.randint(0, 256, (4, 2, 4, 16, 16), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
losses = []
for _ in range(2):
    loss = torch.nn.functional.cross_entropy(model(clip), label)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    losses.append(loss.item())
assert all(p.grad is not None for p in model.parameters())
assert losses[1] < losses[0], losses
mixed = create_model("3dresnets/resnet10", 3, head={"kind": "max"})
assert type(mixed.head).__name__ == "Max"
print("trained", two_stream.__file__)
"""


def test_a_toy_head_and_a_toy_backbone_take_two_edits_each(tmp_path, repository):
    """Edit one: options class and its name in the union. Edit two: the file with the registered builder."""
    package = tmp_path / "two_stream"
    shutil.copytree(repository / "two_stream", package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, before, after in (
        ("backbones.py", "BackboneOptions = Annotated[", TOY_NET + "BackboneOptions = Annotated[ToyNet | "),
        ("heads.py", "HeadOptions = Annotated[", MAX_HEAD + "HeadOptions = Annotated[MaxHead | "),
    ):
        schema = package / "config" / file
        text = schema.read_text(encoding="utf-8")
        assert text.count(before) == 1
        text = text.replace(before, after).replace("import Fraction,", "import Fraction, Positive,")
        schema.write_text(text, encoding="utf-8")
    (package / "heads" / "maximum.py").write_text(TOY_HEAD, encoding="utf-8")
    (package / "backbones" / "toy.py").write_text(TOY_BACKBONE, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    word, file = done.stdout.split()
    assert word == "trained"
    assert Path(file).is_relative_to(tmp_path)
