"""Whole artifacts: the bundled network against torch, what the manifest says, and what callers may hand over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled_networks import compiled, first_candidate, profile_of, run
from operator_banks import exact, randomized, relative_error
from torch import nn

from hwprune import runtime
from hwprune.bundled import MODELS
from hwprune.compile.artifact import build_artifact
from hwprune.compile.lower import lower
from hwprune.errors import ArtifactError, CompileError
from hwprune.fsio import sha256_file
from hwprune.graph import trace
from hwprune.spec.model import load_model


@pytest.fixture(scope="module")
def bundled(usable, tmp_path_factory):
    """(folder, program, module) of the bundled digits network."""
    module = load_model("bundled:digits_resnet").module.eval()
    profile = usable(8)
    folder = tmp_path_factory.mktemp("bundled") / "artifact"
    program = compiled(module, (torch.zeros(MODELS["digits_resnet"].input_shape),), profile, folder)
    return folder, program, module


# --- numbers ----------------------------------------------------------------------------------------------------


def test_bundled_network_computes_what_torch_computes(bundled):
    _, program, module = bundled
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        x = torch.rand(MODELS["digits_resnet"].input_shape, generator=generator)
        with torch.no_grad():
            expected = module(x).numpy()
        assert np.abs(program(x.numpy()) - expected).max() < 1e-4
        assert relative_error(program(x.numpy()), exact(module, (x,))[0]) < 1e-5


def test_a_batch_in_parts_computes_what_torch_computes_of_each_image(usable, tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 19, 3, padding=1), nn.Flatten(), nn.Linear(19 * 256, 16))
    x = torch.randn(8, 3, 16, 16)
    traced = trace(module.eval(), x[:2])
    profile = usable(8)
    program = runtime.load(build_artifact(lower(traced, profile, parts=4), profile, first_candidate(profile), tmp_path / "parts"))
    whole = compiled(module, (x,), profile, tmp_path / "whole")
    assert relative_error(program(x.numpy()), exact(module, (x,))[0]) < 1e-5
    assert program.manifest["parts"] == 4 and program.manifest["macs"] == whole.manifest["macs"]
    assert program.manifest["workspace_bytes"] < whole.manifest["workspace_bytes"] / 2
    assert program.profile_us(runs=1).shape[1] == 4 * whole.profile_us(runs=1).shape[1]


def test_same_input_gives_the_same_bytes(bundled):
    _, program, _ = bundled
    x = np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)
    first = program(x).copy()
    program(x * 100)
    assert np.array_equal(program(x), first)


class Exp(nn.Module):
    def forward(self, x):
        return torch.exp(x), torch.sigmoid(x), torch.tanh(x), F.gelu(x), F.silu(x)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_exponential_and_its_kin_over_the_whole_range(usable, lanes, tmp_path):
    x = torch.cat([torch.linspace(-87, 88, 4001), torch.linspace(-2, 2, 1001)])[None]
    program = compiled(Exp(), (x,), usable(lanes), tmp_path / "a")
    found, expected = run(program, (x,)), exact(Exp(), (x,))
    assert np.abs(found[0] / expected[0] - 1).max() < 3e-7  # exp: relative to each value
    for name, f, e, absolute in zip(("sigmoid", "tanh"), found[1:3], expected[1:3], (2e-7, 3e-7)):
        assert np.abs(f - e).max() < absolute, name
    for name, f, e, least in zip(("gelu", "silu"), found[3:], expected[3:], (1, 3)):
        assert (np.abs(f - e) <= 1e-6 * np.maximum(np.abs(e), least)).all(), name


@pytest.mark.parametrize("lanes", [8])
def test_extreme_inputs_stay_finite(usable, lanes, tmp_path):
    x = torch.tensor([[-1e30, -1e4, -100.0, 0.0, 100.0, 1e4, 1e30]])
    found = run(compiled(Exp(), (x,), usable(lanes), tmp_path / "a"), (x,))
    assert np.allclose(found[1], [[0, 0, 0, 0.5, 1, 1, 1]])
    assert np.allclose(found[2], [[-1, -1, -1, 0, 1, 1, 1]])
    assert np.isfinite(found[0]).all()


class Several(nn.Module):
    """Two inputs, a value used twice, the same output twice, an input as an output."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(7, 3)

    def forward(self, image, row):
        y = F.relu(self.bn(self.conv(image)) + image)
        z = y * torch.sigmoid(self.fc(row)).view(2, 3, 1, 1)
        return z, y, z, image, torch.flatten(image, 1)


