"""Registry of parts: maps a `kind` in the settings to its builder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, get_args

from two_stream.errors import SettingsError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps the `kind` of an options class (a member of a union in `two_stream.config`) to a builder."""

    def __init__(self, what: str, union: Any = None) -> None:
        self.what = what
        members = get_args(get_args(union)[0]) if union else ()
        self._with_options = {str(member.model_fields["kind"].default) for member in members}
        self._builders: dict[str, T] = {}

    def register(self, options: type[Any]) -> Callable[[T], T]:
        """Return a decorator that registers a builder for the `kind` of `options`.

        Raises:
            ValueError: The kind is already registered.
        """
        kind = str(options.model_fields["kind"].default)
        if kind in self._builders:
            raise ValueError(f"{self.what} {kind!r} is already registered")

        def add(builder: T) -> T:
            self._builders[kind] = builder
            return builder

        return add

    def __getitem__(self, kind: str) -> T:
        """Return the builder of a kind.

        Raises:
            SettingsError: Unknown kind (the message lists the known ones), or no module registers the options.
        """
        if kind in self._with_options - self._builders.keys():
            raise SettingsError(
                f"{self.what} {kind!r} has options in config/{self.what}s.py but no class; register one in "
                f"two_stream/{self.what}s/"
            )
        if kind not in self._builders:
            raise SettingsError(f"unknown {self.what} {kind!r}; known: {', '.join(sorted(self._builders))}")
        return self._builders[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._builders))

    def __contains__(self, kind: object) -> bool:
        return kind in self._builders
