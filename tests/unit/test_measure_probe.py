"""This machine's profile, of what the system tells."""

import pytest

from hwprune.measure import probe
from hwprune.target import load_file, shipped_folder

TOLD = {"model name": "A Processor", "cpu MHz": "2600.0"}


def native(monkeypatch, base: str, **told: str):
    monkeypatch.setattr(probe, "_base", lambda: load_file(shipped_folder() / f"{base}.toml"))
    monkeypatch.setattr(probe, "cpuinfo", lambda: told)
    monkeypatch.setattr(probe, "_lines", lambda path: [])
    return probe.native_profile.__wrapped__()


@pytest.mark.parametrize(
    "vendor, family, base, starts",
    [("AuthenticAMD", 25, "x86-avx512", 1), ("AuthenticAMD", 26, "x86-avx512", 2), ("GenuineIntel", 6, "x86-avx512", 2), ("AuthenticAMD", 25, "x86", 2)],
)  # fmt: skip
def test_processors_that_take_512_bits_in_halves_start_one_multiply_add_a_cycle(monkeypatch, vendor, family, base, starts):
    profile = native(monkeypatch, base, **TOLD | {"vendor_id": vendor, "cpu family": str(family)})
    assert profile.core.fma_per_cycle == starts
    assert ("Zen 4" in profile.source["core.fma_per_cycle"] and "twice" in profile.source["core.fma_per_cycle"]) == (starts == 1)
    assert profile.core.frequency_mhz == 2600 and "A Processor" in profile.description and profile.source["core.frequency_mhz"].startswith("read from")


def test_a_system_that_tells_nothing_has_the_figures_of_its_base(monkeypatch):
    profile, base = native(monkeypatch, "x86-avx512"), load_file(shipped_folder() / "x86-avx512.toml")
    assert profile.core == base.core and profile.codegen == base.codegen
