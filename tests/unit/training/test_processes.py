"""What processes agree on, and what one knows of the others, without a model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.helpers.processes import in_processes
from two_stream.errors import DataError, SettingsError, VideoError
from two_stream.runtime import distributed
from two_stream.runtime.device import pick_device, set_threads
from two_stream.training.run_folder import began_here, lock_run
from two_stream.types import RunPaths

ALONE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ALONE, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_alone_everything_is_a_plain_call() -> None:
    assert not distributed.init()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.all_objects("a") == ["a"]
    assert distributed.broadcast_object("a") == "a"
    assert distributed.gather_numbers([1.5, 2]) == [[1.5, 2]]
    assert distributed.largest([3, -1]) == [3, -1]
    assert distributed.on_main(lambda: 7) == 7
    with pytest.raises(DataError, match="mine"), distributed.raise_on_all_ranks():
        raise DataError("mine")
    distributed.barrier()
    distributed.shutdown()


def test_exchanges() -> None:
    def run(rank: int) -> tuple[object, ...]:
        return (
            distributed.gather_objects({"rank": rank}),
            distributed.all_objects(rank * 10),
            distributed.broadcast_object(f"from {rank}"),
            distributed.gather_numbers([rank, 0.1 + rank]),
            distributed.largest([rank, -rank]),
            distributed.on_main(os.getpid),
        )

    outcomes = in_processes(3, run)
    assert not any(outcome.error for outcome in outcomes), outcomes
    pid = outcomes[0].value[-1]
    common = ([0, 10, 20], "from 0", [[0.0, 0.1], [1.0, 1.1], [2.0, 2.1]], [2, 0], pid)
    assert outcomes[0].value == ([{"rank": 0}, {"rank": 1}, {"rank": 2}], *common)
    assert [outcome.value for outcome in outcomes[1:]] == [(None, *common)] * 2


def test_an_error_of_one_is_raised_by_all_and_shown_by_the_main_one() -> None:
    def in_one(rank: int) -> None:
        with distributed.raise_on_all_ranks():
            if rank == 1:
                raise VideoError("a.mp4", "cannot be read")

    def on_main(rank: int) -> None:
        def act() -> None:
            raise SettingsError("the folder is in use")

        distributed.on_main(act)

    for action, message in (
        (in_one, "VideoError: a.mp4: cannot be read"),
        (on_main, "SettingsError: the folder is in use"),
    ):
        outcomes = in_processes(2, action)
        assert [outcome.error for outcome in outcomes] == [message, message]
        assert [outcome.told for outcome in outcomes] == [False, True]


def test_what_only_says_that_another_has_gone_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2437")
    assert not distributed.is_peer_failure(closed), "alone, nobody can go"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.is_peer_failure(closed)
    assert not distributed.is_peer_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many': expected a number"),
    ],
)
def test_an_environment_that_is_not_whole_is_one_line(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        distributed.init()


def test_threads_are_divided_among_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from two_stream.runtime import device

    before = torch.get_num_threads()
    monkeypatch.setattr(device, "usable_processes", lambda: 6)
    monkeypatch.setattr(device, "_is_omp_threads_set", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    try:
        set_threads(0)
        assert torch.get_num_threads() == 3
        set_threads(2)
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(device, "_is_omp_threads_set", lambda: True)
        set_threads(0)
        assert torch.get_num_threads() == 2, "what a person set stays"
    finally:
        torch.set_num_threads(before)


def test_several_processes_share_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda") == torch.device("cuda", 1)
    assert pick_device("auto") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(SettingsError, match="cannot share one"):
        pick_device("cuda:0")


def test_a_restart_goes_on_only_with_what_its_own_job_began(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a refused start (`the run exists`) would, started anew by torchrun, continue somebody's old run."""
    paths = RunPaths(tmp_path / "run")
    assert not began_here(paths)
    with lock_run(paths):
        pass
    assert distributed.job() == ""
    assert not began_here(paths), "no torchrun: no restart"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert not began_here(paths)
    with lock_run(paths):
        pass
    assert began_here(paths)
    parent = os.getppid()  # 1 in a container, or where the shell that began pytest has ended
    monkeypatch.setattr(os, "getppid", lambda: parent + 1)
    assert not began_here(paths), "another torchrun"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert distributed.job() == "torchrun none"
