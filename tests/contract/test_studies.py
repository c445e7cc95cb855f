"""Every study file that comes along is whole: variants, settings, comparisons, published numbers, header."""

from __future__ import annotations

from pathlib import Path

import pytest

from two_stream.recognizer import Recognizer
from two_stream.studies.running.plan import load_study, pairs_of, variant_experiment, variants_of

FILES = sorted((Path(__file__).parents[2] / "settings" / "studies").glob("*.yaml"))


def test_there_are_studies():
    names = {path.stem for path in FILES}
    wanted = ("heads", "bert_design", "frab_frmb", "slowfast_fusion", "state_of_the_art")
    assert names >= {f"{data}_{study}" for data in ("hmdb51", "ucf101") for study in wanted}
    assert names >= {"demo_heads", "demo_order"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_study_that_comes_along_is_whole(path: Path):
    study = load_study(path)
    assert study.name == path.stem
    variants = variants_of(study)
    assert pairs_of(study, variants)
    for variant in variants:
        for split in study.splits:
            variant_experiment(study, variant, split, study.seeds[0], path)
    header = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for word in (f"two-stream ablate settings/studies/{path.name}", "Time"):
        assert word in header, f"{path}: its header does not say {word!r}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_variants_are_different_networks_or_trainings(path: Path):
    study = load_study(path)
    seen = {}
    for variant in variants_of(study):
        experiment = variant_experiment(study, variant, study.splits[0], study.seeds[0], path)
        text = experiment.model_dump_json()
        assert text not in seen, f"{path}: {variant.name!r} is the same as {seen.get(text)!r}"
        seen[text] = variant.name


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_network_of_every_variant_can_be_built(path: Path):
    study = load_study(path)
    for variant in variants_of(study):
        experiment = variant_experiment(study, variant, study.splits[0], study.seeds[0], path)
        Recognizer(experiment.model, 51)
