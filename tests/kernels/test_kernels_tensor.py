"""Kernels for tensor cores without a GPU: their warps run on the CPU, lane by lane, and nvcc builds them for each card.

What they should give is torch's result with both factors rounded as tensor cores take them.
"""

from __future__ import annotations

import copy
import functools
import shutil
import subprocess

import numpy as np
import pytest
import torch
from emulated_networks import emulate as emulated
from emulated_networks import lowered
from operator_banks import TOLERANCE, exact, randomized, relative_error
from test_kernels_cuda import CARDS, Fn, card, needs_nvcc, one
from torch import nn

from hwprune.compile.lower import Network
from hwprune.errors import CompileError, Infeasible
from hwprune.kernels import candidates, is_exact, primfunc, repacked
from hwprune.kernels.cuda import emulate, gemm, resources, split, tensor
from hwprune.kernels.cuda.ptx import PRECISIONS, TF32
from hwprune.kernels.cuda.tensor_kernel import pipeline
from hwprune.kernels.cuda.tensor_weights import fragments
from hwprune.kernels.schedule import Config
from hwprune.occupancy import blocks_per_sm, excess
from hwprune.target import TargetProfile
from hwprune.workload import Workload


def allowing(name: str, *precisions: str) -> TargetProfile:
    """The card's profile as of a user who allows these beside fp32."""
    profile = card(name)
    return profile.model_copy(update={"gpu": profile.gpu.model_copy(update={"precision": ("fp32", *precisions)})})


def kernel(precision: str, *tile: int) -> Config:
    return Config.make(tensor.name, precision=precision, **dict(zip(("bm", "bn", "bk", "wm", "wn", "wk", "stages"), tile)))


def main(network: Network) -> Workload:
    return next(w for w in network.workloads() if w.anchor)


