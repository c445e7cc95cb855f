"""`val.json` of Efficient-3DCNNs and 3D-ResNets: what their own scripts write and find."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from two_stream.evaluation.scores.result_files import evaluate_results, read_results, read_truth, results_of
from two_stream.types import ScoreTable

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def pipelines(shared):
    path = shared / "fixtures" / "families" / "pipelines.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


def table_of(logits, counts, names):
    """A table whose rows are the mean of softmax over clips, as `aggregate: probabilities` makes it."""
    ends = np.cumsum(counts)
    blocks = [logits[end - size : end].astype(np.float64) for end, size in zip(ends, counts)]
    rows = [logsumexp(log_softmax(block, axis=1), axis=0) - np.log(len(block)) for block in blocks]
    ids = [f"v{n}" for n in range(len(counts))]
    return ScoreTable(ids, np.zeros(len(counts), np.int64), list(names), np.stack(rows))


def assert_same(found, expected):
    assert set(expected) <= set(found)
    for video, guesses in expected.items():
        assert [one["label"] for one in found[video]] == [one["label"] for one in guesses]
        np.testing.assert_allclose(
            [one["score"] for one in found[video]], [one["score"] for one in guesses], rtol=1e-5
        )


def test_averaged_results_of_both_code_bases(pipelines):
    logits = np.random.default_rng(3).standard_normal((6, 12)).astype(np.float32)
    table = table_of(logits, [2, 2, 2], "abcdefghijkl")
    expected = pipelines["efficient3d"]["results_json"]["examples"]["softmax"]["results"]
    assert_same(results_of(table, 10)["results"], expected)
    assert "v2" not in expected, "the published code loses the last video"
    assert len(results_of(table, 10)["results"]) == 3
    logits = np.random.default_rng(3).standard_normal((5, 4)).astype(np.float32)
    expected = pipelines["3dresnets"]["results_json"]["examples"]["averaged"]["results"]
    assert_same(results_of(table_of(logits, [2, 2, 1], "abcd"), 3)["results"], expected)


def test_results_per_clip_are_read_as_their_mean(pipelines, tmp_path):
    examples = pipelines["3dresnets"]["results_json"]["examples"]
    (tmp_path / "val.json").write_text(json.dumps(examples["per_segment"]))
    found = read_results(tmp_path / "val.json")
    listed = examples["per_segment"]["results"]["v0"]
    wanted = sum(one["score"] for clip in listed for one in clip["result"] if one["label"] == "a") / 2
    assert dict(found["v0"])["a"] == pytest.approx(wanted)
    averaged = examples["averaged"]["results"]["v2"]  # of a single clip, so both forms say the same
    assert found["v2"] == [(one["label"], one["score"]) for one in averaged]


def test_accuracies_of_efficient3d(pipelines, tmp_path):
    case = pipelines["efficient3d"]["video_accuracy"]["ucf_case"]
    (tmp_path / "truth.json").write_text(json.dumps(case["ground_truth"]))
    (tmp_path / "val.json").write_text(json.dumps(case["predictions"]))
    truth, results = read_truth(tmp_path / "truth.json"), read_results(tmp_path / "val.json")
    found = evaluate_results(results, truth, (1, 3, 5))
    for k, value in found.top.items():
        assert value == pytest.approx(case["values"][f"hit@{k}"])
    assert (found.videos, found.counted, len(found.unseen)) == (12, 12, 10)


def test_accuracies_of_3dresnets(pipelines, tmp_path):
    case = pipelines["3dresnets"]["eval_accuracy"]
    (tmp_path / "truth.json").write_text(json.dumps(case["ground_truth"]))
    (tmp_path / "val.json").write_text(json.dumps(case["results"]))
    truth, results = read_truth(tmp_path / "truth.json"), read_results(tmp_path / "val.json")
    for ignore in (False, True):
        found = evaluate_results(results, truth, (1, 2, 3), ignore_unseen=ignore)
        for k, value in found.top.items():
            assert value == pytest.approx(case["values"][f"top{k}_ignore{ignore}"])
        assert found.unseen == ("v3",)


def test_kinetics_keeps_a_database_per_subset(pipelines, tmp_path):
    case = pipelines["efficient3d"]["video_accuracy"]["kinetics_case"]
    (tmp_path / "truth.json").write_text(json.dumps(case["ground_truth"]))
    truth = read_truth(tmp_path / "truth.json")
    assert truth["ytid0_000001_000011.mp4"] == ("j",)
    assert set(truth) == set(case["ground_truth"]["database"]["validation"])
