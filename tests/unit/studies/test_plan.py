"""Cells and their keys: what decides a run's weights is in the key, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from two_stream.config.study import Study
from two_stream.errors import DataError, SettingsError
from two_stream.studies.running import plan as planning
from two_stream.studies.running.ablation import stages_of
from two_stream.studies.running.cells import StudyJob
from two_stream.studies.running.plan import (
    Cell,
    backbone_cell,
    base_settings,
    load_study,
    plan_cells,
    variants_of,
)


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """A data set that has lists and an empty folder of frames."""
    folder = tmp_path / "toy"
    (folder / "frames").mkdir(parents=True)
    record = {
        "name": "toy",
        "num_splits": 2,
        "classes": ["a", "b"],
        "frames": {"rgb": "frames"},
        "videos": "frames",
        "group": r"_(g\d+)$",
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(record))
    for split in (1, 2):
        lines = [f"a/v{number}_g{number} 30 {number % 2}" for number in range(12)]
        (folder / f"train_rgb_split{split}.txt").write_text("\n".join(lines) + "\n")
        (folder / f"val_rgb_split{split}.txt").write_text(f"b/w{split}_g99 30 1\n")
    planning._digest.cache_clear()
    return folder


def study(lists: Path, **facts: object) -> Study:
    base = {
        "name": "s",
        "question": "?",
        "settings": {"data.dataset": str(lists / "dataset.yaml"), "model.backbone.kind": "mobilenetv2_3d"},
        "variants": {"average": {"model.head.kind": "average"}, "lstm": {"model.head.kind": "lstm"}},
        "seeds": [1, 2],
        "out": str(lists.parent / "out"),
    }
    return Study.model_validate({**base, **facts})


def keys(cells: list[Cell]) -> list[str]:
    return [cell.key for cell in cells]


def test_cells_are_variants_splits_and_seeds(lists: Path):
    cells = plan_cells(study(lists, splits=[1, 2]))
    assert [(cell.seed, cell.split, cell.variant) for cell in cells] == [
        (seed, split, name) for seed in (1, 2) for split in (1, 2) for name in ("average", "lstm")
    ]
    for cell in cells:
        experiment = cell.experiment
        assert (experiment.seed, experiment.data.split) == (cell.seed, cell.split)
        assert experiment.model.head.kind == cell.variant
        assert cell.folder == lists.parent / "out" / "s" / "runs" / experiment.name
        assert experiment.name.startswith(f"{cell.variant}-split{cell.split}-seed{cell.seed}-")
    assert len(set(keys(cells))) == len({cell.folder for cell in cells}) == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cuda:1"},
        {"threads": 3},
        {"data.workers": 7},
        {"evaluate.crops": "center"},
        {"train.log_images": False},
        {"train.compile": True},
    ],
)
def test_what_decides_no_weights_is_in_no_key(lists: Path, changes):
    plain = study(lists)
    assert keys(plan_cells(study(lists, settings={**plain.settings, **changes}))) == keys(plan_cells(plain))


@pytest.mark.parametrize(
    "changes",
    [
        {"train.epochs": 7},
        {"model.dropout": 0.1},
        {"data.frame_order": "shuffled"},
        {"data.holdout": 0.3},
        {"deterministic": False},
    ],
)
def test_what_decides_the_weights_is_in_every_key(lists: Path, changes):
    plain = study(lists)
    assert not set(keys(plan_cells(study(lists, settings={**plain.settings, **changes})))) & set(
        keys(plan_cells(plain))
    )


def test_another_list_of_videos_is_another_key(lists: Path):
    before = keys(plan_cells(study(lists)))
    with (lists / "val_rgb_split1.txt").open("a") as file:
        file.write("b/w7_g97 30 1\n")
    planning._digest.cache_clear()
    assert not set(keys(plan_cells(study(lists)))) & set(before)


def test_other_weights_of_a_teacher_are_another_key_and_another_place_is_not(lists: Path):
    def taught(teacher: Path) -> list[str]:
        changes = {"compress": {"kind": "distill", "teachers": [str(teacher)]}}
        cells = plan_cells(study(lists, variants={"taught": changes, "plain": {}}))
        return [cell.key for cell in cells if cell.variant == "taught"]

    for name, content in (("one", b"1"), ("copy", b"1"), ("other", b"2")):
        weights = lists / name / "best" / "model.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(content)
    assert taught(lists / "one") == taught(lists / "copy")
    assert not set(taught(lists / "one")) & set(taught(lists / "other"))
    with pytest.raises(
        SettingsError, match=r"variant 'taught'.*`compress.teachers`: .*gone is neither a file nor"
    ):
        taught(lists / "gone")


def test_what_a_run_is_made_from_is_what_it_begins_with(lists: Path):
    changes = {"compress": {"kind": "prune", "source": "runs/rgb"}}
    with pytest.raises(SettingsError, match=r"`compress.source` is runs/rgb and `train.init` is not set"):
        plan_cells(study(lists, variants={"half": changes, "plain": {}}))


def test_other_code_is_another_key_but_the_same_loose_one(lists: Path, monkeypatch):
    before = plan_cells(study(lists))
    monkeypatch.setattr(planning, "source_digest", lambda: "other")
    after = plan_cells(study(lists))
    assert not set(keys(after)) & set(keys(before))
    assert [cell.loose_key for cell in after] == [cell.loose_key for cell in before]


def test_other_code_keeps_the_loose_keys_of_heads_on_a_backbone_that_is_trained_first(
    lists: Path, monkeypatch
):
    made = study(lists, features={"backbone": {"model.head.kind": "average"}})

    def jobs() -> list[StudyJob]:
        return [job for stage in stages_of(made, plan_cells(made), "f") for job in stage.jobs]

    before = jobs()
    monkeypatch.setattr(planning, "source_digest", lambda: "other")
    after = jobs()
    assert not {job.key for job in before} & {job.key for job in after}
    assert [job.loose_key for job in after] == [job.loose_key for job in before]


def test_the_weights_a_run_starts_from_count_by_their_bytes(lists: Path, tmp_path: Path):
    for name, content in (("a.pth", b"1"), ("b.pth", b"1"), ("c.pth", b"2")):
        (tmp_path / name).write_bytes(content)
    one, same, other = (
        keys(plan_cells(study(lists, settings={**study(lists).settings, "train.init": str(tmp_path / name)})))
        for name in ("a.pth", "b.pth", "c.pth")
    )
    assert one == same
    assert not set(one) & set(other)
    with pytest.raises(
        SettingsError, match=r"variant 'average': `train.init`: .*nothing.pth is neither a file"
    ):
        plan_cells(
            study(lists, settings={**study(lists).settings, "train.init": str(tmp_path / "nothing.pth")})
        )


def test_the_weights_of_a_library_count_by_their_bytes(lists: Path, tmp_path: Path):
    backbone = {"kind": "timm", "name": "test_resnet", "pretrained": True, "weights": str(tmp_path / "w.pth")}
    made = study(lists, settings={"data.dataset": str(lists / "dataset.yaml"), "model.backbone": backbone})
    found = []
    for content in (b"1", b"2", b"1"):
        (tmp_path / "w.pth").write_bytes(content)
        found.append(keys(plan_cells(made)))
    assert found[0] == found[2]
    assert not set(found[0]) & set(found[1])
    (tmp_path / "w.pth").unlink()
    with pytest.raises(SettingsError, match=r"`model.backbone.weights`: .*w.pth is neither a file nor"):
        plan_cells(made)


def test_a_wrong_variant_is_named(lists: Path):
    with pytest.raises(SettingsError, match=r"f.yaml: variant 'bad': unknown key `model.haed`"):
        plan_cells(study(lists, variants={"bad": {"model.haed": 1}}), "f.yaml")
    with pytest.raises(SettingsError, match=r"f.yaml: `exclude` names 'x'"):
        plan_cells(study(lists, exclude=["x"]), "f.yaml")


def test_a_wrong_comparison_is_found_before_anything_runs(lists: Path):
    with pytest.raises(
        SettingsError, match=r"f.yaml: `compare\[0\].baseline`: 'averag' does not exist.*`average`"
    ):
        plan_cells(study(lists, compare=[{"baseline": "averag"}]), "f.yaml")


@pytest.mark.parametrize("name", ["..", "."])
def test_a_study_is_called_as_a_folder_can_be(lists: Path, name: str):
    with pytest.raises(SettingsError, match=r"f.yaml: `name` is '\.+'; expected a valid folder name"):
        plan_cells(study(lists, name=name), "f.yaml")
    assert plan_cells(study(lists, name="größe+1.0_a-b"))


def test_an_absent_data_set_is_named(lists: Path):
    with pytest.raises(DataError, match="nowhere"):
        plan_cells(study(lists, settings={"data.dataset": "nowhere"}))


def test_heads_on_one_frozen_backbone_share_it_and_its_features(lists: Path):
    features = {"train_views": 3, "backbone": {"model.head.kind": "average", "train.epochs": 9}}
    made = study(lists, features=features, splits=[1, 2])
    cells = plan_cells(made)
    assert {cell.experiment.train.freeze_until for cell in cells} == {"backbone"}
    backbones, caches, runs = stages_of(made, cells, "f")
    assert [len(stage.jobs) for stage in (backbones, caches, runs)] == [2, 2, 8]
    assert all(
        job.settings().train.epochs == 9 and not job.settings().train.freeze_until for job in backbones.jobs
    )
    first = runs.jobs[0].settings()
    assert str(first.data.features) == caches.jobs[0].out
    assert str(first.train.init) == backbones.jobs[0].run
    assert caches.jobs[0].train_views == 3
    wide = variants_of(
        study(lists, variants={"wide": {"model.backbone.width": 1.4, "model.head.kind": "lstm"}})
    )[0]
    assert backbone_cell(made, wide, 1, "f").key != backbones.jobs[0].key


def test_a_study_file_finds_its_base_next_to_it_or_by_name(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("seed: 3\n")
    text = {"name": "s", "question": "?", "base": "base.yaml", "variants": {"a": {}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(text))
    assert load_study(tmp_path / "s.yaml").base == tmp_path / "base.yaml"
    (tmp_path / "n.yaml").write_text(yaml.safe_dump({**text, "base": "own_videos_rgb"}))
    assert base_settings(load_study(tmp_path / "n.yaml"))["name"] == "own_videos_rgb"
    (tmp_path / "n.yaml").write_text(yaml.safe_dump({**text, "base": "own_videos_rbg"}))
    with pytest.raises(SettingsError, match="did you mean `own_videos_rgb`"):
        load_study(tmp_path / "n.yaml")
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({**text, "seedz": [1]}))
    with pytest.raises(SettingsError, match=r"t.yaml: unknown key `seedz`; did you mean `seeds`"):
        load_study(tmp_path / "t.yaml")


def test_an_option_left_at_its_default_is_in_no_key(lists: Path):
    experiment = plan_cells(study(lists))[1].experiment
    named = planning.identity(experiment)
    assert named["model.head.kind"] == "lstm"
    assert named["model.backbone.kind"] == "mobilenetv2_3d"
    assert "train.epochs" not in named
    other = experiment.model_copy(update={"train": experiment.train.model_copy(update={"epochs": 7})})
    assert planning.identity(other) == named | {"train.epochs": 7}


def test_a_head_that_looks_at_places_needs_maps_and_says_so_before_anything_runs(lists: Path):
    places = {"average": {}, "places": {"model.head": {"kind": "nonlocal", "over": "space_time"}}}
    made = study(lists, variants=places, features={})
    with pytest.raises(
        SettingsError,
        match=r"f: variant 'places': the head requires feature maps.*`features: \{maps: true\}`",
    ):
        stages_of(made, plan_cells(made), "f")
    whole = study(lists, variants=places, features={"maps": True})
    assert len(stages_of(whole, plan_cells(whole), "f")[-1].jobs) == 4


def test_what_stored_features_cannot_give_is_said_before_they_are_stored(lists: Path):
    variants = {"plain": {}, "mixed": {"train.mixup": 0.2}}
    with pytest.raises(
        SettingsError, match=r"f: variant 'mixed': `train.mixup` mixes clips, but `data.features`"
    ):
        plan_cells(study(lists, variants=variants, features={}), "f")
    assert plan_cells(study(lists, variants=variants), "f")
