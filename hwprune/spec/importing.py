"""Bring in a callable of the user's: ``package.module:name`` or ``path/file.py:name``.

What goes wrong in the user's code becomes one sentence with the user's file and line, never a traceback.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Iterable, Iterator

from hwprune.errors import HwpruneError, UsageError


def nearest(name: str, known: Iterable[str], suffix: str = "") -> str:
    """`` (nearest: a, b)``, each with ``suffix``; an empty text when nothing known is near."""
    found = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.5)
    return f" (nearest: {', '.join(match + suffix for match in found)})" if found else ""


def call_user(spec: str, what: str, error: type[UsageError]) -> Any:
    """Import the callable that ``spec`` names and return what it returns when called with no arguments.

    Parameters
    ----------
    spec : ``package.module:name`` or ``path/file.py:name``.
    what : what it is for the user, e.g. ``"model factory"``; used in messages.
    error : the exception to raise, ModelError or DataError.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise error(f"{spec!r} names no {what}; write `package.module:function` or `path/file.py:function`")
    is_file = place.endswith(".py")
    folder = Path(place).resolve().parent if is_file else Path.cwd()
    # The user's siblings must be importable while the function runs as well: many factories import late. What the
    # user's code prints goes to stderr: stdout may carry our JSON.
    with _on_path(folder), redirect_stdout(sys.stderr):
        with _explained(f"{what} {spec!r} cannot be imported", place, error):
            module = _import_file(Path(place), error) if is_file else _import_module(place, error)
        function = _attribute(module, place, name, what, error)
        with _explained(f"{what} {spec!r} failed", place, error):
            return function()


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


@contextmanager
def _explained(headline: str, place: str, error: type[UsageError]) -> Iterator[None]:
    """Turn whatever the user's code raises (also ``sys.exit``) into one sentence with the user's line."""
    try:
        yield
    except (HwpruneError, KeyboardInterrupt):
        raise
    except SyntaxError as err:
        raise error(f"{headline}: {err.filename}:{err.lineno}: SyntaxError: {err.msg}") from None
    except (Exception, SystemExit) as err:
        where = _user_line(err, place)
        text = str(err).strip().splitlines()[0] if str(err).strip() else "(no message)"
        raise error(f"{headline}: {where}: {type(err).__name__}: {text}") from None


def _user_line(err: BaseException, place: str) -> str:
    """``file:line`` of the innermost frame in the user's own folder, else of the innermost frame at all."""
    frames = traceback.extract_tb(err.__traceback__)
    if place.endswith(".py"):
        root = str(Path(place).resolve().parent)
        own = [f for f in frames if f.filename.startswith(root) and "site-packages" not in f.filename]
    else:
        own = [f for f in frames if not _is_machinery(f.filename)]
    frame = (own or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno}"


def _is_machinery(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<frozen") or any(p in filename for p in ("importlib/", "site-packages/"))


def _import_file(path: Path, error: type[UsageError]) -> ModuleType:
    if not path.is_file():
        there = [p.stem for p in path.parent.glob("*.py")]
        raise error(f"no file {path}{nearest(path.stem, there, suffix='.py')}; the path is relative to {Path.cwd()}")
    # A name of its own, so that a user's `model.py` never shadows, or is shadowed by, another `model`.
    name = f"hwprune_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, path.resolve())
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and typing look the module up while it runs
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str, error: type[UsageError]) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        # A module that the user's module misses is the user's error and is told with its line.
        if err.name is None or not (name == err.name or name.startswith(err.name + ".")):
            raise
        raise error(f"no module {err.name!r}{nearest(err.name, _siblings(err.name))}; "
                    f"install it, or run from the folder that holds it, or write path/file.py:function") from None


def _siblings(name: str) -> list[str]:
    """The importable names beside ``name``."""
    parent, _, _ = name.rpartition(".")
    if not parent:
        return [m.name for m in pkgutil.iter_modules()]
    try:
        path = importlib.import_module(parent).__path__
    except (ImportError, AttributeError):
        return []
    return [f"{parent}.{m.name}" for m in pkgutil.iter_modules(path)]


def _attribute(module: ModuleType, place: str, name: str, what: str, error: type[UsageError]) -> Callable[[], Any]:
    if not hasattr(module, name):
        callables = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise error(f"{place} has no {name!r}{nearest(name, callables)}; name a function that takes no arguments")
    function = getattr(module, name)
    if not callable(function):
        raise error(f"{place}:{name} is a {type(function).__name__}, not a {what} that can be called")
    needed = _needed_arguments(function)
    if needed:
        raise error(f"{place}:{name} needs the arguments {', '.join(needed)}; name a {what} that takes none")
    return function


def _needed_arguments(function: Callable) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins tell no signature
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
