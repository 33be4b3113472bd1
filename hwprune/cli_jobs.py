"""Commands that look at or change a network: search, finetune, measure, inspect."""

from pathlib import Path
from typing import Annotated

import typer

from hwprune.cli_options import (
    MODEL_HELP,
    Branches,
    Data,
    Debug,
    Exact,
    Freeze,
    InputShape,
    Json,
    Normalize,
    OptionalTarget,
    Seed,
    Store,
    Target,
    Threads,
    Weights,
    announce_target,
    default_model,
    load_subject,
)
from hwprune.terminal import reporting

Model = Annotated[
    str | None,
    typer.Option("--model", metavar="SPEC", help=MODEL_HELP + " Without it: the bundled network, and digits as data."),
]


def search(
    target: Target,
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    normalize: Normalize = None,
    input_shape: InputShape = None,
    latency: Annotated[
        str | None, typer.Option("--latency", metavar="0.5x|3.2ms", help="Latency budget; 0.5x if no budget is given.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="0.5x|4MB", help="Budget of peak activation memory.")
    ] = None,
    size: Annotated[str | None, typer.Option("--size", metavar="0.5x|1MB", help="Budget of weights on disk.")] = None,
    importance: Annotated[
        str | None,
        typer.Option(
            "--importance", metavar="NAME", help="l1, l2, bn, taylor or random; default: taylor with data, l2 without."
        ),
    ] = None,
    strategy: Annotated[str, typer.Option("--strategy", metavar="NAME", help="exact or greedy.")] = "exact",
    finetune: Annotated[
        int, typer.Option("--finetune", metavar="EPOCHS", min=0, help="Train the pruned network; needs data.")
    ] = 0,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the dense and the pruned network, and time them where this machine can."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder; default: runs/<model>-<target>-<date>.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a finished run in --out.")] = False,
    freeze: Freeze = None,
    branches: Branches = True,
    exact: Exact = False,
    seed: Seed = 0,
    threads: Threads = None,
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Prune a network to fit a budget on a target.

    Writes a run folder: the plan, the frontier, the pruned weights, and a record of every setting and version.

    \b
    Examples:
      hwprune search --target native
      hwprune search --target native --data digits --model bundled:digits_resnet --latency 0.5x --finetune 10 --compile
      hwprune search --target arm --model net.py:build --weights net.safetensors --data images.npz --latency 3.2ms
      hwprune search --target x86 --model torchvision:resnet18 --input-shape 1x3x224x224 --latency 0.6x --size 20MB
    """
    with reporting(json, debug) as terminal:
        from hwprune import budget
        from hwprune.run_folder import RunFolder

        for text, parse in ((latency, budget.parse_latency), (memory, budget.parse_bytes), (size, budget.parse_bytes)):
            if text is not None:
                parse(text)
        if out is not None:
            RunFolder(out).check_writable(force)
        announce_target(terminal, target)
        model, data = default_model(terminal, model, data)

        from hwprune import api

        loaded, dataset, example = load_subject(model, weights, data, normalize, input_shape)
        result = api.search(
            loaded.module,
            example,
            target=target,
            latency=latency,
            memory=memory,
            size=size,
            data=dataset,
            importance=importance,
            strategy=strategy,
            finetune=finetune,
            compile=compile,
            out=out or api.default_out(model, target),
            force=force,
            freeze=tuple(freeze or ()),
            branches=branches,
            exact=exact,
            seed=seed,
            threads=threads,
            store=store,
            model_spec=model,
            data_spec=data,
            weights_sha256=loaded.weights_sha256,
            progress=terminal,
        )
        _show_run(terminal, result)


def finetune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of `hwprune search`.")],
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", min=1, help="Epochs to train.")],
    data: Data = None,
    normalize: Normalize = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of an earlier fine-tuning.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the pruned network of a run.

    The dense network is the teacher. BatchNorm statistics are recalibrated first, and the best checkpoint is kept.
    Data comes from the run's record unless given.

    \b
    Examples:
      hwprune finetune runs/demo --epochs 20
      hwprune finetune runs/demo --epochs 20 --resume
    """
    with reporting(json, debug) as terminal:
        from hwprune import api
        from hwprune.errors import UsageError
        from hwprune.spec.data import load_data

        if normalize and not data:
            raise UsageError(f"--normalize {normalize!r} has no data to apply to; give --data as well")
        dataset = load_data(data, normalize) if data else None
        result = api.finetune_run(run, epochs, data=dataset, resume=resume, progress=terminal)
        _show_run(terminal, result)


