"""What a command shows: progress and messages on stderr, tables or one JSON document on stdout.

``reporting`` is the one place where an exception becomes a sentence and an exit code.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Iterator, Sequence

import typer

from hwprune.errors import HwpruneError

if TYPE_CHECKING:
    from rich.table import Table

INTERRUPTED = 130
JOB_FAILED = 1

#: Bars show only what takes longer than this; a log without a terminal repeats itself no more often than the second.
_PATIENCE_S = 2.0
_LOG_EVERY_S = 10.0


class _LogTask:
    """A task where nobody watches: one line when it turns out long, one every ten seconds, one at its end."""

    def __init__(self, terminal: "Terminal", title: str, total: int | None) -> None:
        self._terminal, self._title, self._total = terminal, title, total
        self._done, self._note = 0, ""
        self._started = self._spoke = time.monotonic()
        self._silent = True

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        self._speak()

    def note(self, text: str) -> None:
        self._note = text
        self._speak()

    def _speak(self) -> None:
        now = time.monotonic()
        if now - self._spoke < (_PATIENCE_S if self._silent else _LOG_EVERY_S):
            return
        self._spoke, self._silent = now, False
        count = f" {self._done}/{self._total}" if self._total else f" {self._done}" if self._done else ""
        self._terminal.say(f"{self._title}{count}{f' ({self._note})' if self._note else ''} ...")

    def finish(self) -> None:
        seconds = time.monotonic() - self._started
        if seconds > _PATIENCE_S:
            self._terminal.say(f"{self._title}: {seconds:.1f} s")


class _BarTask:
    """A task as one bar of a live display."""

    def __init__(self, progress: Any, title: str, total: int | None) -> None:
        self._progress = progress
        self._id = progress.add_task(title, total=total, note="")

    def advance(self, steps: int = 1) -> None:
        self._progress.advance(self._id, steps)

    def note(self, text: str) -> None:
        self._progress.update(self._id, note=text)

    def finish(self) -> None:
        self._progress.remove_task(self._id)


class Terminal:
    """Implements ``hwprune.progress.Progress`` and prints results.

    as_json : results go to stdout as one JSON document; everything else stays on stderr either way.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._live: Any = None
        self._depth = 0

    # Progress

    @contextmanager
    def task(self, title: str, total: int | None = None) -> Iterator[Any]:
        task = _BarTask(self._open_bars(), title, total) if sys.stderr.isatty() else _LogTask(self, title, total)
        self._depth += 1
        started = time.monotonic()
        try:
            yield task
        finally:
            self._depth -= 1
            task.finish()
            if self._depth == 0:
                self._close_bars()
        if isinstance(task, _BarTask) and self._depth == 0 and time.monotonic() - started > _PATIENCE_S:
            self.say(f"{title}: {time.monotonic() - started:.1f} s")

    def say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _open_bars(self) -> Any:
        if self._live is None:
            self._live = _bars()
            self._live.start()
        return self._live

    def _close_bars(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # Results

    def result(self, data: Any, *shown: "Table | str") -> None:
        """Print ``data`` as JSON, or else what a person reads: tables and lines."""
        if self.as_json:
            print(json.dumps(data, indent=2, default=str))
            return
        for item in shown:
            print(item) if isinstance(item, str) else _stdout().print(item)

    def failure(self, kind: str, message: str, exit_code: int) -> None:
        self._close_bars()
        print(f"error: {message}", file=sys.stderr, flush=True)
        if self.as_json:
            print(json.dumps({"error": {"type": kind, "message": message, "exit_code": exit_code}}, indent=2))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> "Table":
    """A table of text; the columns named in ``right`` hold figures and are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for position, name in enumerate(columns):
        result.add_column(name, justify="right" if name in right else "left", no_wrap=position == 0)
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    return result


def debugging(asked: bool) -> bool:
    return asked or os.environ.get("HWPRUNE_DEBUG", "") not in ("", "0")


@contextmanager
def reporting(as_json: bool, debug: bool) -> Iterator[Terminal]:
    """Run a command's body; every way it can fail ends in one sentence on stderr and the exit code the docs name."""
    terminal = Terminal(as_json)
    try:
        yield terminal
        sys.stdout.flush()  # here, where a reader that has gone is dealt with, and not as Python exits
    except HwpruneError as err:
        _trace_if(debugging(debug))
        terminal.failure(type(err).__name__, str(err), err.exit_code)
        raise typer.Exit(err.exit_code) from None
    except KeyboardInterrupt:
        terminal.failure("Interrupted", "interrupted; what was measured so far is kept and will be reused", INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read stdout has gone (`| head`). Python must not try to flush it again on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(JOB_FAILED) from None
    except OSError as err:
        _trace_if(debugging(debug))
        where = f"{err.filename}: " if err.filename else ""
        terminal.failure(type(err).__name__, f"{where}{err.strerror or err}", JOB_FAILED)
        raise typer.Exit(JOB_FAILED) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as err:
        _trace_if(debugging(debug))
        terminal.failure(type(err).__name__, _defect(err), JOB_FAILED)
        raise typer.Exit(JOB_FAILED) from None
    finally:
        terminal._close_bars()


def _defect(err: Exception) -> str:
    text = " ".join(str(err).split())
    return (
        f"this is a defect of hwprune, not of your input: {type(err).__name__}: {text[:300]}; "
        f"run the command again with --debug and report what it prints"
    )


def _trace_if(wanted: bool) -> None:
    if wanted:
        import traceback

        traceback.print_exc()


def _stdout() -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    # A pipe has no width; a table squeezed to 80 columns loses digits.
    return console if console.is_terminal else Console(highlight=False, width=160)


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Count(ProgressColumn):
        def render(self, task):
            return Text("" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}")

    class Patient(Progress):
        def get_renderables(self):
            due = [task for task in self.tasks if (task.elapsed or 0.0) > _PATIENCE_S / 2]
            yield self.make_tasks_table(due)

    return Patient(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        Count(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )
