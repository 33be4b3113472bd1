"""What other devices have measured, as far as it was imported into the store or comes with hwprune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from hwprune.measure.device import EMULATED
from hwprune.measure.shipped import shipped_rows
from hwprune.measure.store import Context, Measurement, Store
from hwprune.target import TargetProfile


@dataclass(frozen=True)
class Elsewhere:
    """The best measurements of one of ``devices`` devices, the one that measured last, at ``measured_at``."""

    context: Context
    measured_at: str
    devices: int
    measurements: list[Measurement]


def latest_of(store: Store, threads: int, software: str, admits: Callable[[str], bool] = lambda config: True) -> Elsewhere | None:
    """What the device knows on which kernels were measured so last; None if there is none. Emulators do not count."""
    devices = store._execute(
        "SELECT device, MAX(measured_at) AS latest FROM measurement WHERE threads=? AND software=? AND failure IS NULL AND provenance='measured' "
        "AND device NOT LIKE ? GROUP BY device ORDER BY latest DESC, device",
        (threads, software, f"{EMULATED}%"),
    )
    if not devices:
        return None
    context = Context(devices[0][0], threads, software)
    return Elsewhere(context, devices[0][1], len(devices), store.all_best(context, admits))


def latest_shipped(profile: TargetProfile, software: str, admits: Callable[[str], bool] = lambda config: True) -> Elsewhere | None:
    """``latest_of`` what comes with hwprune for ``profile``."""
    store = Store(":memory:")
    store.add(row for row in shipped_rows(profile) if row.context.software == software)
    found = latest_of(store, profile.threads, software, admits)
    store.close()
    return found
