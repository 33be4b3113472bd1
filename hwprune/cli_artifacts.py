"""Commands that make, run and time artifacts: compile, run, bench."""

from pathlib import Path
from typing import Annotated

import typer

from hwprune.cli_options import (
    MODEL_HELP,
    Debug,
    Exact,
    InputShape,
    Json,
    OptionalTarget,
    Store,
    Threads,
    Weights,
    announce_target,
    load_subject,
)
from hwprune.terminal import reporting

def compile(
    subject: Annotated[str, typer.Argument(metavar="RUN|SPEC", help="A run folder, or a model: " + MODEL_HELP)],
    target: OptionalTarget = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="ARTIFACT", help="Artifact folder; default: RUN/artifact.")
    ] = None,
    weights: Weights = None,
    input_shape: InputShape = None,
    exact: Exact = False,
    threads: Threads = None,
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile a network for a target.

    Writes an artifact folder: the compiled network, its weights, and a manifest with the SHA-256 of each file.

    \b
    Examples:
      hwprune compile runs/demo
      hwprune compile runs/demo --target arm --out digits-arm
      hwprune compile torchvision:resnet18 --target native --input-shape 1x3x224x224 --out resnet18
    """
    with reporting(json, debug) as terminal:
        from hwprune.errors import UsageError

        is_run = is_run_folder(subject)
        if not is_run and (target is None or out is None):
            missing = " and ".join(name for name, value in (("--target", target), ("--out", out)) if value is None)
            raise UsageError(f"{subject!r} is no run folder, so {missing} must be given")
        if is_run and exact:
            raise UsageError(f"{subject} is a run folder and was searched with its own choice of kernels; leave out --exact")
        if is_run and (weights or input_shape):
            raise UsageError(
                f"{subject} is a run folder and has its own weights and shape; leave out "
                f"{'--weights' if weights else '--input-shape'}"
            )
        if target is not None:
            announce_target(terminal, target)

        from hwprune import api

        if is_run:
            artifact = api.compile_run(subject, target=target, out=out, threads=threads, store=store, progress=terminal)
        else:
            loaded, _, example = load_subject(subject, weights, None, None, input_shape)
            artifact = api.compile_model(
                loaded.module,
                example,
                target=target,
                out=out,
                threads=threads,
                store=store,
                exact=exact,
                model_spec=subject,
                progress=terminal,
            )
        terminal.result({"artifact": str(artifact)}, f"artifact: {artifact}")


def run(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Artifact folder of `hwprune compile`.")],
    input: Annotated[
        Path, typer.Option("--input", metavar="X.NPY", help="Input array, of the artifact's shape and type.")
    ],
    output: Annotated[Path, typer.Option("--output", metavar="Y.NPY", help="Where the output array goes.")],
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run an artifact on an input.

    Needs neither torch nor the compiler.

    \b
    Example:
      hwprune run runs/demo/artifact --input x.npy --output y.npy
    """
    with reporting(json, debug) as terminal:
        from hwprune import runtime
        from hwprune.arrays import load_npy, save_npy
        from hwprune.errors import UsageError

        if is_run_folder(str(artifact)):
            raise UsageError(
                f"{artifact} is a run folder; an artifact of it lies in {artifact / 'artifact'} once compiled"
            )
        program = runtime.load(artifact, threads=threads)
        if (len(program.inputs), len(program.outputs)) != (1, 1):
            raise UsageError(
                f"{artifact} has {len(program.inputs)} inputs and {len(program.outputs)} outputs, and this command "
                "takes one of each; call hwprune.runtime.load from Python"
            )
        result = program(load_npy(input))
        save_npy(output, result)
        shape = "x".join(map(str, result.shape))
        terminal.result(
            {"output": str(output), "shape": list(result.shape), "dtype": str(result.dtype)},
            f"{output}: {result.dtype} {shape}",
        )


def bench(
    subject: Annotated[
        str, typer.Argument(metavar="ARTIFACT|RUN|SPEC", help="An artifact, a run folder, or a model: " + MODEL_HELP)
    ],
    target: OptionalTarget = None,
    vs: Annotated[
        str | None,
        typer.Option("--vs", metavar="NAMES", help="Engines to time in turn with it: onnxruntime,openvino,torch."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=3, help="Interleaved rounds.")] = 20,
    weights: Weights = None,
    input_shape: InputShape = None,
    threads: Threads = None,
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time networks, beside other engines.

    Times an artifact, the dense and the pruned network of a run, or a model; all in turn, so that drift hits all alike.

    \b
    Examples:
      hwprune bench runs/demo
      hwprune bench runs/demo --vs onnxruntime,openvino
      hwprune bench torchvision:resnet18 --target native --input-shape 1x3x224x224 --vs onnxruntime
    """
    with reporting(json, debug) as terminal:
        from hwprune import cli_show

        engines = _engines(vs)
        folder = is_run_folder(subject) or is_artifact(subject)
        if target is not None:
            announce_target(terminal, target)

        from hwprune import api

        example = None
        timed = Path(subject)
        if not folder:
            loaded, _, example = load_subject(subject, weights, None, None, input_shape)
            timed = loaded.module
        rows = api.bench(
            timed,
            example_input=example,
            target=target or "native",
            vs=engines,
            threads=threads,
            store=store,
            rounds=rounds,
            progress=terminal,
        )
        terminal.result([row.to_json() for row in rows], cli_show.bench_table(rows))


def is_run_folder(subject: str) -> bool:
    return (Path(subject) / "plan.json").is_file()


def is_artifact(subject: str) -> bool:
    return (Path(subject) / "manifest.json").is_file()


ENGINES = ("onnxruntime", "openvino", "torch")


def _engines(text: str | None) -> tuple[str, ...]:
    from hwprune.errors import UsageError

    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    for name in names:
        if name not in ENGINES:
            raise UsageError(f"unknown engine {name!r} in --vs; known are {', '.join(ENGINES)}")
    return tuple(dict.fromkeys(names))
