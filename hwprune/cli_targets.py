"""``hwprune targets``: list, show, check and write target profiles."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwprune.cli_options import Debug, Json, Target
from hwprune.terminal import Terminal, reporting, table

if TYPE_CHECKING:
    from hwprune.measure.probe_results import ProbeResults

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
            f"# peak {profile.peak_flops / 1e9:.4g} GFLOP/s ({profile.dtype}) on {profile.threads} threads; "
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
    probe: Annotated[bool, typer.Option("--probe", help="Measure this machine and write a complete profile of it.")] = False,
    probe_results: Annotated[
        Path | None,
        typer.Option("--probe-results", metavar="FILE", help="Write a complete profile of what hwprune-probe printed elsewhere."),
    ] = None,
    rpc: Annotated[
        str | None, typer.Option("--rpc", metavar="HOST:PORT", help="With --probe: measure a board behind TVM's RPC tracker; with --key.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="NAME", help="With --rpc: the board's key at the tracker.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a profile into ./targets/NAME.toml.

    \b
    Examples:
      hwprune targets new myboard --extends rpi4
      hwprune targets new thisbox --probe
      hwprune targets new myboard --extends rpi4 --probe-results probe.json
      hwprune targets new myboard --extends rpi4 --probe --rpc 127.0.0.1:9190 --key myboard
    """
    with reporting(json, debug) as terminal:
        from hwprune.errors import UsageError
        from hwprune.fsio import write_text_atomic

        path = Path("targets") / f"{name}.toml"
        if probe and probe_results:
            raise UsageError("--probe and --probe-results contradict each other; give one of them")
        if extends is None and not probe and not probe_results:
            raise UsageError(
                "a profile's figures come from another profile or from a probe; give --extends T, --probe or --probe-results FILE"
            )
        if rpc is not None and not (probe and extends):
            raise UsageError("--rpc probes a board; give --probe, and --extends T for a profile whose code it runs")
        if (rpc is None) != (key is None):
            raise UsageError("--rpc and --key go together: where the tracker is, and the key of its boards")
        if name == "native" or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise UsageError(
                f"a target cannot be called {name!r}; use lower-case letters, digits, dots and dashes, and not `native`"
            )
        if path.exists() and not force:
            raise UsageError(f"{path} exists; give another name, or --force to replace it")
        probed = probe or probe_results
        text = _probed(terminal, name, extends, probe_results, rpc, key) if probed else _extending(name, str(extends))
        write_text_atomic(path, text)

        from hwprune import target

        for notice in target.notices(name, target.load_file(path)):
            terminal.say(notice)
        terminal.result({"file": str(path)}, f"wrote {path}; use it with --target {name}")


@app.command()
def probe(
    target: Target = "native",
    program: Annotated[
        Path | None, typer.Option("--program", metavar="FILE", help="Do not measure: write the probe as a program for the target.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="Over which the samples are spread.")] = 2.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what this machine can do at most, or write the program that does so on another one.

    \b
    Examples:
      hwprune targets probe
      hwprune targets probe --target rpi4 --program hwprune-probe
    """
    with reporting(json, debug) as terminal:
        from hwprune.costing import check_runs_here, load_target
        from hwprune.measure import probe_program

        profile = load_target(target)
        if program is not None:
            with terminal.task(f"building the probe for {target}"):
                probe_program.build(profile, program)
            how = f"run `./{program.name} > probe.json` on the device, and here `hwprune targets new NAME --extends {target} --probe-results probe.json`"
            terminal.result({"file": str(program)}, f"wrote {program}; {how}")
            return
        check_runs_here(profile, "it cannot be probed here; write the program for it with --program FILE")
        with terminal.task("probing this machine"):
            results = probe_program.run_here(profile, seconds)
        terminal.result(results.model_dump(mode="json"), *_shown(results))


def _shown(results: "ProbeResults") -> list:
    rows = []
    for title, rates in (("peak GFLOP/s", {"": results.peak_gflops}), ("read GB/s", dict(results.read_gb_per_s)), ("copy GB/s", dict(results.copy_gb_per_s))):
        rows += [(f"{title} {level}".strip(), *(f"{r.best:.1f}" if r else "" for r in (reach.one_core, reach.all_threads)))
                 for level, reach in rates.items() if reach]  # fmt: skip
    if results.handed_gb_per_s:
        rows.append(("handed from core to core GB/s", "", f"{results.handed_gb_per_s.best:.1f}"))
    facts = [
        f"{results.processor}: {results.isa}, {results.threads} threads, {results.clock_mhz.best:.0f} MHz",
        f"multiply-adds: {results.fma_per_cycle():g} a cycle, latency {results.fma_latency_ns:.2f} ns",
        f"starting a kernel on all threads: {results.launch_us:.2f} us",
    ]
    return [*facts, table("", ["figure", "one core", "all threads"], rows, right=("one core", "all threads"))]


def _extending(name: str, base: str) -> str:
    from hwprune import target
    from hwprune.target_text import extending

    return extending(name, target.load(base))


def _probed(
    terminal: Terminal, name: str, base: str | None, results_file: Path | None, tracker: str | None, key: str | None
) -> str:  # fmt: skip
    from hwprune import target
    from hwprune.costing import check_runs_here
    from hwprune.measure import probe_program, probe_results
    from hwprune.measure.probe import native_profile
    from hwprune.record import now
    from hwprune.target_text import to_toml

    if results_file is not None:
        results, link = probe_results.read(results_file), None
    elif tracker is not None:
        from hwprune.measure.rpc import parse_address, probe_board

        where = parse_address(tracker)
        with terminal.task(f"probing {key}"):
            results, link = probe_board(target.load(base), where, key, probe_program.SECONDS), None
    else:
        native = native_profile()
        vectors, link = target.load(base) if base else native, native.link
        check_runs_here(vectors, "this machine cannot be probed with its instructions")
        with terminal.task("probing this machine"):
            results = probe_program.run_here(vectors)
    profile = target.load(base) if base else probe_results.base_for(results)
    if results.disturbed:
        terminal.say("other programs were running beside the probe: its figures are too low; probe again when the machine is idle")
    if results.emulated:
        terminal.say("an emulator ran the probe: its figures say nothing of a real machine")
    return to_toml(probe_results.profile_of(results, profile, name, now()[:10], link))


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
