"""A loop on an out-of-order core, from OSACA's figures of each instruction.

OSACA says which ports an instruction takes and for how long, and its latency. It shares a loop's instructions among ports in
small steps, and looks for chains in a graph of every instruction, for which it parses each line: half a second for a loop
of a convolution. Both have an exact answer, which is found here. The busiest set of ports bounds a loop whose work is shared
best: for each set of ports, the cycles of what runs on none but these, over how many they are; the largest counts. A chain
from one iteration to the next shows as the time that an iteration takes longer than the one before it where nothing waits
for ports.

Registers, lanes and offsets aside, kernels consist of few different instructions; each of these is looked up once. What OSACA
has no figures for is in ``figures/MODEL.tsv``, each row with its source.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import count
from typing import Sequence

from hwprune.cost.operands import accesses

#: Iterations that a chain is followed for, and those at the start that do not count.
_ITERATIONS, _WARM = 16, 8
_REGISTER = re.compile(r"\b(?:([vqdsbhxw])\d+|([xw])zr)\b")
_LANE = re.compile(r"(\.[bhsd])\[\d+\]")
#: A whole number that is no shift, no scale of an address and no part of a floating-point number.
_NUMBER = re.compile(r"(?<!lsl )(?<!lsr )(?<!asr )(?<!xtw )(?<!xtx )#-?(?:0x[0-9a-f]+|\d+)(?![\d.])")
_FLOAT = re.compile(r"#-?\d+\.\d+")
_TARGET = re.compile(r"\.L\w+")

#: Cycles that an instruction keeps one of some ports.
Use = tuple[float, frozenset[str]]


@dataclass(frozen=True)
class Figures:
    """Of one instruction. ``known``: False where nobody has figures, and it counts as free."""

    uses: tuple[Use, ...]
    latency: float
    known: bool = True


def form(line: str) -> str:
    """``line`` without what makes no difference to how long it takes: which registers, lanes, offsets and labels."""
    number = count()
    text = _REGISTER.sub(lambda found: f"{found[1] or found[2]}{next(number)}", _TARGET.sub(".L", line))
    return _FLOAT.sub("#1.0", _NUMBER.sub("#16", _LANE.sub(r"\1[0]", text)))


def bounds(lines: Sequence[str], model: str, *, carried: bool) -> tuple[float, float, list[str]]:
    """Cycles of one iteration of ``lines`` by ports and by its longest chain; lines that nobody has figures for.

    carried : results go from one iteration to the next; without it there is no chain.
    """
    figures = [figures_of(model, form(line)) for line in lines]
    chain = _chain(lines, figures) if carried else 0.0
    return busiest(figures), chain, [line for line, f in zip(lines, figures) if not f.known]


def busiest(figures: Sequence[Figures]) -> float:
    """Cycles of the ports that have most to do, with the work shared among ports as well as it can be."""
    work: dict[frozenset[str], float] = defaultdict(float)
    for one in figures:
        for cycles, ports in one.uses:
            work[ports] += cycles
    unions = {frozenset()}
    for ports in work:
        unions |= {ports | other for other in unions}
    return max((sum(c for p, c in work.items() if p <= ports) / len(ports) for ports in unions if ports), default=0.0)


def _chain(lines: Sequence[str], figures: Sequence[Figures]) -> float:
    """By how much an iteration ends later than the one before it, where instructions wait for operands only."""
    facts = [(*accesses(line, f.latency), f.latency) for line, f in zip(lines, figures)]
    ready: dict[str, float] = defaultdict(float)
    ends = []
    for _ in range(_ITERATIONS):
        for reads, writes, _latency in facts:
            start = max((ready[name] for name in reads), default=0.0)
            for name, latency in writes.items():
                ready[name] = start + latency
        ends.append(max(ready.values(), default=0.0))
    return (ends[-1] - ends[_WARM - 1]) / (_ITERATIONS - _WARM)


@lru_cache(maxsize=None)
def figures_of(model: str, instruction: str) -> Figures:
    """Figures of an instruction as ``form`` writes it: OSACA's, or where it has none those of ``figures/MODEL.tsv``."""
    found = _by_osaca(model, instruction)
    if found.known:
        return found
    return next((figures for pattern, figures in _supplement(model) if pattern.fullmatch(instruction)), found)


@lru_cache
def _supplement(model: str) -> Sequence[tuple[re.Pattern, Figures]]:
    path = resources.files("hwprune.cost").joinpath(f"figures/{model}.tsv")
    if not path.is_file():
        return ()
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    found = []
    for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
        uses = (part.split(":") for part in row["uses"].split())
        figures = Figures(tuple((float(cycles), frozenset(ports)) for cycles, ports in uses), float(row["latency"]))
        found.append((re.compile(row["form"]), figures))
    return found


def _by_osaca(model: str, instruction: str) -> Figures:
    from osaca.semantics import INSTR_FLAGS

    parser, semantics = _osaca(model)
    for text in _spellings(instruction):
        found = parser.parse_line(text)
        semantics.normalize_instruction_form(found)
        semantics.assign_src_dst(found)
        semantics.assign_tp_lt(found)
        if INSTR_FLAGS.TP_UNKWN not in found.flags:
            uses = tuple((float(cycles), frozenset(ports)) for cycles, ports in found.port_uops) if found.throughput else ()
            return Figures(uses, float(found.latency or 0.0))
    return Figures((), 0.0, known=False)


def _spellings(text: str) -> list[str]:
    """``text``, and what takes as long by Arm's guides: one row has all conditions, both widths of integers but for products
    and quotients, and loads of s and d."""
    same = [text, re.sub(r"^b\.\w+", "b.ne", text), re.sub(r"^(ldu?r )s(?=\d)", r"\1d", text)]
    if not re.match(r"\w*(mul|div|madd|msub)|[su]xt|.*[su]xt[wx]", text):
        same.append(re.sub(r"\bw(?=\d)", "x", text))
    return list(dict.fromkeys(same))


@lru_cache
def _osaca(model: str):
    from osaca.osaca import get_asm_parser
    from osaca.semantics import ArchSemantics, MachineModel

    parser = get_asm_parser(model)
    return parser, ArchSemantics(parser, MachineModel(arch=model))
