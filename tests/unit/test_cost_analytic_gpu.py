"""The analytic model of a GPU against arithmetic written out."""

import pytest
from test_cost_analytic import conv

from hwprune.cost.analytic import AnalyticModel
from hwprune.cost.analytic_gpu import GpuAnalyticModel, analytic_model
from hwprune.target import TargetProfile, load_file, shipped_folder
from hwprune.workload import OpCall, TensorSpec, Workload


def card(**core) -> TargetProfile:
    """Four SMs of 8 vector multiply-adds a cycle at 1 GHz, 64 bytes a cycle of each from a L2 of 1 MB, 100 GB/s beyond."""
    a100 = load_file(shipped_folder() / "a100.toml")
    return a100.model_copy(update={
        "cores": 4, "threads": 4,
        "core": a100.core.model_copy(update={"fma_per_cycle": 8, "frequency_mhz": 1000, **core}),
        "memory": a100.memory.model_copy(update={"l2_bytes": 1 << 20, "l2_gb_per_s": 64, "dram_gb_per_s": 100}),
    })  # fmt: skip


def test_convolution_by_hand():
    # 256 pixels x 4 vectors. Tiles of 64 x 4 give each SM one block: 256 vector multiply-adds a step, 8 a cycle: 32
    # cycles, more than 4 x (64 + 16) bytes at 64 a cycle take. 144 steps of 32 ns.
    assert GpuAnalyticModel(card()).predict([conv(16, 16, lanes=4)])[0].latency_us == pytest.approx(144 * 0.032)


def test_matrix_vector_product_is_bound_by_its_weights():
    # 256 vectors, 64 for each SM. The best tile, 1 x 32, fetches 4 x 129 bytes in 8.0625 cycles, twice an SM: 100 steps
    # take 1.6125 us. All operands are 4 x (100 + 102,400 + 1,024) bytes, 1.6176 us at the 256 bytes a ns of four SMs.
    spec = TensorSpec((1, 1024))
    call = OpCall.make("dense", 0, 1)
    workload = Workload((TensorSpec((1, 100)), TensorSpec((256, 100, 4), "weight")), (call,), spec)
    assert GpuAnalyticModel(card()).predict([workload])[0].latency_us == pytest.approx(4 * 103_524 / 256e3)


def test_memory_beyond_l2_is_dram():
    def add(values: int) -> float:
        shape = TensorSpec((1, values))
        return GpuAnalyticModel(card(fma_per_cycle=1000)).predict([Workload((shape, shape), (OpCall.make("add", 0, 1),), shape)])[0].latency_us

    assert add(80_000) == pytest.approx(12 * 80_000 / 256e3)  # four SMs of 64 bytes a nanosecond
    assert add(100_000) == pytest.approx(12 * 100_000 / 100e3)


def test_products_run_at_the_peak_of_the_tensor_cores_where_the_profile_allows_them():
    # 4 SMs at 1 GHz and 0.512 TFLOPS: 64 multiply-adds a cycle of each, 16 vectors. Tiles of 64 x 4 take 16 cycles a step
    # instead of 32, 4 x (64 + 16) bytes still 5: half of what the CUDA cores take. Groups and fewer than 16 rows stay there.
    def latencies(*precision: str):
        profile = card()
        gpu = profile.gpu.model_copy(update={"tf32_tflops": 0.512, "fp16_tflops": 0.768, "precision": ("fp32", *precision)})
        few = Workload((TensorSpec((15, 64)), TensorSpec((64, 64, 4), "weight")), (OpCall.make("dense", 0, 1),), TensorSpec((15, 256)))
        found = GpuAnalyticModel(profile.model_copy(update={"gpu": gpu})).predict([conv(16, 16, lanes=4), few])
        return [estimate.latency_us for estimate in found]

    exact, few = latencies()
    assert latencies("tf32") == pytest.approx([exact / 2, few])
    assert latencies("tf32", "fp16") == pytest.approx([exact / 3, few])


def test_more_pixels_than_the_sms_take_at_once_are_another_wave():
    latency = [GpuAnalyticModel(card()).predict([conv(16, 256, side=side, kernel=1, lanes=4)])[0].latency_us for side in (16, 17)]
    assert latency[1] > 1.05 * latency[0]


def test_which_model_a_profile_gets():
    assert type(analytic_model(card())) is GpuAnalyticModel
    assert type(analytic_model(load_file(shipped_folder() / "x86.toml"))) is AnalyticModel
