"""How scores were made, as a score file says it."""

from __future__ import annotations

from typing import Any

import torch

from two_stream.config.schema import Experiment
from two_stream.data.catalog import Mirror
from two_stream.data.clips.sampling import sampling_of
from two_stream.data.sources.shards import shard_facts
from two_stream.evaluation.scoring.network import ClipNetwork, is_exact
from two_stream.evaluation.scoring.views import describe_views
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.precision import precision_reason
from two_stream.runtime.provenance import code_version, environment
from two_stream.video.decoding.reader import backend_version


def scoring_facts(
    experiment: Experiment, model: Recognizer | ClipNetwork, mirror: Mirror | None = None
) -> dict[str, Any]:
    """Return how videos were scored: views, frames, machine and versions."""
    data, evaluate, spec = experiment.data, experiment.evaluate, model.spec
    return {
        "modality": spec.modality,
        "protocol": describe_views(
            evaluate, sampling_of(spec, data.sampling), mirror, whole_frame=data.augment.whole_frame
        )
        + _order(data.frame_order),
        "frame_order": data.frame_order,
        "views": evaluate.views,
        "num_clips": evaluate.num_clips if evaluate.views == "uniform" else None,
        "step": evaluate.step,
        "crops": evaluate.crops,
        "aggregate": evaluate.aggregate,
        "precision": evaluate.precision,
        "precision_reason": _reason(experiment, model),
        "folded": evaluate.fold,
        "compiled": evaluate.compile,
        "batch_views": evaluate.batch_views,
        "processes": distributed.world_size(),
        "scale": "logits" if evaluate.aggregate == "logits" else "log-probabilities",
        "sampling": "standard" if data.sampling == "segments" else data.sampling,
        "source": data.source,
        "shards": shard_facts(data.shards, spec.modality)
        if data.source == "shards" and data.shards
        else None,
        "decoder": backend_version(data.backend) if data.source == "videos" else None,
        "flow_algorithm": data.flow if data.source == "videos" and spec.modality == "flow" else None,
        "clip_length": spec.clip_length,
        "stride": spec.stride,
        **({"segments": spec.segments} if spec.segments else {}),
        **({"stack": spec.stack} if spec.stack > 1 else {}),
        "resize": list(spec.resize),
        "crop": spec.crop if isinstance(spec.crop, int) else list(spec.crop),
        "seed": experiment.seed,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "code_version": code_version(),
        "environment": environment(),
    }


def _reason(experiment: Experiment, model: Recognizer | ClipNetwork) -> str | None:
    """Return what was measured before a precision was chosen; None where there was no choice or nothing to measure."""
    fixed = isinstance(model, ClipNetwork) or model.cpu_only or is_exact(experiment)
    return None if fixed or model.device.type != "cpu" else precision_reason(experiment.evaluate.precision)


def _order(frame_order: str) -> str:
    return "" if frame_order == "natural" else f", frames {frame_order}"
