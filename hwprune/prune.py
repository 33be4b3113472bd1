"""Remove units from a network: slice its tensors, and rewrite what its modules say about their sizes.

The result of pruning a module is a module of the same classes, which trains, saves and loads as the dense one did.
Where the user's ``forward`` holds a size that no attribute carries, the result is the pruned exported graph instead
(``hwprune.graph.resize``), and a rewrite says so with file and line.
"""

from __future__ import annotations

import traceback
import warnings
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import fx, nn

from hwprune import float64
from hwprune.bypass import bypass
from hwprune.copying import compute_weights, copied
from hwprune.errors import PlanError
from hwprune.graph.channels import ChannelGraph, widths_of
from hwprune.graph.resize import resized_graph
from hwprune.graph.rules.shape import blocks
from hwprune.graph.trace import evaluating


@dataclass(frozen=True)
class Rewrite:
    """One attribute of one module that changed: ``module`` is its path, empty for the network itself."""

    module: str
    attribute: str
    old: Any
    new: Any


def prune(
    module: nn.Module, graph: ChannelGraph, kept: Mapping[str, Sequence[int]]
) -> tuple[nn.Module, list[Rewrite]]:
    """Return a copy of ``module`` in which each group keeps the given units only.

    Parameters
    ----------
    module : the traced network, or one with the same parameters by name and shape. It is not changed.
    kept : group id -> units that stay; absent groups stay whole. A residual branch goes with all of its groups: none of
        them keeps a unit.

    Returns
    -------
    pruned module (dtype, ``requires_grad`` and training flags as in ``module``), and what was rewritten in it.

    Raises
    ------
    PlanError : an unknown group or unit, parameters that do not fit the graph, or a network that cannot be rewritten.
    """
    positions = graph.kept_params(kept)
    _check_fits(module, graph)
    if isinstance(module, fx.GraphModule):
        return _pruned_graph(module, graph, kept, positions), []
    pruned = _copy(module)
    slice_tensors(pruned, positions)
    compute_weights(pruned)
    rewrites = list(_rewrite_attributes(pruned, module))
    removed = graph.removed(widths_of(kept))
    bypassed, failure = bypass(pruned, graph, removed)
    rewrites += [Rewrite(*row) for row in bypassed]
    failure = failure or _failure(pruned, graph)
    if failure is not None and not removed:
        rewrites += list(_rewrite_sizes(pruned, graph, kept))
        failure = _failure(pruned, graph)
    failure = failure or _difference(pruned, module, graph, kept, positions)
    if failure is not None:
        pruned = _pruned_graph(module, graph, kept, positions)
        rewrites = [Rewrite("", "forward", failure, "the pruned exported graph")]
    return pruned, rewrites


def _copy(module: nn.Module) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return copied(module)
    except Exception as err:
        raise PlanError(
            f"{type(module).__name__} cannot be copied ({str(err).splitlines()[0]}); "
            "keep no tensors that are results of a forward pass as attributes"
        ) from err


def _check_fits(module: nn.Module, graph: ChannelGraph) -> None:
    """The graph's parameters exist in the module with their shapes."""
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    dense = graph.shapes({})
    state = graph.traced.exported.state_dict
    for node_name, fqn in graph.traced.targets.items():
        if fqn not in state:
            continue
        shape = None if fqn not in own else tuple(own[fqn].shape)
        if shape != dense(node_name):
            found = "is missing" if shape is None else f"has shape {shape}"
            raise PlanError(f"{fqn} {found}, but the graph was traced with shape {dense(node_name)}; trace this module")


def slice_tensors(module: nn.Module, positions: Mapping[str, Mapping[int, np.ndarray]]) -> None:
    """Keep the given positions of parameters and buffers, in place. Tied tensors stay tied."""
    done: dict[int, torch.Tensor] = {}
    made: set[int] = set()
    held: list[torch.Tensor] = []  # ids are of live objects only
    for fqn, by_dim in positions.items():
        owner_name, _, leaf = fqn.rpartition(".")
        owner = module.get_submodule(owner_name)
        old = getattr(owner, leaf)
        if id(old) in made:
            continue  # a module with two names
        if id(old) not in done:
            new = old.detach()
            for dim, index in by_dim.items():
                new = new.index_select(dim, torch.from_numpy(index).to(new.device))
            new = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
            done[id(old)] = new
            made.add(id(new))
            held.append(old)
        setattr(owner, leaf, done[id(old)])  # by the module's own setter: a recurrent one lists its weights as well


# -- attributes of PyTorch's own modules, from the shapes of their tensors


def _conv(m: nn.Module, old: nn.Module) -> dict[str, Any]:
    transposed = isinstance(m, nn.modules.conv._ConvTransposeNd)
    first, second = m.weight.shape[:2]
    if old.groups > 1 and old.groups == old.in_channels:  # depthwise: a group is a channel
        multiplier = old.out_channels // old.groups
        groups = first if transposed else first // multiplier
        return {"in_channels": groups, "out_channels": groups * multiplier, "groups": groups}
    if transposed:
        return {"in_channels": first, "out_channels": second * old.groups}
    return {"in_channels": second * old.groups, "out_channels": first}


