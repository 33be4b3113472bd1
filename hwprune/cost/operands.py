"""Registers that an AArch64 instruction reads and writes, from its text: what chains of dependent instructions are made of."""

from __future__ import annotations

import re
from typing import Mapping

_REGISTER = re.compile(r"\b([vqdsbhxw])(\d+)\b|\b(sp)\b")
#: Name of the condition flags.
FLAGS = "nzcv"
_SETS_FLAGS = re.compile(r"(cmp|cmn|tst|subs|adds|ands|bics|fcmpe?|ccmp|ccmn)\b")
_READS_FLAGS = re.compile(r"(b\.\w+|csel|cset|csetm|csinc|csinv|csneg|cinc|cinv|cneg|fcsel|adc|sbc|ccmp|ccmn)\b")
#: What is in the register of the result before counts.
_ADDS_TO_RESULT = re.compile(r"(fmla|fmls|mla|mls|ins|movk|bfi|bfxil|bsl|bit|bif)\b|mov v\d+\.\w\[|ld1 \{.*\}\[")
_NO_RESULT = re.compile(r"(st\w+|cmp|cmn|tst|ccmp|ccmn|fcmpe?|b|b\.\w+|cbn?z|tbn?z|ret|prfu?m|nop)\b")
_MEMORY = re.compile(r"(ld|st|prf)")
_ADDRESS_MOVES = re.compile(r"\]!|\],\s*\S")


def accesses(text: str, latency: float) -> tuple[frozenset[str], Mapping[str, float]]:
    """Registers read; those written -> cycles until they may be read, ``latency`` for the result. Views of one are one.

    A store's data and its address are both read; an address that moves on is written after one cycle.
    """
    plain, _, address = text.partition("[") if _MEMORY.match(text) else (text, "", "")
    names, memory = _registers(plain.partition(" ")[2]), _registers(address)
    results = 0 if _NO_RESULT.match(text) else 2 if text.startswith("ldp") else 1
    writes: dict[str, float] = {name: latency for name in names[:results]}
    if memory and _ADDRESS_MOVES.search(text):
        writes[memory[0]] = 1
    if _SETS_FLAGS.match(text):
        writes[FLAGS] = latency
    own = names[:1] if _ADDS_TO_RESULT.match(text) else []
    flags = [FLAGS] if _READS_FLAGS.match(text) else []
    return frozenset([*names[results:], *memory, *own, *flags]), writes


def _registers(text: str) -> list[str]:
    kinds = {"x": "x", "w": "x"}
    return [found[3] or kinds.get(found[1], "v") + found[2] for found in _REGISTER.finditer(text)]
