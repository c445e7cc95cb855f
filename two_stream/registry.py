"""One class for every table of parts: a `kind` in the settings maps to the class that builds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from two_stream.errors import SettingsError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps an options class (a member of a discriminated union in `config/schema.py`) to its builder."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._builders: dict[str, T] = {}

    def register(self, options: type[Any]) -> Callable[[T], T]:
        """Return a decorator that files a builder under the `kind` of `options`.

        Raises:
            ValueError: The kind is taken.
        """
        kind = str(options.model_fields["kind"].default)
        if kind in self._builders:
            raise ValueError(f"{self.what} {kind!r} is registered already")

        def add(builder: T) -> T:
            self._builders[kind] = builder
            return builder

        return add

    def __getitem__(self, kind: str) -> T:
        """Return the builder of a kind; an unknown one is a SettingsError that lists the known."""
        if kind not in self._builders:
            raise SettingsError(f"unknown {self.what} {kind!r}; known: {', '.join(sorted(self._builders))}")
        return self._builders[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._builders))

    def __contains__(self, kind: object) -> bool:
        return kind in self._builders
