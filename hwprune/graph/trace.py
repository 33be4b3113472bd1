"""Export the user's network once, and remember where in the user's source each node came from.

The network is exported without decomposition, in eval mode, with the shapes of the example: the graph then has one
node per operator that the user wrote, and its names are the ones that plans, cost models and reports refer to.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import traceback
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Iterator, Sequence

import torch
from torch import nn

from hwprune.errors import TraceError
from hwprune.graph.inline import inline_blocks

_TORCH_FOLDER = os.path.dirname(torch.__file__) + os.sep
_OWN_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STACK_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n?(?P<text>[^\n]*)')


@dataclass(frozen=True)
class SourceRef:
    """A place in the user's source: module path within the network, file, line and the text of that line."""

    module: str
    file: str
    line: int
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else "source unknown"
        return f"{self.module or '(top)'} ({place})"


@dataclass(frozen=True)
class Traced:
    """A network and its exported graph.

    module : the user's module, untouched.
    exported : ``torch.export.export(module, example_inputs)``, not decomposed.
    example_inputs : what it was exported with; shapes are static.
    targets : placeholder node name -> fully qualified name of the parameter, buffer or constant behind it.
    edited : a copy of the exported graph with less in it (``blocks.without``); None for the graph as it was exported.
    """

    module: nn.Module
    exported: torch.export.ExportedProgram
    example_inputs: tuple[torch.Tensor, ...]
    targets: dict[str, str]
    edited: torch.fx.Graph | None = None

    @property
    def graph(self) -> torch.fx.Graph:
        return self.exported.graph if self.edited is None else self.edited

    @cached_property
    def nodes(self) -> dict[str, torch.fx.Node]:
        """Node name -> node."""
        return {node.name: node for node in self.graph.nodes}

    @cached_property
    def literals(self) -> frozenset[str]:
        """Names of the tensors that the user's forward makes from numbers."""
        return frozenset(self.exported.graph_signature.inputs_to_lifted_tensor_constants.values())

    def shape(self, node_name: str) -> tuple[int, ...]:
        """Shape of a node's value, which must be a single tensor (KeyError otherwise)."""
        value = self.nodes[node_name].meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise KeyError(f"node {node_name!r} holds no single tensor; ask for the nodes that take its elements")
        return tuple(int(size) for size in value.shape)

    def tensor(self, target: str) -> torch.Tensor:
        """The parameter, buffer or constant of that name; tied names give the same object."""
        owner, _, leaf = target.rpartition(".")
        try:
            return getattr(self.module.get_submodule(owner), leaf)
        except AttributeError:
            state = self.exported.state_dict
            return state[target] if target in state else self.exported.constants[target]

    def source(self, node: torch.fx.Node | str) -> SourceRef:
        """Where the user's code calls this node: the innermost frame outside torch."""
        node = self.nodes[node] if isinstance(node, str) else node
        stack = node.meta.get("nn_module_stack") or {}
        module = list(stack.values())[-1][0] if stack else ""
        frames = [m for m in _STACK_LINE.finditer(node.meta.get("stack_trace") or "")]
        own = [m for m in frames if not m["file"].startswith(_TORCH_FOLDER)] or frames
        if not own:
            return SourceRef(module, "", 0, "")
        return SourceRef(module, own[-1]["file"], int(own[-1]["line"]), own[-1]["text"].strip())


def trace(module: nn.Module, example_inputs: Sequence[torch.Tensor] | torch.Tensor) -> Traced:
    """Export ``module`` in eval mode; its training flags are restored.

    Parameters
    ----------
    module : any ``nn.Module`` that ``torch.export`` accepts.
    example_inputs : the positional inputs of ``forward``; shapes (batch included) become static.

    Raises
    ------
    TraceError : torch.export refused; the sentence names the line of the user's source.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    with evaluating(module), quiet(), torch.no_grad():
        try:
            exported = torch.export.export(module, inputs)
        except Exception as err:
            raise TraceError(_refusal(module, err)) from err
        inline_blocks(exported)
    signature = exported.graph_signature
    targets = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return Traced(module, exported, inputs, dict(targets))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the time of the export; exported modules have no mode to set."""
    training = [(m, m.training) for m in module.modules()]
    for m, _ in training:
        m.training = False
    try:
        yield
    finally:
        for m, flag in training:
            m.training = flag


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch.export logs and prints each failed guard with a page of advice; one sentence of TraceError replaces it."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _refusal(module: nn.Module, err: Exception) -> str:
    why = _first_line(err)
    own = [
        frame
        for frame in traceback.extract_tb(err.__traceback__)
        if not frame.filename.startswith((_TORCH_FOLDER, _OWN_FOLDER)) and not frame.filename.startswith("<")
    ]
    where = f" at {own[-1].filename}:{own[-1].lineno} `{(own[-1].line or '').strip()}`" if own else ""
    advice = "; control flow must not depend on tensor values" if "data-dependent" in str(err) else ""
    return f"torch.export cannot trace {type(module).__name__}{where}: {why}{advice}"


def _first_line(err: Exception) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {lines[0] if lines else 'no message'}"
