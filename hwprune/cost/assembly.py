"""How often each block of a kernel's AArch64 assembly runs: counted by executing its integer instructions.

Shapes are static, so that no branch of a kernel depends on data: its integer registers (counters, addresses, the number of
the thread) say alone where it goes. They are executed as they stand, on made-up addresses; vectors and what they load are
left out. A block that jumps back to itself is executed a few times, and for the iterations in which every register moves
by the same step its end is solved for. Trip counts, tiles at an edge and the thread with the most work are thus those of the
code that ships, whatever the compiler unrolled or cut apart.

A kernel that does what is not known here (an instruction, a call, a branch on data) is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Callable, Mapping, Sequence

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
_CONDITIONAL = re.compile(r"(b\.(\w+)|cbn?z|tbn?z)$")
_REGISTER = re.compile(r"^([xw])(\d+|zr)$|^(w?sp)$")


@dataclass
class Block:
    """Instructions that run one after the other. ``next``: the block after it, where it does not jump."""

    label: str
    lines: list[str] = field(default_factory=list)
    next: str | None = None
    loops: bool = False

    @property
    def instructions(self) -> tuple[str, ...]:
        return tuple(self.lines)


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
                if name in ("b", "br", "ret") or _CONDITIONAL.match(name):
                    block.loops = _CONDITIONAL.match(name) is not None and text.split(" ")[-1] == block.label
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
            self._steps[label] = _compile(self.blocks[label])
        return self._steps[label]


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
        step, label = self.program.step(block.label), block.label
        before = list(self.x)
        following = step(self)
        self.counts[label] += 1
        moved = [(b - a) & _MASK for a, b in zip(before, self.x)]
        while following == label:
            first = self.flags
            before = list(self.x)
            following = step(self)
            self.counts[label] += 1
            if following != label:
                break
            again = [(b - a) & _MASK for a, b in zip(before, self.x)]
            skipped = _iterations_left(block, first, self.flags) if again == moved else 0
            moved = again
            if skipped > 2:
                skipped -= 2  # the last ones as they are
                self.x = [(value + skipped * by) & _MASK for value, by in zip(self.x, moved)]
                self.counts[label] += skipped
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
        return _holds(condition, self.flags)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _holds(condition: str, flags: tuple[int, int, int]) -> bool:
    """Whether ``condition`` holds after the comparison of two numbers of so many bits."""
    a, b, bits = flags
    signed = _signed(a, bits), _signed(b, bits)
    difference = _signed(a - b, bits)
    return {
        "eq": a == b, "ne": a != b, "hs": a >= b, "cs": a >= b, "lo": a < b, "cc": a < b, "hi": a > b, "ls": a <= b,
        "ge": signed[0] >= signed[1], "lt": signed[0] < signed[1], "gt": signed[0] > signed[1],
        "le": signed[0] <= signed[1], "mi": difference < 0, "pl": difference >= 0,
    }[condition]  # fmt: skip


def _iterations_left(block: Block, first, now) -> int:
    """Iterations until the comparison at the end of ``block`` ends the loop, by its last two; 0 where that is not known."""
    name = block.lines[-1].split(" ")[0]
    if not name.startswith("b.") or first is None or now is None or first[2] != now[2]:
        return 0
    bits = now[2]
    gap, step = _signed(now[1] - now[0], bits), _signed(now[0] - first[0] - (now[1] - first[1]), bits)
    if step == 0 or gap // step < 0:
        return 0
    condition = name[2:]
    if condition == "ne":
        return gap // step if gap % step == 0 else 0
    return abs(gap) // abs(step)


# --- one block as a function of Python --------------------------------------------------------------------------


def _compile(block: Block) -> Callable:
    body: list[str] = []
    for line in block.lines:
        body += _translate(line, block)
    if not body or not body[-1].startswith("return"):
        body.append(f"return {block.next!r}")
    source = "def step(m):\n x = m.x\n" + "".join(f" {line}\n" for line in body)
    scope = {"_holds": _holds, "_signed": _signed, "M": _MASK}
    exec(compile(source, f"<{block.label}>", "exec"), scope)  # noqa: S102  (own text, made from the patterns below)
    return scope["step"]


def _operands(text: str) -> list[str]:
    return [part.strip() for part in re.findall(r"(?:\[[^\]]*\]!?|\{[^}]*\}|[^,\[{])+", text)]


def _number(register: str) -> tuple[int, int]:
    """Index in the machine's registers (32 reads as zero) and bits."""
    found = _REGISTER.match(register)
    if found is None:
        raise NoLatency(f"register {register!r} is not known")
    if found[3]:
        return 31, 32 if found[3] == "wsp" else 64
    return (32 if found[2] == "zr" else int(found[2])), 64 if found[1] == "x" else 32


