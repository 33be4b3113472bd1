"""Other engines that run the same network, to time beside hwprune: torch, torch.compile, ONNX Runtime, OpenVINO."""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator

from hwprune.errors import HwpruneError, UsageError
from hwprune.timing import Timer, timer_of

if TYPE_CHECKING:
    import torch
    from torch import nn


def engine_timer(name: str, model: "nn.Module", example: "torch.Tensor", threads: int) -> Timer:
    """A timer of ``model`` on ``example`` in the engine ``name``. UsageError if it is unknown or not installed."""
    check_engine(name)
    try:
        return ENGINES[name](model, example, threads)
    except ModuleNotFoundError as err:
        raise UsageError(
            f"engine {name!r} needs {err.name}, which is not installed; run `pip install 'hwprune[bench]'`"
        ) from None
    except HwpruneError:
        raise
    except Exception as err:  # exporters and engines raise all kinds of exceptions
        lines = str(err).strip().splitlines()
        reason = lines[0] if lines else type(err).__name__
        raise HwpruneError(f"engine {name!r} refused the network: {reason}; leave it out of --vs") from err


def check_engine(name: str) -> None:
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known engines: {', '.join(ENGINES)}"
        raise UsageError(f"unknown engine {name!r}; {hint}")


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _torch(model: "nn.Module", example: "torch.Tensor", threads: int) -> Timer:
    import torch

    from hwprune.train.evaluate import mode

    def timer(runs: int):
        with _torch_threads(threads), mode(model, False), torch.inference_mode():
            return timer_of(lambda: model(example))(runs)

    return timer


def _torch_compiled(model: "nn.Module", example: "torch.Tensor", threads: int) -> Timer:
    """torch.compile with all of its tuning."""
    import torch

    from hwprune.train.evaluate import mode

    with mode(model, False):
        compiled = torch.compile(model, options={"max_autotune": True, "freezing": True})

    def timer(runs: int):
        with _torch_threads(threads), mode(model, False), torch.no_grad():
            return timer_of(lambda: compiled(example))(runs)

    return timer


def _onnxruntime(model: "nn.Module", example: "torch.Tensor", threads: int) -> Timer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = _onnx(model, example, Path(folder))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: example.numpy()}
    return timer_of(lambda: session.run(None, feed))


def _openvino(model: "nn.Module", example: "torch.Tensor", threads: int) -> Timer:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        core = openvino.Core()
        read = core.read_model(_onnx(model, example, Path(folder)))
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = core.compile_model(read, "CPU", settings).create_infer_request()
    inputs = [example.numpy()]
    return timer_of(lambda: request.infer(inputs))


def _onnx(model: "nn.Module", example: "torch.Tensor", folder: Path) -> Path:
    """The network as ONNX, in eval mode. torch's exporter talks a lot; nobody asked it to."""
    import onnxscript  # noqa: F401  the exporter's own message does not name the package
    import torch

    from hwprune.train.evaluate import mode

    path = folder / "model.onnx"
    quiet, previous = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            mode(model, False),
            torch.no_grad(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
        ):
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (example,), path, dynamo=True)
    finally:
        logging.disable(previous)
    return path


ENGINES: dict[str, Callable[["nn.Module", "torch.Tensor", int], Timer]] = {
    "onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch, "torch-compile": _torch_compiled,
}  # fmt: skip
