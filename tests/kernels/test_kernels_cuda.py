"""GPU schedules without a GPU: the same loops run on the CPU against torch, and what nvcc says of the code for each card."""

from __future__ import annotations

import shutil
from typing import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from compiled_networks import profile_of
from emulated_networks import emulate, lowered
from operator_banks import TOLERANCE, exact, randomized, relative_error
from torch import nn

from hwprune.costing import Costing
from hwprune.errors import CompileError, Infeasible
from hwprune.kernels import candidates, primfunc
from hwprune.kernels.cuda import RULES, gemm, resources
from hwprune.kernels.schedule import Config
from hwprune.occupancy import blocks_per_sm, excess
from hwprune.target import TargetProfile, load_file, shipped_folder
from hwprune.workload import Workload

#: One card of each architecture.
CARDS = ("a100", "rtx3090", "jetson-orin", "rtx4090", "h100")


def card(name: str) -> TargetProfile:
    return load_file(shipped_folder() / f"{name}.toml")


class Fn(nn.Module):
    """A function of a value that a kernel made, so that it is stored as kernels store it."""

    def __init__(self, function: Callable, **modules: nn.Module):
        super().__init__()
        self.function, self.parts = function, nn.ModuleDict(modules)

    def forward(self, x):
        return self.function(x * 1.5, **self.parts)


def one(module: nn.Module) -> Fn:
    return Fn(lambda x, m: m(x), m=module)


IMAGE, ROWS = (2, 19, 13, 11), (3, 70)
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv_3x3": (lambda: one(nn.Conv2d(19, 37, 3, padding=1)), IMAGE),
    "conv_3x3_whole_vectors": (lambda: one(nn.Conv2d(16, 64, 3, padding=1)), (1, 16, 14, 14)),
    "conv_5x3_stride_dilation": (lambda: one(nn.Conv2d(19, 11, (5, 3), (2, 1), (2, 0), dilation=(1, 2))), IMAGE),
    "conv_on_input": (lambda: nn.Sequential(nn.Conv2d(3, 24, 7, 2, 3), nn.BatchNorm2d(24), nn.SiLU()), (1, 3, 23, 21)),
    "conv_1x1": (lambda: one(nn.Conv2d(19, 33, 1)), IMAGE),
    "conv_1x1_residual": (lambda: Fn(lambda x, m: F.relu(m(x) + x), m=nn.Conv2d(20, 20, 1)), (1, 20, 7, 7)),
    "conv_groups_of_part_vectors": (lambda: one(nn.Conv2d(6, 14, 3, padding=1, groups=2)), (2, 6, 13, 11)),
    "conv_groups_of_whole_vectors": (lambda: one(nn.Conv2d(16, 32, 3, 2, 1, groups=4)), (1, 16, 13, 11)),
    "dense": (lambda: Fn(lambda x, m: F.gelu(m(x)), m=nn.Linear(70, 23)), ROWS),
    "dense_batch_1": (lambda: one(nn.Linear(521, 1003)), (1, 521)),
    "depthwise": (lambda: one(nn.Conv2d(19, 19, 3, padding=1, groups=19)), IMAGE),
    "depthwise_5x5_stride": (lambda: one(nn.Conv2d(24, 24, 5, 2, 2, groups=24)), (1, 24, 14, 16)),
    "depthwise_multiplier": (lambda: one(nn.Conv2d(6, 12, 3, padding=1, groups=6)), (2, 6, 13, 11)),
    "max_pool": (lambda: Fn(lambda x: F.max_pool2d(x, 3, 2, 1)), IMAGE),
    "average_pool": (lambda: Fn(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)), IMAGE),
    "global_pool": (lambda: Fn(lambda x: x.mean((2, 3))), IMAGE),
    "global_pool_small": (lambda: Fn(lambda x: F.adaptive_avg_pool2d(x, 1)), (3, 40, 2, 2)),
    "element_wise": (lambda: Fn(lambda x: torch.tanh(x) + torch.sigmoid(x) * F.gelu(x)), IMAGE),
    "concat_and_slice": (lambda: Fn(lambda x: torch.cat([x, F.hardswish(x[:, 3:9])], 1)), IMAGE),
    "pad": (lambda: Fn(lambda x: F.pad(x, (1, 2, 0, 3), value=0.5)), IMAGE),
    "flatten": (lambda: Fn(lambda x, m: m(x.flatten(1)), m=nn.Linear(19 * 6, 5)), (2, 19, 3, 2)),
}


def offered(workload: Workload, profile: TargetProfile) -> list[Sequence[Config]]:
    """What each rule offers, though only the first that offers anything is asked otherwise."""
    return [found for rule in RULES if (found := rule.candidates(workload, profile))]


