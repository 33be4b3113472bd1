"""Every kernel family on each AArch64 board under qemu, against torch in float64: artifacts as users get them.

The banks are those that this machine's kernels are tested with, and drawn ones; each is one artifact and one start of the
emulator. Then further schedules of each family: what is fastest on a board may be any of them. Then some of it in float16.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from joined_pairs import PAIRS, Pair
from operator_banks import BANKS, OPERATORS, TOLERANCE, Bank, case, exact, random_operators, randomized, relative_error, sample
from torch import nn

from hwprune.compile import ops
from hwprune.compile.artifact import build_artifact
from hwprune.compile.lower import lower
from hwprune.graph import trace
from hwprune.kernels import candidates
from hwprune.target import load_file, shipped_folder

TARGETS = ("rpi3", "rpi4", "rpi5")
#: Where every bank runs. The others differ in the schedules chosen, and have those of a value made by a kernel.
WHOLE = "rpi4"
SEEDS = (1, 2, 3)
SCHEDULES = 5


class SideBySide(nn.Module):
    """Operators that take an input each, made by a kernel."""

    def __init__(self, operators: list[nn.Module]):
        super().__init__()
        self.operators = nn.ModuleList(operators)

    def forward(self, *inputs):
        return tuple(operator(F.hardswish(x)) for operator, x in zip(self.operators, inputs))


class Pairs(nn.Module):
    """A convolution and a depthwise one that reads it, many times side by side."""

    def __init__(self, names: list[str]):
        super().__init__()
        self.pairs = nn.ModuleList([Pair(operator, inside) for operator, _, inside in map(PAIRS.get, names)])

    def forward(self, *inputs):
        return tuple(pair(x) for pair, x in zip(self.pairs, inputs))


@pytest.fixture(scope="module")
def on_board(arm_board, tmp_path_factory):
    """``on_board(target, module, inputs, pick)``: outputs on the board and what torch computes."""

    def of(target: str, module: nn.Module, inputs, pick=lambda offered: offered[0]):
        profile = load_file(shipped_folder() / f"{target}.toml")
        folder = tmp_path_factory.mktemp(target)
        network = lower(trace(module, inputs), profile)
        artifact = build_artifact(network, profile, lambda w: pick(candidates(w, profile)), folder / "artifact")
        expected = exact(module, inputs)
        return arm_board.outputs(artifact, inputs, expected, folder), expected

    return of


@pytest.fixture(scope="module")
def results(on_board):
    """``results(target, bank)``: what the board and torch make of each operator of a bank."""
    made: dict[tuple[str, str], SimpleNamespace] = {}

    def of(target: str, bank: str) -> SimpleNamespace:
        if (target, bank) not in made:
            operators, module, inputs = case(bank)
            found, expected = on_board(target, module, inputs)
            made[target, bank] = SimpleNamespace(found=dict(zip(operators, found)), expected=dict(zip(operators, expected)))
        return made[target, bank]

    return of


def _cases():
    for target in TARGETS:
        for bank, (make, _, inside) in BANKS.items():
            if target == WHOLE or inside:
                for name in make():
                    yield pytest.param(target, bank, name, id=f"{target}-{bank}-{name}")


@pytest.mark.parametrize("target, bank, name", list(_cases()))
def test_operator_computes_what_torch_computes(results, target, bank, name):
    outcome = results(target, bank)
    assert relative_error(outcome.found[name], outcome.expected[name]) < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("target", TARGETS)
def test_drawn_shapes_compute_what_torch_computes(on_board, target, seed):
    seed += 100 * TARGETS.index(target)
    torch.manual_seed(seed)
    operators, shape = random_operators(seed)
    module = randomized(Bank(operators, True))
    found, expected = on_board(target, module, (torch.randn(shape),))
    for name, f, e in zip(operators, found, expected, strict=True):
        assert relative_error(f, e) < TOLERANCE, f"{name} of {shape}"


@pytest.mark.parametrize("number", range(SCHEDULES))
@pytest.mark.parametrize("target", TARGETS)
def test_every_schedule_computes_what_torch_computes(on_board, target, number):
    check_schedules(on_board, target, number, TOLERANCE)


def check_schedules(on_board, target, number, tolerance) -> list:
    """Compare all operators with torch, each by the sampled schedule whose turn is ``number``; the schedules that were chosen."""
    torch.manual_seed(number)
    module = randomized(SideBySide([operator for operator, _ in OPERATORS.values()]))
    inputs = tuple(torch.randn(shape) for _, shape in OPERATORS.values())
    chosen = []

    def pick(offered):
        some = sample(list(offered))
        chosen.append(some[(number + 1) % len(some)])
        return chosen[-1]

    found, expected = on_board(target, module, inputs, pick)
    for name, f, e in zip(OPERATORS, found, expected, strict=True):
        assert relative_error(f, e) < tolerance, f"{name}; schedules: {[c.to_text() for c in chosen]}"
    return chosen


@pytest.mark.parametrize("order", ["hwc", "hcw", "chw"])
def test_tiles_of_two_vectors_of_channels_where_their_number_is_prime(on_board, order):
    """44 channels are eleven vectors: the last tile has one. Rows and columns do not divide either."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(7, 44, 3, padding=1), nn.Conv2d(9, 44, 1), nn.Conv2d(5, 44, 3, stride=2)]
    module = randomized(SideBySide(convolutions))
    inputs = tuple(torch.randn(1, c.in_channels, 11, 13) for c in convolutions)
    chosen = []

    def pick(offered):
        uneven = [c for c in offered if c.rule == "conv_lane" and (c["cov"], c["order"]) == (2, order)]
        chosen.extend(uneven[:1])
        return uneven[0] if uneven else offered[0]

    found, expected = on_board("rpi3", module, inputs, pick)
    assert len(chosen) == 3
    for f, e in zip(found, expected, strict=True):
        assert relative_error(f, e) < TOLERANCE, [c.to_text() for c in chosen]


