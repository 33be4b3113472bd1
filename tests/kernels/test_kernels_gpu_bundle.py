"""A bundle for a GPU, made, measured and imported without one: nvcc's code, the agent that ships, a driver and NVML that are fake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import fake_gpu
import pytest
from bundles import LIMITS, Unpacked, asked
from test_kernels_cuda import card

from hwprune.compile.link import native_sources
from hwprune.errors import CompileError
from hwprune.kernels import primfunc
from hwprune.kernels.cuda.code import device_code
from hwprune.kernels.schedule import Config
from hwprune.measure.bundle import build_job, check_packable, write_bundle
from hwprune.measure.importing import Results, check_fits, read_results, store_results
from hwprune.measure.store import Store

GPU = card("rtx4090")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no `nvcc`: put NVIDIA's CUDA toolkit on PATH")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    job = build_job(asked(GPU), GPU, GPU.threads, 1 << 16, folder / "parts", limits=LIMITS)
    write_bundle(job, GPU, folder / "parts", folder / "b.tar")
    subprocess.run(["tar", "xf", "b.tar"], cwd=folder, check=True)
    return Unpacked(GPU, job, folder / "parts", folder)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """What the environment says on a machine with the fake GPU."""
    folder = tmp_path_factory.mktemp("machine")
    driver = str(fake_gpu.driver(folder))
    kernels = fake_gpu.nothing_at_all(24, folder / "kernels.so")
    return {"HWPRUNE_LIBCUDA": driver, "HWPRUNE_LIBNVML": driver, "FAKE_CUDA_KERNELS": str(kernels)}


def start(bundle: Unpacked, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Run the agent in a copy of the bundle in ``folder``."""
    for name in ("measure", "job.tsv", "lib"):
        found = bundle.folder / name
        (shutil.copytree if found.is_dir() else shutil.copy)(found, folder / name)
    return subprocess.run(["./measure"], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


def measured(bundle: Unpacked, folder: Path, environment: dict[str, str]) -> Results:
    done = start(bundle, folder, environment)
    assert done.returncode == 0, done.stderr
    return read_results(folder / "results.json")


@needs_nvcc
def test_what_the_gpu_says_is_stored_under_its_name(bundle, machine, tmp_path):
    results = measured(bundle, tmp_path, {**machine, "FAKE_CUDA_BAD_KERNEL": "kernel3_kernel", "FAKE_CUDA_LOG": str(tmp_path / "log")})
    check_fits(results, GPU, False, "r.json")
    assert (results.job.header.machine, results.job.header.gpu, results.job.header.threads) == ("x86_64", "sm_89", 128)
    assert results.context.device == "Fake RTX; 128 SMs" and "; nvcc " in results.context.software
    (failed,) = results.failed
    assert bundle.job.kernels[failed.kernel].step == 3 and "illegal memory access" in failed.failure
    timed = {k.kernel: k.samples_us for m in results.measured for k in m.kernels}
    assert sorted({m.workload for m in results.measured}) == [0, 1, 2]
    for number, samples in timed.items():
        kernel = bundle.job.of(number)
        (launch,) = device_code({"f": primfunc(kernel.workload, GPU, Config.from_text(kernel.config))}, GPU).launches["f"]
        assert samples == pytest.approx([fake_gpu.own_us(launch)] * len(samples), abs=2e-3)
    for m in results.measured:
        assert m.before["gpu_mhz"] == m.after["gpu_mhz"] == 2505 and m.after["gpu_temperature_c"] == 61
        assert m.after["gpu_slowed"] == "power limit" and not m.throttled
        assert m.energy.of == "the card" and m.energy.energy_uj > 0
    # copies of the constants take turns: more was copied than one kernel reads
    copies = [int(x.split()[2]) for x in (tmp_path / "log").read_text().splitlines() if x.startswith("copy to")]
    assert max(copies) > 1 << 15
    store = Store(tmp_path / "m.sqlite")
    told = store_results(results, store)
    assert told.device == "Fake RTX; 128 SMs" and told.workloads == 3 and len(told.energy_uj) == 3 and told.failures == 1
    store.close()


@needs_nvcc
def test_what_the_card_does_not_tell_is_absent_and_heat_is_flagged(bundle, machine, tmp_path):
    results = measured(bundle, tmp_path, {**machine, "FAKE_NVML_MIG": "1", "FAKE_NVML_REASONS": "32", "FAKE_NVML_WITHOUT": "nvmlDeviceGetTemperature,nvmlDeviceGetMaxClockInfo"})
    for m in results.measured:
        assert m.throttled and m.after["gpu_slowed"] == "hot" and m.after["gpu_mhz"] == 2505
        assert not {"gpu_temperature_c", "gpu_limit_mhz"} & set(m.after)
        assert m.energy is None or m.energy.of != "the card"  # others share it


@needs_nvcc
@pytest.mark.parametrize(
    "settings, said",
    [
        ({"HWPRUNE_LIBCUDA": "/nowhere.so"}, "NVIDIA's driver cannot be loaded"),
        ({"FAKE_CUDA_DEVICES": "0"}, "NVIDIA's driver finds no GPU"),
        ({"FAKE_CUDA_CAPABILITY": "9.0"}, "compiled for 'rtx4090', a GPU of compute capability 8.9, but the GPU here is Fake RTX of 9.0"),
        ({"FAKE_CUDA_BAD_KERNEL": "kernel0_kernel"}, "the reference kernel does not run here"),
    ],
)
def test_the_agent_says_what_is_missing(bundle, machine, tmp_path, settings, said):
    done = start(bundle, tmp_path, {**machine, **settings})
    assert done.returncode == 1 and said in done.stderr.splitlines()[-1] and not (tmp_path / "results.json").exists()


def test_without_nvcc_nothing_is_packed(monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match="CUDA is compiled by `nvcc`, which is not here"):
        check_packable(GPU)


# --- sensors on boards ------------------------------------------------------------------------------------------

_METER = """
#include <unistd.h>
#include <cstdio>
#include "clock.h"
#include "energy.h"
int main(int, char** folder) {
  const EnergyMeter meter(nullptr, folder[1]);
  const Clock::time_point start = Clock::now();
  int64_t bursts = 0;
  const auto used = meter.per_run_uj([&] { ++bursts; usleep(10000); return int64_t{4}; });
  std::printf("{\\"of\\": \\"%s\\", \\"watts\\": %f}", meter.of().c_str(), used ? *used * 4 * bursts / seconds_since(start) / 1e6 : -1.0);
}
"""


@pytest.fixture(scope="module")
def meter(tmp_path_factory):
    """``meter(files)``: what is measured, and the power of a burst in watts, where the system has these files."""
    folder = tmp_path_factory.mktemp("meter")
    agent = native_sources() / "agent"
    (folder / "main.cpp").write_text(_METER)
    sources = [str(agent / f"{name}.cpp") for name in ("energy", "gpu", "device", "text")]
    included = [part for source in sources for part in ("-include", source)]
    subprocess.run(["c++", "-std=c++17", f"-I{agent}", *included, "main.cpp", "-o", "meter", "-ldl"], cwd=folder, check=True)

    def measure(root: Path, files: dict[str, object]) -> tuple[str, float]:
        for name, value in files.items():
            (root / "class" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "class" / name).write_text(f"{value}\n")
        told = json.loads(subprocess.run([str(folder / "meter"), str(root)], capture_output=True, check=True).stdout)
        return told["of"], told["watts"]

    return measure


def ina3221(**rails: tuple[int, int]) -> dict[str, object]:
    """Millivolts and milliamperes of each rail, as on a Jetson."""
    files: dict[str, object] = {"hwmon/hwmon2/name": "ina3221"}
    for i, (label, (mv, ma)) in enumerate(rails.items(), 1):
        files |= {f"hwmon/hwmon2/in{i}_label": label, f"hwmon/hwmon2/in{i}_input": mv, f"hwmon/hwmon2/curr{i}_input": ma}
    return files


@pytest.mark.parametrize(
    "files, of, watts",
    [
        (ina3221(VDD_GPU_SOC=(5000, 2000), VDD_CPU_CV=(5000, 600)), "VDD_GPU_SOC, VDD_CPU_CV", 13.0),
        (ina3221(VDD_IN=(5000, 3000), VDD_CPU_GPU_CV=(5000, 2000)), "VDD_IN", 15.0),  # the whole, of which the others are parts
        ({"hwmon/hwmon0/name": "ina219", "hwmon/hwmon0/power1_input": 4_200_000}, "ina219 1", 4.2),
        ({"hwmon/hwmon0/name": "amdgpu", "hwmon/hwmon0/power1_input": 4_200_000}, "", -1),  # no sensor of the board
        ({}, "", -1),
        ({"powercap/intel-rapl:0/energy_uj": 1000, **ina3221(VDD_IN=(5000, 3000))}, "the processor's packages", -1),  # it stands still
    ],
)
def test_power_of_boards_is_found_and_otherwise_absent(meter, tmp_path, files, of, watts):
    assert meter(tmp_path, files) == (of, pytest.approx(watts, rel=0.1))
