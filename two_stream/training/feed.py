"""From the loader to the step: each micro-batch under its number, on the device before it is needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from two_stream.errors import TwoStreamError
from two_stream.runtime import distributed
from two_stream.training.data import EpochLoader
from two_stream.types import Batch


class Feed:
    """Hands out one epoch's micro-batches by number; one of which no clip could be read is None.

    On a GPU the next micro-batch is copied while the present one is computed.

    Attributes:
        error: Why reading ended early; the other processes must hear of it before it is raised.
    """

    def __init__(self, loader: EpochLoader, device: torch.device) -> None:
        self.loader = loader
        self.device = device
        self.error: TwoStreamError | None = None
        self._batches = iter(loader)
        self._over = False
        self._held: tuple[int, Batch] | None = None
        self._stream = _side_stream(device)

    def group(self, start: int, count: int) -> Iterator[Batch | None]:
        """Yield this process's micro-batches of the `count` that begin at `start`."""
        for number in range(start + distributed.rank(), start + count, distributed.world_size()):
            yield self._take(number)

    def first(self) -> Batch | None:
        """Return the next micro-batch without using it up."""
        self._pull()
        return None if self._held is None else self._held[1]

    def ahead(self) -> None:
        """Begin to copy the next micro-batch to a GPU; call it when the present one's work is under way."""
        if self._stream is not None:
            self._pull()

    def close(self) -> None:
        """End the loader's processes now, not when it is collected."""
        if hasattr(self._batches, "close"):
            self._batches.close()

    def _take(self, number: int) -> Batch | None:
        self._pull()
        if self._held is None or self._held[0] != number:
            return None
        batch, self._held = self._held[1], None
        if self._stream is not None:
            present = torch.cuda.current_stream(self.device)
            present.wait_stream(self._stream)
            for tensor in (batch.clips, batch.labels, *batch.beside):
                tensor.record_stream(present)
        return batch

    def _pull(self) -> None:
        """Hold the next micro-batch of the loader; alone, a clip that cannot be read is an error at once."""
        if self._held is not None or self._over:
            return
        try:
            batch = next(self._batches, None)
        except TwoStreamError as error:
            if distributed.world_size() == 1:
                raise
            self.error, batch = error, None
        if batch is None:
            self._over = True
            return
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                clips, labels, *beside = (
                    tensor.to(self.device, non_blocking=True)
                    for tensor in (batch.clips, batch.labels, *batch.beside)
                )
            batch = Batch(clips, labels, batch.ids, tuple(beside))
        self._held = (self.loader.position - 1, batch)


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
