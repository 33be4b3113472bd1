"""How long work tells how far it is. The library is silent by default; the command line shows bars."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, Protocol


class Task(Protocol):
    def advance(self, steps: int = 1) -> None: ...

    def note(self, text: str) -> None:
        """A few words that change while the task runs (a loss, a kernel's name)."""


class Progress(Protocol):
    def task(self, title: str, total: int | None = None):  # -> ContextManager[Task]
        ...

    def say(self, text: str) -> None:
        """One line for the user that stays."""


class Silent:
    """The default: says nothing."""

    @contextmanager
    def task(self, title: str, total: int | None = None) -> Iterator["Silent"]:
        yield self

    def say(self, text: str) -> None:
        pass

    def advance(self, steps: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


SILENT = Silent()
