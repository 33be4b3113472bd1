"""Artifacts where there is no Python: the native runner, on this machine and on AArch64 under qemu."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hwprune.compile.artifact import build_artifact
from hwprune.compile.lower import lower
from hwprune.errors import CompileError
from hwprune.graph import trace
from hwprune.kernels import candidates
from hwprune.spec.model import load_model
from hwprune.target import load_file, shipped_folder


class Odd(nn.Module):
    """Odd widths, every kind of kernel, two inputs and two outputs."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 7, 3, 2, 1, bias=False), nn.BatchNorm2d(7)
        self.wide, self.deep = nn.Conv2d(7, 19, 1), nn.Conv2d(19, 19, 3, padding=1, groups=19)
        self.grouped, self.down = nn.Conv2d(19, 38, 3, padding=1, groups=19), nn.Conv2d(45, 13, 1)
        self.row, self.fc = nn.Linear(5, 13), nn.Linear(13, 11)

    def forward(self, image, row):
        x = F.relu(self.bn(self.stem(image)))
        y = F.silu(self.grouped(F.hardswish(self.deep(F.gelu(self.wide(x))))))
        z = self.down(torch.cat([F.max_pool2d(x, 3, 1, 1), y], 1)) * torch.sigmoid(self.row(row)).view(1, 13, 1, 1)
        return self.fc(torch.tanh(z).mean((2, 3))), F.avg_pool2d(z, 3, 2, 1, count_include_pad=False)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """``build(target, network)``: (artifact, inputs, what torch computes); each made once."""
    made = {}

    def of(target: str, name: str):
        if (target, name) not in made:
            torch.manual_seed(0)
            if name == "bundled":
                module, inputs = load_model("bundled:digits_resnet").module.eval(), (torch.rand(1, 1, 8, 8),)
            else:
                module, inputs = Odd().eval(), (torch.randn(1, 3, 11, 9), torch.randn(1, 5))
            profile = load_file(shipped_folder() / f"{target}.toml")
            out = tmp_path_factory.mktemp(f"{target}-{name}") / "artifact"
            build_artifact(lower(trace(module, inputs), profile), profile, lambda w: candidates(w, profile)[0], out)
            with torch.no_grad():
                expected = module(*inputs)
            made[target, name] = out, inputs, expected if isinstance(expected, tuple) else (expected,)
        return made[target, name]

    return of


@pytest.fixture(params=["native", "arm"])
def board(request):
    """(board, target): the runner on this machine, then under qemu."""
    board = request.getfixturevalue(f"{request.param}_board")
    return board, {"native": "x86", "arm": "arm"}[request.param]


@pytest.fixture(autouse=True)
def needs_this_machine(request):
    if "board" in request.fixturenames and request.node.callspec.params["board"] == "native":
        if not load_file(shipped_folder() / "x86.toml").runs_here():
            pytest.skip("this processor lacks AVX2 and FMA, which profile 'x86' needs")


def run(board, artifact, inputs, outputs: int, folder, *more):
    sources = [folder / f"x{i}.npy" for i in range(len(inputs))]
    results = [folder / f"y{i}.npy" for i in range(outputs)]
    for path, x in zip(sources, inputs):
        np.save(path, x.numpy())
    done = board.run(artifact, *sources, *results, *more)
    assert done.returncode == 0, done.stderr
    return [np.load(path) for path in results], done


@pytest.mark.parametrize("name", ["bundled", "odd"])
def test_output_is_what_torch_computes(board, build, name, tmp_path):
    machine, target = board
    artifact, inputs, expected = build(target, name)
    found, _ = run(machine, artifact, inputs, len(expected), tmp_path)
    for f, e in zip(found, expected, strict=True):
        assert np.abs(f.reshape(e.shape) - e.numpy()).max() < 1e-4


def test_bench_prints_latencies(board, build, tmp_path):
    machine, target = board
    artifact, inputs, expected = build(target, "bundled")
    _, done = run(machine, artifact, inputs, len(expected), tmp_path, "--bench", "5")
    figures = re.fullmatch(r"latency_us median ([\d.]+) low ([\d.]+) high ([\d.]+) runs 5 threads 2\n", done.stdout)
    median, low, high = map(float, figures.groups())
    assert 0 < low <= median <= high


