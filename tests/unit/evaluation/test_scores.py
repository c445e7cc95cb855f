from pathlib import Path

import numpy as np
import pytest

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.files import find_scores, read_scores, write_scores
from two_stream.evaluation.scores.tables import join, reorder
from two_stream.types import ScoreTable


def table(ids, labels=None, logits=None, names=("a", "b", "c"), **meta):
    count = len(ids)
    labels = np.asarray(
        labels if labels is not None else [i % len(names) for i in range(count)], dtype=np.int64
    )
    if logits is None:
        logits = np.arange(count * len(names), dtype=np.float64).reshape(count, len(names))
    return ScoreTable(list(ids), labels, list(names), np.asarray(logits, dtype=np.float64), meta)


def test_round_trip_keeps_every_value(tmp_path: Path):
    made = table(["v/é 1", "v2"], modality="rgb", views={"kind": "multi"}, seed=3)
    made.view_logits = np.arange(9, dtype=np.float32).reshape(3, 3) / 7
    made.view_counts = np.asarray([1, 2])
    made.groups = ["g1", ""]
    made.logits[0, 0] = 1 / 3
    path = tmp_path / "s.npz"
    write_scores(path, made)
    back = read_scores(path)
    assert back.ids == made.ids
    assert back.class_names == made.class_names
    assert back.groups == made.groups
    np.testing.assert_array_equal(back.labels, made.labels)
    np.testing.assert_array_equal(back.logits, made.logits)
    np.testing.assert_array_equal(back.view_logits, made.view_logits)
    np.testing.assert_array_equal(back.view_counts, made.view_counts)
    assert back.meta == {**made.meta, "file": str(path)}
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_several_classes_per_video_are_kept_joined_and_checked(tmp_path: Path):
    first = table(["x", "y"], labels=[0, 1])
    first.targets = np.asarray([[1, 0, 1], [0, 1, 0]], dtype=np.bool_)
    write_scores(tmp_path / "a.npz", first)
    np.testing.assert_array_equal(read_scores(tmp_path / "a.npz").targets, first.targets)
    other = reorder(first, np.asarray([1, 0]))
    np.testing.assert_array_equal(join([first, other])[1].targets, first.targets)
    other.targets = other.targets.copy()
    other.targets[1, 1] = True
    with pytest.raises(ScoreError, match="labels differ from scores: 'x'"):
        join([first, other])
    with pytest.raises(ScoreError, match="only one of this file and scores is multi-label"):
        join([first, table(["x", "y"], labels=[0, 1])])
    first.targets = first.targets[:, ::-1]
    with pytest.raises(ScoreError, match="the label is not among the targets: 'x'") as caught:
        first.targets[1] = [False, True, False]
        first.targets[0] = [False, True, True]
        write_scores(tmp_path / "b.npz", first)
    assert "'y'" not in str(caught.value)


