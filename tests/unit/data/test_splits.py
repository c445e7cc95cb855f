"""Split lists and the parts carved from them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from two_stream.data.catalog import Record, load_record
from two_stream.data.splits import (
    carve_holdout,
    choose_groups,
    load_part,
    make_splits,
    read_list,
    write_list,
)
from two_stream.errors import DataError
from two_stream.runtime.device import derive
from two_stream.types import VideoRecord


def videos(*entries: tuple[int, str, int]) -> list[VideoRecord]:
    """(label, group, how many) -> records."""
    return [
        VideoRecord(f"{group}-{label}-{index}", 30, label, group)
        for label, group, count in entries
        for index in range(count)
    ]


def test_lists_survive_a_round_trip_with_spaces(tmp_path: Path) -> None:
    records = [VideoRecord("a b/c d", 12, 0), VideoRecord("#20_x!", 3, 5)]
    write_list(tmp_path / "l.txt", records)
    assert (tmp_path / "l.txt").read_text() == "a b/c d 12 0\n#20_x! 3 5\n"
    assert read_list(tmp_path / "l.txt") == records


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a 3 0\nb three 1\n", r"l\.txt:2: 'b three 1': expected `folder num_frames label`"),
        ("a 3\n", r"l\.txt:1"),
        ("a 0 1\n", r"l\.txt:1: 'a' has no frames"),
        ("a 3 0\n\nb 3 7\n", r"l\.txt:3: label 7: expected 0 to 1"),
        ("a 3 0\na 3 0\n", r"l\.txt:2: 'a' is already on line 1"),
        ("a 10000000 0\n", r"l\.txt:1: 'a': expected at most 7 digits"),
        (f"a 3 {'9' * 5000}\n", r"l\.txt:1: 'a': expected at most 7 digits"),
        ("\n", r"l\.txt: the list is empty"),
    ],
)
def test_wrong_lines_are_named_by_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        read_list(tmp_path / "l.txt", num_classes=2)


def test_several_labels_only_in_a_multi_label_data_set(tmp_path: Path) -> None:
    records = [VideoRecord("a", 12, 1, labels=(1, 4)), VideoRecord("b", 3, 5, labels=(5,))]
    write_list(tmp_path / "l.txt", records)
    assert (tmp_path / "l.txt").read_text() == "a 12 1,4\nb 3 5\n"
    assert read_list(tmp_path / "l.txt", multi_label=True) == records
    assert [r.all_labels for r in records] == [(1, 4), (5,)]
    with pytest.raises(DataError, match=r"l\.txt:1: found several labels '1,4'; set `multi_label: true`"):
        read_list(tmp_path / "l.txt")
    with pytest.raises(DataError, match=r"l\.txt:1: label 4: expected 0 to 3"):
        read_list(tmp_path / "l.txt", num_classes=4, multi_label=True)


def test_every_label_of_a_video_counts_when_a_part_is_held_out() -> None:
    """Class 1 occurs beside class 0 only, in two sources: one has to stay on either side."""
    records = [
        VideoRecord(f"{source}-{i}", 9, 0, source, labels=(0, 1) if source in "ab" else (0,))
        for source in "abcdefgh"
        for i in range(2)
    ]
    train, val = carve_holdout(records, 0.2, seed=1)
    assert all(any(1 in r.labels for r in side) for side in (train, val))


def test_missing_list_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        read_list(tmp_path / "none.txt")


def test_holdout_is_grouped_stratified_and_repeatable() -> None:
    records = videos(*[(label, f"s{label}-{source}", 3) for label in range(4) for source in range(10)])
    train, val = carve_holdout(records, 0.2, seed=3)
    assert not {r.group for r in train} & {r.group for r in val}
    assert Counter(r.label for r in val) == dict.fromkeys(range(4), 6)
    assert sorted((*train, *val), key=records.index) == records
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    assert {r.id for r in carve_holdout(shuffled, 0.2, seed=3)[1]} == {r.id for r in val}
    assert {r.id for r in carve_holdout(records, 0.2, seed=4)[1]} != {r.id for r in val}


def test_sources_of_several_classes_stay_whole() -> None:
    records = videos(*[(label, f"g{source}", 2) for label in range(5) for source in range(10)])
    train, val = carve_holdout(records, 0.3, seed=0)
    assert len({r.group for r in val}) == 3
    assert not {r.group for r in train} & {r.group for r in val}


def test_no_class_loses_its_training_videos() -> None:
    # class 0 has one source, class 1 two uneven ones, and a large source holds both
    records = videos((0, "only", 9), (1, "large", 20), (1, "small", 1), (2, "x", 5), (2, "y", 5))
    for seed in range(20):
        train, val = carve_holdout(records, 0.2, seed)
        assert {r.label for r in train} == {0, 1, 2}
        assert {r.label for r in val} == {1, 2}  # class 0 cannot be on both sides


def test_a_class_of_one_source_stays_even_where_that_source_suits_the_others() -> None:
    others = [(label, "mixed", 2) for label in range(1, 31)]
    rest = [(label, f"s{label}", 8) for label in range(1, 31)]
    records = videos((0, "mixed", 3), *others, *rest)
    for seed in range(5):
        train, _ = carve_holdout(records, 0.2, seed)
        assert sum(r.label == 0 for r in train) == 3


def test_one_source_per_class_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match="only one source video"):
        carve_holdout(videos((0, "a", 5), (1, "b", 5)), 0.2, 0)


def test_a_removed_video_moves_no_other_far() -> None:
    records = videos(*[(label, f"s{label}-{source}", 2) for label in range(3) for source in range(20)])
    chosen = choose_groups(records, 0.2, seed=0)
    fewer = choose_groups(records[1:], 0.2, seed=0)
    assert len(chosen ^ fewer) <= 2


def test_splits_have_disjoint_test_parts() -> None:
    records = videos(*[(label, f"s{source}", 1) for label in range(4) for source in range(15)])
    splits = make_splits(records, 3, 1 / 3, seed=0)
    tests = [{r.group for r in test} for _, test in splits]
    assert [len(t) for t in tests] == [5, 5, 5]
    assert len(set.union(*tests)) == 15
    for train, test in splits:
        assert len(train) + len(test) == 60


def test_parts_of_a_split(tiny: Record) -> None:
    whole = load_part(tiny, "rgb", 1, "train", selection="paper")
    assert len(whole) == 10
    train = load_part(tiny, "rgb", 1, "train", seed=5)
    val = load_part(tiny, "rgb", 1, "val", seed=5)
    assert {r.id for r in train} | {r.id for r in val} == {r.id for r in whole}
    assert not {r.group for r in train} & {r.group for r in val}
    test = load_part(tiny, "rgb", 1, "test")
    assert [r.group for r in test] == ["g01", "g01"]
    assert load_part(tiny, "rgb", 1, "val", selection="paper") == test
    assert {r.num_frames for r in val} == {6}


def test_streams_share_the_sides_even_when_a_list_lacks_a_video(tiny: Record) -> None:
    for seed in range(8):
        rgb = {r.id for r in load_part(tiny, "rgb", 1, "val", seed=seed)}
        flow = load_part(tiny, "flow", 1, "val", seed=seed)
        assert {r.id for r in flow} == rgb
        assert {r.num_frames for r in flow} == {5}
    path = tiny.list_path("train", "flow", 1)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:][::-1]))
    for seed in range(8):
        rgb = {r.id for r in load_part(tiny, "rgb", 1, "val", seed=seed)}
        flow_ids = {r.id for r in load_part(tiny, "flow", 1, "val", seed=seed)}
        assert flow_ids == rgb - {lines[0].split()[0]}


def test_missing_split_list_tells_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("name: x\nclasses: [a]\n")
    with pytest.raises(DataError, match=r"train_rgb_split1\.txt: no such split list; .*two-stream prepare"):
        load_part(load_record(tmp_path), "rgb", 1, "train")


def plain_choice(records: list[VideoRecord], fraction: float, seed: int, used: set[str]) -> set[str]:
    """Choose with one array of class counts per source, as the first versions did."""
    labels = sorted({label for record in records for label in record.all_labels})
    counts: dict[str, np.ndarray] = {}
    for record in records:
        held = counts.setdefault(record.group or record.id, np.zeros(len(labels)))
        held[[labels.index(label) for label in record.all_labels]] += 1
    total = np.sum(list(counts.values()), axis=0)
    order = sorted(counts, key=lambda group: (group in used, derive("split", seed, group)))
    chosen, taken = set(), np.zeros(len(labels))

    def gain(group: str) -> float:
        before = (taken - fraction * total) / total
        after = before + counts[group] / total
        return float(np.sum(before**2) - np.sum(after**2))

    def leaves_some(group: str) -> bool:
        held = counts[group] > 0
        return bool(np.all((total - taken - counts[group])[held] > 0))

    for group in order:
        if leaves_some(group) and gain(group) > 1e-12:
            chosen.add(group)
            taken += counts[group]
    for index in range(len(labels)):
        if taken[index] == 0:
            holders = [g for g in order if g not in chosen and counts[g][index] and leaves_some(g)]
            if holders:
                group = max(holders, key=gain)
                chosen.add(group)
                taken += counts[group]
    return chosen


def test_choices_are_those_of_the_first_versions() -> None:
    random = np.random.default_rng(0)
    for case in range(150):
        classes, count, size = (
            int(random.choice(of)) for of in ([1, 3, 8, 60, 300], [5, 40, 300], [1, 2, 7])
        )
        records = []
        for number in range(count):
            label = int(random.random() ** 2 * classes)
            labels = {label, *random.integers(0, classes, case % 3).tolist()}
            several = tuple(sorted(labels)) if case % 2 else ()
            label = several[0] if several else label
            records.append(
                VideoRecord(f"v{number}", 9, label, f"s{number // size}" if size > 1 else "", several)
            )
        fraction = float(random.choice([0.1, 0.2, 0.25, 0.3, 0.5, random.random()]))
        used = (
            {records[place].group or records[place].id for place in range(0, count, 5)} if case % 4 else set()
        )
        assert choose_groups(records, fraction, case, used) == plain_choice(records, fraction, case, used)


@pytest.mark.slow
def test_ties_among_thousands_of_classes_are_decided_as_before() -> None:
    labels = np.random.default_rng(1).integers(0, 3000, 15_000)
    records = [VideoRecord(f"v{number}", 9, int(label)) for number, label in enumerate(labels)]
    assert choose_groups(records, 0.5, 1) == plain_choice(records, 0.5, 1, set())
