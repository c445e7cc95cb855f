"""Scores of the published evaluators on a real video, through our loader, model, scoring and fusion."""

import gzip
import json
import tarfile
from functools import cache

import numpy as np
import pytest
import torch
import yaml

from two_stream import create_model, load_weights
from two_stream.config.schema import AugmentOptions, DataOptions, EvaluateOptions, Experiment
from two_stream.data.catalog import load_record
from two_stream.data.clips.views import view_loader
from two_stream.evaluation.scores.fusion import combine
from two_stream.evaluation.scoring.score import score_videos
from two_stream.types import VideoRecord

pytestmark = pytest.mark.parity

ARCHITECTURES = {"rgb": "rgb_resneXt3D64f101_bert10_FRMB", "flow": "flow_resneXt3D64f101_bert10_FRMB"}
FRAMES = {"rgb": 150, "flow": 149}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def demo(shared):
    path = shared / "fixtures" / "late_temporal" / "evaluator_demo.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


@pytest.fixture(scope="module")
def record(shared, tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    with tarfile.open(shared / "fixtures" / "late_temporal" / "frames" / "demo.tar") as packed:
        packed.extractall(root, filter="data")
    classes = [f"class {index}" for index in range(51)]
    settings = {"name": "demo", "classes": classes, "frames": {"rgb": str(root), "flow": str(root)}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(settings))
    return load_record(root / "dataset.yaml")


@pytest.fixture(scope="module")
def networks(shared, deterministic, tmp_path_factory, demo):
    @cache
    def build(modality):
        name = ARCHITECTURES[modality]
        path = shared / "fixtures" / "late_temporal" / "models" / f"{name}.json.gz"
        shapes = json.loads(gzip.decompress(path.read_bytes()))["state_dict"]
        state = {key: deterministic.fill(key, shape, demo["weight_seed"]) for key, shape in shapes.items()}
        file = tmp_path_factory.mktemp("weights") / "weights.pth"
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, file)
        model = create_model(f"late_temporal/{name}", num_classes=demo["num_classes"])
        load_weights(model, file)
        return model

    return build


def scores(networks, record, modality, views, crops):
    model = networks(modality)
    experiment = Experiment(
        data=DataOptions(sampling="paper", workers=0, augment=AugmentOptions(protocol="paper")),
        evaluate=EvaluateOptions(views=views, crops=crops),
    )
    loader = view_loader(
        experiment.data, experiment.evaluate, model.spec, [VideoRecord("demo", FRAMES[modality], 0)], record
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return score_videos(model, loader, device=torch.device("cpu"), batch_views=10).logits
    finally:
        torch.set_num_threads(threads)


def compare(demo, networks, record, kind, ten):
    crops = "ten" if ten else "center"
    views = kind.removesuffix("_clip")
    video = demo["videos"]["demo"]
    found = {}
    for modality, arg in (("rgb", 150), ("flow", 0)):
        (reference,) = [
            run
            for run in video["runs"]
            if (run["kind"], run["modality"], run["ten_crop"], run["num_frames_arg"])
            == (kind, modality, ten, arg)
        ]
        found[modality] = scores(networks, record, modality, views, crops)
        np.testing.assert_allclose(found[modality][0], reference["mean_scores"], atol=TOLERANCE)
    (fused,) = [
        case
        for case in video["combined"]
        if (case["kind"], case["ten_crop"], case["variant"]) == (kind, ten, "rgb_own_duration")
    ]
    ours = combine([found["rgb"], found["flow"]], "l2", [1, 1])[0]
    np.testing.assert_allclose(ours, fused["scores"], atol=1e-5)


def test_single_clip_centre_crop_and_fusion(demo, networks, record):
    compare(demo, networks, record, "single_clip", ten=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ten"), [("multi_clip", True), ("multi_clip", False), ("single_clip", True)]
)
def test_ten_crop_and_multi_clip_and_fusion(demo, networks, record, kind, ten):
    compare(demo, networks, record, kind, ten)
