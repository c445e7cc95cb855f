"""Settings files: what is read back, and the one line a person gets for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from two_stream.config.load import dump, load_experiment, validate_settings
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError


def complaint(tmp_path: Path, text: str) -> str:
    path = tmp_path / "e.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_experiment(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_dump_reads_back_equal() -> None:
    experiment = validate_settings(
        Experiment,
        {
            "model": {"head": {"kind": "lstm", "hidden": 7}, "input": {"resize": [8, 9]}},
            "train": {"init": "a/b"},
        },
        "x",
    )
    assert validate_settings(Experiment, yaml.safe_load(dump(experiment)), "x") == experiment


def test_scientific_notation_without_dot_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("train: {optimizer: {kind: adamw, lr: 1e-5}}")
    assert load_experiment(path).train.optimizer.lr == 1e-5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modle: 3", "unknown key `modle`; did you mean `model`?"),
        ("model: {head: {kind: bert, layes: 3}}", "unknown key `model.head.layes`; did you mean `layers`?"),
        ("model: {head: {kind: bertt}}", "`model.head.kind`: unknown kind 'bertt'; did you mean `bert`?"),
        ("train: {epochs: -1}", "`train.epochs` is -1: input should be greater than or equal to 1"),
        ("train: {optimizer: {lr: 1}}", "`train.optimizer`: a `kind` is missing; add one"),
        ("a: 1\na: 2", "line 2: key 'a' is given twice; remove one"),
        ("train: [", "line 1 not valid YAML"),
        ("- 1", "expected `key: value` lines, got a list"),
        ("train: {cross_modality: true}", "`train`: `cross_modality` requires `init`"),
        ("model: {input: {resize: [9, 9], crop: 20}}", "`crop` 20 is larger than the resized frame (9, 9)"),
        (
            "train: {optimizer: {kind: sgd, nesterov: true, dampening: 0.9}}",
            "`nesterov` requires `momentum` above 0",
        ),
        ("train: {inflate: true}", "`train`: `inflate` requires `init`"),
        ("data: {augment: {scales: []}}", "`data.augment.scales` is []"),
        ("data: {augment: {scales: [1.5]}}", "`data.augment.scales.0` is 1.5"),
        ("? [a, b]\n: 1", "line 1: a key must be a string"),
        ("nme: 1\nsed: 2", "unknown key `nme`; did you mean `name`? (and 1 more mistake)"),
        ("{nme: 1, sed: 2, d: 3}", "(and 2 more mistakes)"),
        (
            "model: {head: {kind: average, layers: 1, heads: 8, hidden: 9, keep: 0.8}, modalty: rgb}",
            "unknown keys `layers`, `heads`, `hidden`, … (4) in `model.head` of kind average; "
            "they belong to another kind: remove them (and 1 more mistake)",
        ),
        (
            "model: {head: {kind: lstm, heads: 8}}",
            "unknown key `heads` in `model.head` of kind lstm; it belongs to another kind: remove it",
        ),
    ],
)
def test_each_mistake_is_one_line_that_names_it(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in complaint(tmp_path, text)


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "demo_rgb.yaml").write_text("")
    with pytest.raises(SettingsError, match=r"no such file; did you mean .*demo_rgb\.yaml\?"):
        load_experiment(tmp_path / "demo_rbg.yaml")


def test_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SettingsError, match="cannot be read as a settings file"):
        load_experiment(path)