def rounded_to(precision: str, x: torch.Tensor) -> torch.Tensor:
    """To nearest: float16 has 11 bits, TF32 as many with the exponents of float32, ties away from zero."""
    if precision == "fp16":
        return x.float().half().double()
    return ((x.float().contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()


def with_rounded_factors(module: nn.Module, precision: str) -> nn.Module:
    module = copy.deepcopy(module)
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_pre_hook(lambda _, args: (rounded_to(precision, args[0]),))
            layer.weight.data = rounded_to(precision, layer.weight.data).float()
    return module


#: (network, input, tiles as bm, bn, bk, wm, wn, wk, stages): odd numbers of pixels, channels and steps, and even ones.
CASES = {
    "3x3": (lambda: one(nn.Conv2d(19, 37, 3, padding=1)), (1, 19, 7, 6), [(64, 64, 32, 2, 2, 2, 2)]),
    "3x3_whole": (lambda: one(nn.Conv2d(16, 32, 3, padding=1)), (1, 16, 8, 8), [(32, 32, 16, 2, 1, 1, 3)]),
    "5x3_stride_dilation": (lambda: one(nn.Conv2d(19, 11, (5, 3), (2, 1), (2, 0), dilation=(1, 2))), (2, 19, 7, 8), [(32, 32, 64, 1, 1, 4, 2)]),
    "1x1_residual": (lambda: Fn(lambda x, m: torch.relu(m(x) + x), m=nn.Conv2d(20, 20, 1)), (2, 20, 5, 7), [(64, 32, 32, 4, 1, 1, 4)]),
    "on_image": (lambda: nn.Sequential(nn.Conv2d(3, 24, 5, 2, 2), nn.SiLU()), (1, 3, 9, 12), [(32, 32, 32, 4, 1, 1, 2)]),
    "dense": (lambda: Fn(lambda x, m: torch.tanh(m(x)), m=nn.Linear(70, 87)), (19, 70), [(32, 64, 32, 4, 2, 1, 2), (16, 32, 64, 2, 1, 4, 4)]),
}  # fmt: skip


@functools.lru_cache
def traced(case: str) -> tuple[nn.Module, tuple[torch.Tensor, ...], Network]:
    """The case's network, its input, and it lowered for any of the cards, whose vectors are alike."""
    torch.manual_seed(0)
    make, shape, _ = CASES[case]
    module, inputs = randomized(make()), (torch.randn(shape),)
    return module, inputs, lowered(module, inputs, card("a100"))


def result(case: str, precision: str, tile: tuple[int, ...]) -> np.ndarray:
    """What the case's kernel of ``tile`` gives on the emulated card."""
    gpu, (_, inputs, network) = allowing("a100", precision), traced(case)
    return emulated(network, inputs, lambda w: kernel(precision, *tile) if w.anchor else candidates(w, gpu)[0], gpu)[0]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_products_of_rounded_factors(case, precision):
    module, inputs, _ = traced(case)
    expected = exact(with_rounded_factors(module, precision), inputs)[0]
    for tile in CASES[case][-1]:
        assert relative_error(result(case, precision, tile), expected) < TOLERANCE, tile
    assert relative_error(exact(module, inputs)[0], expected) > 10 * TOLERANCE


class ColumnsForRows(emulate.Emulated):
    """A warp whose lanes hold another element of the sums than the kernel takes them for."""

    def multiply(self, precision, sums, c, *factors):
        super().multiply(precision, sums, [c[0], c[2], c[1], c[3]], *factors)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("wrong", ["sums", "weights"])
def test_a_lane_with_another_element_spoils_the_result(wrong, precision, monkeypatch):
    if wrong == "sums":
        monkeypatch.setattr(emulate, "Emulated", ColumnsForRows)
    else:
        monkeypatch.setattr(tensor, "fragments", lambda *args: fragments(*args).reshape(-1, 4)[:, [0, 2, 1, 3]].ravel())
    case = "1x1_residual"
    module, inputs, _ = traced(case)
    assert relative_error(result(case, precision, CASES[case][-1][0]), exact(module, inputs)[0]) > 0.1


def test_what_float16_cannot_hold_becomes_infinite_and_tf32_holds_it():
    torch.manual_seed(1)
    module, inputs = one(nn.Conv2d(16, 16, 1, bias=False)), (torch.full((1, 16, 4, 4), 60_000.0),)
    results = {}
    for precision in PRECISIONS:
        gpu = allowing("a100", precision)
        config = kernel(precision, 32, 32, 16, 1, 1, 1, 2)
        [results[precision]] = emulated(lowered(module, inputs, gpu), inputs, lambda w, c=config, g=gpu: c if w.anchor else candidates(w, g)[0], gpu)
    assert not np.isfinite(results["fp16"]).any()
    assert relative_error(results["tf32"], exact(module, inputs)[0]) < 2**-10


# --- the packed factor ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=list(PRECISIONS))
def test_fragments_hold_each_value_once_and_zeros_up_to_whole_tiles(precision):
    matrix = 1 + np.arange(37 * 23, dtype=np.float32).reshape(37, 23)  # all of them fit 11 bits
    found = fragments(matrix, precision, 32, 16)
    assert found.size * 4 == 48 * 32 * precision.bytes
    values = found if precision is TF32 else found.view(np.float16).astype(np.float32)
    assert sorted(values[values != 0]) == sorted(matrix.ravel())


def test_weights_are_rounded_to_nearest_ties_away_from_zero():
    one_more = 1 + 2**-10
    weights = np.array([[1 + 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-20, one_more]], np.float32)
    found = fragments(weights, TF32, 32, 16)
    assert sorted(found[found != 0]) == [-one_more, 1, one_more, one_more]


def test_a_weight_beyond_float16_is_refused_in_one_sentence():
    gpu = allowing("a100", "fp16")
    workload = main(lowered(one(nn.Linear(32, 32)), (torch.zeros(16, 32),), gpu))
    [(number, repack)] = repacked(workload, kernel("fp16", 32, 32, 16, 1, 1, 1, 2)).items()
    weight = np.full(workload.inputs[number].shape, 65_519, np.float32)
    assert np.isfinite(repack.transform(weight).view(np.float16)).all()
    with pytest.raises(CompileError, match="a weight of 70000 is beyond 65504, the largest of float16; leave fp16 out of"):
        repack.transform(weight + 4481)


# --- order of copies and products -------------------------------------------------------------------------------


class Recorder:
    """Runs ``pipeline`` with numbers, and checks that a stage is read once its copies have arrived and written once it was read."""

    def __init__(self, stages: int):
        self.stages, self.groups, self.started, self.arrived, self.content = stages, [], [], 0, {}
        self.multiplied, self.behind_barrier = [], -1

    def each(self, count, body):
        for i in range(count):
            body(i)

    def when(self, condition, body):
        if condition:
            body()

    def fetch(self, step):
        old = self.content.get(step % self.stages)
        assert old is None or old <= self.behind_barrier, "another thread may still read this stage"
        self.content[step % self.stages] = step
        self.started.append(step)

    def commit(self):
        self.groups.append(self.started)
        self.started = []

    def wait(self, pending):
        self.arrived = max(self.arrived, len(self.groups) - pending)

    def barrier(self):
        self.behind_barrier = len(self.multiplied) - 1

    def multiply(self, step):
        assert self.content[step % self.stages] == step
        assert any(step in group for group in self.groups[: self.arrived]), "its copies may still be under way"
        self.multiplied.append(step)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_stages_are_read_behind_their_copies_and_written_behind_their_products(steps, stages):
    recorder = Recorder(stages)
    pipeline(recorder, steps, stages, recorder.fetch, recorder.multiply)
    assert recorder.multiplied == list(range(steps))


# --- who is offered them ----------------------------------------------------------------------------------------


def test_tensor_cores_are_for_profiles_that_allow_rounding():
    gpu, both = card("a100"), allowing("a100", "tf32", "fp16")
    workload = main(lowered(one(nn.Conv2d(64, 64, 3, padding=1)), (torch.zeros(1, 64, 56, 56),), gpu))
    assert gpu.gpu.precision == ("fp32",) and tensor.candidates(workload, gpu) is None
    assert {c["precision"] for c in tensor.candidates(workload, allowing("a100", "tf32"))} == {"tf32"}
    assert {c["precision"] for c in tensor.candidates(workload, both)} <= {"tf32", "fp16"}
    with pytest.raises(Infeasible, match="target 'a100' allows fp32"):
        primfunc(workload, gpu, tensor.candidates(workload, both)[0])


def test_exact_leaves_them_out_and_otherwise_they_take_turns_with_exact_ones():
    gpu = allowing("a100", "tf32", "fp16")
    for shape, other in (((1, 64, 56, 56), gemm.name), ((1, 64, 7, 7), split.name)):
        workload = main(lowered(one(nn.Conv2d(64, 64, 3, padding=1)), (torch.zeros(shape),), gpu))
        assert {c.rule for c in candidates(workload, gpu)[:2]} == {tensor.name, other}
        assert {c.rule for c in candidates(workload, gpu, exact=True)} == {other}
    assert is_exact(Config.make(other)) and not is_exact(kernel("tf32", 32, 32, 16, 1, 1, 1, 2))


def test_the_peak_of_a_precision_ranks_it():
    gpu = allowing("a100", "tf32", "fp16")
    workload = main(lowered(one(nn.Linear(2048, 2048)), (torch.zeros(2048, 2048),), gpu))
    assert tensor.candidates(workload, gpu)[0]["precision"] == "fp16"
    swapped = gpu.model_copy(update={"gpu": gpu.gpu.model_copy(update={"tf32_tflops": gpu.gpu.fp16_tflops, "fp16_tflops": gpu.gpu.tf32_tflops / 4})})
    assert tensor.candidates(workload, swapped)[0]["precision"] == "tf32"


def test_tiles_that_do_not_fit_are_refused_with_what_is_wrong():
    gpu = allowing("a100", "tf32")
    workload = main(lowered(one(nn.Conv2d(64, 64, 3, padding=1)), (torch.zeros(1, 64, 56, 56),), gpu))
    for tile, complaint in (
        ((64, 64, 32, 2, 2, 1, 1), "fewer than 2 stages"),
        ((64, 64, 24, 2, 2, 1, 2), "do not fill the block with pieces"),
        ((128, 128, 32, 2, 4, 1, 4), "131072 bytes of shared memory of a block, but the card has 49152"),
        ((32, 32, 16, 2, 1, 2, 2), "do not fill the block"),
        ((128, 64, 32, 1, 1, 1, 2), "registers of a thread, but the card has 255"),
        ((64, 128, 32, 2, 2, 2, 2), "sums of 2 groups do not fit where the pixels were"),
    ):
        with pytest.raises(Infeasible, match=complaint):
            primfunc(workload, gpu, kernel("tf32", *tile))
    with pytest.raises(Infeasible, match="tensor cores take tf32, fp16"):
        primfunc(workload, gpu, kernel("int8", 64, 64, 32, 2, 2, 1, 2))


# --- nvcc -------------------------------------------------------------------------------------------------------

MNEMONICS = {"tf32": "HMMA.1688.F32.TF32", "fp16": "HMMA.16816.F32"}

def functions_for(gpu: TargetProfile) -> dict:
    """The first candidate of each precision for odd widths, and the largest tile."""
    found = {}
    for precision, case in (("tf32", "3x3"), ("fp16", "on_image")):
        only, workload = allowing(gpu.name, precision), main(traced(case)[-1])
        found[f"{precision}_first"] = primfunc(workload, only, tensor.candidates(workload, only)[0])
    found["tf32_largest"] = primfunc(main(traced("3x3")[-1]), allowing(gpu.name, "tf32"), kernel("tf32", 128, 128, 16, 2, 2, 1, 2))
    return found


@needs_nvcc
@pytest.mark.parametrize("name", CARDS)
def test_each_precision_builds_within_the_cards_limits(name):
    gpu = allowing(name, *PRECISIONS)
    for symbol, found in resources.resources(functions_for(gpu), gpu).items():
        assert excess(found.usage, gpu.gpu) is None, (symbol, found)
        assert blocks_per_sm(found.usage, gpu.gpu) >= 1, (symbol, found)
        assert found.spill_store_bytes == found.spill_load_bytes == found.stack_bytes == 0, (symbol, found)


@needs_nvcc
@pytest.mark.skipif(shutil.which("nvdisasm") is None, reason="no `nvdisasm` of NVIDIA's CUDA toolkit: machine code is not read")
def test_machine_code_has_the_instructions_of_tensor_cores(tmp_path):
    gpu = allowing("a100", *PRECISIONS)
    functions = functions_for(gpu)
    (tmp_path / "kernels.cubin").write_bytes(resources.machine_code(resources.source(functions, gpu), gpu).cubin)
    text = subprocess.run(["nvdisasm", str(tmp_path / "kernels.cubin")], capture_output=True, text=True, check=True).stdout
    kernels = {part.split("_kernel", 1)[0]: part for part in text.split(".text.")[1:]}
    for precision, mnemonic in MNEMONICS.items():
        part = kernels[f"{precision}_first"]
        assert mnemonic in part and "LDL" not in part
    assert "LDGSTS" in kernels["tf32_first"]
