"""Every record of the zoo: its listed cost, its page, a training step with other heads and modality, and its export."""

from __future__ import annotations

from itertools import cycle

import model_tables
import pytest
import torch

from two_stream.config.load import validate_settings
from two_stream.config.model import ModelOptions
from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer
from two_stream.zoo import records
from two_stream.zoo.record import model_costs

FRAMES, SIDE, CLASSES = 16, 64, 5
HEADS = ("average", "bert", "lstm")
COMBINATIONS = [(head, modality) for head in HEADS for modality in ("rgb", "flow")]
SMALLEST = {
    kind: min(
        (record for record in records() if record.options.backbone.kind == kind),
        key=lambda record: model_costs()[record.name].multiply_adds[0],
    )
    for kind in sorted({record.options.backbone.kind for record in records()})
}
"""the record of every kind of backbone that computes least; the sweep over all records is slow"""


def name_of(value):
    return getattr(value, "name", None)


def test_every_record_is_counted_and_stands_on_a_page(repository):
    names = [record.name for record in records()]
    assert set(model_costs()) == set(names), "run `python eval/documentation/model_tables.py --count`"
    pages = "".join(page.read_text() for page in (repository / "docs" / "models").glob("*.md"))
    assert not [name for name in names if f"`{name}`" not in pages]


def test_pages_are_what_the_command_writes():
    assert model_tables.main(["--check"]) == 0


def test_a_stale_page_is_noticed(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.md").write_text("# A\n\n<!-- table: co3d/x3d_s -->\n| old |\n<!-- end -->\n")
    monkeypatch.setattr(model_tables, "PAGES", tmp_path)
    assert model_tables.main(["--check"]) == 1
    assert "a.md: its tables are outdated" in capsys.readouterr().out
    assert model_tables.main([]) == 0
    assert "| `co3d/x3d_s` | 13 every 6 × 160² | 400 | 3.79 (3.79ᵃ) |" in (tmp_path / "a.md").read_text()
    assert model_tables.main(["--check"]) == 0


@pytest.mark.parametrize("record", SMALLEST.values(), ids=name_of)
def test_the_listed_cost_is_that_of_the_network(record):
    found = model_tables.count(record)
    cost = model_costs()[record.name]
    assert found["parameters"] == list(cost.parameters)
    assert found["multiply_adds"] == list(cost.multiply_adds)
    assert found["clip"] == [cost.frames, cost.stride, cost.crop]


@pytest.mark.slow
@pytest.mark.parametrize("record", records(), ids=name_of)
def test_every_listed_cost_is_that_of_the_network(record):
    test_the_listed_cost_is_that_of_the_network(record)


def small(record, head, modality) -> ModelOptions:
    """The record with another head and modality, at a small input where the network takes one."""
    width = {"hidden": 64} if head == "bert" else {}  # its own need not divide into 8 heads: ShuffleNet's 567
    base = record.options.model_dump() | {
        "head": {"kind": head, **width},
        "modality": modality,
        "dense": False,
    }
    base["input"] |= {"mean": None, "std": None}
    sizes = {"clip_length": FRAMES, "resize": (SIDE, SIDE), "crop": SIDE}
    tried = validate_settings(ModelOptions, base | {"input": base["input"] | sizes}, record.name)
    try:
        with torch.device("meta"):
            model = Recognizer(tried, CLASSES).eval()
            model(torch.empty(1, model.spec.channels, FRAMES, SIDE, SIDE))
        if (
            max(model.backbone.spatial_stride) > SIDE
        ):  # which a forward pass on meta does not notice before torch 2.14
            return validate_settings(ModelOptions, base, record.name)
    except (SettingsError, RuntimeError):  # its size is part of the network
        return validate_settings(ModelOptions, base, record.name)
    return tried


def clip_of(model: Recognizer, batch: int) -> torch.Tensor:
    spec = model.spec
    shape = (batch, spec.channels, spec.clip_length, *spec.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def train(record, head, modality) -> None:
    """One step moves the weights of every stage."""
    torch.manual_seed(0)
    model = Recognizer(small(record, head, modality), CLASSES).train()
    before = {name: [p.detach().clone() for p in stage.parameters()] for name, stage in model.stages()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = torch.nn.functional.cross_entropy(model(clip_of(model, 2)), torch.tensor([0, 3]))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    assert loss.isfinite()
    for name, stage in model.stages():
        moved = [not torch.equal(p, old) for p, old in zip(stage.parameters(), before[name], strict=True)]
        assert any(moved) or not moved, f"{name} stays as it was"


@pytest.mark.slow
@pytest.mark.parametrize(("record", "one"), list(zip(records(), cycle(COMBINATIONS))), ids=name_of)
def test_every_record_takes_other_heads_and_modality_trains_and_is_exported(record, one):
    """Any of them is built and run without memory; a step and an export are made of one, another for each record."""
    for head, modality in COMBINATIONS:
        with torch.device("meta"):
            model = Recognizer(small(record, head, modality), CLASSES).eval()
            spec = model.spec
            clip = torch.empty(2, spec.channels, spec.clip_length, *spec.size)
            assert model(clip).shape == (2, CLASSES)
    train(record, *one)
    exported(record, *one)


def exported(record, head, modality) -> None:
    """What torch.export makes of the network gives its logits, for another clip than the traced one."""
    torch.manual_seed(0)
    model = Recognizer(small(record, head, modality), CLASSES).eval()
    clip = clip_of(model, 1)
    program = torch.export.export(model, (clip,))
    other = clip.flip(-1)
    with torch.inference_mode():
        expected = model(other)
        found = program.module()(other)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


LARGE = {"densenet3d", "c3d", "slowfast", "i3d", "x3d", "resnext3d", "hf_video"}
"""Kinds whose smallest record takes seconds to capture; `test_export.py` exports small ones of some of them."""


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(record, marks=pytest.mark.slow if kind in LARGE else ())
        for kind, record in SMALLEST.items()
    ],
    ids=name_of,
)
def test_a_network_of_every_kind_is_exported(record):
    exported(record, "bert", "flow")


@pytest.mark.slow
@pytest.mark.parametrize(("head", "modality"), COMBINATIONS)
@pytest.mark.parametrize("record", SMALLEST.values(), ids=name_of)
def test_a_network_of_every_kind_trains_and_is_exported_with_any_head(record, head, modality):
    train(record, head, modality)
    exported(record, head, modality)
