"""Kernels written for tests of the agent: what they take is fixed, and some crash or hang."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from pathlib import Path

from hwprune.measure.agent import build_agent
from hwprune.measure.importing import read_results
from hwprune.measure.job import BuiltLibrary, Header, Job, Limits, Placed
from hwprune.target import TargetProfile
from hwprune.workload import OpCall, TensorSpec, Workload

#: Step 0 takes 20 us, twice that while there is a file called `slow`; step n takes 20 + n us; some do worse.
CRASHES, HANGS, FAILS, SLEEPS = 90, 91, 92, 93
SOURCE = f"""
#include <stdint.h>
#include <unistd.h>
const int64_t hwprune_facts[] = {{2, 1, 1, 64, 0, 100, 1, 16, 16}};
const char* hwprune_error(void) {{ return "Error: too\\nhot"; }}
int32_t hwprune_time(void** in, void** out, void* weights, void* scratch, int32_t threads, int32_t first, int32_t count,
                     int64_t copies, int64_t stride, int64_t turn, int64_t runs, int64_t* samples) {{
  if (first == {CRASHES}) *(volatile int*)0 = 1;
  if (first == {HANGS}) for (;;) pause();
  if (first == {FAILS}) return -1;
  if (first == {SLEEPS}) usleep(20000);
  for (int64_t r = 0; r < runs; ++r) samples[r] = (20000 + 1000 * first) * (first == 0 && access("slow", F_OK) == 0 ? 2 : 1);
  return 0;
}}
"""
LIMITS = Limits(min_rounds=3, max_rounds=5, baseline_rounds=3, pause_us=0, hang_s=0.5)


def build(profile: TargetProfile, folder: Path) -> Path:
    """The agent and a library of such kernels, in ``folder``."""
    build_agent(profile, folder / "measure")
    (folder / "kernels.c").write_text(SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "kernels.c", "-o", "kernels.so"], cwd=folder, check=True)
    return folder


def workload(number: int) -> Workload:
    spec = TensorSpec((1, 4, 4, 8 * (number + 1)))
    return Workload((spec,), (OpCall.make("clip", 0, low=0.0, high=None),), spec)


def job(library: bytes, steps: list[list[int]], limits: Limits = LIMITS) -> Job:
    """``steps``: of the kernels of each workload, which has a library of its own; all libraries are the same."""
    digest = hashlib.sha256(library).hexdigest()
    kernels = [Placed(i, i + 1, step, 64, f"step {step}") for i, some in enumerate(steps) for step in some]
    return Job(
        Header("x86", "digest", "software", platform.machine(), 1, 0), limits,
        tuple(BuiltLibrary(f"{i}.so", digest) for i in range(len(steps) + 1)),
        tuple(workload(i) for i in range(len(steps))), tuple(len(some) for some in steps),
        (Placed(-1, 0, 0, 64, "reference"), *kernels),
    )  # fmt: skip


class Device:
    """A folder as it is after `tar xf`."""

    def __init__(self, folder: Path, built: Path, steps: list[list[int]], limits: Limits = LIMITS):
        self.folder, self.job = folder, job((built / "kernels.so").read_bytes(), steps, limits)
        shutil.copy(built / "measure", folder / "measure")
        for library in self.job.libraries:
            shutil.copy(built / "kernels.so", folder / library.file)
        (folder / "job.tsv").write_text(self.job.to_text())

    def start(self, **how) -> subprocess.Popen:
        return subprocess.Popen(["./measure"], cwd=self.folder, stderr=subprocess.PIPE, text=True, **how)

    def measure(self, **how) -> tuple[int, str]:
        process = self.start(**how)
        _, err = process.communicate(timeout=60)
        return process.returncode, err

    def refusal(self, **how) -> str:
        code, err = self.measure(**how)
        last = err.splitlines()[-1]
        assert code == 1 and last.startswith("measure: ") and not (self.folder / "results.json").exists()
        return last

    def journal(self) -> list[str]:
        path = self.folder / "journal.jsonl"
        return path.read_text().splitlines(keepends=True) if path.exists() else []

    def measured(self) -> dict[int, list[float]]:
        """Kernel number -> its samples."""
        results = read_results(self.folder / "results.json")
        return {k.kernel: k.samples_us for m in results.measured for k in m.kernels}
