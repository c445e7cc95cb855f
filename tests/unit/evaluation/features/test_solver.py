"""The linear probe and standardised tokens as runs: from clips, from stored features, used as every other run is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.helpers.datasets import CLASSES, write_frame_dataset
from tests.helpers.models import difference, settled_model
from tests.helpers.runs import MOBILENET, NONLOCAL, experiment_of, save_run
from two_stream.cli import main
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError, TrainingError
from two_stream.evaluation.features.cache import FeatureCache
from two_stream.evaluation.features.extract_features import write_features
from two_stream.evaluation.runs.run import evaluate_run, load_run
from two_stream.recognizer import create_model
from two_stream.streaming import convert
from two_stream.training import linear_probe
from two_stream.training.train import start_model, train

MOMENTS = {"kind": "moments", "differences": 2}
PROBE = {"kind": "logistic", "cs": (0.01, 0.1, 1.0)}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_frame_dataset(tmp_path_factory.mktemp("solved"))


def start(
    world: Path,
    runs: Path,
    head: dict[str, Any] = MOMENTS,
    backbone: dict[str, Any] = MOBILENET,
    **settings: Any,
) -> Experiment:
    """Settings that begin with a run's backbone; the source is written once per folder."""
    source = experiment_of(world, backbone, {"kind": "average"}, name="source", runs=runs)
    if not (runs / "source").is_dir():
        save_run(source, settled_model(source.model))
    given = {"runs": runs, "evaluate": {"views": "single", "crops": "center"}, **settings}
    probe = {"init": runs / "source", "init_part": "backbone", "optimizer": PROBE}
    given["train"] = {**probe, **settings.get("train", {})}
    return experiment_of(world, backbone, head, **given)


def stored(experiment: Experiment, folder: Path, **options: Any) -> Experiment:
    write_features(start_model(experiment), experiment, folder, **options)
    data = experiment.data.model_copy(update={"features": folder})
    return experiment.model_copy(update={"name": "stored", "data": data})


def line(run: Path) -> dict[str, Any]:
    (only,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return only


def test_a_probe_is_the_pipeline_and_a_run_like_any_other(world: Path, tmp_path: Path) -> None:
    experiment = start(world, tmp_path, model={"dropout": 0.5})
    result = train(experiment)
    assert (result.finished, result.epochs, result.best_epoch) == (True, 1, 1)
    run, said = load_run(result.run.root), line(result.run.root)
    assert said["c"] in PROBE["cs"]
    assert [row["c"] for row in said["cross_validation"]] == list(PROBE["cs"])
    assert run.meta["val_top1"] == said["val_top1"] == result.best_top1
    assert run.meta["class_names"] == ["left", "right", "stay"]

    vectors, labels = [], []
    data = solver_data(experiment)
    for batch in data.centred():
        vectors.append(run.model.forward_vectors(batch.clips).double().detach().numpy())
        labels.append(batch.labels.numpy())
    estimator = LogisticRegression(C=said["c"], class_weight="balanced", tol=1e-10, max_iter=10_000)
    wanted = make_pipeline(StandardScaler(), estimator).fit(np.concatenate(vectors), np.concatenate(labels))
    table, _ = evaluate_run(result.run.root, device="cpu")
    test = []
    for batch in data.validation():
        z = run.model.forward_vectors(batch.clips).double().detach().numpy()
        logits = run.model(batch.clips).detach().numpy()
        np.testing.assert_allclose(logits, wanted.decision_function(z), rtol=0, atol=1e-4)
        test += (wanted.predict(z) == batch.labels.numpy()).tolist()
    assert said["val_top1"] == np.mean(test)
    assert table.logits.shape == (3, 3)

    again = train(experiment, resume=True)
    assert again.already_finished
    assert again.best_top1 == result.best_top1


def solver_data(experiment: Experiment) -> Any:
    from two_stream.data.catalog import dataset_record
    from two_stream.training.data import training_data

    return training_data(experiment, dataset_record(experiment.data), create_model(experiment.model, 3).spec)


@pytest.mark.parametrize(
    ("views", "trained"), [(None, 1), (0, 1), (2, 2)], ids=["one, as stored", "centred alone", "two"]
)
def test_cached_equals_uncached(world: Path, tmp_path: Path, views: int | None, trained: int) -> None:
    experiment = start(world, tmp_path, train={"optimizer": {**PROBE, "views": views}})
    cached = train(stored(experiment, tmp_path / "cache", train_views=trained))
    if views is None:
        optimizer = experiment.train.optimizer.model_copy(update={"views": 1})
        experiment = experiment.model_copy(
            update={"train": experiment.train.model_copy(update={"optimizer": optimizer})}
        )
    read = train(experiment)
    for key in ("train_loss", "val_loss", "c"):
        assert line(cached.run.root)[key] == pytest.approx(line(read.run.root)[key], rel=1e-3)
    logits = [evaluate_run(run.run.root, device="cpu")[0].logits for run in (cached, read)]
    assert difference(*logits) < 1e-3


def test_an_interrupted_probe_leaves_nothing_half_written(world: Path, tmp_path: Path, monkeypatch) -> None:
    import os
    import signal

    experiment = start(world, tmp_path)

    def interrupted(*_: Any, stopped: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()

    with monkeypatch.context() as patch:
        patch.setattr(linear_probe, "choose", interrupted)
        result = train(experiment)
    assert result.interrupted == signal.SIGINT
    assert not result.finished
    assert not result.run.best.exists()
    assert not result.run.last.exists()
    assert train(experiment, resume=True).finished


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"head": {"kind": "lstm", "hidden": 4}},
            "trains the classifier only, but heads.0.lstm.weight_ih_l0",
        ),
        ({"train": {"mixup": 0.2}}, "`mixup` changes training steps"),
        ({"data": {"balance": "classes"}}, "train.optimizer.balanced: true"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    world: Path, tmp_path: Path, given: Any, message: str
) -> None:
    with pytest.raises((SettingsError, ValueError), match=message):
        train(start(world, tmp_path, **given))


