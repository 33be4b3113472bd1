"""How often each block of a kernel's AArch64 assembly runs: counted by executing its integer instructions.

Shapes are static, so that no branch of a kernel depends on data: its integer registers (counters, addresses, the number of
the thread) say alone where it goes. They are executed as they stand, on made-up addresses; vectors and what they load are
left out. A block that jumps back to itself is executed a few times, and for the iterations in which every register moves
by the same step (``steps.py``) its end is solved for. Trip counts, tiles at an edge and the thread with the most work are thus those of the
code that ships, whatever the compiler unrolled or cut apart.

A kernel that does what is not known here (an instruction, a call, a branch on data) is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Callable, Mapping, Sequence

from hwprune.cost.aarch64 import CONDITIONAL, compiled
from hwprune.cost.conditions import holds, signed
from hwprune.cost.steps import EvenSteps, even_steps
from hwprune.errors import NoLatency

#: Blocks executed one by one before a kernel is refused: some seconds.
MOST_STEPS = 4_000_000
#: Bytes that one cycle of memset or memcpy moves, as blocks of vectors do.
_COPY_BYTES_PER_CYCLE = 16

_MASK = (1 << 64) - 1
_STACK, _ARGUMENTS, _HEAP = 1 << 40, 1 << 41, 1 << 44
_RETURN = -1

_FUNCTION = re.compile(r"\.type\s+(\S+),@function")
_LABEL = re.compile(r"^([\w.$]+):")


@dataclass
class Block:
    """Instructions that run one after the other. ``next``: the block after it, where it does not jump.

    loops : it jumps back to itself. calls : it calls a function.
    """

    label: str
    lines: list[str] = field(default_factory=list)
    next: str | None = None
    loops: bool = False

    @property
    def calls(self) -> bool:
        return any(line.startswith("bl") for line in self.lines)


@dataclass(frozen=True)
class Execution:
    """What one thread does: times each block runs, by label, and bytes set or copied by library functions."""

    counts: Mapping[str, int]
    copied_bytes: int = 0


@dataclass(frozen=True)
class Region:
    """What runs between two meetings of the threads: one execution a thread; one alone where only one works."""

    threads: tuple[Execution, ...]


class Program:
    """The assembly of one kernel. ``blocks``: by label."""

    def __init__(self, assembly: str):
        self.blocks: dict[str, Block] = {}
        self._entries: dict[str, str] = {}
        self._read(assembly)
        self._steps: dict[str, Callable] = {}
        self._even: dict[str, EvenSteps | None] = {}

    def _read(self, assembly: str) -> None:
        functions = set(_FUNCTION.findall(assembly))
        block: Block | None = None
        for raw in assembly.splitlines():
            line = raw.split("//")[0].strip()
            found = _LABEL.match(line)
            if found and found[1] in functions:
                block = self._begin(found[1], None)
                self._entries[found[1]] = found[1]
            elif found and block is not None and found[1].startswith(".LBB"):
                block = self._begin(found[1], block)
            elif found or not line or line.startswith(".") or block is None:
                continue
            else:
                text = re.sub(r"\s+", " ", line)
                block.lines.append(text)
                name = text.split(" ")[0]
                if name in ("b", "br", "ret") or CONDITIONAL.match(name):
                    block.loops = CONDITIONAL.match(name) is not None and text.split(" ")[-1] == block.label
                    after = None if name in ("b", "br", "ret") else block
                    block = self._begin(f"{block.label}+{len(self.blocks)}", after)

    def _begin(self, label: str, before: Block | None) -> Block:
        self.blocks[label] = Block(label)
        if before is not None:
            before.next = label
        return self.blocks[label]

    def run(self, function: str, arguments: int, threads: int) -> list[Region]:
        """Execute ``function``, which takes ``arguments`` pointers, and whatever its threads do."""
        if function not in self._entries:
            raise NoLatency(f"the assembly has no function {function!r}")
        machine = _Machine(self, threads)
        for i in range(arguments):
            if i < 8:
                machine.x[i] = _HEAP * (i + 1)
            else:  # on the stack, after the first eight
                machine.memory[_ARGUMENTS + 8 * (i - 8)] = _HEAP * (i + 1)
        machine.x[31] = _ARGUMENTS
        machine.execute(function)
        return [Region((machine.done(),)), *machine.regions]

    def step(self, label: str) -> Callable:
        """The compiled block: machine -> label of the block that follows, None at the function's end."""
        if label not in self._steps:
            self._steps[label] = compiled(self.blocks[label].lines, label, self.blocks[label].next)
        return self._steps[label]


    def even_steps(self, block: Block) -> EvenSteps | None:
        """How the registers of a loop of one block move, where that is the same in every iteration."""
        if block.label not in self._even:
            self._even[block.label] = even_steps(block.lines)
        return self._even[block.label]