def _normalized_shape(m: nn.Module, old: nn.Module) -> dict[str, Any]:
    return {"normalized_shape": tuple(m.weight.shape)} if m.weight is not None else {}


def _features(m: nn.Module, old: nn.Module) -> dict[str, Any]:
    tensor = m.weight if m.weight is not None else m.running_mean
    return {"num_features": tensor.shape[0]} if tensor is not None else {}


def _recurrent(m: nn.Module, old: nn.Module) -> dict[str, Any]:
    """Of a network its first layer says them; a cell is one."""
    layer = "_l0" if isinstance(m, nn.RNNBase) else ""
    ih, hh = getattr(m, f"weight_ih{layer}"), getattr(m, f"weight_hh{layer}")
    gates = getattr(old, f"weight_hh{layer}").shape[0] // old.hidden_size
    sizes = {"input_size": ih.shape[1], "hidden_size": hh.shape[0] // gates}
    return sizes | {"proj_size": hh.shape[1]} if getattr(m, "proj_size", 0) else sizes


#: Module class -> the sizes that its tensors imply, as attributes. The first class that matches counts.
ATTRIBUTES: tuple[tuple[Any, Callable[[nn.Module, nn.Module], dict[str, Any]]], ...] = (
    (nn.modules.conv._ConvNd, _conv),
    (nn.Linear, lambda m, old: {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}),
    (nn.modules.batchnorm._NormBase, _features),
    ((nn.LayerNorm, nn.RMSNorm), _normalized_shape),
    (nn.GroupNorm, lambda m, old: {"num_channels": m.weight.shape[0]} if m.weight is not None else {}),
    (nn.PReLU, lambda m, old: {"num_parameters": m.weight.shape[0]}),
    (nn.Bilinear, lambda m, old: dict(zip(("out_features", "in1_features", "in2_features"), m.weight.shape))),
    (
        (nn.Embedding, nn.EmbeddingBag),
        lambda m, old: {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]},
    ),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
)


def _rewrite_attributes(pruned: nn.Module, dense: nn.Module) -> Iterator[Rewrite]:
    olds = dict(dense.named_modules())
    for path, m in pruned.named_modules():
        implied = next((attributes for cls, attributes in ATTRIBUTES if isinstance(m, cls)), None)
        if implied is None:
            continue
        for attribute, new in implied(m, olds[path]).items():
            yield from _set(m, path, attribute, int(new) if isinstance(new, int) else new)


def _set(m: nn.Module, path: str, attribute: str, new: Any) -> Iterator[Rewrite]:
    old = getattr(m, attribute)
    if old != new:
        setattr(m, attribute, new)
        yield Rewrite(path, attribute, old, new)


# -- attributes of the user's modules that hold a size which the forward pass hard-codes into the graph


def _rewrite_sizes(pruned: nn.Module, graph: ChannelGraph, kept: Mapping[str, Sequence[int]]) -> Iterator[Rewrite]:
    """Integers among a module's attributes that equal a size which shrinks inside that very module.

    An attribute is rewritten only if all axes of its old value within the module shrink to one and the same new value;
    the result is run, and proved later, so that a coincidence cannot pass.
    """
    modules = dict(pruned.named_modules())
    for path, sizes in _changed_sizes(graph, kept).items():
        m = modules.get(path)
        if m is None or type(m).__module__.startswith("torch.nn."):
            continue
        for attribute, old in list(vars(m).items()):
            new = _mapped(old, sizes)
            if new != old:
                yield from _set(m, path, attribute, new)


def _mapped(value: Any, sizes: Mapping[int, int]) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return sizes.get(value, value)
    if isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value):
        return type(value)(sizes.get(v, v) for v in value)
    return value


def _changed_sizes(graph: ChannelGraph, kept: Mapping[str, Sequence[int]]) -> dict[str, dict[int, int]]:
    """Module path -> old size -> new size, where they are unambiguous, over the values computed in it."""
    dense, small = graph.shapes({}), graph.shapes(widths_of(kept))
    found: dict[str, dict[int, set[int]]] = {}
    gone = graph.gone(widths_of(kept))
    for node in graph.traced.graph.nodes:
        if node.name in gone:
            continue
        if node.op != "call_function" or not hasattr(node.meta.get("val"), "shape"):
            continue
        sizes = found.setdefault(graph.traced.source(node).module, {})
        touching = [node.name, *(n.name for n in node.all_input_nodes if hasattr(n.meta.get("val"), "shape"))]
        for name in touching:
            for old, new in zip(dense(name), small(name)):
                if old != new:
                    sizes.setdefault(old, set()).add(new)
    return {
        path: {old: min(new) for old, new in sizes.items() if len(new) == 1} for path, sizes in found.items() if sizes
    }


