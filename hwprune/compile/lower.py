"""Fuse an exported network into kernel calls.

Each call is an anchor (convolution, matrix product, pool) with the element-wise operators that follow it, or a chain of
element-wise or data-movement operators on its own. Fusion depends on the graph only; workloads are then made for any
widths through a ``shapes`` function, so the search lowers a network once and asks for workloads thousands of times.

Layouts of values: ``plain`` (the network's inputs and outputs), ``nhwc`` (images, channels innermost, padded to whole
vectors), ``rows`` (everything else, innermost axis padded).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Callable

import torch
from torch import fx

from hwprune.compile import ops
from hwprune.compile.constants import BatchNorm, Constant, Shapes
from hwprune.compile.memory import MemoryPlan, Step, place
from hwprune.errors import CompileError, UnsupportedOperator
from hwprune.graph.trace import Traced
from hwprune.target import TargetProfile
from hwprune.workload import TensorSpec, Workload


@dataclass(frozen=True)
class Emitted:
    """A call at certain widths: its workload, and what each of the workload's inputs is bound to."""

    workload: Workload
    bindings: tuple[str | Constant, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """One kernel of the network.

    name : the value it makes (name of its last node; ``NAME@LAYOUT`` for a copy between layouts).
    nodes : the fused fx nodes, in order; empty for a copy.
    reads : every fx node whose shape its workload depends on.
    emit : shapes -> Emitted
    """

    name: str
    nodes: tuple[fx.Node, ...]
    reads: tuple[str, ...]
    emit: Callable[[Shapes], Emitted] = field(repr=False)

    def workload(self, shapes: Shapes) -> Workload:
        return self.emit(shapes).workload


@dataclass(frozen=True, eq=False)
class Network:
    """A lowered network: calls in the order in which they run."""

    traced: Traced
    lanes: int
    calls: tuple[Call, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_nodes: tuple[str, ...]

    def workloads(self, shapes: Shapes | None = None) -> list[Workload]:
        return [call.workload(shapes or self.traced.shape) for call in self.calls]

    def emitted(self, shapes: Shapes | None = None) -> list[Emitted]:
        return [call.emit(shapes or self.traced.shape) for call in self.calls]

    def memory(self, shapes: Shapes | None = None) -> MemoryPlan:
        """Where each activation lies; see ``MemoryPlan``."""
        shapes = shapes or self.traced.shape
        inputs = {name: TensorSpec(tuple(shapes(name))).size_bytes for name in self.inputs}
        steps = [
            Step(call.name, emitted.workload.output.size_bytes, tuple(b for b in emitted.bindings if isinstance(b, str)))
            for call, emitted in zip(self.calls, self.emitted(shapes))
        ]
        return place(steps, inputs, self.outputs)

    def weight_bytes(self, shapes: Shapes | None = None) -> int:
        """Bytes of all packed constants, each counted once."""
        seen: dict[Constant, int] = {}
        for emitted in self.emitted(shapes):
            for spec, binding in zip(emitted.workload.inputs, emitted.bindings):
                if not isinstance(binding, str):
                    seen[binding] = spec.size_bytes
        return sum(seen.values())

    def macs(self, shapes: Shapes | None = None) -> int:
        return sum(w.macs for w in self.workloads(shapes))


def lower(traced: Traced, profile: TargetProfile) -> Network:
    """Fuse ``traced`` for ``profile``.

    Raises
    ------
    UnsupportedOperator : an operator without a kernel; says where the user's code calls it.
    """
    return _Lowering(traced, profile).run()


class _Lowering:
    def __init__(self, traced: Traced, profile: TargetProfile):
        self.traced, self.lanes = traced, profile.lanes
        signature = traced.exported.graph_signature
        self.user_inputs = [n for n in signature.user_inputs if isinstance(n, str)]
        self.user_outputs = [n for n in signature.user_outputs if isinstance(n, str)]
        self.parameters = set(traced.targets)
        self.layouts: dict[str, str] = {}
        self.alias: dict[str, fx.Node] = {}  # node -> the node whose memory it shares
        self.norms: dict[str, BatchNorm] = {}
        self.groups: list[list[fx.Node]] = []
        self.owner: dict[str, list[fx.Node]] = {}
        self.copies: dict[str, Call] = {}  # calls that copy network inputs into another layout
        self.copied: dict[str, str] = {}  # network input -> layout of its copy
        self.sharing: dict[str, list[fx.Node]] = {}  # node -> the nodes so far that share its memory in torch

    def run(self) -> Network:
        for node in self.traced.graph.nodes:
            try:
                self._check_write(node)
                self._visit(node)
            except UnsupportedOperator as err:
                raise UnsupportedOperator(
                    f"{err}, called by {self.traced.source(node)}; replace it to search or compile the network"
                ) from None
        order = {node.name: i for i, node in enumerate(self.traced.graph.nodes)}
        self.groups.sort(key=lambda group: order[group[-1].name])
        calls = [*self.copies.values(), *(self._call(group) for group in self.groups)]
        outputs = [self._output(name, i) for i, name in enumerate(self.user_outputs)]
        calls += outputs
        network = Network(self.traced, self.lanes, tuple(calls), tuple(self.user_inputs),
                          tuple(call.name for call in outputs), tuple(self.user_outputs))
        for call in calls:  # unsupported attributes come to light here, not in the middle of a search
            self._checked(call)
        return network

    # --- fusion -------------------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._check_dtype(node)
            self.layouts[node.name] = "plain"
        elif node.op in ("get_attr", "output"):
            return
        elif node.target in ops.IDENTITIES:
            self._share(node, node.args[0], self.layouts[node.args[0].name])
        elif node.target in ops.RESHAPES:
            self._reshape(node)
        elif node.target in ops.ANCHORS:
            if node.target not in ops.READ_PLAIN:
                self._channels_last(node.args[0])
            self._start(node)
        elif node.target in ops.ELEMENTWISE:
            self._elementwise(node)
        elif node.target in ops.MOVEMENT:
            self._movement(node)
        else:
            raise ops.refuse(node)

    def _check_write(self, node: fx.Node) -> None:
        """Refuse a write in place that reaches a later reader through another name for the same memory.

        Kernels compute values, not memory: a reader of the other name would get the value from before the write.
        """
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return
        writes = node.target._schema.is_mutable
        if not writes and node.target not in ops.VIEWS:
            self.sharing[node.name] = [node]
            return
        memory = self.sharing.setdefault(node.args[0].name, [node.args[0]])
        if writes and any(node < user for other in memory for user in other.users):
            raise ops.refuse(node, "where the value that it overwrites is read again through a view")
        memory.append(node)
        self.sharing[node.name] = memory

    def _check_dtype(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dtype == torch.float32:
            return
        if node.name in self.user_inputs:
            raise CompileError(f"network input {node.name!r} is {value.dtype}, the compiler takes float32; give a float32 example input")
        if value.dtype.is_floating_point:
            name = self.traced.targets.get(node.name, node.name)
            raise CompileError(f"parameter {name!r} is {value.dtype}, the compiler takes float32; convert the network with .float()")

    def _layout(self, node: fx.Node) -> str:
        return "nhwc" if len(self.traced.shape(node.name)) == 4 else "rows"

    def _start(self, node: fx.Node) -> None:
        """A kernel of its own begins at ``node``."""
        group = [node]
        self.groups.append(group)
        self.owner[node.name] = group
        self.layouts[node.name] = self._layout(node)

    def _join(self, group: list[fx.Node], node: fx.Node) -> None:
        group.append(node)
        self.owner[node.name] = group
        self.layouts[node.name] = self._layout(node)

    def _share(self, node: fx.Node, source: fx.Node, layout: str) -> None:
        self.alias[node.name] = source
        self.layouts[node.name] = layout

    def resolve(self, node: fx.Node) -> fx.Node:
        while node.name in self.alias:
            node = self.alias[node.name]
        return node

    def _activations(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if n.name not in self.parameters]

    def _open_group(self, node: fx.Node, producer: fx.Node) -> list[fx.Node] | None:
        """The kernel that makes ``producer``, if ``node`` can be its epilogue."""
        group = self.owner.get(producer.name)
        if group is None or group[-1] is not producer or len(producer.users) != 1 or producer.name in self.user_outputs:
            return None
        if group[0].target is torch.ops.aten.linear.default and len(self.traced.shape(producer.name)) != 2:
            return None  # inside the kernel of a matrix product all leading axes are one
        return group if self.traced.shape(producer.name) == self.traced.shape(node.name) else None

    def _elementwise(self, node: fx.Node) -> None:
        if node.target is torch.ops.aten.batch_norm.default:
            source = node.args[0]
            norm = ops.batch_norm_of(node)
            convolution = source.target in (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)
            if convolution and len(source.users) == 1 and source.name not in self.user_outputs:
                self.norms[source.name] = norm
        for operand in self._activations(node):
            self._channels_last(operand)
        groups = [g for g in (self._open_group(node, p) for p in self._activations(node)) if g is not None]
        groups = [g for g in groups if g[0].target not in ops.MOVEMENT]
        if groups:
            # of two convolutions that meet in an addition, the one with more work keeps the epilogue
            self._join(max(groups, key=lambda g: g[0].target in ops.ANCHORS), node)
        else:
            self._start(node)

    def _movement(self, node: fx.Node) -> None:
        sources = self._activations(node)
        group = self._owner_movement(sources[0]) if len(sources) == 1 else None
        if group is not None:
            self._join(group, node)
            return
        for source in sources:
            self._channels_last(source)
        self._start(node)

    def _owner_movement(self, source: fx.Node) -> list[fx.Node] | None:
        group = self.owner.get(source.name)
        chain = group is not None and group[-1] is source and all(n.target in ops.MOVEMENT for n in group)
        return group if chain and len(source.users) == 1 and source.name not in self.user_outputs else None

    def _reshape(self, node: fx.Node) -> None:
        source = node.args[0]
        before, after = self.traced.shape(source.name), self.traced.shape(node.name)
        layout = self.layouts[source.name]
        if before == after:
            return self._share(node, source, layout)
        pixels = len(before) == 4 and before[2:] == (1, 1)
        if layout == "nhwc" and pixels and after == before[:2]:
            return self._share(node, source, "rows")
        if layout == "rows" and len(before) == 2 and after == (*before, 1, 1):
            return self._share(node, source, "nhwc")
        if layout == "rows" and before[-1] == after[-1]:
            return self._share(node, source, "rows")
        if len(before) == 4 and len(after) == 2 and after[0] == before[0]:
            return self._start(node)  # flattening an image: a copy into logical order
        raise ops.refuse(node, f"from {list(before)} to {list(after)}")

    # --- calls --------------------------------------------------------------------------------------------------

    def _emitter(self, shapes: Shapes) -> ops.Emitter:
        return ops.Emitter(shapes, self.lanes, self.layouts, self.norms, self.parameters, self.copied, self.resolve)

    def _call(self, group: list[fx.Node]) -> Call:
        nodes = tuple(group)
        reads = list(dict.fromkeys([n.name for n in nodes] + [i.name for n in nodes for i in n.all_input_nodes]))

        def emit(shapes: Shapes) -> Emitted:
            e = self._emitter(shapes)
            for node in nodes:
                e.finish(node, self._emit_node(e, node))
            last = nodes[-1]
            output = e.physical(last.name)
            if nodes[0].target is torch.ops.aten.linear.default:
                output = (math.prod(output[:-1]), output[-1])
            return Emitted(e.workload(output), tuple(e.bindings))

        return Call(nodes[-1].name, nodes, tuple(reads), emit)

    def _emit_node(self, e: ops.Emitter, node: fx.Node):
        if node.target in ops.RESHAPES:
            source, layout = node.args[0], self.layouts[node.args[0].name]
            return e.op("relayout", e.value(source, plain=layout == "plain"), source=layout, result="flat",
                        logical=e.shapes(source.name), shape=e.physical(node.name))
        for table in (ops.ANCHORS, ops.ELEMENTWISE, ops.MOVEMENT):
            if node.target in table:
                return table[node.target](e, node)
        raise ops.refuse(node)

    def _channels_last(self, operand: fx.Node) -> None:
        """Give a plain network input the layout that its readers expect, once."""
        source = self.resolve(operand)
        if self.layouts[source.name] != "plain" or source.name not in self.user_inputs:
            return
        layout = self._layout(source)
        name = f"{source.name}@{layout}"
        if name in self.copies:
            return
        self.copied[source.name] = layout

        def emit(shapes: Shapes) -> Emitted:
            logical = tuple(shapes(source.name))
            shape = ops.physical_shape(logical, layout, self.lanes)
            e = self._emitter(shapes)
            e.op("relayout", e.value(source, plain=True), source="plain", result=layout, logical=logical, shape=shape)
            return Emitted(e.workload(shape), tuple(e.bindings))

        self.copies[name] = Call(name, (), (source.name,), emit)

    def _output(self, name: str, position: int) -> Call:
        node = self.traced.nodes[name]
        again = f"#{position}" if name in self.user_outputs[:position] else ""

        def emit(shapes: Shapes) -> Emitted:
            logical = tuple(shapes(name))
            e = self._emitter(shapes)
            layout = self.layouts[name]
            e.op("relayout", e.value(node, plain=True), source=layout, result="plain", logical=logical, shape=logical)
            return Emitted(e.workload(logical), tuple(e.bindings))

        return Call(f"{name}@plain{again}", (), (name,), emit)

    def _checked(self, call: Call) -> None:
        try:
            call.emit(self.traced.shape)
        except UnsupportedOperator as err:
            where = f", called by {self.traced.source(call.nodes[0])}" if call.nodes else ""
            raise UnsupportedOperator(f"{err}{where}; replace it to search or compile the network") from None