def test_several_inputs_and_outputs(usable, tmp_path):
    inputs = (torch.randn(2, 3, 9, 7), torch.randn(2, 7))
    module = randomized(Several())
    found = run(compiled(module, inputs, usable(8), tmp_path / "a"), inputs)
    for f, e in zip(found, exact(module, inputs), strict=True):
        assert relative_error(f, e) < 1e-5


def test_sequences_of_rows(usable, tmp_path):
    module = nn.Sequential(nn.Linear(13, 19), nn.GELU(), nn.Linear(19, 5))
    x = torch.randn(2, 3, 13)
    (found,) = run(compiled(module.eval(), (x,), usable(8), tmp_path / "a"), (x,))
    assert relative_error(found, exact(module, (x,))[0]) < 1e-5


def test_network_without_weights(usable, tmp_path):
    x = torch.randn(1, 3, 4, 4)
    (found,) = run(compiled(nn.MaxPool2d(2), (x,), usable(8), tmp_path / "a"), (x,))
    assert np.array_equal(found, F.max_pool2d(x, 2).numpy())


# --- manifest ---------------------------------------------------------------------------------------------------


def test_manifest_vouches_for_each_file(bundled):
    folder, _, _ = bundled
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {p.name for p in folder.iterdir()} == {*manifest["files"], "manifest.json"}
    for name, facts in manifest["files"].items():
        assert facts == {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}


def test_manifest_says_what_the_network_is(bundled):
    folder, program, module = bundled
    manifest = json.loads((folder / "manifest.json").read_text())
    network = lower(trace(module, torch.zeros(1, 1, 8, 8)), profile_of(8))
    assert manifest["inputs"][0]["shape"] == [1, 1, 8, 8] and manifest["outputs"][0]["shape"] == [1, 10]
    assert manifest["peak_memory_bytes"] == network.memory().peak_bytes
    assert manifest["macs"] == network.macs() == sum(c["macs"] for c in manifest["calls"])
    assert {c["kernel"] for c in manifest["calls"]} == set(manifest["kernels"])
    assert len(manifest["kernels"]) < len(manifest["calls"])  # kernels of equal workloads are linked once
    # each constant is padded to a cache line
    assert 0 <= manifest["weights_bytes"] - network.weight_bytes() < 64 * 2 * len(manifest["calls"])
    assert program.profile_us(3).shape == (3, len(manifest["calls"]))
    assert (program.time_us(5) > 0).all()


