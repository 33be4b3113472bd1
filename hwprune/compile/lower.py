"""Fuse an exported network into kernel calls.

Each call is an anchor (convolution, matrix product, pool) with the element-wise operators that follow it, or a chain of
element-wise or data-movement operators on its own. Fusion depends on the graph only; workloads are then made for any
widths through a ``shapes`` function, so the search lowers a network once and asks for workloads thousands of times.

Layouts of values (``layouts``): the network's inputs and outputs are plain, images have their channels innermost and padded
to whole vectors, everything else its last axis. Permutations, reshapes and the like are views: where the memory that they
look at lies as their readers want it they cost nothing; elsewhere one copy stands for a whole chain of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Callable

import torch
from torch import fx

from hwprune.compile import ops
from hwprune.compile.constants import Constant, Shapes
from hwprune.compile.layouts import Layout, Pad, layout_of, lies_in, nhwc, plain, rows, usual
from hwprune.compile.memory import MemoryPlan, Step, place
from hwprune.compile.views import IDENTITIES, LISTS, is_view, source_of
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
    """A lowered network: calls in the order in which they run.

    lanes : elements of a vector. dtype : of constants and of what kernels hand to one another.
    traced : of one part of the batch. parts : how many there are; the calls of one part come after those of the other.
    outputs : the calls that make them. inputs, output_nodes : of the graph.
    """

    traced: Traced
    lanes: int
    dtype: str
    calls: tuple[Call, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_nodes: tuple[str, ...]
    parts: int = 1

    def ends(self) -> dict[str, tuple[int, int]]:
        """Of each value that lies outside of the workspace, as calls name it: number of the input or output, and of the part."""
        return {_of_part(name, k, self.parts): (i, k)
                for names in (self.inputs, self.outputs) for i, name in enumerate(names) for k in range(self.parts)}  # fmt: skip

    def whole_shape(self, node: str, shapes: Shapes | None = None) -> tuple[int, ...]:
        """Shape of an input or output of the graph for all parts together."""
        shape = tuple((shapes or self.traced.shape)(node))
        return shape if self.parts == 1 else (shape[0] * self.parts, *shape[1:])

    def workloads(self, shapes: Shapes | None = None) -> list[Workload]:
        return [call.workload(shapes or self.traced.shape) for call in self.calls]

    def emitted(self, shapes: Shapes | None = None) -> list[Emitted]:
        return [call.emit(shapes or self.traced.shape) for call in self.calls]

    def memory(self, shapes: Shapes | None = None) -> MemoryPlan:
        """Where each activation lies; see ``MemoryPlan``."""
        shapes = shapes or self.traced.shape
        inputs = {
            _of_part(name, k, self.parts): TensorSpec(tuple(shapes(name))).size_bytes for name in self.inputs for k in range(self.parts)
        }
        outputs = [_of_part(name, k, self.parts) for name in self.outputs for k in range(self.parts)]
        steps = [
            Step(call.name, emitted.workload.output.size_bytes, tuple(b for b in emitted.bindings if isinstance(b, str)))
            for call, emitted in zip(self.calls, self.emitted(shapes))
        ]
        return place(steps, inputs, outputs)

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


def lower(traced: Traced, profile: TargetProfile, parts: int = 1) -> Network:
    """Fuse ``traced`` for ``profile``.

    parts : of a batch, one after the other, each as large as ``traced`` has it; see ``hwprune.compile.parts``.

    Raises
    ------
    UnsupportedOperator : an operator without a kernel; says where the user's code calls it.
    """
    network = _Lowering(traced, profile).run()
    if parts == 1:
        return network
    calls = tuple(_call_of_part(call, k, parts) for k in range(parts) for call in network.calls)
    return replace(network, calls=calls, parts=parts)


def _of_part(name: str, part: int, parts: int) -> str:
    """What a value is called in one of several parts of a batch."""
    return name if parts == 1 else f"{name}#{part}"


def _call_of_part(call: Call, part: int, parts: int) -> Call:
    def emit(shapes: Shapes) -> Emitted:
        emitted = call.emit(shapes)
        bound = (_of_part(b, part, parts) if isinstance(b, str) else b for b in emitted.bindings)
        return Emitted(emitted.workload, tuple(bound))

    return replace(call, name=_of_part(call.name, part, parts), emit=emit)


#: Two ways to pad that no width makes equal to another sum of strides: what lies alike under both does so at all widths.
_PADS = (lambda width: width + 1, lambda width: width + 100003)


class _Lowering:
    def __init__(self, traced: Traced, profile: TargetProfile):
        self.traced, self.lanes = traced, profile.lanes
        signature = traced.exported.graph_signature
        self.user_inputs = [n for n in signature.user_inputs if isinstance(n, str)]
        self.user_outputs = [n for n in signature.user_outputs if isinstance(n, str)]
        self.place = ops.Placement(frozenset(traced.targets), frozenset(self.user_inputs), profile.dtype, profile.half_vectors)
        self.profile = profile
        self.layouts = self.place.layouts
        self.groups: list[list[fx.Node]] = []
        self.owner: dict[str, list[fx.Node]] = {}
        self.copies: list[tuple[fx.Node, Call]] = []  # calls that copy a value into another layout, and the value
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
        made = [(order[group[-1].name], self._call(group)) for group in self.groups]
        made += [(order[value.name], call) for value, call in self.copies]  # behind the kernel whose result they copy
        calls = [call for _, call in sorted(made, key=lambda item: item[0])]
        outputs = [self._output(name, i) for i, name in enumerate(self.user_outputs)]
        calls += outputs
        return Network(self.traced, self.lanes, self.place.dtype, tuple(calls), tuple(self.user_inputs),
                       tuple(call.name for call in outputs), tuple(self.user_outputs))

    # --- fusion -------------------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._check_dtype(node)
            if isinstance(node.meta.get("val"), torch.Tensor):
                self.layouts[node.name] = plain(node.meta["val"].dim())
        elif node.op in ("get_attr", "output") or node.target in LISTS:
            return
        elif node.target in IDENTITIES or is_view(node):
            self._view(node)
        elif node.target in ops.ANCHORS:
            self._anchor(node)
        elif node.target in ops.ELEMENTWISE:
            self._elementwise(node)
        elif node.target in ops.MOVEMENT:
            self._movement(node)
        else:
            raise ops.refuse(node)

    def _view(self, node: fx.Node) -> None:
        """No kernel: the value is the memory of another one."""
        source = source_of(node)
        step = () if node.target in IDENTITIES else (node,)
        self.place.moves[node.name] = (self.place.base(source), self.place.steps(source) + step)
        if not step:
            self.layouts[node.name] = self.layouts[source.name]
            return
        found = [self._layouts_under(node, pad) for pad in _PADS]
        self.layouts[node.name] = next((layout for layout in found[0] if layout in found[1]), None)

    def _layouts_under(self, node: fx.Node, pad) -> list[Layout]:
        return layout_of(self.place.views(node, self.traced.shape, pad), self.traced.shape(node.name), pad)

    def _check_write(self, node: fx.Node) -> None:
        """Refuse a write in place that reaches a later reader through another name for the same memory.

        Kernels compute values, not memory: a reader of the other name would get the value from before the write.
        """
        if node.op != "call_function":
            return
        writes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        if not writes and node.target not in ops.SHARING:
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

    def _start(self, node: fx.Node, layout: Layout) -> None:
        """A kernel of its own begins at ``node``."""
        group = [node]
        self.groups.append(group)
        self.owner[node.name] = group
        self.layouts[node.name] = layout

    def _join(self, group: list[fx.Node], node: fx.Node, layout: Layout) -> None:
        group.append(node)
        self.owner[node.name] = group
        self.layouts[node.name] = layout

    def _activations(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if not self.place.is_constant(n)]

    def _anchor(self, node: fx.Node) -> None:
        rank, operand = len(self.traced.shape(node.name)), node.args[0]
        given = self.layouts.get(operand.name)
        if node.target in ops.READ_VIEWS:
            # heads side by side: the projection that follows reads them as rows
            attention = node.target is torch.ops.aten.scaled_dot_product_attention.default and rank == 4
            return self._start(node, Layout((0, 2, 1, 3), 2) if attention else rows(rank))
        as_it_is = node.target in ops.READ_PLAIN and given is not None and given == plain(len(given.order))
        if node.target in ops.ROWS:
            layout = ops.row_layout(given, rank, padded=not as_it_is)
            self._want(operand, layout)
            return self._start(node, layout if layout.merged else rows(rank))
        expansion = self._expansion(node, operand)
        if expansion is not None:
            return self._join(expansion, node, usual(rank))
        wanted = nhwc(len(self.traced.shape(operand.name))) or rows(len(self.traced.shape(operand.name)))
        if not (as_it_is and node.target in ops.IMAGES):
            self._want(operand, wanted)
        self._start(node, usual(rank))

    def _expansion(self, node: fx.Node, operand: fx.Node) -> list[fx.Node] | None:
        """The kernel of the convolution that makes ``operand``, if ``node`` is a depthwise convolution or a pool that can be a part of it."""
        if not (self.profile.joins_windows and ops.slides(node, self.traced.shape) and self.layouts.get(operand.name) == usual(4)):
            return None
        group = self.owner.get(operand.name)
        if group is None or group[-1] is not operand or not self._only_reader(operand, operand):
            return None
        alone = not any(n.target in ops.ANCHORS for n in group[1:])
        expands = alone and ops.expands(group[0], self.traced.shape, self.lanes)
        if self.profile.dtype == "float16":  # its kernels read whole vectors of channels
            read = self.layouts.get(group[0].args[0].name)
            expands = expands and ops.is_pointwise(group[0], self.traced.shape) and read is not None and read.merged == 1
        return group if expands and ops.is_worth_joining(node, self.traced.shape, self.profile) else None

    def _want(self, node: fx.Node, layout: Layout) -> None:
        """See to it that ``node`` can be read in ``layout``: where it does not lie so, a copy is made, once."""
        given, name = self.layouts.get(node.name), self.place.key(node)
        if not self.place.is_constant(node):
            if given == layout or (node.name, layout) in self.place.lies:
                return
            if all(self._lies(node, layout, pad) for pad in _PADS):
                self.place.lies.add((node.name, layout))
                return
        if (name, layout) not in self.place.copies:
            self.copies.append((node, self._copy(f"{name}@{layout}", node, layout)))
            self.place.copies[name, layout] = f"{name}@{layout}"

    def _lies(self, node: fx.Node, layout: Layout, pad: Pad) -> bool:
        """Whether ``node`` lies in memory as ``layout`` has it, padding included: a network input ends where it ends."""
        shape, base = self.traced.shape, self.place.base(node)
        own = self.layouts.get(base.name) or plain(len(shape(base.name)))
        there = lies_in(self.place.views(node, shape, pad), shape(node.name), layout, pad)
        return there and layout.size(shape(node.name), pad) <= own.size(shape(base.name), pad)

    def _readable(self, node: fx.Node, layout: Layout) -> bool:
        """Whether ``node`` is read in ``layout`` straight from memory."""
        return (
            self.layouts.get(node.name) == layout
            or (node.name, layout) in self.place.lies
            or (self.place.key(node), layout) in self.place.copies
        )

    def _open_group(self, node: fx.Node, operand: fx.Node) -> list[fx.Node] | None:
        """The kernel that makes ``operand``, if ``node`` can be its epilogue."""
        base, layout = self.place.base(operand), self.layouts.get(operand.name)
        group = self.owner.get(base.name)
        if group is None or group[-1] is not base or not self._only_reader(operand, base) or layout is None or layout.merged != 1:
            return None
        if self.traced.shape(operand.name) != self.traced.shape(node.name) or group[0].target in (*ops.MOVEMENT, *ops.READ_VIEWS):
            return None
        if node.target in ops.BY_CHANNEL and layout != usual(len(layout.order)):
            return None
        if group[0].target in ops.ROWS:
            return group if all(self._fits_rows(n, node, layout) for n in node.all_input_nodes if n is not operand) else None
        own = self.layouts[base.name]
        assert own is not None
        seen = (layout.physical(self.traced.shape(operand.name), 1), own.physical(self.traced.shape(base.name), 1))
        return group if seen[0] == seen[1] else None

    def _only_reader(self, operand: fx.Node, base: fx.Node) -> bool:
        """Whether nothing else reads the memory that ``operand`` looks at."""
        node = operand
        while True:
            if len(node.users) != 1 or node.name in self.user_outputs:
                return False
            if node is base:
                return True
            node = source_of(node)

    def _fits_rows(self, operand: fx.Node, node: fx.Node, layout: Layout) -> bool:
        """Whether a kernel on rows can read ``operand``: row by row with its own, or one row for all of them."""
        result = self.traced.shape(node.name)
        logical = self.traced.shape(operand.name)
        if not self.place.is_constant(operand):
            return logical == result and self._readable(operand, layout)
        if self.place.steps(operand):
            return False
        logical = (1,) * (len(result) - len(logical)) + logical
        outer = [(logical[axis], result[axis]) for axis in layout.order[:-1]]
        return all(own == 1 for own, _ in outer) or all(own == full for own, full in outer)

    def _layout_among(self, node: fx.Node) -> Layout:
        """The layout of an operand of the result's shape, so that it is read as it lies."""
        rank = len(self.traced.shape(node.name))
        if node.target not in ops.BY_CHANNEL:
            for operand in self._activations(node):
                layout = self.layouts.get(operand.name)
                if layout is not None and layout.merged == 1 and len(layout.order) == rank:
                    return layout
        return usual(rank)

    def _elementwise(self, node: fx.Node) -> None:
        if node.target is torch.ops.aten.batch_norm.default:
            source = node.args[0]
            norm = ops.batch_norm_of(node)
            if ops.is_convolution(source) and len(source.users) == 1 and source.name not in self.user_outputs:
                self.place.norms[source.name] = norm
        self._copy_inputs(node)
        groups = [(g, n) for n in self._activations(node) if (g := self._open_group(node, n)) is not None]
        if groups:
            # of two convolutions that meet in an addition, the one with more work keeps the epilogue
            group, operand = max(groups, key=lambda item: item[0][0].target in ops.ANCHORS)
            layout = self.layouts[operand.name]
            assert layout is not None
            self._join(group, node, layout)
        else:
            self._start(node, self._layout_among(node))

    def _movement(self, node: fx.Node) -> None:
        sources = self._activations(node)
        group = self._owner_movement(sources[0]) if len(sources) == 1 else None
        if group is not None:
            layout = self.layouts[sources[0].name]
            assert layout is not None
            self._join(group, node, layout)
            return
        self._copy_inputs(node)
        self._start(node, self._layout_among(node))

    def _copy_inputs(self, node: fx.Node) -> None:
        """Give plain network inputs the usual layout, once."""
        for operand in self._activations(node):
            if self.place.base(operand).name in self.user_inputs and not self.place.steps(operand):
                self._want(operand, usual(len(self.traced.shape(operand.name))))

    def _owner_movement(self, source: fx.Node) -> list[fx.Node] | None:
        group = self.owner.get(source.name)
        chain = group is not None and group[-1] is source and all(n.target in ops.MOVEMENT for n in group)
        return group if chain and len(source.users) == 1 and source.name not in self.user_outputs else None

    # --- calls --------------------------------------------------------------------------------------------------

    def _call(self, group: list[fx.Node]) -> Call:
        nodes, last = tuple(group), group[-1]
        fold = nodes[0].target in ops.ROWS

        def emit(shapes: Shapes) -> Emitted:
            e = ops.Emitter(shapes, self.lanes, self.place, fold)
            for node in nodes:
                e.finish(node, self._emit_node(e, node))
            return Emitted(e.workload(e.physical(last)), tuple(e.bindings))

        return self._made(last.name, nodes, emit)

    def _made(self, name: str, nodes: tuple[fx.Node, ...], emit: Callable[[Shapes], Emitted]) -> Call:
        """The call, with the values whose shapes ``emit`` asks for."""
        asked: dict[str, None] = {}

        def spy(node: str) -> tuple[int, ...]:
            asked[node] = None
            return self.traced.shape(node)

        call = Call(name, nodes, (), emit)
        self._checked(call, spy)
        return replace(call, reads=tuple(asked))

    def _emit_node(self, e: ops.Emitter, node: fx.Node):
        for table in (ops.ANCHORS, ops.ELEMENTWISE, ops.MOVEMENT):
            if node.target in table:
                return table[node.target](e, node)
        raise ops.refuse(node)

    def _copy(self, name: str, node: fx.Node, layout: Layout, dtype: str | None = None) -> Call:
        """A call that copies ``node`` into ``layout``, as ``dtype`` if that is another one than kernels hand to one another."""

        def emit(shapes: Shapes) -> Emitted:
            logical, given = tuple(shapes(node.name)), self.layouts.get(node.name)
            e = ops.Emitter(shapes, self.lanes, self.place)
            shape = layout.physical(logical, self.lanes)
            if given is not None and not self.place.is_constant(node) and {str(given), str(layout)} <= _NAMED:
                own = e.memory_as(node, given)
                e.op("relayout", own, source=str(given), result=str(layout), logical=logical, shape=shape)
            else:
                e.gather(node, layout)
            return Emitted(e.workload(shape, dtype), tuple(e.bindings))

        return self._made(name, (), emit)

    def _output(self, name: str, position: int) -> Call:
        node = self.traced.nodes[name]
        again = f"#{position}" if name in self.user_outputs[:position] else ""
        return self._copy(f"{name}@plain{again}", node, plain(len(self.traced.shape(name))), "float32")

    def _checked(self, call: Call, shapes: Shapes) -> None:
        try:
            call.emit(shapes)
        except UnsupportedOperator as err:
            where = f", called by {self.traced.source(call.nodes[0])}" if call.nodes else ""
            raise UnsupportedOperator(f"{err}{where}; replace it to search or compile the network") from None


#: Layouts between which ``relayout`` copies.
_NAMED = {"plain", "rows", "nhwc"}