def test_a_frozen_head_may_have_weights(world: Path, tmp_path: Path) -> None:
    train(start(world, tmp_path, {"kind": "lstm", "hidden": 4}, train={"freeze_until": "head"}))


@pytest.mark.parametrize(
    "head", [MOMENTS, NONLOCAL, {"kind": "bert", "heads": 4, "hidden": 64}], ids=lambda h: h["kind"]
)
def test_standardised_tokens_have_mean_0_and_deviation_1(
    world: Path, tmp_path: Path, head: dict[str, Any]
) -> None:
    steps = {"optimizer": {"kind": "sgd", "lr": 1e-4}, "epochs": 1}
    exact = {"views": "single", "crops": "center", "fold": False}  # small deviations make much of rounding
    experiment = start(world, tmp_path, head, model={"standardize": True}, train=steps, evaluate=exact)
    run = load_run(train(experiment).run.root)
    standard, before = run.model.standards[0], start_model(experiment)
    tokens = [before.eval().forward_tokens(batch.clips)[0] for batch in solver_data(experiment).centred()]
    flat = torch.cat(tokens).flatten(0, 1).detach()
    torch.testing.assert_close(standard.mean, flat.mean(0), rtol=1e-4, atol=1e-5)
    deviation = flat.std(0, correction=0)
    alive = deviation > 1e-6 * flat.mean(0).abs()
    torch.testing.assert_close(standard.deviation[alive], deviation[alive], rtol=1e-4, atol=1e-5)
    assert standard.deviation[~alive].eq(1).all()  # a constant channel becomes 0
    seen = standard(flat)
    torch.testing.assert_close(seen.mean(0), torch.zeros(seen.shape[1]), rtol=0, atol=1e-4)
    assert (seen.std(0, correction=0)[alive] - 1).abs().max() < 1e-3

    maps = head is NONLOCAL
    cached = load_run(train(stored(experiment, tmp_path / "cache", maps=maps)).run.root)
    assert not FeatureCache(tmp_path / "cache").facts.settings.get(
        "model.standardize"
    )  # raw tokens are stored
    torch.testing.assert_close(cached.model.standards[0].mean, standard.mean, rtol=1e-5, atol=1e-6)
    logits = [
        evaluate_run(r, uncached=u, device="cpu")[0].logits for r in (cached, run) for u in (True, False)
    ]
    for other in logits[1:]:
        assert difference(logits[0], other) < 1e-3


def test_statistics_survive_a_second_training_and_old_weights_load(world: Path, tmp_path: Path) -> None:
    steps = {"optimizer": {"kind": "sgd", "lr": 1e-4}, "epochs": 1}
    first = start(world, tmp_path, model={"standardize": True}, train=steps)
    folder = train(first).run.root
    second = start(world, tmp_path, name="second", model={"standardize": True})
    whole_list = {"init": folder, "init_part": "all", "selection": "paper"}  # others would be measured on it
    train_on = second.train.model_copy(update=whole_list)
    run = load_run(train(second.model_copy(update={"train": train_on})).run.root)
    assert torch.equal(run.model.standards[0].mean, load_run(folder).model.standards[0].mean)
    assert not run.model.standards[0].mean.eq(0).all()
    plain = start_model(start(world, tmp_path))
    assert not [key for key in plain.state_dict() if "standard" in key]


