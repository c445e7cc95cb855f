"""The published trainer drops the forward passes of an epoch that do not fill a step; ours may."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.training import memory_data
from two_stream.errors import DataError

FAST = {"optimizer": {"kind": "adamw", "lr": 0.05}, "schedule": {"kind": "constant"}}


@pytest.mark.parametrize("last_group", ["step", "drop"])
def test_an_incomplete_group_is_a_step_or_nothing(make_trainer: Any, last_group: str) -> None:
    """Eight clips in batches of two, three batches to a step: 6 clips, and 2 left over."""
    trainer = make_trainer(epochs=2, batch_size=2, accumulate=3, last_group=last_group, **FAST)
    seen: list[int] = []
    run = trainer.stepper.run

    def counting(*args: Any) -> Any:
        result = run(*args)
        seen.append(result.clips)
        return result

    trainer.stepper.run = counting
    trainer.fit()
    assert seen == ([6, 2] * 2 if last_group == "step" else [6, 6])
    lines = [json.loads(line) for line in trainer.paths.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == ([2, 4] if last_group == "step" else [1, 2])
    assert [line["skipped"] for line in lines] == [0, 0]


def test_too_few_clips_for_one_step_are_told(make_trainer: Any) -> None:
    with pytest.raises(DataError, match=r"8 videos, too few for one step of 5 × 2 clips; .*last_group: step"):
        make_trainer(data=memory_data(), batch_size=2, accumulate=5, last_group="drop", **FAST)