def test_writing_twice_gives_the_same_bytes_and_forgets_where_it_was_read(tmp_path: Path):
    write_scores(tmp_path / "a.npz", table(["x", "y"], seed=1))
    write_scores(tmp_path / "b.npz", read_scores(tmp_path / "a.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.npz"
    write_scores(path, table(["x", "y"]))
    before = path.read_bytes()
    bad = table(["x", "y"])
    bad.logits[1, 2] = np.nan
    with pytest.raises(ScoreError, match="logits are not finite: 'y'"):
        write_scores(path, bad)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_score_file_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "odd.npz"
    path.write_bytes(content)
    with pytest.raises(ScoreError, match=r"odd\.npz: not a score file") as caught:
        read_scores(path)
    assert "\n" not in str(caught.value)


def test_missing_truncated_and_pickled_files_are_refused(tmp_path: Path):
    with pytest.raises(ScoreError, match=r"gone\.npz: no such score file"):
        read_scores(tmp_path / "gone.npz")
    whole = tmp_path / "whole.npz"
    write_scores(whole, table([f"v{i}" for i in range(50)]))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(ScoreError, match=r"cut\.npz"):
        read_scores(tmp_path / "cut.npz")
    np.savez(tmp_path / "pickled.npz", ids=np.asarray([{"a": 1}], dtype=object))
    with pytest.raises(ScoreError, match=r"pickled\.npz"):
        read_scores(tmp_path / "pickled.npz")
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    with pytest.raises(
        ScoreError, match=r"other\.npz: found the arrays weights; expected `scores` and `ids`"
    ):
        read_scores(tmp_path / "other.npz")


@pytest.mark.parametrize("kind", ["npy", "deflate", "method", "encrypted"])
def test_other_and_damaged_archives_are_one_line_with_the_name(tmp_path: Path, kind: str):
    path = tmp_path / "odd.npz"
    write_scores(path, table([f"v{i}" for i in range(50)]))
    data = bytearray(path.read_bytes())
    if kind == "npy":
        np.save(tmp_path / "array.npy", np.ones((2, 3)))
        data = bytearray((tmp_path / "array.npy").read_bytes())
    elif kind == "deflate":  # a block type that does not exist, where the first member's data start
        start = 30 + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
        data[start] = 0xFF
    else:
        entry = data.index(b"PK\x01\x02")
        for base in (0, entry + 2):  # the same two fields in the member's own header and in the directory
            place = base + (8 if kind == "method" else 6)
            data[place] = 77 if kind == "method" else data[place] | 1
    path.write_bytes(data)
    with pytest.raises(ScoreError, match=r"odd\.npz: not a score file, or a damaged one") as caught:
        read_scores(path)
    assert "\n" not in str(caught.value)


def test_a_suggested_command_survives_a_space_in_the_path(tmp_path: Path):
    (tmp_path / "my run" / "scores").mkdir(parents=True)
    with pytest.raises(ScoreError, match=r"two-stream evaluate '\S+/my run'`"):
        find_scores(tmp_path / "my run")


def test_join_follows_the_ids_not_the_positions():
    first = table(["a", "b", "c"], [0, 1, 2])
    second = table(["c", "a", "b"], [2, 0, 1], [[7, 7, 9], [1, 0, 0], [0, 5, 0]])
    second.groups = ["gc", "ga", "gb"]
    joined = join([first, second])
    assert joined[1].ids == ["a", "b", "c"]
    np.testing.assert_array_equal(joined[1].logits, [[1, 0, 0], [0, 5, 0], [7, 7, 9]])
    assert joined[1].groups == ["ga", "gb", "gc"]


def test_reorder_carries_the_views_along():
    made = table(["a", "b", "c"])
    made.view_logits = np.repeat(np.arange(6, dtype=np.float32)[:, None], 3, axis=1)
    made.view_counts = np.asarray([1, 3, 2])
    turned = reorder(made, np.asarray([2, 0, 1]))
    np.testing.assert_array_equal(turned.view_counts, [2, 1, 3])
    np.testing.assert_array_equal(turned.view_logits[:, 0], [4, 5, 0, 1, 2, 3])


def test_join_names_what_does_not_fit():
    first = table(["a", "b", "c", "d", "e"], modality="rgb")
    with pytest.raises(
        ScoreError, match=r"flow: 4 of the 5 videos of rgb are missing: 'b', 'c', 'd' \(and 1 more\)"
    ):
        join([first, table(["a"], [0], modality="flow")])
    with pytest.raises(ScoreError, match=r"rgb: .* videos of flow are missing: 'z'"):
        join([first, table(["a", "b", "c", "d", "e", "z"], modality="flow")])
    with pytest.raises(ScoreError, match=r"flow: duplicate video id: 'a'"):
        join([first, table(["a", "a", "b", "c", "d"], modality="flow")])
    with pytest.raises(ScoreError, match=r"flow: label of 'b' is 'c', but 'b' in rgb; expected"):
        join([first, table(["a", "b", "c", "d", "e"], [0, 2, 2, 0, 1], modality="flow")])
    with pytest.raises(ScoreError, match=r"class 1 is 'x' against 'b'"):
        join([first, table(["a", "b", "c", "d", "e"], names=("a", "x", "c"), modality="flow")])
    with pytest.raises(ScoreError, match=r"2 against 3 classes"):
        join([first, table(["a", "b", "c", "d", "e"], names=("a", "b"), modality="flow")])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": np.asarray([0, 3])}, r"label outside 0\.\.2: 'y'"),
        ({"labels": np.asarray([0])}, "1 labels for 2 videos"),
        ({"logits": np.zeros((2, 4))}, r"logits have shape \(2, 4\), expected \(2, 3\)"),
        ({"groups": ["g"]}, "1 groups for 2 videos"),
        ({"view_logits": np.zeros((3, 3), np.float32)}, "expected both or neither"),
        (
            {"view_logits": np.zeros((3, 3), np.float32), "view_counts": np.asarray([1, 1])},
            r"view logits have shape \(3, 3\), expected \(2, 3\)",
        ),
    ],
)
def test_a_table_that_contradicts_itself_is_not_written(tmp_path: Path, change, match):
    made = table(["x", "y"])
    for name, value in change.items():
        setattr(made, name, value)
    with pytest.raises(ScoreError, match=match):
        write_scores(tmp_path / "a.npz", made)
    assert not (tmp_path / "a.npz").exists()