# -- does it run?


def _failure(pruned: nn.Module, graph: ChannelGraph) -> str | None:
    """None if the pruned module maps the example to outputs of the dense shapes, else what goes wrong and where."""
    expected = [tuple(n.meta["val"].shape) for n in _outputs(graph)]
    try:
        result = _results(pruned, graph)
    except Exception as err:
        frames = [f for f in traceback.extract_tb(err.__traceback__) if "/torch/" not in f.filename]
        why = (str(err).splitlines() or [type(err).__name__])[0]
        if not frames:
            return f"forward: {why}"
        return f"{frames[-1].filename}:{frames[-1].lineno} `{(frames[-1].line or '').strip()}`: {why}"
    got = [tuple(t.shape) for t in result]
    return None if got == expected else f"outputs of shape {got} instead of {expected}"


def _results(module: nn.Module, graph: ChannelGraph) -> list[torch.Tensor]:
    """The module's outputs, in eval mode, for the traced example."""
    with evaluating(module), torch.no_grad():
        result = module(*[x.detach().clone() for x in graph.traced.example_inputs])
    return [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]


def _difference(pruned: nn.Module, module: nn.Module, graph: ChannelGraph, kept, positions) -> str | None:
    """Where the pruned module runs but computes something else than the pruned graph: its forward derives a number
    from a size (the scale of attention, equal halves). None where the two agree or no operator could tell them apart.
    """
    gone, at = graph.removed(widths_of(kept)), _size_dependent(graph, kept)
    if at is None and not gone:
        return None
    reference = resized_graph(module, graph, kept, free_batch=False)
    slice_tensors(reference, positions)
    if _agree(pruned, reference, graph):
        return None
    if gone:
        return "forward: computes something else once branches are gone"
    source = graph.traced.source(at)
    return f"{source.file}:{source.line} `{source.text}`: depends on the size of what is pruned"


def _agree(pruned: nn.Module, reference: nn.Module, graph: ChannelGraph) -> bool:
    """In float64, where a scale that is a little off shows; as they are where a forward pass cannot run in it."""
    inputs, single = graph.traced.example_inputs, any(n.args[1:2] == (torch.float32,) for n in graph.traced.graph.nodes)
    tolerance = 1e-6 if single else 1e-10
    try:
        pairs = list(zip(*(float64.outputs(m, float64.doubled(inputs)) for m in (pruned, reference))))
    except Exception:
        pairs = list(zip(_results(pruned, graph), _results(reference, graph)))
        tolerance = 200 * torch.finfo(torch.float32).eps
    for got, expected in pairs:
        if not expected.is_floating_point() and not torch.equal(got, expected):
            return False
        allowed = tolerance * float(expected.abs().amax()) if expected.numel() else 0.0
        if not bool(((got - expected).abs() <= allowed).all()):
            return False
    return True


_PARTS = ("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split", "slice", "narrow")
_PRODUCTS = ("matmul", "mm", "bmm", "einsum", "baddbmm", "scaled_dot_product_attention")
_RESHAPES = ("view", "reshape", "_unsafe_view", "unflatten", "view_copy")


def _size_dependent(graph: ChannelGraph, kept: Mapping[str, Sequence[int]]) -> fx.Node | None:
    """The operator likeliest to derive a number from a size that shrinks: an attention whose scale does, else the first
    that cuts a pruned axis into parts or factors, or sums over one between activations."""
    new, old = graph.shapes(widths_of(kept)), graph.shapes({})
    gone = graph.gone(widths_of(kept))
    first = None
    for node in graph.traced.graph.nodes:
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if node.op != "call_function" or node.name in gone or name not in (*_PARTS, *_PRODUCTS, *_RESHAPES):
            continue
        x, y = node.all_input_nodes[0].name, node.name
        if name in _RESHAPES:
            runs = blocks(old(x), old(y))
            depends = any(len(news) > 1 and any(new(y)[a] != old(y)[a] for a in news) for _, news in runs)
        else:
            axes = slice(None) if name in _PARTS or name == "einsum" else slice(-1, None)
            depends = new(x)[axes] != old(x)[axes]
        if depends and name == "scaled_dot_product_attention":
            return node
        first = first or (node if depends else None)
    return first


def _outputs(graph: ChannelGraph) -> list[fx.Node]:
    (output,) = [n for n in graph.traced.graph.nodes if n.op == "output"]
    return [n for n in torch.utils._pytree.tree_leaves(output.args) if isinstance(n, fx.Node)]


def _pruned_graph(module, graph, kept, positions) -> nn.Module:
    """The exported graph with smaller tensors, with a free batch if that can be."""
    for free_batch in (True, False):
        pruned = resized_graph(module, graph, kept, free_batch)
        slice_tensors(pruned, positions)
        failure = _failure(pruned, graph)
        if failure is None:
            return pruned
    raise PlanError(f"the pruned graph does not run ({failure}); freeze the groups that reach this place")