def test_altered_weights_are_refused(bundled, tmp_path):
    folder, _, _ = bundled
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    runtime.load(copy)
    data = bytearray((copy / "weights.safetensors").read_bytes())
    data[-5] ^= 0x40
    (copy / "weights.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match="weights.safetensors is not what was compiled"):
        runtime.load(copy)


# --- what callers hand over -------------------------------------------------------------------------------------


def test_wrong_shape_count_and_type(bundled):
    _, program, _ = bundled
    x = np.zeros((1, 1, 8, 8), np.float32)
    with pytest.raises(ArtifactError, match=r"must have shape \(1, 1, 8, 8\), but got \(8, 8\)"):
        program(x[0, 0])
    with pytest.raises(ArtifactError, match="takes 1 inputs, but got 2"):
        program(x, x)
    with pytest.raises(ArtifactError, match="must be float32, but got complex64; convert it first"):
        program(x.astype(np.complex64))


def test_memory_order_and_alignment_do_not_matter(bundled):
    _, program, _ = bundled
    x = np.random.default_rng(1).standard_normal((1, 1, 8, 8)).astype(np.float32)
    expected = program(x).copy()
    assert not any(buffer.ctypes.data % 4096 for buffer in (program._weights, program._workspace))
    misaligned = np.zeros(65 * 4 + 4, np.uint8)[4 : 4 + 256].view(np.float32).reshape(1, 1, 8, 8)
    misaligned[...] = x
    assert misaligned.ctypes.data % 64
    transposed = np.asfortranarray(x.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    for same in (misaligned, transposed, x.astype(np.float64), x.tolist()):
        assert np.array_equal(program(same), expected)


def test_results_of_two_calls_are_apart(bundled):
    _, program, _ = bundled
    x = np.ones((1, 1, 8, 8), np.float32)
    first = program(x)
    before = first.copy()
    program(-x)
    assert np.array_equal(first, before)


def test_any_number_of_threads_gives_the_same_bytes(bundled):
    folder, program, _ = bundled
    x = np.random.default_rng(2).standard_normal((1, 1, 8, 8)).astype(np.float32)
    expected = program(x)
    programs = [runtime.load(folder, threads=threads) for threads in (1, 3, 2, 8)]
    for again in [*programs, *reversed(programs), *programs]:  # the pool grows, shrinks and grows
        assert np.array_equal(again(x), expected)


def test_programs_run_in_several_python_threads_at_once(bundled):
    folder, _, _ = bundled
    x = [np.random.default_rng(i).standard_normal((1, 1, 8, 8)).astype(np.float32) for i in range(4)]
    programs = [runtime.load(folder, threads=2) for _ in x]
    expected = [program(x_) for program, x_ in zip(programs, x)]
    with ThreadPoolExecutor(len(x)) as pool:
        found = list(pool.map(lambda i: [programs[i](x[i]) for _ in range(200)], range(len(x))))
    for results, e in zip(found, expected):
        assert all(np.array_equal(r, e) for r in results)


def test_one_program_may_be_called_from_several_threads(bundled):
    _, program, _ = bundled
    x = [np.random.default_rng(i).standard_normal((1, 1, 8, 8)).astype(np.float32) for i in range(4)]
    expected = [program(x_) for x_ in x]
    with ThreadPoolExecutor(len(x)) as pool:
        found = list(pool.map(lambda i: [program(x[i]) for _ in range(300)], range(len(x))))
    for results, e in zip(found, expected):
        assert all(np.array_equal(r, e) for r in results)


def test_program_runs_in_a_forked_child(bundled):
    """A server forks its workers after it has loaded (and run) the network."""
    folder, _, _ = bundled
    script = (
        "import os, sys, numpy as np\nfrom hwprune import runtime\n"
        "program, x = runtime.load(sys.argv[1], threads=2), np.ones((1, 1, 8, 8), np.float32)\n"
        "expected = program(x)\n"
        "pid = os.fork()\n"
        "same = all(np.array_equal(program(x), expected) for _ in range(20))\n"
        "if pid == 0: os._exit(0 if same else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0 and same\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, timeout=60)


def test_running_needs_neither_torch_nor_tvm(bundled):
    folder, _, _ = bundled
    script = (
        "import sys, numpy as np\n"
        "sys.modules.update(torch=None, tvm=None, tvm_ffi=None)  # as if they were not installed\n"
        "from hwprune import runtime\n"
        "assert runtime.load(sys.argv[1])(np.ones((1, 1, 8, 8), np.float32)).shape == (1, 10)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, timeout=60)


# --- writing it -------------------------------------------------------------------------------------------------


def relu_network():
    return lower(trace(nn.ReLU(), torch.randn(1, 8)), profile_of(8))


def test_older_artifact_is_replaced_whole(usable, tmp_path):
    out = tmp_path / "deep" / "artifact"
    for network in (relu_network(), lower(trace(nn.Tanh(), torch.randn(1, 8)), profile_of(8))):
        build_artifact(network, usable(8), first_candidate(profile_of(8)), out)
    assert [p.name for p in out.parent.iterdir()] == ["artifact"]
    assert np.allclose(runtime.load(out)(np.full((1, 8), 0.5, np.float32)), np.tanh(0.5))


def test_folder_with_other_things_is_left_alone(usable, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CompileError, match="is not empty and holds no artifact; choose another folder"):
        build_artifact(relu_network(), usable(8), first_candidate(profile_of(8)), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_missing_linker_leaves_the_older_artifact(usable, tmp_path, monkeypatch):
    out = build_artifact(relu_network(), usable(8), first_candidate(profile_of(8)), tmp_path / "artifact")
    before, profile = sha256_file(out / "manifest.json"), usable(8)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        CompileError, match="linked by `c\\+\\+`, which is not here; install it .*apt-get install g\\+\\+"
    ):
        build_artifact(relu_network(), profile, first_candidate(profile), out)
    assert sha256_file(out / "manifest.json") == before
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


def test_linker_that_fails_says_why(usable, tmp_path, monkeypatch):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'ld: disk quota exceeded' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(CompileError, match="cannot link for target 'x86': ld: disk quota exceeded"):
        build_artifact(relu_network(), usable(8), first_candidate(profile_of(8)), tmp_path / "artifact")
