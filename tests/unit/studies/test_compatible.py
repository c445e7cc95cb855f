"""Which score files are one variant, and which may not be compared."""

from __future__ import annotations

import shutil

import pytest
import yaml

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.files import read_scores, write_scores
from two_stream.evaluation.scores.fusion import fuse
from two_stream.studies.statistics.scored import (
    check_comparable,
    group_variants,
    read_scored,
    run_rows,
    runs_of_variants,
)


def read(*paths):
    return [read_scored(path) for path in paths]


def test_runs_that_differ_in_seed_or_split_only_are_one_variant(studio) -> None:
    found = read(
        studio.run("average-seed1", seed=1),
        studio.run("bert-seed1", head="bert", seed=1),
        studio.run("average-seed2", seed=2),
        studio.run("average-split2-seed1", seed=1, split=2),
        studio.run("bert-seed2", head="bert", seed=2),
    )
    groups = group_variants(found)
    cells = {name: sorted(item.cell for item in members) for name, members in groups.items()}
    assert cells == {"average": [(1, 1), (1, 2), (2, 1)], "bert": [(1, 1), (1, 2)]}


@pytest.mark.parametrize(
    ("runs", "name"),
    [
        (("bert-seed1", "bert-seed2"), "bert"),
        (("bert1", "bert2"), "bert"),
        (("my-bert1", "my-bert2"), "my-bert"),
        (("my-bert-one", "my-bert-two"), "my-bert"),
        (("left", "right"), "left"),
        (("bert_split1_seed1", "bert_split1_seed2"), "bert_split1"),
    ],
)
def test_a_variant_is_called_by_what_its_runs_names_share(studio, runs, name: str) -> None:
    found = read(*(studio.run(run, seed=seed) for seed, run in enumerate(runs)))
    assert list(group_variants(found)) == [name]


