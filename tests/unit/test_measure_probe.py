"""This machine's profile, of what the system tells."""

import pytest

from hwprune.measure import probe
from hwprune.target import TargetProfile, load_file, shipped_folder

TOLD = {"model name": "A Processor", "cpu MHz": "2600.0"}


def native(monkeypatch, best: str | None = None, **told: str):
    """best : the most capable shipped profile whose instructions are here."""
    order = ["x86-zen4", "x86-avx512", "x86", "rpi5"]
    if best:
        monkeypatch.setattr(TargetProfile, "runs_here", lambda self: self.name in order[order.index(best):])
    monkeypatch.setattr(probe, "cpuinfo", lambda: told)
    monkeypatch.setattr(probe, "_lines", lambda path: [])
    return probe.native_profile.__wrapped__()


@pytest.mark.parametrize(
    "vendor, family, best, base, starts",
    [
        ("AuthenticAMD", 25, "x86-zen4", "x86-zen4", 1), ("AuthenticAMD", 26, "x86-zen4", "x86-avx512", 2),
        ("GenuineIntel", 6, "x86-zen4", "x86-avx512", 2), ("AuthenticAMD", 25, "x86", "x86", 2),  # Zen 3, of the same family
    ],
)  # fmt: skip
def test_a_processor_that_a_profile_names_builds_on_it(monkeypatch, vendor, family, best, base, starts):
    profile = native(monkeypatch, best, **TOLD | {"vendor_id": vendor, "cpu family": str(family)})
    assert profile.core.fma_per_cycle == starts and profile.description.endswith(f"over the profile {base}") and not profile.processors
    assert profile.source["core.fma_per_cycle"] == load_file(shipped_folder() / f"{base}.toml").source["core.fma_per_cycle"]
    assert profile.core.frequency_mhz == 2600 and "A Processor" in profile.description and profile.source["core.frequency_mhz"].startswith("read from")


def test_a_system_that_tells_nothing_has_the_figures_of_its_base(monkeypatch):
    profile, base = native(monkeypatch, "x86-avx512"), load_file(shipped_folder() / "x86-avx512.toml")
    assert profile.core == base.core and profile.codegen == base.codegen
