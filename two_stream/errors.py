"""Errors that a user can cause and fix.

Each message is one line that names the file, key or value, what was expected and what to do. The command line prints
the message and exits with `exit_code`.
"""

_SPACES = "\xa0\u2007\u2009\u202f"
"""spaces in tables, which `str.isprintable` rejects"""


def printable(text: str) -> str:
    """Return text with unprintable characters (controls, line ends, direction marks) escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _SPACES else repr(c)[1:-1] for c in text)


class TwoStreamError(Exception):
    """Base of all errors whose message is for the user."""

    exit_code = 2
    shown_elsewhere = False
    """Whether another process of the job prints the message, so that this process only exits with `exit_code`."""

    def __str__(self) -> str:
        """Return the message as one printable line, because names in the message may be untrusted."""
        return printable(super().__str__().replace("\n", " "))


class SettingsError(TwoStreamError):
    """A settings file or flag is wrong: unknown key, value out of range, contradiction."""


class FullDiskError(TwoStreamError):
    """A file cannot be written because the disk is full."""

    exit_code = 1

    def __init__(self, path: object, kept: str) -> None:
        super().__init__(f"{path}: no space left on the disk; {kept}")
        self.path, self.kept = str(path), kept

    def __reduce__(self) -> tuple[type["FullDiskError"], tuple[str, str]]:
        """Pickle both arguments, so that another process can raise the error."""
        return (type(self), (self.path, self.kept))


class VideoError(TwoStreamError):
    """A video or frame folder cannot be read; `path` and `reason` are attributes."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["VideoError"], tuple[str, str]]:
        """Pickle both arguments, so that another process can raise the error."""
        return (type(self), (self.path, self.reason))


class DataError(TwoStreamError):
    """A data set, split list or catalogue record is missing or inconsistent."""


class CheckpointError(TwoStreamError):
    """A checkpoint or run folder is missing, damaged or does not fit the model."""


class ScoreError(TwoStreamError):
    """Score files cannot be read or joined."""


class TrainingError(TwoStreamError):
    """Training cannot continue, for example because the loss is not finite."""

    exit_code = 1


def loader_killed(error: BaseException, *, by_signal: bool = False) -> str | None:
    """Return a message if torch reports that a loader process was killed, otherwise None.

    Args:
        error: Raised by torch.
        by_signal: Whether a process is known to have died of a signal; torch's message does not always say so.
    """
    first = (str(error).splitlines() or [""])[0]
    if "DataLoader worker" not in first or not (by_signal or "killed" in first):
        return None
    return (
        f"a loader process was killed ({first.rstrip('. ')}), probably because memory ran out; use fewer loader "
        "processes (--data.workers, or --workers in `evaluate`); to continue training, use --resume"
    )


class ExportError(TwoStreamError):
    """A model cannot be exported in the requested format, or the exported file's outputs differ from the model's."""

    exit_code = 1