def _is_integer(operand: str) -> bool:
    return _REGISTER.match(operand) is not None


def _read(operand: str) -> str:
    """Expression for the value of a register or number, not negative."""
    if _is_integer(operand):
        number, bits = _number(operand)
        return "0" if number == 32 else f"x[{number}]" if bits == 64 else f"(x[{number}] & 0xFFFFFFFF)"
    value = int(operand.lstrip("#").strip(), 0)
    return str(value)


def _shifted(operands: Sequence[str], bits: int) -> str:
    """The last operand of an arithmetic instruction, its shift or extension applied."""
    value = _read(operands[0])
    if len(operands) == 1:
        return value
    name, _, amount = operands[1].partition(" ")
    by = int(amount.lstrip("#") or 0, 0) if amount else 0
    if name == "lsl":
        return f"({value} << {by})"
    if name == "lsr":
        return f"({value} >> {by})"
    if name == "asr":
        return f"(_signed({value}, {bits}) >> {by})"
    width = {"b": 8, "h": 16, "w": 32, "x": 64}[name[-1]]
    extended = f"_signed({value}, {width})" if name[0] == "s" else f"({value} & {(1 << width) - 1})"
    return f"({extended} << {by})"


def _write(register: str, expression: str) -> list[str]:
    number, bits = _number(register)
    if number == 32:
        return []
    return [f"x[{number}] = ({expression}) & {'M' if bits == 64 else '0xFFFFFFFF'}"]


_BINARY = {
    "add": "{a} + {b}", "sub": "{a} - {b}", "mul": "{a} * {b}", "and": "{a} & {b}", "orr": "{a} | {b}", "eor": "{a} ^ {b}",
    "bic": "{a} & ~{b}", "orn": "{a} | ~{b}", "mneg": "-({a} * {b})", "smull": "_signed({a}, 32) * _signed({b}, 32)",
    "umull": "{a} * {b}", "umulh": "({a} * {b}) >> 64", "smulh": "(_signed({a}, 64) * _signed({b}, 64)) >> 64",
    "lsl": "{a} << ({b} & {last})", "lsr": "{a} >> ({b} & {last})", "asr": "_signed({a}, {bits}) >> ({b} & {last})",
    "udiv": "{a} // {b} if {b} else 0",
    "sdiv": "int(_signed({a}, {bits}) / _signed({b}, {bits})) if {b} else 0",
}  # fmt: skip
_TERNARY = {
    "madd": "{c} + {a} * {b}", "msub": "{c} - {a} * {b}", "smaddl": "{c} + _signed({a}, 32) * _signed({b}, 32)",
    "umaddl": "{c} + {a} * {b}", "smsubl": "{c} - _signed({a}, 32) * _signed({b}, 32)", "umsubl": "{c} - {a} * {b}",
}  # fmt: skip
_EXTEND = {"sxtw": (True, 32), "sxth": (True, 16), "sxtb": (True, 8), "uxtw": (False, 32), "uxth": (False, 16), "uxtb": (False, 8)}
_NOTHING = frozenset({"prfm", "prfum", "nop", "dmb", "yield", "hint"})
_INVERSE = {
    "eq": "ne", "ne": "eq", "hs": "lo", "cs": "cc", "lo": "hs", "cc": "cs", "hi": "ls", "ls": "hi",
    "ge": "lt", "lt": "ge", "gt": "le", "le": "gt", "mi": "pl", "pl": "mi",
}  # fmt: skip


