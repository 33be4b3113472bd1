"""Artifacts for GPUs, run without one: the program that ships, over a driver that keeps its memory and kernels on the CPU."""

from __future__ import annotations

import gc
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import fake_gpu
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emulated_networks import lowered
from operator_banks import exact, randomized, relative_error
from test_kernels_cuda import card
from torch import nn
from tvm import s_tir, te, tirx

from hwprune import runtime
from hwprune.compile import artifact
from hwprune.compile.artifact import build_artifact, network_program
from hwprune.errors import ArtifactError, CompileError
from hwprune.kernels import candidates, primfunc
from hwprune.kernels.cuda import RULES, emulate, gemm, resources, tensor
from hwprune.kernels.cuda.code import DeviceCode, device_code

GPU = card("rtx4090")
INPUTS = (torch.randn(2, 3, 13, 11), torch.randn(2, 24))
NVCC = shutil.which("nvcc") is not None


class Small(nn.Module):
    """A kernel of every rule for exact float32, two inputs, two outputs, one of which others read."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20)
        self.depthwise, self.wide = nn.Conv2d(20, 20, 3, padding=1, groups=20), nn.Conv2d(20, 400, 1)
        self.last = nn.Linear(400, 24)

    def forward(self, image, row):
        y = F.relu(self.norm(self.first(image)))
        y = F.max_pool2d(y + F.silu(self.depthwise(y)), 2)
        y = self.wide(y)
        z = self.last(y.mean((2, 3)))
        return y, z * row


class Double(nn.Module):
    def forward(self, x):
        return x * 2.0


@dataclass(frozen=True)
class Built:
    folder: Path
    driver: Path
    kernels: Path
    module: nn.Module
    functions: dict
    code: DeviceCode


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpu")
    module = randomized(Small()).eval()
    network = lowered(module, INPUTS, GPU)
    # one kernel on tiles, which a network this small does not ask for by itself
    tiled = next(w for w in network.workloads() if w.anchor and w.anchor.op == "conv2d" and w.output.shape[-1] == 400)
    def pick(workload):
        return gemm.candidates(workload, GPU)[0] if workload == tiled else candidates(workload, GPU)[0]

    def scheduled(workload, profile, config):
        function = primfunc(workload, profile, config)
        return with_dynamic_shared_memory(function) if config.rule == gemm.name else function

    program = network_program(network, GPU, pick)
    functions = {symbol: scheduled(w, GPU, config) for symbol, (w, config) in program.kernels.items()}
    assert {c.rule for _, c in program.kernels.values()} == {rule.name for rule in RULES if rule is not tensor}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "primfunc", scheduled)
        if not NVCC:
            patch.setattr(resources, "machine_code", lambda source, profile: resources.MachineCode(b"FAKE", ""))
        build_artifact(network, GPU, pick, folder / "artifact")
    kernels = fake_gpu.emulated(functions, GPU, folder / "kernels.so")
    return Built(folder / "artifact", fake_gpu.driver(folder), kernels, module, functions, device_code(functions, GPU))


def with_dynamic_shared_memory(function: tirx.PrimFunc) -> tirx.PrimFunc:
    sch = s_tir.Schedule(function)
    for block in ("A", "B"):
        sch.set_scope(block, 0, "shared.dyn")
    return sch.mod["main"]


@pytest.fixture
def there(built, tmp_path, monkeypatch):
    """The artifact in a folder of its own, on a machine with the fake driver."""
    monkeypatch.setenv("HWPRUNE_LIBCUDA", str(built.driver))
    monkeypatch.setenv("FAKE_CUDA_KERNELS", str(built.kernels))
    monkeypatch.setenv("FAKE_CUDA_LOG", str(tmp_path / "log"))
    shutil.copytree(built.folder, tmp_path / "artifact")
    return tmp_path / "artifact"


def log(folder: Path) -> list[str]:
    return (folder.parent / "log").read_text().splitlines()


def check(program: runtime.Program, module: nn.Module, inputs=INPUTS) -> None:
    for found, expected in zip(program(*(x.numpy() for x in inputs)), exact(module, inputs), strict=True):
        assert relative_error(found, expected) < 1e-5


# --- numbers ----------------------------------------------------------------------------------------------------


def test_network_computes_what_torch_computes_and_is_launched_as_one_graph(built, there):
    program = runtime.load(there)
    check(program, built.module)
    calls = program.manifest["calls"]
    lines = log(there)
    assert lines.count(f"graph {len(calls)}") == 1 and len([x for x in lines if x.startswith("graph")]) == 1
    (there.parent / "log").unlink()
    check(program, built.module, (INPUTS[0] * 2 - 1, INPUTS[1] + 1))
    # from then on a run is copies of inputs and one launch: constants stay, nothing is captured again
    assert log(there) == [f"copy to {x.numel() * 4}" for x in INPUTS] + [f"graph {len(calls)}"]


def test_kernels_are_launched_with_the_extents_of_their_schedules(built, there):
    check(runtime.load(there), built.module)
    manifest = json.loads((there / "manifest.json").read_text())
    launched = [x.split() for x in log(there) if x.endswith("captured")]
    assert [x[1] for x in launched] == [f"{call['kernel']}_kernel" for call in manifest["calls"]]
    for _, kernel, grid, block, shared, _ in launched:
        extents = fake_gpu.thread_extents(built.functions[kernel.removesuffix("_kernel")])
        assert [int(n) for n in grid.split(",")] == [extents.get(f"blockIdx.{a}", 1) for a in "xyz"]
        assert [int(n) for n in block.split(",")] == [extents.get(f"threadIdx.{a}", 1) for a in "xyz"]
        assert int(shared) == built.code.launches[kernel.removesuffix("_kernel")][0].shared_bytes


@pytest.mark.skipif(not NVCC, reason="no `nvcc`: put NVIDIA's CUDA toolkit on PATH; the artifact holds no real machine code")
def test_artifact_holds_machine_code_of_its_kernels(there):
    runtime.load(there)
    assert "module machine code" in log(there)  # the fake driver finds each kernel's section in it


def test_manifest_says_for_whom_it_is(there):
    target = json.loads((there / "manifest.json").read_text())["target"]
    assert (target["name"], target["architecture"], target["machine"], target["threads"]) == ("rtx4090", "cuda", "x86_64", 1)


def test_two_artifacts_in_one_process_keep_to_their_own(built, there, monkeypatch, tmp_path):
    first = runtime.load(there)
    inputs = (torch.randn(3, 7, 5, 6),)
    network = lowered(Double(), inputs, GPU)
    with monkeypatch.context() as patch:
        patch.setattr(resources, "machine_code", lambda source, profile: resources.MachineCode(b"FAKE", ""))
        build_artifact(network, GPU, lambda w: candidates(w, GPU)[0], tmp_path / "second")
    functions = {f"kernel{i}": primfunc(w, GPU, candidates(w, GPU)[0]) for i, w in enumerate(network.workloads())}
    monkeypatch.setenv("FAKE_CUDA_KERNELS", str(fake_gpu.emulated(functions, GPU, tmp_path / "second.so")))
    second = runtime.load(tmp_path / "second")
    for _ in range(2):
        assert np.allclose(second(inputs[0].numpy()), inputs[0].numpy() * 2)
        check(first, built.module)


def test_constants_follow_the_caller_and_memory_is_given_back(built, there):
    first, second = runtime.load(there), runtime.load(there)  # one library in the process, constants of each
    check(first, built.module)
    second._weights[:] = 0
    zeros = second(*(x.numpy() for x in INPUTS))
    assert not zeros[0].any() and not zeros[1].any()
    check(first, built.module)
    del first, second
    gc.collect()
    assert log(there)[-1] == "release"
    check(runtime.load(there), built.module)


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no `aarch64-linux-gnu-g++`; install g++-aarch64-linux-gnu")
def test_a_jetsons_program_is_one_for_its_processor(monkeypatch, tmp_path):
    orin = card("jetson-orin")
    monkeypatch.setattr(resources, "machine_code", lambda source, profile: resources.MachineCode(b"FAKE", ""))
    network = lowered(nn.ReLU(), (torch.zeros(1, 4, 4, 4),), orin)
    build_artifact(network, orin, lambda w: candidates(w, orin)[0], tmp_path / "artifact")
    assert int.from_bytes((tmp_path / "artifact" / "network.so").read_bytes()[18:20], "little") == 183  # ELF: EM_AARCH64
    assert json.loads((tmp_path / "artifact" / "manifest.json").read_text())["target"]["machine"] == "aarch64"


def test_a_compiler_for_another_processor_than_the_hosts_is_refused(monkeypatch, tmp_path):
    grace = GPU.model_copy(update={"host": "aarch64"})  # and nothing said of its compiler
    monkeypatch.setattr(resources, "machine_code", lambda source, profile: resources.MachineCode(b"FAKE", ""))
    network = lowered(nn.ReLU(), (torch.zeros(1, 4, 4, 4),), grace)
    with pytest.raises(CompileError, match=r"`c\+\+` links for x86_64, but the host of target 'rtx4090' is aarch64: give its profile"):
        build_artifact(network, grace, lambda w: candidates(w, grace)[0], tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


# --- time -------------------------------------------------------------------------------------------------------


def test_timing_of_a_network_of_its_calls_and_of_one_alone(built, there):
    program = runtime.load(there)
    kernels = [call["kernel"] for call in program.manifest["calls"]]
    expected = np.array([fake_gpu.own_us(built.code.launches[k][0]) for k in kernels])
    assert (program.time_us(3) > 0).all()
    assert np.allclose(program.profile_us(2), [expected] * 2, atol=2e-3)
    assert len(kernels) != 5 + 2
    assert np.allclose(program.time_call_us(1, runs=5), [expected[1]] * 5, atol=2e-3)
    assert np.allclose(program.time_call_us(1, runs=5), [expected[1]] * 5, atol=2e-3)
    assert log(there).count(f"graph {5 + 2}") == 2  # five launches between two events, in one graph
    assert len([x for x in log(there) if x.endswith("captured") and f" {kernels[1]}_kernel " in x]) == 1 + 1 + 5  # captured once
    check(program, built.module)


# --- what may be missing ----------------------------------------------------------------------------------------


def test_without_a_driver(there, monkeypatch):
    monkeypatch.setenv("HWPRUNE_LIBCUDA", "/nowhere/libcuda.so.1")
    with pytest.raises(ArtifactError, match=r"NVIDIA's driver cannot be loaded \(/nowhere/libcuda.so.1: .*\); this program is for a GPU \('rtx4090'\): install the driver"):
        runtime.load(there)


def test_driver_that_is_too_old(there, monkeypatch, built):
    monkeypatch.setenv("HWPRUNE_LIBCUDA", str(built.kernels))  # a library without the driver's functions
    with pytest.raises(ArtifactError, match="older than CUDA 11.4 .it lacks cuInit.: update it"):
        runtime.load(there)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"FAKE_CUDA_DEVICES": "0"}, "finds no GPU; this program needs one .'rtx4090'.: does CUDA_VISIBLE_DEVICES hide it"),
        ({"FAKE_CUDA_FAIL": "cuInit=100"}, "finds no GPU"),
        ({"FAKE_CUDA_FAIL": "cuInit=999"}, "starting the driver failed on GPU 0: it failed .CUDA_ERROR_OTHER."),
        ({"FAKE_CUDA_CAPABILITY": "8.6"}, "for 'rtx4090', a GPU of compute capability 8.9, but the GPU here is Fake RTX of 8.6: compile"),
        ({"FAKE_CUDA_CAPABILITY": "9.0"}, "of 9.0: compile the network with the --target of that card"),
        ({"FAKE_CUDA_MEMORY": "5000"}, "GPU Fake RTX has 0 of its 0 MiB free, but 1 MiB more are needed: end what else uses it"),
        ({"FAKE_CUDA_FAIL": "cuModuleLoadData=209"}, r"the driver of GPU Fake RTX \(CUDA 12.4\) does not take this program's machine code, made by .* for 8.9: update the driver"),
        ({"FAKE_CUDA_FAIL": "cuModuleGetFunction=500"}, "kernel0_kernel failed on GPU Fake RTX"),
        *(({"FAKE_CUDA_FAIL": f"{call}=999"}, "failed on GPU .*: it failed .CUDA_ERROR_OTHER.") for call in (
            "cuDriverGetVersion", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetPCIBusId", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain",
            "cuCtxSetCurrent", "cuModuleLoadData", "cuStreamCreate", "cuMemAlloc_v2")),
    ],
)  # fmt: skip
def test_loading_says_what_is_missing_and_can_be_repeated(built, there, monkeypatch, settings, said):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArtifactError, match=said):
        runtime.load(there)
    for name in settings:
        monkeypatch.delenv(name)
    check(runtime.load(there), built.module)


@pytest.mark.parametrize(
    "failing, said",
    [
        ("cuLaunchKernel=700@2", "kernel1_kernel failed on GPU Fake RTX: an illegal memory access was encountered .CUDA_ERROR_ILLEGAL_ADDRESS."),
        ("cuStreamSynchronize=700@3", "kernel1_kernel failed"),  # after constants and the first kernel
        ("cuLaunchKernel=999@8", "failed on GPU Fake RTX: it failed"),  # within the capture
        ("cuStreamBeginCapture_v2=999", "beginning to capture the network failed"),
        ("cuStreamEndCapture=999", "capturing the network failed"),
        ("cuGraphInstantiateWithFlags=999", "making a graph of the network failed"),
        ("cuGraphLaunch=999", "launching the network failed"),
        ("cuMemcpyHtoDAsync_v2=999", "copying constants failed"),
        ("cuMemcpyHtoDAsync_v2=999@2", "copying an input failed"),
        ("cuMemcpyDtoHAsync_v2=999", "copying an output failed"),
    ],
)
def test_running_says_what_failed_and_can_be_repeated(built, there, monkeypatch, failing, said):
    program = runtime.load(there)
    monkeypatch.setenv("FAKE_CUDA_FAIL", failing)
    with pytest.raises(ArtifactError, match=said):
        check(program, built.module)
    monkeypatch.delenv("FAKE_CUDA_FAIL")
    check(program, built.module)


def test_a_failed_timing_leaves_the_program_usable(built, there, monkeypatch):
    program = runtime.load(there)
    for failing in ("cuEventCreate=999@2", "cuEventRecordWithFlags=999@2", "cuEventElapsedTime=999", "cuGraphLaunch=999"):
        monkeypatch.setenv("FAKE_CUDA_FAIL", failing)
        with pytest.raises(ArtifactError, match="failed on GPU Fake RTX"):
            program.profile_us(2)
        monkeypatch.delenv("FAKE_CUDA_FAIL")
        check(program, built.module)


def test_artifact_for_the_processor_of_another_host_is_refused(there):
    manifest = json.loads((there / "manifest.json").read_text())
    manifest["target"]["machine"] = "pdp11"
    (there / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="is compiled for pdp11"):
        runtime.load(there)


# --- launches ---------------------------------------------------------------------------------------------------


def test_dynamic_shared_memory_is_asked_for_and_given(built, there):
    program = runtime.load(there)
    check(program, built.module)
    ((kernel, asked),) = [(x.split()[1], x.split()[3]) for x in log(there) if x.startswith("attribute")]
    (launch,) = built.code.launches[kernel.removesuffix("_kernel")]
    assert launch.kernel == kernel and 0 < launch.shared_bytes == int(asked)
    assert [x.split()[4] for x in log(there) if x.startswith(f"launch {kernel}")] == [asked] * 2  # by itself, and captured


def test_dynamic_shared_memory_beyond_the_card_is_refused(built):
    ((name, launch),) = [(name, one) for name, (one,) in built.code.launches.items() if one.shared_bytes]
    limited = GPU.gpu.model_copy(update={"shared_memory_per_block_opt_in_bytes": launch.shared_bytes - 1})
    with pytest.raises(CompileError, match=f"asks for {launch.shared_bytes} bytes of shared memory, but the card has {launch.shared_bytes - 1}"):
        device_code({name: built.functions[name]}, GPU.model_copy(update={"gpu": limited}))


def two_kernels(between: str) -> tirx.PrimFunc:
    """A function of two kernels; the first one's result is ``between``."""
    x = te.placeholder((64,), name="x")
    y = te.compute((64,), lambda i: x[i] * 2.0, name="B")
    z = te.compute((64,), lambda i: y[i] + x[i], name="Y")
    sch = s_tir.Schedule(te.create_prim_func([x, y, z] if between == "an output" else [x, z]))
    for block in ("B", "Y"):
        outer, inner = sch.split(sch.get_loops(block)[0], [None, 32])
        sch.bind(outer, "blockIdx.x")
        sch.bind(inner, "threadIdx.x")
    return sch.mod["main"]


