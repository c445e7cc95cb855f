"""The files of settings/experiments/late_temporal: a row of the paper's tables 1 and 7 each, three splits."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from two_stream import zoo
from two_stream.commands.flags import parse_over
from two_stream.config.load import load_experiment
from two_stream.config.schema import Experiment
from two_stream.data.catalog import dataset_record
from two_stream.late_temporal.training import PublishedTraining, describe_training
from two_stream.recognizer import Recognizer

FOLDER = Path("settings/experiments/late_temporal")
CLASSES = {"hmdb51": 51, "ucf101": 101}
SPLITS = (1, 2, 3)

# by the end of the file's name: network in the zoo (none has one for the plain concatenation), the paper's table 1
# (top-1 on HMDB51, million parameters with its 51 classes) and its table 7 (top-1 on HMDB51 and UCF101)
ROWS: dict[str, tuple[str | None, tuple[str, float] | None, tuple[str, str] | None]] = {
    "rgb_resnext101_average_sgd": ("rgb_resneXt3D64f101", ("74.46", 47.63), ("81.78", "97.46")),
    "rgb_resnext101_average_adamw": ("rgb_resneXt3D64f101_adamw", ("75.99", 47.63), None),
    "rgb_resnext101_average_frmb_adamw": ("rgb_resneXt3D64f101_FRMB_adamw", ("74.97", 44.22), None),
    "rgb_resnext101_concat_frmb_adamw": (None, ("76.49", 44.30), None),
    "rgb_resnext101_lstm_frmb_adamw": ("rgb_resneXt3D64f101_FRMB_lstm", ("74.18", 47.58), None),
    "rgb_resnext101_concat_fc_frmb_adamw": ("rgb_resneXt3D64f101_concatenation", ("76.84", 47.45), None),
    "rgb_resnext101_nonlocal_concat_fc_frmb_adamw": (
        "rgb_resneXt3D64f101_FRMB_NLB_concatenation",
        ("76.36", 47.35),
        None,
    ),
    "rgb_resnext101_bert_frmb_adamw": (
        "rgb_resneXt3D64f101_bert10_FRMB",
        ("77.49", 47.38),
        ("83.55", "97.87"),
    ),
    "flow_resnext101_average_sgd": ("flow_resneXt3D64f101", None, ("81.78", "97.46")),
    "flow_resnext101_bert_frmb_adamw": ("flow_resneXt3D64f101_bert10_FRMB", None, ("83.55", "97.87")),
    "rgb_r2plus1d34_32f_average_sgd": ("rgb_r2plus1d_32f_34", None, ("80.54", "98.17")),
    "rgb_r2plus1d34_32f_bert_adamw": ("rgb_r2plus1d_32f_34_bert10", None, ("83.99", "98.65")),
    "rgb_r2plus1d34_64f_bert_adamw": ("rgb_r2plus1d_64f_34_bert10", None, ("85.10", "98.69")),
}
NAMES = [f"{dataset}_{row}" for dataset in CLASSES for row in ROWS]


@pytest.fixture(autouse=True)
def _in_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def header(name: str) -> dict[str, str]:
    """The lines `# Word …: text` of a file's comment, by their word."""
    lines = [line for line in path_of(name).read_text().splitlines() if line.startswith("#")]
    found = (re.match(r"# (\w+)(?: \([^)]*\))?: (.*)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def commands(name: str, word: str) -> list[list[str]]:
    """The commands a line of the header runs: its shell loop over the splits, unrolled."""
    loop = re.fullmatch(r"for N in 1 2 3; do two-stream (.+); done", header(name)[word])
    assert loop, f"{name}: {word} is no loop over the splits"
    return [shlex.split(loop[1].replace("$N", str(split))) for split in SPLITS]


@cache
def trained(name: str) -> list[Experiment]:
    """What `two-stream train` makes of the command of each split."""
    made = []
    for train, file, *flags in commands(name, "Command"):
        assert train == "train"
        assert Path(file) == path_of(name)
        made.append(parse_over(load_experiment(file), flags, "two-stream train", "test"))
    return made


def runs_named(name: str) -> list[str]:
    return [str(experiment.runs / experiment.name) for experiment in trained(name)]


def test_there_is_a_file_for_every_row_and_data_set() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_the_header_train_each_split(name: str) -> None:
    dataset, row = name.split("_", maxsplit=1)
    for split, experiment in zip(SPLITS, trained(name), strict=True):
        assert experiment.data.split == split
        assert experiment.name == f"{name}_split{split}"
        assert experiment.data.dataset == dataset
        record = dataset_record(experiment.data)
        assert record.num_splits == len(SPLITS)
        assert len(record.classes) == CLASSES[dataset]
        assert experiment.model.modality == row.split("_")[0]
        assert experiment.train.new_classifier
    scored = [folder for _, folder in commands(name, "Scores")]
    assert scored == runs_named(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_the_named_one_and_builds(name: str) -> None:
    dataset, row = name.split("_", maxsplit=1)
    known, table1, _ = ROWS[row]
    options = load_experiment(path_of(name)).model
    if known is None:
        assert "no name of its own" in header(name)["Network"]
        assert options not in [record.options for record in zoo.records("late_temporal/*")]
    else:
        assert header(name)["Network"] == f"late_temporal/{known}"
        assert options == zoo.find(known).options
    with torch.device("meta"):
        model = Recognizer(options, CLASSES[dataset])
    assert model.spec.clip_length == (32 if "_32f_" in name else 64)
    if table1 is not None and dataset == "hmdb51":
        million = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert round(million, 2) == table1[1], "the paper counts other parameters for this row"


@pytest.mark.parametrize("name", NAMES)
def test_the_header_states_the_published_result(name: str) -> None:
    dataset, row = name.split("_", maxsplit=1)
    _, table1, table7 = ROWS[row]
    said = header(name)
    assert set(said) >= {"Row", "Network", "Command", "Scores", "Weights", "Time", "Result"}
    expected = []
    if table1 is not None and dataset == "hmdb51":
        expected.append(table1[0])
    if table7 is not None:
        expected.append(table7[list(CLASSES).index(dataset)])
    assert re.findall(r"\d\d\.\d\d(?= %)", said["Result"]) == expected
    assert "Not reproduced by us" in said["Result"]
    assert "(published, arXiv 2008.01232)" in path_of(name).read_text()
    if table1 is not None and dataset == "ucf101":
        assert "table 1 is on HMDB51 only" in said["Result"]
    assert ("table 1" in said["Row"], "table 7" in said["Row"]) == (table1 is not None, table7 is not None)
    assert said["Time"].startswith("not measured by us")


@pytest.mark.parametrize("name", [name for name in NAMES if "_flow_" in name])
def test_the_flow_file_fuses_the_runs_of_the_pair(name: str) -> None:
    partner = name.replace("_flow_", "_rgb_")
    pairs = [["fuse", *pair] for pair in zip(runs_named(partner), runs_named(name), strict=True)]
    assert commands(name, "Fused") == pairs
    assert f"{name}.yaml" in header(partner)["Fused"]
    rgb, flow = load_experiment(path_of(partner)), load_experiment(path_of(name))
    assert rgb.evaluate == flow.evaluate
    assert rgb.train == flow.train


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_ones_of_the_manifest(name: str) -> None:
    entries = {
        entry["name"]: entry for entry in yaml.safe_load(Path("weights/manifest.yaml").read_text())["entries"]
    }
    fetch = re.match(r"two-stream weights fetch (\S+)", header(name)["Weights"])
    assert fetch
    entry = entries[fetch[1]]
    experiment = trained(name)[0]
    assert experiment.train.init == Path("weights", entry["file"])
    assert entry["modality"] == experiment.model.modality
    assert zoo.find(entry["model"]).options.backbone == experiment.model.backbone


@pytest.mark.parametrize("name", [name for name in NAMES if ROWS[name.split("_", maxsplit=1)[1]][0]])
def test_files_say_what_the_published_trainer_would_do(name: str) -> None:
    """`two-stream train --recipe late-temporal` with the flags of the published README is the same training."""
    dataset, row = name.split("_", maxsplit=1)
    arch = ROWS[row][0]
    assert arch is not None
    flags = PublishedTraining(arch=arch, dataset=dataset, batch_size=8, iter_size=16)
    ours = load_experiment(path_of(name))
    published = describe_training(
        flags, ours.model, arch=arch, dataset=(dataset, dataset, Path("settings")), init=None
    )
    assert ours.model_copy(update={"name": published.name}) == published


def test_no_two_files_are_the_same_experiment() -> None:
    seen: dict[str, str] = {}
    for name in NAMES:
        same = load_experiment(path_of(name)).model_copy(update={"name": "x"}).model_dump_json()
        assert same not in seen, f"{name} and {seen[same]}"
        seen[same] = name


def test_published_training_in_numbers() -> None:
    """Reference, section 2, said once more by hand: what all files share and what the optimizers are."""
    for name in NAMES:
        experiment = load_experiment(path_of(name))
        train, optimizer = experiment.train, experiment.train.optimizer.model_dump()
        assert (train.epochs, train.batch_size, train.accumulate, train.selection) == (200, 8, 16, "paper")
        assert train.last_group == "drop"
        schedule = train.schedule.model_dump()
        assert (schedule["kind"], schedule["factor"], schedule["patience"]) == ("plateau", 0.1, 5)
        assert (optimizer["weight_decay"], optimizer["decay_all"]) == (1e-3, True)
        assert name.endswith(f"_{optimizer['kind']}")
        if optimizer["kind"] == "sgd":
            assert (optimizer["lr"], optimizer["momentum"], optimizer["dampening"]) == (1e-2, 0.9, 0.9)
            assert not optimizer["nesterov"]
        else:
            assert optimizer["lr"] == 1e-5
        assert experiment.data.sampling == experiment.data.augment.protocol == "paper"
        assert experiment.data.augment.scales == (1.0, 0.875, 0.75, 0.66)
        evaluate = experiment.evaluate
        assert (evaluate.views, evaluate.crops, evaluate.aggregate) == ("multi", "ten", "logits")
