"""AArch64's integer instructions as Python, for counting what a kernel runs (see ``assembly.py``).

A block becomes one function over a machine: ``m.x`` are its registers (31 the stack pointer, 32 reads as zero), ``m.flags``
the two numbers that were compared last and their bits. Instructions on vectors leave nothing behind but addresses that move
on. An instruction that is not known is refused.
"""

from __future__ import annotations

import re
from typing import Callable, Sequence

from hwprune.cost.conditions import SIGNS, signed
from hwprune.errors import NoLatency

CONDITIONAL = re.compile(r"(b\.(\w+)|cbn?z|tbn?z)$")
_MASK = (1 << 64) - 1
_REGISTER = re.compile(r"^([xw])(\d+|zr)$|^(w?sp)$")


def compiled(lines: Sequence[str], label: str, following: str | None) -> Callable:
    """The block ``label`` as a function: machine -> label of the block that it goes on with, None at the function's end.

    following : the block after it, where it does not jump.
    """
    body: list[str] = []
    for line in lines:
        body += _translate(line, following)
    _test_in_place(lines, body)
    if not body or not body[-1].startswith("return"):
        body.append(f"return {following!r}")
    source = "def step(m):\n x = m.x\n" + "".join(f" {line}\n" for line in body)
    scope = {"signed": signed, "M": _MASK}
    exec(compile(source, f"<{label}>", "exec"), scope)  # text made of the patterns below, nothing that a user wrote
    return scope["step"]


def _test_in_place(lines: Sequence[str], body: list[str]) -> None:
    """A branch on two numbers that its own block compared needs nobody to look the condition up: most of a kernel's do."""
    condition = re.match(r"b\.(\w+) ", lines[-1]) if lines else None
    flags = [statement for statement in body if "m.flags" in statement]
    sign = SIGNS.get(condition[1]) if condition else None
    if sign and flags and flags[-1].startswith("m.flags = ("):
        body[-1] = body[-1].replace(f"m.holds({condition[1]!r})", f"m.flags[0] {sign} m.flags[1]")


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
        return f"(signed({value}, {bits}) >> {by})"
    width = {"b": 8, "h": 16, "w": 32, "x": 64}[name[-1]]
    extended = f"signed({value}, {width})" if name[0] == "s" else f"({value} & {(1 << width) - 1})"
    return f"({extended} << {by})"


def _write(register: str, expression: str) -> list[str]:
    number, bits = _number(register)
    if number == 32:
        return []
    return [f"x[{number}] = ({expression}) & {'M' if bits == 64 else '0xFFFFFFFF'}"]


_BINARY = {
    "add": "{a} + {b}", "sub": "{a} - {b}", "mul": "{a} * {b}", "and": "{a} & {b}", "orr": "{a} | {b}", "eor": "{a} ^ {b}",
    "bic": "{a} & ~{b}", "orn": "{a} | ~{b}", "mneg": "-({a} * {b})", "smull": "signed({a}, 32) * signed({b}, 32)",
    "umull": "{a} * {b}", "umulh": "({a} * {b}) >> 64", "smulh": "(signed({a}, 64) * signed({b}, 64)) >> 64",
    "lsl": "{a} << ({b} & {last})", "lsr": "{a} >> ({b} & {last})", "asr": "signed({a}, {bits}) >> ({b} & {last})",
    "udiv": "{a} // {b} if {b} else 0",
    "sdiv": "int(signed({a}, {bits}) / signed({b}, {bits})) if {b} else 0",
}  # fmt: skip
_TERNARY = {
    "madd": "{c} + {a} * {b}", "msub": "{c} - {a} * {b}", "smaddl": "{c} + signed({a}, 32) * signed({b}, 32)",
    "umaddl": "{c} + {a} * {b}", "smsubl": "{c} - signed({a}, 32) * signed({b}, 32)", "umsubl": "{c} - {a} * {b}",
}  # fmt: skip
_EXTEND = {"sxtw": (True, 32), "sxth": (True, 16), "sxtb": (True, 8), "uxtw": (False, 32), "uxth": (False, 16), "uxtb": (False, 8)}
_NOTHING = frozenset({"prfm", "prfum", "nop", "dmb", "yield", "hint"})
_INVERSE = {
    "eq": "ne", "ne": "eq", "hs": "lo", "cs": "cc", "lo": "hs", "cc": "cs", "hi": "ls", "ls": "hi",
    "ge": "lt", "lt": "ge", "gt": "le", "le": "gt", "mi": "pl", "pl": "mi",
}  # fmt: skip


def _translate(line: str, following: str | None) -> list[str]:
    """Statements of Python for one instruction."""
    name, _, rest = line.partition(" ")
    operands = _operands(rest)
    if name in _NOTHING:
        return []
    if name in ("b", "ret", "bl", "blr", "br", "cbz", "cbnz", "tbz", "tbnz") or name.startswith("b."):
        return _branch(name, operands, following)
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
        keeps_sign, width = _EXTEND[name]
        return _write(target, f"signed({_read(sources[0])}, {width})" if keeps_sign else f"{_read(sources[0])} & {(1 << width) - 1}")
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
        return _write(target, f"signed({field_}, {width})" if name == "sbfx" else field_)
    if name in ("ubfiz", "sbfiz"):
        field_ = f"{value} & {mask}"
        return _write(target, f"signed({field_}, {width}) << {at}" if name == "sbfiz" else f"({field_}) << {at}")
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


def _branch(name: str, operands: list[str], following: str | None) -> list[str]:
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
    return [f"return {operands[-1]!r} if {test} else {following!r}"]


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
            statements += _write(register, f"signed({value}, {8 * narrow})" if found and found[1] else value)
    return [*statements, *after]