def measure(
    target: OptionalTarget = None,
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    input_shape: InputShape = None,
    within: Annotated[
        str, typer.Option("--within", metavar="15%", help="Measure until kernels are known to this, on average by time.")
    ] = "15%",
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="SECONDS", min=1, help="Stop after that in any case.")
    ] = 180.0,
    check: Annotated[
        bool, typer.Option("--check", help="Predict random pruned networks and time them as a whole, beside each other.")
    ] = False,
    networks: Annotated[
        int | None, typer.Option("--networks", metavar="N", min=1, help="How many, with --check; 20 by default.")
    ] = None,
    freeze: Freeze = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="FILE.tar", help="Pack the kernels for a device instead of timing them here."),
    ] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", metavar="results.json", help="Keep what a bundle has measured on a device.")
    ] = None,
    rpc: Annotated[
        str | None, typer.Option("--rpc", metavar="HOST:PORT", help="Time on boards behind TVM's RPC tracker; with --key.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="NAME", help="With --rpc: the boards' key at the tracker, like rpi4.")
    ] = None,
    emulated: Annotated[
        bool,
        typer.Option("--emulated", help="Of --import and --rpc: keep an emulator's times, too; no cost model reads them."),
    ] = False,
    seed: Seed = 0,
    threads: Threads = None,
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time the kernels of a network, here or on a device.

    Times its dense kernels and, of those that candidate widths can make, the most uncertain ones until the others can be
    predicted, and keeps the times in the store. A search measures what it lacks by itself; this does it beforehand.
    Interrupted, it keeps what it has.

    For a device, --bundle packs the kernels; there, `tar xf FILE.tar && ./measure` writes results.json, without Python
    and without a network; --import keeps it. With --rpc all boards with that key measure at the same time, and one that
    dies is dropped.

    \b
    Examples:
      hwprune measure --target native
      hwprune measure --target native --model torchvision:resnet18 --input-shape 1x3x224x224 --within 10% --time-limit 600
      hwprune measure --target native --check --networks 20
      hwprune measure --target rpi4 --model torchvision:resnet18 --input-shape 1x3x224x224 --bundle rpi4.tar
      hwprune measure --import results.json
      hwprune measure --target rpi4 --rpc 127.0.0.1:9190 --key rpi4
    """
    with reporting(json, debug) as terminal:
        from hwprune.budget import parse_share

        share = parse_share(within, "--within")
        _check_measure(target, model, bundle, import_, rpc, key, emulated, check, networks)
        if target is not None:
            announce_target(terminal, target)
        if import_ is not None:
            from hwprune import api

            found = api.import_results(import_, target=target, emulated=emulated, store=store, progress=terminal)
            terminal.result(found.to_json(), *found.lines())
            return
        model, data = default_model(terminal, model, data)

        from hwprune import api, cli_show

        loaded, _, example = load_subject(model, weights, data, None, input_shape)
        common = dict(target=target, freeze=tuple(freeze or ()), threads=threads, progress=terminal)
        if bundle is not None:
            report = api.bundle(loaded.module, example, bundle, **common)
            lines = report.lines()
        elif rpc is not None:
            report = api.measure_on_boards(loaded.module, example, rpc, key, emulated=emulated, store=store, **common)
            lines = report.lines()
        elif check:
            report = api.check_predictions(loaded.module, example, networks=networks or 20, seed=seed, store=store, **common)
            lines = cli_show.check_tables(report)
        else:
            report = api.measure(loaded.module, example, within=share, time_limit_s=time_limit, store=store, **common)
            lines = cli_show.measure_lines(report)
        terminal.result(report.to_json(), *lines)


def _check_measure(
    target: str | None, model: str | None, bundle: Path | None, results: Path | None, rpc: str | None, key: str | None,
    emulated: bool, check: bool, networks: int | None,
) -> None:
    from hwprune.errors import UsageError

    if networks is not None and not check:
        raise UsageError(f"--networks {networks} is of --check; give --check as well")
    if check and not (bundle is results is rpc is None):
        raise UsageError("--check times networks on this machine; it does not go with --bundle, --import and --rpc")
    if sum(way is not None for way in (bundle, results, rpc)) > 1:
        raise UsageError("--bundle, --import and --rpc are three ways to reach a device; give one of them")
    if results is not None and model is not None:
        raise UsageError(f"--import {results} takes no --model: the file says what was measured")
    if results is None and target is None:
        raise UsageError("measure needs --target; `hwprune targets list` shows all, and `native` is this machine")
    if (rpc is None) != (key is None):
        raise UsageError("--rpc and --key go together: where the tracker is, and the key of its boards")
    if emulated and results is None and rpc is None:
        raise UsageError("--emulated goes with --import and --rpc; on the device it is `./measure --emulated`")


def inspect(
    model: Annotated[str, typer.Argument(metavar="SPEC", help=MODEL_HELP)],
    target: Target = "native",
    data: Data = None,
    input_shape: InputShape = None,
    freeze: Freeze = None,
    dot: Annotated[
        Path | None, typer.Option("--dot", metavar="FILE", help="Write the couplings as a Graphviz file.")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw the couplings (needs Graphviz's `dot`).")
    ] = None,
    threads: Threads = None,
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what can be pruned, and what not.

    Prints the groups of channels that are pruned together with their shares of MACs and latency, and what is frozen with
    its reason and place in the source. Nothing is measured.

    \b
    Examples:
      hwprune inspect bundled:digits_resnet
      hwprune inspect torchvision:resnet18 --input-shape 1x3x224x224 --target rpi4
      hwprune inspect net.py:build --input-shape 1x3x32x32 --freeze 'head.*' --svg net.svg
    """
    with reporting(json, debug) as terminal:
        announce_target(terminal, target)

        from hwprune import api, cli_dot, cli_show
        from hwprune.fsio import write_text_atomic

        loaded, _, example = load_subject(model, None, data, None, input_shape)
        with terminal.task("Analyzing the network"):
            report = api.inspect(
                loaded.module,
                example,
                target=target,
                freeze=tuple(freeze or ()),
                threads=threads,
                store=store,
                model_spec=model,
                progress=terminal,
            )
        if dot:
            write_text_atomic(dot, cli_dot.dot_text(report))
            terminal.say(f"wrote {dot}")
        if svg:
            cli_dot.write_svg(report, svg)
            terminal.say(f"wrote {svg}")
        terminal.result(report.to_json(), *cli_show.inspect_tables(report))


def _show_run(terminal, result) -> None:
    from hwprune import cli_show

    terminal.result(result.to_json(), cli_show.result_table(result.table()), *cli_show.run_lines(result))
