"""A small bundle, built, unpacked and measured: what the tests of this machine and of an emulated one share."""

from __future__ import annotations

import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Mapping, Sequence

import torch
from torch import nn

from hwprune.compile.lower import lower
from hwprune.graph import trace
from hwprune.measure.bundle import Asked, build_job, write_bundle
from hwprune.measure.job import Job, Limits
from hwprune.target import TargetProfile

#: Few rounds: the tests are about what is kept, not about how long it takes.
LIMITS = Limits(min_rounds=3, max_rounds=4, baseline_rounds=3, burst_us=200, pause_us=0)


@dataclass(frozen=True)
class Unpacked:
    profile: TargetProfile
    job: Job
    parts: Path
    folder: Path

    def measure(self, emulator: Sequence[str] = (), environment: Mapping[str, str] = MappingProxyType({})) -> Path:
        """Run the agent and return its results file."""
        done = subprocess.run([*emulator, "./measure"], cwd=self.folder, env={**os.environ, **environment},
                              capture_output=True, text=True, timeout=240)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return self.folder / "results.json"


def asked(profile: TargetProfile, schedules: int = 2) -> list[Asked]:
    module = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)).eval()
    return [Asked(w, schedules) for w in lower(trace(module, torch.zeros(1, 8, 8, 8)), profile).workloads()]


def unpacked(profile: TargetProfile, folder: Path) -> Unpacked:
    parts, tar, there = folder / "parts", folder / "b.tar", folder / "device"
    job = build_job(asked(profile), profile, profile.threads, 1 << 16, parts, limits=LIMITS)
    write_bundle(job, profile, parts, tar)
    with tarfile.open(tar) as packed:
        packed.extractall(there)
    return Unpacked(profile, job, parts, there)
