"""What Windows lacks is not missed: a tiny run is trained, scored and asked without it, in worker processes too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

SITE = """
import multiprocessing, os, signal, sys, time
for name in ("fcntl", "resource", "pwd", "grp", "termios", "syslog"):
    sys.modules[name] = None
for module, names in {
    os: "fork forkpty getuid geteuid getgid getegid getpgid getsid killpg setsid nice sched_getaffinity sync sysconf "
    "sched_setaffinity confstr statvfs getloadavg mkfifo pathconf setpriority O_DIRECTORY O_NOFOLLOW O_NONBLOCK",
    signal: "SIGHUP SIGALRM SIGUSR1 SIGUSR2 SIGPIPE SIGCONT SIGSTOP SIGQUIT alarm setitimer pthread_sigmask",
    time: "tzset clock_gettime",
}.items():
    for name in names.split():
        delattr(module, name)
multiprocessing.set_start_method("spawn", force=True)
"""
"""Every process that Python starts reads `sitecustomize`; only spawning is known to Windows, and usual on macOS."""
LACKING = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
assert not hasattr(os, "fork") and not hasattr(signal, "SIGHUP"), "sitecustomize was not read"
from two_stream.cli import main, run
*others, last = {commands!r}
for command in others:
    assert main(command) == 0, command
sys.argv[1:] = last
run()
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight short videos of two classes, as MJPEG, and their lists."""
    settings, lists = tmp_path / "settings" / "toy", {"train": [], "val": []}
    settings.mkdir(parents=True)
    (tmp_path / "videos").mkdir()
    for number in range(8):
        label, name = number % 2, f"v{number}_g{number // 2}"
        writer = cv2.VideoWriter(
            str(tmp_path / f"videos/{name}.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48)
        )
        texture = np.random.default_rng(number).integers(0, 255, (48, 128, 3)).astype(np.uint8)
        for frame in range(6):
            writer.write(np.ascontiguousarray(texture[:, 4 * frame * (1 + label) :][:, :64]))
        writer.release()
        lists["val" if number > 5 else "train"].append(f"{name} 6 {label}")
    for part, rows in lists.items():
        (settings / f"{part}_rgb_split1.txt").write_text("\n".join(rows) + "\n")
    record = {"name": "toy", "classes": ["still", "跳ぶ"], "videos": "../../videos", "group": r"_(g\d)$"}
    (settings / "dataset.yaml").write_text(yaml.safe_dump(record, allow_unicode=True), encoding="utf-8")
    experiment = {
        "name": "tiny",
        "runs": str(tmp_path / "runs"),
        "device": "cpu",
        "model": {
            "backbone": {"kind": "mobilenetv2_3d", "width": 0.25},
            "head": {"kind": "average"},
            "input": {"clip_length": 4, "resize": [40, 40], "crop": 32},
        },
        "data": {
            "dataset": "toy",
            "settings_root": str(tmp_path / "settings"),
            "source": "videos",
            "workers": 1,
        },
        "train": {"epochs": 1, "batch_size": 4, "log_images": False},
        "evaluate": {"views": "single", "crops": "center", "precision": "fp32"},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(experiment))
    return tmp_path


def lacking(data: Path, commands: list[list[str]], **environment: str) -> subprocess.CompletedProcess[bytes]:
    (data / "site").mkdir(exist_ok=True)
    (data / "site" / "sitecustomize.py").write_text(SITE)
    root = str(Path(__file__).resolve().parents[2])
    (data / "main.py").write_text(
        'if __name__ == "__main__":\n' + LACKING.format(commands=commands).replace("\n", "\n    ")
    )
    paths = os.pathsep.join([str(data / "site"), root])
    return subprocess.run(
        [sys.executable, str(data / "main.py"), root],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        cwd=data,
        capture_output=True,
        check=False,
    )


@pytest.mark.integration
def test_a_run_is_trained_scored_and_asked_without_what_windows_lacks(data: Path) -> None:
    """Locks, signals, forks and limits of POSIX are absent; loaders are spawned; output is a code page, not UTF-8."""
    video, folder = str(next((data / "videos").glob("*.avi"))), str(data / "runs" / "tiny")
    done = lacking(
        data,
        [
            ["train", "tiny.yaml"],
            ["evaluate", folder, "--part", "val", "--workers", "0"],
            ["predict", video, "--rgb", folder, "--json", "out.json"],
        ],
        PYTHONIOENCODING="cp1252",
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    (answer,) = json.loads((data / "out.json").read_text(encoding="utf-8"))
    assert {guess["class"] for guess in answer["top"]} == {"still", "跳ぶ"}
    assert (data / "runs" / "tiny" / "scores").is_dir()
    assert "\\u8df3" in done.stdout.decode("cp1252"), "a name that the code page lacks stays readable"
