"""Whether the cores are this machine's own: those of a virtual machine may be threads of one core for a while, or another's."""

from __future__ import annotations

from hwprune.measure.worker import Kernels
from hwprune.target import TargetProfile

#: Of as many times one thread's speed as there are threads: what all of them reach together on a machine of their own, at least.
ENOUGH = 0.8

_RUNS = 200


class Witness:
    """The reference kernel, which is bound by arithmetic, by one thread and by all threads of ``profile``."""

    def __init__(self, profile: TargetProfile):
        self.threads = profile.threads
        self._kernels = [Kernels(profile.model_dump_json(by_alias=True), threads) for threads in (1, profile.threads)]
        self._one, self._all = (kernels.reference for kernels in self._kernels)

    def speedup(self) -> float:
        """How many times as fast as one thread all threads are, now."""
        for timer in (self._one, self._all):  # cores that slept are slow for a while
            timer(_RUNS)
        return self._one(_RUNS) / self._all(_RUNS)

    def calm(self) -> bool:
        return self.speedup() >= ENOUGH * self.threads