def test_what_does_not_change_a_result_does_not_part_runs(studio) -> None:
    one, two, three = (studio.run(name, seed=seed) for seed, name in enumerate(("a1", "a2", "a3"), start=1))
    for folder, key, value in ((two, "device", "cuda"), (three, "dropout", 0.1)):
        settings = studio.settings(folder)
        (settings if key == "device" else settings["model"])[key] = value
        (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    assert [len(members) for members in group_variants(read(one, two, three)).values()] == [2, 1]


def test_heads_on_features_of_two_backbones_are_two_variants(studio) -> None:
    """Within a split; another split may have a backbone of its own."""

    def on(backbone: str, **meta):
        name = f"bert-{backbone}-split{meta.get('split', 1)}-seed{meta['seed']}"
        return studio.run(name, head="bert", features={"backbone_sha256": backbone}, **meta)

    found = read(
        on("aa", seed=1), on("bb", seed=2), on("aa", seed=3), on("bb", seed=4), on("aa", seed=1, split=2)
    )
    cells = [[(item.backbone, *item.cell) for item in members] for members in group_variants(found).values()]
    assert cells == [[("aa", 1, 1), ("aa", 1, 3), ("aa", 2, 1)], [("bb", 1, 2), ("bb", 1, 4)]]
    found = read(on("aa", seed=1), on("cc", seed=1, split=2), on("cc", seed=2, split=2))
    assert [len(members) for members in group_variants(found).values()] == [3]
    assert read(studio.run("plain"))[0].backbone is None


def test_the_same_settings_split_and_seed_twice_are_two_variants(studio) -> None:
    run = studio.run("a")
    other = run / "scores" / "test_single_center_logits.npz"
    shutil.copy(run / "scores" / "test_multi_ten_logits.npz", other)
    groups = group_variants([read_scored(run / "scores" / "test_multi_ten_logits.npz"), read_scored(other)])
    assert list(groups) == ["a (test_multi_ten_logits)", "a (test_single_center_logits)"]


def test_files_without_a_run_and_fusions_stand_alone(studio) -> None:
    rgb, flow = read(studio.run("rgb"), studio.run("flow", modality="flow"))
    path = studio.root / "fused.npz"
    write_scores(path, fuse([rgb.table, flow.table], "l2"))
    single = studio.root / "alone" / "x.npz"
    table = studio.table(seed=2)
    del table.meta["seed"]
    write_scores(single, table)
    groups = group_variants([rgb, flow, *read(path, single)])
    assert [len(members) for members in groups.values()] == [1, 1, 1, 1]
    assert groups["fused"][0].file == str(path)
    assert read_scored(single).cell == (1, 0)
    assert groups["fused"][0].protocol == rgb.protocol  # a fusion is scored as its streams were


def test_a_fusion_kept_in_a_runs_folder_is_no_training_of_that_run(studio) -> None:
    one, two = studio.run("a1", seed=1), studio.run("a2", seed=2)
    fused = two / "scores" / "test_fused.npz"
    write_scores(fused, fuse([item.table for item in read(one, two)], "l2"))
    groups = group_variants([*read(one), read_scored(fused)])
    assert {name: len(members) for name, members in groups.items()} == {"a1": 1, "test_fused": 1}


def test_groups_by_hand(studio) -> None:
    found = read(studio.run("x"), studio.run("y", head="bert", seed=2), studio.run("z", head="lstm"))
    groups = group_variants(found, {"mine": [0, 1]})
    assert {name: len(members) for name, members in groups.items()} == {"mine": 2, "z": 1}
    with pytest.raises(ScoreError, match=r"group 'mine': .*z.* and .*x.* both have split 1, seed 1"):
        group_variants(found, {"mine": [0, 2]})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"dataset": "other"}, "different data sets: toy ("),
        ({"views": "single"}, "different views: multi ("),
        ({"crops": "center"}, "different crops: ten ("),
        ({"aggregate": "probabilities"}, "different aggregation over views: logits ("),
        ({"selection": "paper"}, "different selection of the checkpoint: holdout ("),
        ({"sampling": "paper"}, "different frame choice: standard ("),
        ({"num_clips": 4}, "different numbers of clips: None ("),
        ({"frame_order": "shuffled"}, "different frame order: None ("),
        ({"split": 2}, "different splits: a 1 ("),
    ],
)
def test_other_data_or_protocols_are_refused_with_the_difference_and_the_files(
    studio, change: dict, line: str
) -> None:
    one, two = studio.run("a"), studio.run("b", head="bert", **change)
    groups = group_variants(read(one, two))
    with pytest.raises(ScoreError) as refused:
        check_comparable(groups)
    message = str(refused.value)
    assert message.startswith(line)
    assert str(one) in message
    assert str(two) in message
    assert str(next(iter(change.values()))) in message
    assert "\n" not in message
    assert "--anyway" in message
    notes = check_comparable(groups, anyway=True)
    assert len(notes) == 1
    assert line in notes[0]


def test_precision_and_splits_within_a_variant_are_no_obstacle(studio) -> None:
    runs = [
        studio.run(f"{head}-split{split}", head=head, split=split, precision="fp32" if split == 1 else "bf16")
        for head in ("average", "bert")
        for split in (1, 2)
    ]
    assert check_comparable(group_variants(read(*runs))) == []


def test_what_the_statistics_get(studio) -> None:
    groups = group_variants(read(studio.run("average"), studio.run("bert", head="bert")))
    average, bert = runs_of_variants(groups, with_holdout=True)
    assert average.changes["model.head.kind"] == "average"
    assert bert.changes["model.head.kind"] == "bert"
    assert "data.dataset" not in bert.changes
    assert "seed" not in bert.changes
    assert yaml.safe_load(bert.settings)["model"]["head"]["kind"] == "bert"
    assert bert.histories == {"split 1, seed 1": [{"epoch": 1.0, "val_top1": 0.5}]}
    assert bert.holdout[1, 1].meta["part"] == "val"
    rows = run_rows(groups)
    table = read_scores(rows[0].scores)
    assert rows[0].accuracy == pytest.approx((table.logits.argmax(1) == table.labels).mean())
    assert (rows[0].variant, rows[0].state, rows[0].run) == ("average", "done", str(studio.root / "average"))


def test_holdout_scores_need_a_run(studio) -> None:
    path = studio.root / "alone.npz"
    write_scores(path, studio.table())
    with pytest.raises(ScoreError, match="not in a run folder"):
        runs_of_variants(group_variants(read(path)), with_holdout=True)
