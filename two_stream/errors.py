"""The errors a person can cause and mend.

Each message is one line that names the file, key or value, what was expected and what to do; the command line
prints it and exits with `exit_code`.
"""

_SPACES = "\xa0\u2007\u2009\u202f"
"""spaces of tables, which Python does not count as printable"""


def printable(text: str) -> str:
    """Return text with every character that is not printed (controls, line ends, direction marks) as its escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _SPACES else repr(c)[1:-1] for c in text)


class TwoStreamError(Exception):
    """Base of every error whose message is meant for the person at the terminal."""

    exit_code = 2
    told = False
    """Another process of the job shows the message; this one only ends with the code."""

    def __str__(self) -> str:
        """Return the message in one line that a terminal can show: names in it may be a stranger's."""
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
        """Pickle both parts, so that the error crosses process borders whole."""
        return (type(self), (self.path, self.kept))


class VideoError(TwoStreamError):
    """A video or frame folder cannot be read. Carries the path and the reason apart."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["VideoError"], tuple[str, str]]:
        """Pickle both parts, so that the error crosses process borders whole."""
        return (type(self), (self.path, self.reason))


class DataError(TwoStreamError):
    """A data set, split list or catalogue record is missing or inconsistent."""


class CheckpointError(TwoStreamError):
    """A checkpoint or run folder is missing, damaged or does not fit the model."""


class ScoreError(TwoStreamError):
    """Score files cannot be read or joined."""


class TrainingError(TwoStreamError):
    """Training cannot go on, for example because the loss is not finite."""

    exit_code = 1


def loader_killed(error: BaseException, *, by_signal: bool = False) -> str | None:
    """Return what to say of torch's report that a loader process was killed, wherever it comes up; None for others.

    Args:
        error: torch's.
        by_signal: Known from the processes; torch's words alone do not always tell.
    """
    first = (str(error).splitlines() or [""])[0]
    if "DataLoader worker" not in first or not (by_signal or "killed" in first):
        return None
    return (
        f"a loader process was killed ({first.rstrip('. ')}): most likely there is too little memory. Fewer of them "
        "(--data.workers, in `evaluate` --workers) need less; training goes on with --resume"
    )


class ExportError(TwoStreamError):
    """A model cannot leave Python in the asked-for form, or what came out computes something else."""

    exit_code = 1