@pytest.mark.parametrize("head", [MOMENTS, {**NONLOCAL, "pool": "average"}], ids=lambda h: h["kind"])
def test_a_stream_standardises_too(head: dict[str, Any]) -> None:
    model = create_model(
        "3dresnets/resnet10", 3, head=head, standardize=True, backbone={"width": 0.25}, input={"crop": 32}
    ).eval()
    generator = torch.Generator().manual_seed(0)
    plain = torch.randint(0, 256, (1, 3, 16, 32, 32), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        before = model(plain)
        model.standards[0].mean.normal_(generator=generator)
        model.standards[0].deviation.uniform_(0.5, 2, generator=generator)
        assert not torch.allclose(model(plain), before)
        frames = torch.randint(0, 256, (1, 3, 96, 32, 32), dtype=torch.uint8, generator=generator)
        (tokens,) = model.forward_features(frames)
        stream = convert(model)
        found = torch.cat((stream.step(frames), stream.finish()), 1)
        if not model.head.needs_maps:
            wanted = [model._classified([tokens[:, i : i + 1]]) for i in range(tokens.shape[1])]
            torch.testing.assert_close(found, torch.stack(wanted, 1), rtol=1e-4, atol=1e-4)
        assert found.shape[1] == tokens.shape[1]


FOLDS = {"selection": "folds"}
NARROW = {"kind": "resnet3d", "depth": 10, "width": 0.125, "temporal_stride": 4}
"""64 channels: a dozen fits to a tolerance of 1e-10 take a second"""


def held_out(experiment: Experiment, run: Any, c: float) -> dict[str, np.ndarray]:
    """Logits of every training video by a cross-validation written out: a mean over three repeats."""
    data, network = solver_data(experiment), start_model(experiment).eval()
    rows: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for batch in data.centred():
            rows |= dict(zip(batch.ids, network.forward_vectors(batch.clips).double().numpy(), strict=True))
    ids = [record.id for record in data.records]
    x, labels = np.stack([rows[name] for name in ids]), np.array([record.label for record in data.records])
    sources = [name.rpartition("_")[2] for name in ids]
    total = np.zeros((len(ids), 3))
    for repeat in range(3):
        parts = StratifiedGroupKFold(3, shuffle=True, random_state=experiment.seed + repeat)
        for learned, left_out in parts.split(x, labels, sources):
            assert not {sources[i] for i in learned} & {sources[i] for i in left_out}
            estimator = LogisticRegression(C=c, class_weight="balanced", tol=1e-10, max_iter=10_000)
            fold = make_pipeline(StandardScaler(), estimator).fit(x[learned], labels[learned])
            total[left_out] += fold.decision_function(x[left_out])
    return dict(zip(ids, total / 3, strict=True))


def test_folds_learn_from_the_whole_list_and_score_it_by_what_has_not_seen_it(
    world: Path, tmp_path: Path, capsys
) -> None:
    experiment = start(world, tmp_path, backbone=NARROW, train=FOLDS)
    result = train(experiment)
    assert len(solver_data(experiment).records) == 9
    said = line(result.run.root)
    assert said["selection"] == "cross-validated"
    table, path = evaluate_run(result.run.root, part="val")
    assert path == result.run.scores / "val_folds.npz"
    wanted = held_out(experiment, load_run(result.run.root), said["c"])
    assert sorted(table.ids) == sorted(wanted)
    np.testing.assert_allclose(table.logits, [wanted[name] for name in table.ids], rtol=0, atol=1e-4)
    assert said["val_top1"] == np.mean(table.logits.argmax(1) == table.labels)
    assert [CLASSES[label] for label in table.labels] == [name.split("/")[0] for name in table.ids]

    other = train(start(world, tmp_path, {"kind": "average"}, NARROW, name="other", train=FOLDS)).run.root
    runs = [str(result.run.root), str(other)]
    for run in runs:
        assert main(["evaluate", run]) == 0
    assert main(["evaluate", runs[0], "--part", "val"]) == 0
    capsys.readouterr()
    assert main(["fuse", *runs, "--fit-on-val", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fitted_on"] == [
        str(Path(run) / "scores" / "val_folds.npz") for run in runs
    ]
    path.unlink()
    assert main(["evaluate", runs[0], "--part", "val"]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "val_folds.npz: no such file; `train.selection: folds` trains on every video" in told


def test_folds_belong_to_the_solved_probe(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`selection: folds` requires `optimizer: \{kind: logi"):
        start(world, tmp_path, train={**FOLDS, "optimizer": {"kind": "sgd"}})


def test_folds_of_one_source_are_refused(tmp_path: Path) -> None:
    world = write_frame_dataset(tmp_path / "one")
    record = world / "settings" / "toy" / "dataset.yaml"
    record.write_text(record.read_text().replace(r"_(g\d)$", r"/(v)_g\d$"))
    with pytest.raises(
        TrainingError,
        match=r"^`train.selection: folds` requires at least two source videos .*, found one; .*$",
    ):
        train(start(world, tmp_path, train=FOLDS))