def test_functions_of_several_kernels():
    code = device_code({"f": two_kernels("an output")}, GPU)
    launches, names = code.launches["f"], ("x", "B", "Y")
    assert [(set(x.arguments), x.grid, x.block) for x in launches] == [({0, 1}, (2, 1, 1), (32, 1, 1)), ({0, 1, 2}, (2, 1, 1), (32, 1, 1))]
    for launch in launches:  # in the order of the kernel's own parameters
        parameters = re.search(rf"\b{launch.kernel}\((.*?)\)", code.source)[1]
        assert re.findall(r"(\w+)_ptr", parameters) == [names[n] for n in launch.arguments]
    with pytest.raises(CompileError, match="kernel 'f' wants memory between two kernels of its own"):
        device_code({"f": two_kernels("memory")}, GPU)


def test_tensor_cores_within_an_artifact(tmp_path, monkeypatch):
    """Weights packed as fragments of TF32, and the kernel that reads them, through the program that ships."""
    gpu = GPU.model_copy(update={"gpu": GPU.gpu.model_copy(update={"precision": ("fp32", "tf32")})})
    module, inputs = randomized(nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU())).eval(), (torch.randn(1, 16, 9, 7),)
    network = lowered(module, inputs, gpu)

    def pick(workload):
        return next((c for c in candidates(workload, gpu) if c.rule == tensor.name), candidates(workload, gpu)[0])

    program = network_program(network, gpu, pick)
    assert tensor.name in {c.rule for _, c in program.kernels.values()}
    if not NVCC:
        monkeypatch.setattr(resources, "machine_code", lambda source, profile: resources.MachineCode(b"FAKE", ""))
    out = build_artifact(network, gpu, pick, tmp_path / "artifact")
    functions, here = (
        {symbol: make(w, gpu, config) for symbol, (w, config) in program.kernels.items()} for make in (primfunc, emulate.function)
    )
    monkeypatch.setenv("HWPRUNE_LIBCUDA", str(fake_gpu.driver(tmp_path)))
    monkeypatch.setenv("FAKE_CUDA_KERNELS", str(fake_gpu.emulated(functions, gpu, tmp_path / "kernels.so", here)))
    found, (expected,) = runtime.load(out)(inputs[0].numpy()), exact(module, inputs)
    assert 1e-6 < relative_error(found, expected) < 2e-3  # factors have 11 bits
    schedules = [k["schedule"] for k in json.loads((out / "manifest.json").read_text())["kernels"].values()]
    assert "tf32" in {s.get("precision") for s in schedules}
