"""Loops of one block whose registers move evenly: by the same constants in every iteration, as its text says.

Counters and addresses do. How often such a loop runs is known from its first iteration.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Sequence

from hwprune.cost.operands import FLAGS, accesses

_MOVES = re.compile(r"(add|sub)s? ([xw]\d+|sp), ([xw]\d+|sp), #(0x[0-9a-f]+|\d+)$")
_ADDRESS_MOVES = re.compile(r"(?:ld|st).*(?:\], #(-?(?:0x[0-9a-f]+|\d+))|, #(-?(?:0x[0-9a-f]+|\d+))\]!)$")
_COMPARES = re.compile(r"(?:cmp|subs [xw]\d+,) ([xw]\d+), (#-?(?:0x[0-9a-f]+|\d+)|[xw]\d+)$")
#: Stored integers may be read again, and what a call does is not in the text.
_ELSEWHERE = re.compile(r"st\w+ [xw]|bl")


@dataclass(frozen=True)
class EvenSteps:
    """registers : number of each that goes from one iteration to the next and moves -> by how much in one.

    flags : what the difference of the two numbers compared at the end moves by.
    """

    registers: tuple[tuple[int, int], ...]
    flags: int


def even_steps(lines: Sequence[str]) -> EvenSteps | None:
    """Of a block that jumps back to itself; None where its text does not say. Registers that are made anew in each
    iteration before they are read have no step."""
    if not lines[-1].startswith("b."):
        return None
    moves: dict[str, int] = defaultdict(int)
    own: set[str] = set()  # made anew
    carried: set[str] = set()  # read as the iteration before left them
    narrow: set[str] = set()  # moves within 32 bits
    compared: re.Match | None = None
    for line in lines[:-1]:
        if _ELSEWHERE.match(line):
            return None
        reads, writes = accesses(line, 1)
        carried |= {name for name in reads if name not in own}
        for name in writes:
            if name == FLAGS:
                compared = _COMPARES.match(line)
            elif name[0] == "v" or name in own:
                continue
            elif name in carried:
                step = _step(line, name) if name in reads else None
                if step is None:
                    return None
                moves[name] += step
                narrow |= {name} if _MOVES.match(line) and f" w{name[1:]}," in line else set()
            else:
                own.add(name)
    if compared is None or FLAGS in carried:
        return None
    a, b = compared[1].replace("w", "x"), compared[2].replace("w", "x")
    if a in own or b in own or narrow - {a, b}:
        return None
    by = moves.get(a, 0) - (0 if b.startswith("#") else moves.get(b, 0))
    return EvenSteps(tuple((31 if name == "sp" else int(name[1:]), step) for name, step in moves.items()), by)


def _step(line: str, name: str) -> int | None:
    """What ``line`` adds to register ``name``, which it reads and writes."""
    found = _MOVES.match(line)
    if found and found[2] == found[3]:
        return int(found[4], 0) * (1 if found[1] == "add" else -1)
    found = _ADDRESS_MOVES.match(line)
    return int(found[1] or found[2], 0) if found else None
