"""``hwprune targets``: list, show, check and write target profiles."""

import re
from pathlib import Path
from typing import Annotated

import typer

from hwprune.cli_options import Debug, Json
from hwprune.terminal import Terminal, reporting, table

app = typer.Typer(
    help="List, show, check and write target profiles.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Profiles are searched in ./targets, then the user's config folder, then among the shipped ones.",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A target's name, or a .toml file.")]


@app.command("list")
def list_targets(json: Json = False, debug: Debug = False) -> None:
    """List all targets.

    \b
    Example:
      hwprune targets list
    """
    with reporting(json, debug) as terminal:
        from hwprune import target

        shipped = target.shipped_folder().resolve()
        rows, data = [], []
        for name, files in sorted(target.profiles().items()):
            origin = "shipped" if files[0].parent.resolve() == shipped else str(files[0])
            try:
                profile = target.load(name)
            except target.TargetError as err:
                rows.append((name, f"invalid: {err}", origin))
                data.append({"name": name, "file": str(files[0]), "valid": False, "error": str(err)})
                continue
            stands_for = f" (= {profile.alias_of})" if profile.alias_of else ""
            rows.append(
                (name + stands_for, profile.description, origin + (", shadows another" if len(files) > 1 else ""))
            )
            data.append(
                {
                    "name": name,
                    "file": str(files[0]),
                    "valid": True,
                    "description": profile.description,
                    "architecture": profile.architecture,
                    "alias_of": profile.alias_of,
                    "runs_here": profile.runs_here(),
                    "shadows": [str(f) for f in files[1:]],
                }
            )
        rows.append(("native", "this machine, probed when it is used", "probe"))
        data.append(
            {"name": "native", "file": None, "valid": True, "description": "this machine, probed when it is used"}
        )
        terminal.result(data, table("", ["target", "description", "from"], rows))


@app.command()
def show(name: Name, json: Json = False, debug: Debug = False) -> None:
    """Print a resolved profile, the source of each figure beside it.

    \b
    Examples:
      hwprune targets show rpi4
      hwprune targets show native
    """
    with reporting(json, debug) as terminal:
        from hwprune import target
        from hwprune.target_text import to_annotated

        with terminal.task(f"Reading target {name}"):
            profile = target.load(name)
        for notice in target.notices(name, profile):
            terminal.say(notice)
        peak = (
            f"# peak {profile.peak_flops / 1e9:.4g} GFLOP/s (float32) on {profile.threads} threads; "
            f"{'runs' if profile.runs_here() else 'does not run'} on this machine"
        )
        terminal.result(profile.model_dump(mode="json", by_alias=True), peak, to_annotated(profile).rstrip())


@app.command()
def check(name: Name, json: Json = False, debug: Debug = False) -> None:
    """Check a profile and print everything that is wrong with it.

    Exits with 2 when something is. A figure without a source is told but is no error.

    \b
    Examples:
      hwprune targets check targets/myboard.toml
      hwprune targets check rpi4
    """
    with reporting(json, debug) as terminal:
        from hwprune import target

        path = _file_of(name)
        found = target.complaints(path)
        notes = [] if found else _notes(target.load_file(path))
        lines = [f"{path}: {text}" for text in found] + [f"{path}: note: {text}" for text in notes]
        terminal.result(
            {"file": str(path), "valid": not found, "complaints": found, "notes": notes},
            *lines,
            f"{path}: {len(found)} complaint{'' if len(found) == 1 else 's'}" if found else f"{path}: valid",
        )
        if found:
            raise typer.Exit(target.TargetError.exit_code)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits, dots, dashes.")],
    extends: Annotated[
        str | None, typer.Option("--extends", metavar="T", help="Take everything from this profile, to be overridden.")
    ] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Write a complete profile of this machine.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a profile into ./targets/NAME.toml.

    \b
    Examples:
      hwprune targets new myboard --extends rpi4
      hwprune targets new thisbox --probe
    """
    with reporting(json, debug) as terminal:
        from hwprune.errors import UsageError
        from hwprune.fsio import write_text_atomic

        path = Path("targets") / f"{name}.toml"
        if (extends is None) == (not probe):
            raise UsageError(
                "a profile's figures come from another profile or from this machine; give --extends T or --probe"
                if not probe
                else "--extends and --probe contradict each other; give one of them"
            )
        if name == "native" or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise UsageError(
                f"a target cannot be called {name!r}; use lower-case letters, digits, dots and dashes, and not `native`"
            )
        if path.exists() and not force:
            raise UsageError(f"{path} exists; give another name, or --force to replace it")
        text = _probed(terminal, name) if probe else _extending(name, str(extends))
        write_text_atomic(path, text)

        from hwprune import target

        for notice in target.notices(name, target.load_file(path)):
            terminal.say(notice)
        terminal.result({"file": str(path)}, f"wrote {path}; use it with --target {name}")


def _extending(name: str, base: str) -> str:
    from hwprune import target
    from hwprune.target_text import extending

    return extending(name, target.load(base))


def _probed(terminal: Terminal, name: str) -> str:
    from hwprune.measure.probe import native_profile
    from hwprune.target_text import to_toml

    with terminal.task("Probing this machine"):
        profile = native_profile()
    return to_toml(profile.model_copy(update={"name": name}))


def _file_of(name: str) -> Path:
    from hwprune import target
    from hwprune.errors import UsageError

    if name == "native":
        raise UsageError("`native` is probed, not a file; `hwprune targets new NAME --probe` writes one")
    if name.endswith(".toml"):
        return Path(name)
    files = target.profiles().get(name)
    if not files:
        target.load(name)  # raises, with the nearest names
    return files[0]


def _notes(profile) -> list[str]:
    import shutil

    notes = []
    missing = profile.unsourced()
    if missing:
        notes.append(f"no source for {', '.join(missing)}")
    if not shutil.which(profile.link.cxx):
        package = f" (Debian: {profile.link.package})" if profile.link.package else ""
        notes.append(
            f"the compiler {profile.link.cxx} is not installed here{package}; it is needed to compile for this target"
        )
    return notes
