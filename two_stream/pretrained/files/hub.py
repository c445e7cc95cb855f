"""Runs on the Hugging Face hub: download to the hub's cache, and upload."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from two_stream.errors import CheckpointError
from two_stream.runtime.console import note

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WEIGHTS = "model.safetensors"
FILES = (
    WEIGHTS,
    "checksums.json",
    "config.json",
    "experiment.yaml",
    "data.json",
    "environment.json",
    "threshold.json",
    "scores/*.npz",
)
"""files of a run that are downloaded; a repository may contain others, such as pickles, which are never downloaded"""
REPO = re.compile(r"[\w.-]+/[\w.-]+")
_PLACE = re.compile(rf"hf://?({REPO.pattern})(?:@([\w./-]+))?")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar")


def is_on_hub(path: Path | str) -> bool:
    """Return whether a path begins with `hf://`; `Path` turns this into `hf:/`."""
    return _text(path).startswith("hf:/")


def fetch_run(path: Path | str) -> Path:
    """Return the folder in the hub's cache that contains a run, such as `hf://NAME/MODEL` or `hf://NAME/MODEL@REVISION`.

    Files that are missing in the cache are downloaded. Offline (`HF_HUB_OFFLINE=1`), only the cache is used.

    Raises:
        CheckpointError: The name is wrong, the hub cannot be reached or does not provide the repository, or the
            repository does not contain a run with safetensors weights.
    """
    return _fetch(_text(path))


@cache
def _fetch(text: str) -> Path:
    match = _PLACE.fullmatch(text)
    if match is None:
        raise CheckpointError(
            f"{text.replace('hf:/', 'hf://', 1) if '://' not in text else text}: not the name of a run on the Hugging "
            "Face hub; expected hf://NAME/MODEL or hf://NAME/MODEL@REVISION"
        )
    repo, revision = match.groups()
    place = f"hf://{repo}" + (f"@{revision}" if revision else "")
    from huggingface_hub import snapshot_download

    note(f"loading {place} from the local cache or the Hugging Face hub")
    with _one_line(place, revision):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    missing = [name for name in ("experiment.yaml", WEIGHTS) if not (folder / name).is_file()]
    if missing:
        with _one_line(place, revision):
            names = _api().list_repo_files(repo, revision=revision)
        pickles = [name for name in names if name.endswith(_PICKLES)]
        hint = (
            f" (its weights are pickles, which can run code and are not read: {pickles[0]})"
            if pickles
            else ""
        )
        raise CheckpointError(
            f"{place}: the repository has no {' and no '.join(missing)}{hint}; expected a run that `two-stream push` "
            "uploaded"
        )
    return folder


def upload_run(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a folder as one commit to a model repository, which is created if it does not exist.

    Score files of an earlier upload that are not in the folder are deleted from the repository.

    Returns:
        The address of the repository.

    Raises:
        CheckpointError: The hub cannot be reached or rejects the upload, or `private` is set and the repository exists
            and is public.
    """
    api, place = _api(), f"hf://{repo}"
    with _one_line(place):
        url = str(api.create_repo(repo, private=private or None, exist_ok=True))
        public = private and not api.model_info(repo).private
    if public:
        raise CheckpointError(
            f"{place}: the repository exists and is public; to upload to a private one, make it private in its "
            "settings on the hub, or choose another name"
        )
    with _one_line(place):
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Upload a run with two-stream",
            delete_patterns=["scores/*", "threshold.json"],
        )
    return url


def _text(path: Path | str) -> str:
    return path.as_posix() if isinstance(path, Path) else path


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="two-stream")


@contextmanager
def _one_line(place: str, revision: str | None = None) -> Iterator[None]:
    """Turn errors of the hub's library into one line.

    Raises:
        CheckpointError: Says what to do.
    """
    from huggingface_hub import constants, errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    repo = place.removeprefix("hf://").partition("@")[0]
    try:
        yield
    except errors.HFValidationError:
        said = "not a valid name on the hub; expected NAME/MODEL of letters, digits, -, _ and ."
    except errors.GatedRepoError:
        said = (
            f"access must be requested; do so at {constants.ENDPOINT}/{repo}, and log in with `hf auth login`"
        )
    except errors.RevisionNotFoundError:
        said = f"the repository has no revision {revision!r}; expected a branch, a tag or a commit"
    except errors.RepositoryNotFoundError:
        said = "no such repository, or it is private; check the name, and log in with `hf auth login` or set HF_TOKEN"
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 403):
            said = (
                f"the hub rejects the token ({code}); log in with `hf auth login` or set HF_TOKEN to a token with "
                f"access to {repo.partition('/')[0]} (to upload: write access)"
            )
        else:
            said = f"the hub answers {code} ({_first(error.server_message or error)}); try again later"
    except errors.OfflineModeIsEnabled:
        said = "HF_HUB_OFFLINE is set, so the hub cannot be used; unset it"
    except (errors.LocalEntryNotFoundError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        if constants.HF_HUB_OFFLINE:
            said = "not in the local cache, and HF_HUB_OFFLINE is set; unset it to use the network"
        else:
            said = f"{constants.ENDPOINT} cannot be reached ({_first(error.__cause__ or error)}); check the network"
    except (RuntimeError, ValueError) as error:
        said = f"the transfer failed ({_first(error.__cause__ or error)}); try again"
    else:
        return
    raise CheckpointError(f"{place}: {said}")


def _first(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