def test_cross_compiled_library_is_for_the_target(arm_board, build):
    artifact, _, _ = build("arm", "odd")
    header = (artifact / "network.so").read_bytes()[:20]
    assert header[:5] == b"\x7fELF\x02" and int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64


# --- bad input --------------------------------------------------------------------------------------------------


def refusal(native_board, *arguments) -> str:
    done = native_board.run(*arguments)
    assert done.returncode == 1 and done.stderr.startswith("hwprune-run: ") and done.stderr.count("\n") == 1
    return done.stderr


def saved(folder, array, name="x.npy"):
    np.save(folder / name, array)
    return folder / name


@pytest.fixture
def artifact(build):
    if not load_file(shipped_folder() / "x86.toml").runs_here():
        pytest.skip("this processor lacks AVX2 and FMA, which profile 'x86' needs")
    return build("x86", "bundled")[0]


@pytest.mark.parametrize(
    "array, said",
    [
        (np.zeros((1, 1, 8, 8)), "must hold float32"),
        (np.zeros((1, 1, 7, 8), np.float32), "holds 56 elements, the network takes 64"),
        (np.asfortranarray(np.zeros((8, 8), np.float32)), "must be in C order"),
    ],
)
def test_runner_refuses_input_that_does_not_fit(native_board, artifact, tmp_path, array, said):
    assert said in refusal(native_board, artifact, saved(tmp_path, array), tmp_path / "y.npy")


def test_runner_refuses_files_that_are_not_there_or_not_whole(native_board, artifact, tmp_path):
    good, out = saved(tmp_path, np.zeros((1, 1, 8, 8), np.float32)), tmp_path / "y.npy"
    assert "cannot read" in refusal(native_board, artifact, tmp_path / "none.npy", out)
    (tmp_path / "text.npy").write_text("not numbers, but long enough")
    assert "is not a .npy file" in refusal(native_board, artifact, tmp_path / "text.npy", out)
    (tmp_path / "short.npy").write_bytes(good.read_bytes()[:40])
    assert "is cut short" in refusal(native_board, artifact, tmp_path / "short.npy", out)
    assert "cannot write" in refusal(native_board, artifact, good, tmp_path / "no" / "folder" / "y.npy")
    assert "cannot load" in refusal(native_board, tmp_path, good, out)
    assert "has 1 inputs and 1 outputs, but got 3 files" in refusal(native_board, artifact, good, good, out)


def test_runner_refuses_weights_that_are_cut_short(native_board, artifact, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "network.so").write_bytes((artifact / "network.so").read_bytes())
    (copy / "weights.safetensors").write_bytes((artifact / "weights.safetensors").read_bytes()[:1000])
    text = refusal(native_board, copy, saved(tmp_path, np.zeros((1, 1, 8, 8), np.float32)), tmp_path / "y.npy")
    assert "holds fewer weights than the network reads" in text


def test_runner_without_arguments_prints_its_usage(native_board):
    done = native_board.run()
    assert done.returncode == 2 and done.stderr.startswith("usage: hwprune-run ARTIFACT")


# --- the cross compiler -----------------------------------------------------------------------------------------


def test_missing_cross_compiler_is_one_sentence(tmp_path, monkeypatch):
    profile = load_file(shipped_folder() / "arm.toml")
    network = lower(trace(nn.ReLU(), torch.randn(1, 8)), profile)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = r"target 'arm' is linked by `aarch64-linux-gnu-g\+\+`, which is not here; install it .*apt-get install g\+\+-aarch64-linux-gnu"
    with pytest.raises(CompileError, match=said):
        build_artifact(network, profile, lambda w: candidates(w, profile)[0], tmp_path / "artifact")
    assert not list(tmp_path.iterdir())


def test_command_without_cross_compiler_exits_with_one_sentence(tmp_path):
    out = tmp_path / "artifact"
    command = [
        sys.executable,
        "-m",
        "hwprune",
        "compile",
        "bundled:digits_resnet",
        "--target",
        "arm",
        "--out",
        str(out),
    ]
    done = subprocess.run(
        command, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "`aarch64-linux-gnu-g++`, which is not here" in said and "g++-aarch64-linux-gnu" in said
    assert "Traceback" not in done.stderr and not out.exists()
