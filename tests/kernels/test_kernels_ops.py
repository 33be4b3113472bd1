"""Every operator with a kernel against torch in float64, on odd shapes, through the whole compile path.

The operators of a bank share one network, input and artifact; each is a test of its own.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from compiled_networks import VARIANTS, compiled, run
from operator_banks import BANKS, TOLERANCE, case, exact, relative_error


@pytest.fixture(scope="module")
def results(usable, tmp_path_factory):
    """``results(lanes, bank)``: what the artifact and torch make of each operator of a bank."""
    made: dict[tuple[int, str], SimpleNamespace] = {}

    def of(lanes: int, bank: str) -> SimpleNamespace:
        if (lanes, bank) not in made:
            operators, module, inputs = case(bank)
            program = compiled(module, inputs, usable(lanes), tmp_path_factory.mktemp(bank) / "artifact")
            made[lanes, bank] = SimpleNamespace(
                found=dict(zip(operators, run(program, inputs), strict=True)),
                expected=dict(zip(operators, exact(module, inputs), strict=True)),
            )
        return made[lanes, bank]

    return of


def _cases():
    """Every bank with the middle vector width; with the others, those whose loops depend on it."""
    for lanes in VARIANTS:
        for bank, (make, *_) in BANKS.items():
            if lanes == 8 or bank in ("conv7", "grouped", "grouped_wide", "pools", "rows", "sequences", "permuted_images"):
                for name in make():
                    yield pytest.param(lanes, bank, name, id=f"{lanes}lanes-{bank}-{name}")


@pytest.mark.parametrize("lanes, bank, name", list(_cases()))
def test_operator_computes_what_torch_computes(results, lanes, bank, name):
    outcome = results(lanes, bank)
    assert relative_error(outcome.found[name], outcome.expected[name]) < TOLERANCE
