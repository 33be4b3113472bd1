"""Options that several commands share, and how their values become models, data and targets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwprune.terminal import Terminal

if TYPE_CHECKING:
    import torch

    from hwprune.spec.data import DataSet
    from hwprune.spec.model import LoadedModel

BUNDLED_MODEL = "bundled:digits_resnet"
BUNDLED_DATA = "digits"

MODEL_HELP = (
    "bundled:digits_resnet, package.module:factory, path/file.py:factory, torchvision:NAME, timm:NAME, "
    "a .pt2 file or a run folder."
)

Target = Annotated[
    str, typer.Option("--target", metavar="T", help="Target profile, `native` for this machine, or a .toml file.")
]
OptionalTarget = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="T",
        help="Target profile, `native` for this machine, or a .toml file; a run folder or a results file knows its own.",
    ),
]
Weights = Annotated[str | None, typer.Option("--weights", metavar="FILE", help="safetensors, or a state_dict file.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="digits, an .npz file, a folder with train/<class>/ and test/<class>/, or module:function.",
    ),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        "--normalize",
        metavar="TEXT",
        help='Of an .npz or a folder: "mean=0.5,0.5,0.5;std=0.2,0.2,0.2", for a folder also "resize=224".',
    ),
]
InputShape = Annotated[
    str | None, typer.Option("--input-shape", metavar="NxCxHxW", help="Like 1x3x224x224, when no data says it.")
]
Freeze = Annotated[
    list[str] | None,
    typer.Option(
        "--freeze", metavar="PATTERN", help="Do not prune modules whose name matches (shell pattern); may be repeated."
    ),
]
Branches = Annotated[
    bool, typer.Option("--branches/--no-branches", help="Whether residual branches may go as a whole.")
]
Exact = Annotated[
    bool, typer.Option("--exact", help="Compute operation by operation: no Winograd kernels, no rounded factors.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, metavar="N", help="Threads; default: the target's.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of everything random.")]
Store = Annotated[
    Path | None, typer.Option("--store", metavar="FILE", help="Measurement store; default: in the user's cache folder.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error (also HWPRUNE_DEBUG=1).")]


def announce_target(terminal: Terminal, name: str) -> None:
    """Fail early on a bad profile; say what a name stands for when that is not obvious.

    Raises TargetError. ``native`` is not looked at: probing it belongs to the job.
    """
    from hwprune import target

    if name == "native":
        return
    for notice in target.notices(name, target.load(name)):
        terminal.say(notice)


def default_model(terminal: Terminal, model: str | None, data: str | None) -> tuple[str, str | None]:
    """The model and data to use; with no model at all, the bundled network and the data it was trained on."""
    if model is not None:
        return model, data
    terminal.say(
        f"no --model given: using the bundled network {BUNDLED_MODEL}"
        + (f" and its data, {BUNDLED_DATA} (scikit-learn's handwritten digits)" if data is None else "")
    )
    return BUNDLED_MODEL, data or BUNDLED_DATA


def load_subject(
    model: str, weights: str | None, data: str | None, normalize: str | None, input_shape: str | None
) -> tuple["LoadedModel", "DataSet | None", "torch.Tensor"]:
    """A model, its data if any, and a random example input of shape [N, C, H, W] to trace with.

    Raises ModelError, DataError or UsageError.
    """
    import torch

    from hwprune.errors import UsageError
    from hwprune.spec.data import check_fits, load_data
    from hwprune.spec.model import load_model, resolve_input_shape

    if normalize and not data:
        raise UsageError(f"--normalize {normalize!r} has no data to apply to; give --data as well")
    loaded = load_model(model, weights)
    dataset = load_data(data, normalize) if data else None
    if dataset:
        check_fits(loaded.module, dataset)  # before torch.export, whose message would blame the network
    shape = resolve_input_shape(loaded, dataset.input_shape if dataset else None, input_shape)
    return loaded, dataset, torch.randn(shape, generator=torch.Generator().manual_seed(0))