def _translate(line: str, block: Block) -> list[str]:
    """Statements of Python for one instruction."""
    name, _, rest = line.partition(" ")
    operands = _operands(rest)
    if name in _NOTHING:
        return []
    if name in ("b", "ret", "bl", "blr", "br", "cbz", "cbnz", "tbz", "tbnz") or name.startswith("b."):
        return _branch(name, operands, block)
    if re.match(r"(ld|st)", name):
        return _memory(name, operands)
    if not _is_integer(operands[0]):
        return ["m.flags = None"] if name in ("fcmp", "fcmpe", "fccmp") else []  # vectors
    if len(operands) > 1 and re.match(r"[vqdsbh]\d", operands[1]):
        return _write(operands[0], "0")  # an integer out of data
    return _integer(name, operands, line)


def _integer(name: str, operands: list[str], line: str) -> list[str]:
    bits = _number(operands[0])[1]
    if name in ("cmp", "cmn", "tst"):
        return _compare(name, operands, bits)
    if name in ("ccmp", "ccmn"):
        a, b, flags, condition = operands
        return [
            f"if m.holds({condition!r}):", *(f" {s}" for s in _compare("cmp" if name == "ccmp" else "cmn", [a, b], bits)),
            "else:", f" m.flags = {_of_nzcv(int(flags.lstrip('#'), 0), bits)}",
        ]  # fmt: skip
    target, *sources = operands
    if name in ("subs", "adds", "ands"):
        plain = {"subs": "sub", "adds": "add", "ands": "and"}[name]
        compare = _compare({"subs": "cmp", "adds": "cmn", "ands": "tst"}[name], sources, bits)
        return [*compare, *_integer(plain, operands, line)]
    if name in ("adrp", "adr"):
        return _write(target, f"m.symbol({_symbol(sources[0])!r})")
    if name == "add" and sources[-1].startswith(":lo12:"):
        return _write(target, _read(sources[0]))
    if name in ("mov", "movz"):
        return _write(target, _shifted(sources, bits))
    if name == "movn":
        return _write(target, f"~{_shifted(sources, bits)}")
    if name == "movk":
        by = int(sources[1].split("#")[1]) if len(sources) > 1 else 0
        return _write(target, f"({_read(target)} & ~{0xFFFF << by}) | ({_read(sources[0])} << {by})")
    if name in ("neg", "mvn"):
        return _write(target, f"{'-' if name == 'neg' else '~'}{_shifted(sources, bits)}")
    if name in _BINARY:
        a, b = _read(sources[0]), _shifted(sources[1:], bits)
        return _write(target, _BINARY[name].format(a=a, b=b, bits=bits, last=bits - 1))
    if name in _TERNARY:
        a, b, c = map(_read, sources)
        return _write(target, _TERNARY[name].format(a=a, b=b, c=c))
    if name in _EXTEND:
        signed, width = _EXTEND[name]
        return _write(target, f"_signed({_read(sources[0])}, {width})" if signed else f"{_read(sources[0])} & {(1 << width) - 1}")
    if name in ("cset", "csetm"):
        return _write(target, f"{'-' if name == 'csetm' else ''}int(m.holds({sources[0]!r}))")
    if name in ("csel", "csinc", "csinv", "csneg", "cinc", "cneg", "cinv"):
        return _select(name, target, sources)
    return _bits(name, target, sources, bits, line)


def _select(name: str, target: str, sources: list[str]) -> list[str]:
    condition = sources[-1]
    if name in ("cinc", "cneg", "cinv"):  # the second operand where the condition does not hold
        a = b = _read(sources[0])
        condition, name = _INVERSE[condition], {"cinc": "csinc", "cneg": "csneg", "cinv": "csinv"}[name]
    else:
        a, b = _read(sources[0]), _read(sources[1])
    other = {"csel": b, "csinc": f"{b} + 1", "csinv": f"~{b}", "csneg": f"-{b}"}[name]
    return _write(target, f"({a}) if m.holds({condition!r}) else ({other})")