def samples(found: Sequence[Config]) -> list[Config]:
    return list(dict.fromkeys(found[i] for i in (0, len(found) // 3, 2 * len(found) // 3, len(found) - 1)))


# --- numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_schedule_computes_what_torch_computes(family):
    torch.manual_seed(0)
    make, shape = FAMILIES[family]
    module, inputs, gpu = randomized(make()), (torch.randn(shape),), card("a100")
    network, expected = lowered(module, inputs, gpu), exact(module, inputs)
    # every rule, every sample of its candidates; kernels that are not the family's keep their first one
    main = max(network.workloads(), key=lambda w: (w.anchor is not None, w.macs, len(w.ops)))
    tried = [config for found in offered(main, gpu) for config in samples(found)]
    assert tried
    for config in tried:
        outputs = emulate(network, inputs, lambda w, config=config: config if w.key == main.key else candidates(w, gpu)[0], gpu)
        for found, e in zip(outputs, expected, strict=True):
            assert relative_error(found, e) < TOLERANCE, config.to_text()


@pytest.mark.parametrize("family", ["conv_3x3", "conv_on_input"])
@pytest.mark.parametrize("tile", [(128, 128, 8, 8, 8), (64, 32, 32, 4, 8), (16, 64, 16, 2, 4)])
def test_tiles_larger_than_the_result(family, tile):
    torch.manual_seed(1)
    make, shape = FAMILIES[family]
    module, inputs, gpu = randomized(make()), (torch.randn(shape),), card("h100")
    network = lowered(module, inputs, gpu)
    config = Config.make(gemm.name, **dict(zip(("bm", "bn", "bk", "tm", "tn"), tile)))
    outputs = emulate(network, inputs, lambda w: config if w.anchor else candidates(w, gpu)[0], gpu)
    assert relative_error(outputs[0], exact(module, inputs)[0]) < TOLERANCE


# --- dispatch and limits ----------------------------------------------------------------------------------------


def workloads_of(family: str, profile: TargetProfile) -> list[Workload]:
    make, shape = FAMILIES[family]
    return lowered(make(), (torch.zeros(shape),), profile).workloads()


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_are_for_gpus_or_for_cpus(family):
    gpu, cpu = card("rtx3090"), profile_of(4)
    for workload in workloads_of(family, gpu):
        ours = {rule.name for rule in RULES}
        assert {c.rule for c in candidates(workload, gpu)} <= ours
        assert not {c.rule for c in candidates(workload, cpu)} & ours


def test_schedules_over_the_limits_are_refused_with_both_values():
    gpu = card("a100")
    workload = next(w for w in workloads_of("conv_3x3", gpu) if w.anchor)
    small = gpu.model_copy(update={"gpu": gpu.gpu.model_copy(update={"shared_memory_per_block_bytes": 4096})})
    config = Config.make(gemm.name, bm=128, bn=128, bk=8, tm=8, tn=8)
    with pytest.raises(Infeasible, match="10368 bytes of shared memory of a block, but the card has 4096"):
        primfunc(workload, small, config)
    with pytest.raises(Infeasible, match="16384 threads of a block, but the card has 1024"):
        primfunc(workload, gpu, Config.make(gemm.name, bm=128, bn=128, bk=8, tm=1, tn=1))
    assert {c["bm"] * c["bk"] for c in gemm.candidates(workload, small)} < {c["bm"] * c["bk"] for c in gemm.candidates(workload, gpu)} | {128, 256, 512}
    assert all(c["bm"] * (c["bk"] + 4) + c["bk"] * (c["bn"] + 4) <= 1024 for c in gemm.candidates(workload, small))


def test_costing_of_a_gpu_predicts_and_picks_without_one(tmp_path):
    workloads = [w for family in FAMILIES for w in workloads_of(family, card("h200"))]
    with Costing(card("h200"), tmp_path / "store") as costing:
        assert not costing.measurable
        assert all(e.provenance == "analytic" and e.latency_us > 0 for e in costing.model.predict(workloads))
        assert costing.pick(workloads[0]) == candidates(workloads[0], costing.profile)[0]


# --- nvcc -------------------------------------------------------------------------------------------------------

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no `nvcc`: put NVIDIA's CUDA toolkit on PATH")


@needs_nvcc
@pytest.mark.parametrize("name", CARDS)
def test_every_family_builds_within_the_cards_limits(name):
    gpu, functions, configs = card(name), {}, {}
    for family in FAMILIES:
        workload = max(workloads_of(family, gpu), key=lambda w: (w.anchor is not None, w.macs, len(w.ops)))
        for i, config in enumerate(found[0] for found in offered(workload, gpu)):
            functions[f"{family}_{i}"], configs[f"{family}_{i}"] = primfunc(workload, gpu, config), config
    assert {c.rule for c in configs.values()} == {rule.name for rule in RULES} - {"cuda_tensor"}
    for symbol, found in resources.resources(functions, gpu).items():
        what = f"{symbol} {configs[symbol].to_text()}: {found}"
        assert excess(found.usage, gpu.gpu) is None, what
        assert blocks_per_sm(found.usage, gpu.gpu) >= 1, what
        assert found.spill_store_bytes == found.spill_load_bytes == found.stack_bytes == 0, what


@needs_nvcc
def test_code_that_does_not_compile_is_one_sentence(monkeypatch):
    gpu = card("a100")
    monkeypatch.setattr(resources, "source", lambda functions, profile: "__global__ void f() { nothing; }")
    with pytest.raises(CompileError, match='`nvcc` cannot compile for sm_80: .*identifier "nothing" is undefined'):
        resources.resources({}, gpu)


def test_without_nvcc_the_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match="`nvcc`, which is not here; install NVIDIA's CUDA toolkit"):
        resources.nvcc()
