"""Every backbone × head × reduction × modality builds, trains a step, predicts each clip for itself and comes back
from a file. The sweep reads the registries: a new part is covered without a new test.
"""

from itertools import combinations as combinations_of
from itertools import product
from typing import get_args

import pytest
import torch

from tests.helpers.models import DIVISIBLE, SMALL_BACKBONES
from two_stream.backbones import BACKBONES
from two_stream.config.backbones import ResNet3d, ResNeXt3d
from two_stream.config.heads import HeadOptions
from two_stream.config.load import dump, load_experiment
from two_stream.config.model import ModelOptions
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError
from two_stream.heads import HEADS
from two_stream.recognizer import Recognizer
from two_stream.zoo import records

FRAMES, SIDE, CLASSES = 8, 32, 3
SMALL_HEADS = {
    "concat": {"features": 24},
    "nonlocal": {"features": 24},
    "lstm": {"hidden": 16},
    "gru": {"hidden": 16},
    "attentive": {"blocks": 1},
}

REDUCTIONS, MODALITIES = ("none", "frab", "frmb"), ("rgb", "flow")


def has(backbone: str, reduction: str, modality: str) -> bool:
    """Whether a backbone declares that it has both."""
    return reduction in BACKBONES[backbone].reductions and modality in BACKBONES[backbone].modalities


COMBINATIONS = [each for each in product(BACKBONES, HEADS, REDUCTIONS, MODALITIES) if has(each[0], *each[2:])]
VARIANTS = [each for each in product(sorted(BACKBONES), REDUCTIONS, MODALITIES) if has(*each)]


def part(union: object, kind: str) -> type:
    """Return the options class of a kind."""
    return next(m for m in get_args(get_args(union)[0]) if m.model_fields["kind"].default == kind)


def options_of(backbone: str, head: str, reduction: str, modality: str) -> ModelOptions:
    return ModelOptions.model_validate(
        {
            "backbone": {"kind": backbone, **SMALL_BACKBONES.get(backbone, {})},
            "head": {"kind": head, **SMALL_HEADS.get(head, {})},
            "reduction": reduction,
            "reduced_channels": 64,
            "modality": modality,
            "dropout": 0.1,
            "input": {"clip_length": FRAMES, "crop": SIDE},
        }
    )