def _bits(name: str, target: str, sources: list[str], bits: int, line: str) -> list[str]:
    if name not in ("ubfx", "sbfx", "ubfiz", "sbfiz", "bfi", "bfxil", "extr"):
        raise NoLatency(f"instruction {line!r} is not known")
    value = _read(sources[0])
    at, width = (int(s.lstrip("#"), 0) for s in sources[-2:]) if name != "extr" else (int(sources[-1].lstrip("#"), 0), 0)
    mask = (1 << width) - 1
    if name == "extr":
        return _write(target, f"((({value}) << {bits}) | {_read(sources[1])}) >> {at}")
    if name in ("ubfx", "sbfx"):
        field_ = f"({value} >> {at}) & {mask}"
        return _write(target, f"_signed({field_}, {width})" if name == "sbfx" else field_)
    if name in ("ubfiz", "sbfiz"):
        field_ = f"{value} & {mask}"
        return _write(target, f"_signed({field_}, {width}) << {at}" if name == "sbfiz" else f"({field_}) << {at}")
    if name == "bfi":
        return _write(target, f"({_read(target)} & ~{mask << at}) | (({value} & {mask}) << {at})")
    return _write(target, f"({_read(target)} & ~{mask}) | (({value} >> {at}) & {mask})")


def _compare(name: str, operands: list[str], bits: int) -> list[str]:
    mask = "M" if bits == 64 else "0xFFFFFFFF"
    a, b = _read(operands[0]), _shifted(operands[1:], bits)
    if name == "tst":
        return [f"m.flags = ({a} & {b} & {mask}, 0, {bits})"]
    return [f"m.flags = ({a} & {mask}, ({'-' if name == 'cmn' else ''}{b}) & {mask}, {bits})"]


def _of_nzcv(nzcv: int, bits: int) -> tuple[int, int, int]:
    """Two numbers whose comparison sets the flags so (overflow aside)."""
    negative, zero, carry = nzcv & 8, nzcv & 4, nzcv & 2
    if zero:
        return 0, 0, bits
    if negative:
        return ((1 << bits) - 1, 0, bits) if carry else (0, 1, bits)
    return (1, 0, bits) if carry else (1, (1 << bits) - 1, bits)


def _branch(name: str, operands: list[str], block: Block) -> list[str]:
    if name == "ret":
        return ["return None"]
    if name == "b":
        if operands[0].startswith(".LBB"):
            return [f"return {operands[0]!r}"]
        return [f"m.call({operands[0]!r})", "return None"]
    if name == "bl":
        return [f"m.call({operands[0]!r})"]
    if name == "blr":
        return [f"m.call({_read(operands[0])})"]
    if name == "br":
        return [f"m.call({_read(operands[0])})", "return None"]
    if name.startswith("b."):
        test = f"m.holds({name[2:]!r})"
    elif name in ("cbz", "cbnz"):
        test = f"{_read(operands[0])} {'==' if name == 'cbz' else '!='} 0"
    else:
        test = f"({_read(operands[0])} >> {int(operands[1].lstrip('#'), 0)} & 1) == {0 if name == 'tbz' else 1}"
    return [f"return {operands[-1]!r} if {test} else {block.next!r}"]


def _symbol(operand: str) -> str:
    return operand.rsplit(":", 1)[-1]


def _memory(name: str, operands: list[str]) -> list[str]:
    """A load or store: integers go through the machine's memory, vectors leave but the moved address."""
    at = next(i for i, operand in enumerate(operands) if operand.startswith("["))
    inside = _operands(operands[at].strip("[]!"))
    base, _ = _number(inside[0])
    if len(inside) > 1 and inside[1].startswith(":"):
        offset = "0"
    else:
        offset = _shifted(inside[1:], 64) if len(inside) > 1 else "0"
    moves = operands[at].endswith("!")
    address = f"x[{base}] + {offset}"
    after: list[str] = []
    if moves:
        after = [f"x[{base}] = ({address}) & M"]
    elif len(operands) > at + 1:
        after = [f"x[{base}] = (x[{base}] + {_read(operands[at + 1])}) & M"]
    registers = operands[:at]
    if not all(_is_integer(r) for r in registers):
        return after
    size = _number(registers[0])[1] // 8
    found = re.search(r"(s?)([bhw])$", name.removeprefix("ld").removeprefix("st"))
    narrow = {"b": 1, "h": 2, "w": 4}[found[2]] if found else size
    statements = ["at = " + address]
    for i, register in enumerate(registers):
        if name.startswith("st"):
            statements.append(f"m.store(at + {i * narrow}, {_read(register)})")
        else:
            value = f"m.load(at + {i * narrow}, {narrow})"
            statements += _write(register, f"_signed({value}, {8 * narrow})" if found and found[1] else value)
    return [*statements, *after]