class _Machine:
    """Integer registers (31 is the stack pointer), memory that integers were stored in, and what was counted."""

    def __init__(self, program: Program, threads: int):
        self.program, self.threads = program, threads
        self.x, self.memory = [0] * 33, {}
        self.flags: tuple[int, int, int] | None = None
        self.counts: Counter[str] = Counter()
        self.copied, self.steps, self.allocated = 0, 0, 64
        self.regions: list[Region] = []
        self.symbols: list[str] = []

    def done(self) -> Execution:
        return Execution(dict(self.counts), self.copied)

    def execute(self, function: str) -> None:
        program, counts, label = self.program, self.counts, function
        while label is not None:
            block = program.blocks[label]
            counts[label] += 1
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise NoLatency(f"the kernel runs more than {MOST_STEPS} blocks that have to be counted one by one")
            following = program.step(label)(self)
            if following == label and block.loops:
                following = self._repeat(block)
            label = following

    def _repeat(self, block: Block) -> str | None:
        """The rest of a loop of one block, whose first iteration is done: what follows it."""
        even = self.program.even_steps(block)
        if even is not None and self.flags is not None:
            self._skip(block, even.registers, _iterations_left(block, self.flags, even.flags))
            return self._iterate(block)
        step, label = self.program.step(block.label), block.label
        before = list(self.x)
        following = step(self)
        self.counts[label] += 1
        moved = [b - a for a, b in zip(before, self.x)]
        while following == label:
            first = self.flags
            before = list(self.x)
            following = step(self)
            self.counts[label] += 1
            if following != label:
                break
            again = [b - a for a, b in zip(before, self.x)]
            if not block.calls and again == moved and first is not None and self.flags is not None and first[2] == self.flags[2]:
                by = self.flags[0] - first[0] - (self.flags[1] - first[1])
                self._skip(block, tuple(enumerate(moved)), _iterations_left(block, self.flags, by))
            moved = again
        return following

    def _skip(self, block: Block, moves: Sequence[tuple[int, int]], left: int) -> None:
        """Take all but the last two of the iterations that are left as done: each register moves by as much in each."""
        if left > 2:
            for register, by in moves:
                self.x[register] = (self.x[register] + (left - 2) * by) & _MASK
            self.counts[block.label] += left - 2

    def _iterate(self, block: Block) -> str | None:
        step, following, count = self.program.step(block.label), block.label, 0
        while following == block.label:
            following = step(self)
            count += 1
        self.counts[block.label] += count
        return following

    # -- what compiled blocks call

    def symbol(self, name: str) -> int:
        """Address of ``name``; what is read there is the address again, so that a table of functions gives the function."""
        if name not in self.symbols:
            self.symbols.append(name)
        return (_HEAP << 8) + self.symbols.index(name) * 4096

    def load(self, address: int, size: int) -> int:
        at = address & _MASK
        if at >= _HEAP << 8:
            return at
        return self.memory.get(at, 0) & ((1 << 8 * size) - 1)

    def store(self, address: int, value: int) -> None:
        at = address & _MASK
        if at < _HEAP:  # the stack; stored results are nobody's business
            self.memory[at] = value

    def call(self, target: int | str) -> None:
        name = target if isinstance(target, str) else self._name(target)
        plain = name.strip("_.").removeprefix("L")
        if name in self.program._entries:
            self.execute(name)
        elif plain == "TVMBackendParallelLaunch":
            self._launch(self._name(self.x[0]), self.x[1], self.x[2] & 0xFFFFFFFF)
        elif plain == "TVMBackendAllocWorkspace":
            self.allocated += 1
            self.x[0] = _HEAP * self.allocated
        elif plain == "TVMBackendFreeWorkspace":
            self.x[0] = 0
        elif plain in ("memset", "memcpy", "memmove"):
            self.copied += self.x[2]
        else:
            raise NoLatency(f"the kernel calls {name!r}, whose time is not known")

    def _name(self, address: int) -> str:
        number = (address - (_HEAP << 8)) // 4096
        if not 0 <= number < len(self.symbols):
            raise NoLatency("the kernel calls a function through a pointer that is not known")
        return self.symbols[number]

    def _launch(self, function: str, closure: int, tasks: int) -> None:
        tasks = tasks or self.threads
        ran = []
        for task in range(tasks):
            thread = _Machine(self.program, self.threads)
            thread.memory, thread.symbols, thread.allocated = dict(self.memory), self.symbols, self.allocated
            environment = _STACK + 4096
            thread.memory[environment + 8] = tasks
            thread.x[0], thread.x[1], thread.x[2], thread.x[31] = task, environment, closure, _STACK
            thread.execute(function)
            ran.append(thread.done())
        self.regions.append(Region(tuple(ran)))
        self.x[0] = 0

    def holds(self, condition: str) -> bool:
        if self.flags is None:
            raise NoLatency("a branch of the kernel depends on data")
        return holds(condition, self.flags)


def _iterations_left(block: Block, flags: tuple[int, int, int], by: int) -> int:
    """Iterations until the comparison at the end of ``block`` ends the loop; 0 where that is not known.

    flags : the numbers that were compared last. by : what their difference moves by in an iteration.
    """
    name, bits = block.lines[-1].split(" ")[0], flags[2]
    gap, step = signed(flags[1] - flags[0], bits), signed(by, bits)
    if not name.startswith("b.") or step == 0 or gap // step < 0:
        return 0
    if name == "b.ne":
        return gap // step if gap % step == 0 else 0
    return abs(gap) // abs(step)