def clip(model: Recognizer, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (batch, model.spec.channels, FRAMES, SIDE, SIDE)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def step(model: Recognizer) -> float:
    """One update; every parameter must get a gradient, every weight one that is not zero throughout."""
    model.train()
    for parameter in model.parameters():
        if not parameter.any():  # a branch that starts at zero hides what is before it
            torch.nn.init.normal_(parameter, std=0.02)
    loss = torch.nn.functional.cross_entropy(model(clip(model, 2)), torch.tensor([0, 2]))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.isfinite().all(), name
        if parameter.ndim >= 2:
            assert parameter.grad.any(), f"the gradient of {name} is zero"
    with torch.no_grad():
        for parameter in model.parameters():
            # BatchNorms over a handful of numbers make gradients of 10⁵ and more: a step of that length ends in nan
            parameter -= 1e-3 * parameter.grad / max(1.0, float(parameter.grad.norm()))
    return loss.item()


def all_pairs(combinations: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return a few combinations that hold every two parts which any of the combinations holds together."""
    pairs = {each: frozenset(combinations_of(enumerate(each), 2)) for each in combinations}
    left, chosen = set[frozenset[object]]().union(*pairs.values()), []
    while left:
        chosen.append(max(combinations, key=lambda each: len(pairs[each] & left)))
        left -= pairs[chosen[-1]]
    return chosen


def test_all_pairs_are_in_the_few():
    assert all_pairs([("a", "x"), ("a", "y"), ("b", "x")]) == [("a", "x"), ("a", "y"), ("b", "x")]
    few = all_pairs(COMBINATIONS)
    assert len(few) < len(COMBINATIONS) / 3
    for first, second in combinations_of(range(4), 2):
        assert {(each[first], each[second]) for each in few} == {
            (each[first], each[second]) for each in COMBINATIONS
        }


def learns(combination: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    options = options_of(*combination)
    assert ModelOptions.model_validate_json(options.model_dump_json()) == options
    model = Recognizer(options, CLASSES)
    assert step(model) > 0
    model.eval()
    pair = clip(model, 2)
    with torch.inference_mode():
        logits = model(pair)
        assert logits.shape == (2, CLASSES)
        assert logits.isfinite().all()
        assert torch.equal(model(pair), logits), "evaluation is not deterministic"
        alone = torch.cat([model(pair[:1]), model(pair[1:])])
        assert (alone - logits).abs().max() / logits.abs().max() < 1e-4, "clips are mixed"


@pytest.mark.parametrize("combination", all_pairs(COMBINATIONS), ids="-".join)
def test_every_pair_of_parts_learns(combination):
    learns(combination)


@pytest.mark.slow
@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_every_combination_learns(combination):
    learns(combination)


def test_every_pair_of_parts_goes_to_a_settings_file_and_back(tmp_path):
    file = tmp_path / "experiment.yaml"
    for combination in all_pairs(COMBINATIONS):
        experiment = Experiment(model=options_of(*combination))
        file.write_text(dump(experiment))
        assert load_experiment(file) == experiment


@pytest.mark.parametrize("combination", COMBINATIONS[::23], ids="-".join)
def test_state_comes_back(combination):
    torch.manual_seed(0)
    model = Recognizer(options_of(*combination), CLASSES).eval()
    again = Recognizer(model.options, CLASSES).eval()
    again.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(again(clip(again, 1)), model(clip(model, 1)))


@pytest.mark.parametrize(
    "refused", sorted({*product(BACKBONES, REDUCTIONS, MODALITIES)} - {*VARIANTS}), ids="-".join
)
def test_what_a_backbone_has_not_is_refused_in_one_line(refused):
    backbone, reduction, modality = refused
    with pytest.raises(SettingsError, match=f"^backbone {backbone} .*`model\\.(reduction|modality)\\b.*$"):
        Recognizer(options_of(backbone, "average", reduction, modality), CLASSES)


@pytest.mark.parametrize(
    ("backbone", "reduction", "modality"),
    [
        each
        if each[1] == "none" or each[2] == "rgb"
        else pytest.param(*each, marks=pytest.mark.slow, id="-".join(each))
        for each in VARIANTS
    ],
)
def test_usual_sizes_fit_together(backbone, reduction, modality):
    """The same at the sizes people use, on the meta device: shapes only, nothing computed."""
    options = ModelOptions.model_validate(
        {
            "backbone": {"kind": backbone, **DIVISIBLE.get(backbone, {})},
            "reduction": reduction,
            "modality": modality,
        }
    )
    with torch.device("meta"):
        model = Recognizer(options, 101).eval()
        spec, net = model.spec, model.backbone
        maps = net(torch.empty(1, spec.channels, spec.clip_length, *spec.size))
        assert reduction == "none" or net.channels[0] == 512
        for map_, width, count in zip(maps, net.channels, net.num_tokens(spec.clip_length), strict=True):
            assert map_.tensor.shape[1:3] == (width, count)
            for kind in HEADS:
                head = HEADS[kind](part(HeadOptions, kind)(), features=width, tokens=count).eval()
                assert head(head.pool(map_.tensor)).shape == (1, head.features)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(record, marks=pytest.mark.slow if place % 3 else ())
        for place, record in enumerate(records())
    ],
    ids=lambda record: record.name,
)
def test_every_named_model_builds(record):
    with torch.device("meta"):
        model = Recognizer(record.options, 7)
    assert model.classifier.out_features == 7
    assert record.summary
    assert record.paper
    assert record.source


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(
    "backbone", [ResNet3d(depth=50, width=0.125), ResNeXt3d(depth=50, width=0.25)], ids=lambda b: b.kind
)
def test_either_shortcut_trains(backbone, shortcut):
    torch.manual_seed(0)
    options = ModelOptions(
        backbone=backbone.model_copy(update={"shortcut": shortcut}),
        head={"kind": "average"},
        input={"clip_length": FRAMES, "crop": SIDE},
    )
    assert step(Recognizer(options, CLASSES)) > 0