@pytest.mark.parametrize("target, number", [("rpi3", 0), ("rpi4", 1), ("rpi5", 2)])
def test_joined_convolutions_compute_what_torch_computes(on_board, monkeypatch, target, number):
    assert check_joined(on_board, monkeypatch, target, number, list(PAIRS), TOLERANCE) == len(PAIRS)


def check_joined(on_board, monkeypatch, target, number, names, tolerance) -> int:
    """Compare pairs with torch, each by its first schedule, or by another one from the first tenth of the list or the last; how many are
    kernels of both."""
    monkeypatch.setattr(ops, "is_worth_joining", lambda *_: True)
    torch.manual_seed(number)
    chosen = []

    def pick(offered):
        chosen.append(offered[(0, len(offered) // 10, -1)[number]])
        return chosen[-1]

    inputs = tuple(torch.randn(PAIRS[name][1]) for name in names)
    found, expected = on_board(target, randomized(Pairs(names)), inputs, pick)
    for name, f, e in zip(names, found, expected, strict=True):
        assert relative_error(f, e) < tolerance, f"{name}; schedules: {[c.to_text() for c in chosen]}"
    return sum(c.rule == "expansion" for c in chosen)


# --- float16 ----------------------------------------------------------------------------------------------------

HALF = "rpi5-fp16"
#: Of float16 against torch in float64: a sum of 171 terms in one piece is off by 0.6 %.
HALF_TOLERANCE = 0.01
HALF_BANKS = ("grouped_wide", "pools", "elementwise", "rows")


@pytest.mark.parametrize("bank, name", [pytest.param(b, n, id=f"{b}-{n}") for b in HALF_BANKS for n in BANKS[b][0]()])
def test_operator_in_float16_computes_what_torch_computes(results, bank, name):
    outcome = results(HALF, bank)
    assert relative_error(outcome.found[name], outcome.expected[name]) < HALF_TOLERANCE


@pytest.mark.parametrize("seed", [301, 302])
def test_drawn_shapes_in_float16_compute_what_torch_computes(on_board, seed):
    torch.manual_seed(seed)
    operators, shape = random_operators(seed)
    found, expected = on_board(HALF, randomized(Bank(operators, True)), (torch.randn(shape),))
    for name, f, e in zip(operators, found, expected, strict=True):
        assert relative_error(f, e) < HALF_TOLERANCE, f"{name} of {shape}"


@pytest.mark.parametrize("number", [0, 3])
def test_every_schedule_in_float16_computes_what_torch_computes(on_board, number):
    assert any(c.rule == "conv_lane_half" for c in check_schedules(on_board, HALF, number, HALF_TOLERANCE))


@pytest.mark.parametrize("number", range(2))
def test_joined_convolutions_in_float16_compute_what_torch_computes(on_board, monkeypatch, number):
    names = ["3x3", "3x3_stride_2", "5x5_stride_2_batch", "shortcut", "dilated_max_pool"]
    assert check_joined(on_board, monkeypatch, HALF, number, names, HALF_TOLERANCE) == len(names)


def test_long_reductions_in_float16_are_added_up_in_pieces(on_board):
    """3x3 windows of 8, 40 and 203 channels, and rows of 1,100: one piece a row of the window, a tap, part of a tap. A sum of
    1,827 terms in float16 alone is off by some 0.6 % of its standard deviation (sqrt(1827 / 2) roundings of 0.02 %)."""
    torch.manual_seed(0)
    operators = [nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(40, 16, 3, padding=1), nn.Conv2d(203, 24, 3, padding=1), nn.Linear(1100, 40)]
    inputs = tuple(torch.randn(1, c, 5, 6) for c in (8, 40, 203)) + (torch.randn(3, 1100),)
    chosen = []

    def pick(offered):
        chosen.append(offered[0].rule)
        return offered[0]

    found, expected = on_board(HALF, SideBySide(operators), inputs, pick)
    assert chosen.count("conv_lane_half") == len(operators)
    for f, e in zip(found, expected, strict=True):
        assert np.sqrt(np.mean((f - e) ** 2)) < 0.003 * e.std()
