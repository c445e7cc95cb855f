"""`two-stream push RUN NAME/MODEL`: uploads a run with a model card to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from two_stream.commands.flags import parse
from two_stream.errors import SettingsError
from two_stream.runtime.console import say

SUMMARY = (
    "Upload a run to the Hugging Face hub: weights (safetensors), settings, scores and a model card made from them. "
    "No pictures, no names of videos and no paths of this machine are uploaded."
)
EXAMPLES = (
    "push demo/runs/rgb ada/waves-rgb --license mit --out card",
    "push demo/runs/rgb ada/waves-rgb --license mit",
)


@dataclass(frozen=True)
class _PushFlags:
    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """run folder; its selected checkpoint (best) is uploaded"""
    repo: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME/MODEL")]]
    """repository on the hub; it is created if it does not exist"""
    license: str | None = None
    """license of the weights, as an id of the hub: mit, apache-2.0, cc-by-4.0, cc-by-nc-4.0, other, …"""
    private: bool = False
    """create the repository as a private one"""
    out: Path | None = None
    """write the files to this new folder, to look at them, and upload nothing"""
    video_names: bool = False
    """keep the names of videos and sources in the score files; without this flag, they are replaced by hashes"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(_PushFlags, args, "two-stream push", SUMMARY, EXAMPLES)
    if flags.license is None:
        raise SettingsError(
            "two-stream push: --license is missing; add the license of the weights, for example --license mit, "
            "apache-2.0, cc-by-4.0 or cc-by-nc-4.0"
        )
    if flags.out is not None and (flags.private or flags.out.exists()):
        problem = "and --private cannot be combined; omit one of them"
        raise SettingsError(
            f"--out {flags.out}{' exists; choose a new folder' if flags.out.exists() else f' {problem}'}"
        )
    from two_stream.evaluation.runs.publish import Publication, push_run, write_publication
    from two_stream.evaluation.runs.run import load_run

    wanted = Publication(flags.repo, flags.license, flags.video_names)
    run = load_run(flags.run)
    if flags.out is None:
        say(f"{push_run(run, wanted, private=flags.private)}: uploaded; load it as hf://{flags.repo}")
        return 0
    from two_stream.runtime.files import replaced_folder

    with replaced_folder(flags.out) as folder:
        write_publication(run, folder, wanted)
    say(
        f"{flags.out}: the files to upload; nothing was uploaded. Read {flags.out / 'README.md'}, then omit --out"
    )
    return 0
