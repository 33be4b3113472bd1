"""A block of warps on the card, for kernels written as loops: its memories, asynchronous copies and tensor-core products.

``Card`` writes instructions of PTX; ``emulate.Emulated`` has the same methods and writes what they do on a CPU. A kernel
is written once for either: what all threads do by themselves stands in ``threads``, what lanes of a warp do in ``lanes``,
and between them stands what a warp does as one.

Source: PTX ISA, warp-level matrix instructions (mma) and data movement (cp.async).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from tvm import tirx
from tvm.backend.cuda.ptx import PTXNamespace
from tvm.script.ir_builder import tirx as T

from hwprune.kernels.loops import constant, vector

_ptx = PTXNamespace()


@dataclass(frozen=True)
class Precision:
    """How a warp multiplies 16 x 16 by 16 x 8, with sums in float32, and what it takes the factors as.

    instructions : that it takes for 16 steps of k. bytes : of a factor in a register.
    """

    name: str
    mma: str
    instructions: int
    bytes: int

    @property
    def packed(self) -> int:
        """Factors in a register."""
        return 4 // self.bytes

    @property
    def left(self) -> int:
        """Registers of a lane that hold a 16 x 16 tile of the left factor."""
        return 2 * self.bytes

    @property
    def right(self) -> int:
        """Registers of a lane that hold a 16 x 8 tile of the right factor."""
        return self.bytes


TF32 = Precision("tf32", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", instructions=2, bytes=4)
FP16 = Precision("fp16", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", instructions=1, bytes=2)
PRECISIONS = {p.name: p for p in (TF32, FP16)}


class Card:
    """See the module docstring. ``warps`` : of a block."""

    def __init__(self, warps: int, warp_size: int):
        self.warp_count, self.warp_size = warps, warp_size
        self.warp = self.lane = None

    def launch(self, blocks: int, body: Callable[[tirx.Expr], None]) -> None:
        """``body(number of a block)`` in every block."""
        with T.launch_thread("blockIdx.x", blocks) as block:
            with T.launch_thread("threadIdx.y", self.warp_count) as warp, T.launch_thread("threadIdx.x", self.warp_size) as lane:
                self.warp, self.lane = warp, lane
                body(block)

    def shared(self, words: int, dtype: str):
        """Memory of the block."""
        return T.alloc_buffer((words,), dtype, scope="shared")

    def registers(self, count: int, dtype: str) -> "CardRegisters":
        """Registers of each thread; they are registers as long as each index is a constant once loops are unrolled."""
        return CardRegisters(T.alloc_buffer((count,), dtype, scope="local"))

    def threads(self, body: Callable[[], None]) -> None:
        """``body()`` in every thread of the block, which is ``warp`` and ``lane`` meanwhile."""
        body()

    warps = lanes = threads

    def each(self, count: int, body: Callable[[tirx.Expr], None]) -> None:
        """``body(i)`` one after the other, in a loop."""
        with T.serial(count) as i:
            body(i)

    def when(self, condition, body: Callable[[], None]) -> None:
        with T.If(condition), T.Then():
            body()

    def unrolled(self, count: int, body: Callable[[tirx.Expr], None]) -> None:
        """``body(i)`` one after the other, ``i`` a constant."""
        with T.unroll(count) as i:
            body(i)

    def copy(self, target, at, source, offset, valid=None) -> None:
        """Start to copy 16 bytes of ``source`` (flat offset) into shared memory.

        valid : words that are copied, from the first on; the others are zeros. All four if None.
        """
        # 0: not said to be written, as TVM would put a barrier of its own before the next load
        to, start = target.access_ptr(0, offset=at, extent=4), source.access_ptr("r", offset=offset, extent=4)
        length = () if valid is None else (tirx.Cast("uint32", valid * 4),)
        T.evaluate(_ptx["cp.async.cg.shared.global.L2::128B"](to, start, 16, *length))

    def commit(self) -> None:
        """Copies started since the last call are a group from now on."""
        T.evaluate(_ptx["cp.async.commit_group"]())

    def wait(self, pending: int) -> None:
        """Until at most ``pending`` groups of this thread are not done."""
        T.evaluate(_ptx["cp.async.wait_group"](pending))

    def barrier(self) -> None:
        """All threads of the block wait for each other, and see each other's writes."""
        T.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))

    def round(self, precision: Precision, result: "CardRegisters", at, values) -> None:
        """Register ``at`` of ``result``: ``values`` rounded to the nearest factors, the first in the lowest bits."""
        if precision is TF32:
            T.evaluate(_ptx["cvt.rna.tf32.f32"](result[at], values[0]))
        else:
            T.evaluate(_ptx["cvt.rn.f16x2.f32"](result[at], values[1], values[0]))

    def multiply(
        self, precision: Precision, sums: "CardRegisters", c, left: "CardRegisters", a, right: "CardRegisters", b
    ) -> None:
        """One instruction of a warp: registers ``c`` (4) of ``sums`` += those from ``a`` on of ``left`` (4) times ``b`` (2)."""
        added = [sums[i] for i in c]
        T.evaluate(_ptx[precision.mma](*added, *(left[a + i] for i in range(4)), *(right[b + i] for i in range(2)), *added))


class CardRegisters:
    def __init__(self, buffer):
        self.buffer = buffer

    def __getitem__(self, at):
        return self.buffer[at]

    def store(self, at, value) -> None:
        T.buffer_store(self.buffer, value, [at])

    def load(self, at, source, offset) -> None:
        """Four registers from ``at`` on: 16 bytes of ``source``."""
        vector(self.buffer, at, lambda lane: source[offset + lane], 4)

    def clear(self) -> None:
        with T.unroll(int(self.buffer.shape[0])) as i:
            self.store(i, constant(0.0))
