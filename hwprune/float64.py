"""Run networks in float64, so that a comparison has nothing to do with rounding."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, Iterator, Sequence

import torch
from torch import fx, nn

from hwprune.copying import copied
from hwprune.graph.trace import evaluating


@contextlib.contextmanager
def float64_by_default() -> Iterator[None]:
    """What a forward pass makes without saying of what type is of the type of the parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def outputs(module: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Output tensors of a copy of ``module`` in eval mode, for inputs that are float64 or integers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = copied(module).double().cpu()
    with evaluating(module), torch.no_grad(), float64_by_default():
        run = Double(module).run if isinstance(module, fx.GraphModule) else module
        return tensors(run(*[x.clone() for x in inputs]))


def tensors(result: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(result)
    return [t.double() if t.is_floating_point() else t for t in leaves if isinstance(t, torch.Tensor)]


def doubled(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [x.double() if x.is_floating_point() else x for x in inputs]


class Double(fx.Interpreter):
    """Literal dtypes of the graph follow the parameters: what it makes in float32 is made in float64."""

    def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return super().call_function(target, args, kwargs)
