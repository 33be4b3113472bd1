"""The analytic model against arithmetic written out, and its staircase."""

import pytest
from stopwatch import least_seconds

from hwprune.cost.analytic import VECTOR_OPS, SCALAR_OPS, AnalyticModel
from hwprune.errors import NoLatency
from hwprune.target import TargetProfile
from hwprune.workload import ANCHORS, OpCall, TensorSpec, Workload


def make_profile(**core) -> TargetProfile:
    """One core, 8 lanes, 16 registers, 2 FMAs a cycle of latency 4, 1 GHz: a peak of 32 GFLOP/s."""
    return TargetProfile.model_validate({
        "schema": 1, "name": "toy", "description": "toy", "architecture": "x86_64", "cores": 4, "threads": 1,
        "codegen": {"kind": "llvm", "mcpu": "haswell"},
        "core": {"vector_bits": 256, "vector_registers": 16, "fma_per_cycle": 2, "frequency_mhz": 1000, **core},
        "memory": {"l1d_bytes": 32768, "l2_bytes": 1048576, "dram_gb_per_s": 10, "l2_gb_per_s": 40},
    })  # fmt: skip


def conv(ci: int, co: int, side: int = 16, kernel: int = 3, lanes: int = 8) -> Workload:
    def stored(c):
        return -(-c // lanes) * lanes

    pad = kernel // 2
    call = OpCall.make("conv2d", 0, 1, stride=(1, 1), padding=(pad,) * 4, dilation=(1, 1), groups=1)
    return Workload(
        (TensorSpec((1, side, side, stored(ci))), TensorSpec((stored(co) // lanes, kernel, kernel, ci, lanes), "weight")),
        (call,), TensorSpec((1, side, side, stored(co))), macs=side * side * kernel * kernel * ci * co,
    )  # fmt: skip


def test_convolution_by_hand():
    # 4 columns x 3 vectors = 12 accumulators + 3 weights + 1 input fill the 16 registers; with 16 columns and 2 vectors of
    # output the best tile is 4 columns x 2 vectors: max(8 FMAs, 6 loads) / 2 = 4 cycles a reduction step, which is also the
    # FMA's latency. 16 rows x 4 tiles x 1 vector tile x 144 steps x 4 cycles = 36,864 cycles of 1 ns.
    model = AnalyticModel(make_profile())
    (estimate,) = model.predict([conv(16, 16)])
    assert estimate.latency_us == pytest.approx(36.864)
    assert estimate.provenance == "analytic"
    assert estimate.low_us == pytest.approx(18.432) and estimate.high_us == pytest.approx(73.728)
    # That is the peak: 2 x 589,824 operations at 32 GFLOP/s.
    assert 2 * conv(16, 16).macs / estimate.latency_us / 1e3 == pytest.approx(32.0)


def test_threads_take_whole_waves():
    # 16 rows on 3 threads: tiles of one row and both vectors take 6 waves instead of 16/3; but 32 tasks of one vector take
    # 11 waves at max(4 FMAs, 5 loads) / 2 -> latency 4 cycles. The former is faster: 6 x 4 tiles x 144 x 4 = 13,824.
    model = AnalyticModel(make_profile(), threads=3)
    assert model.predict([conv(16, 16)])[0].latency_us == pytest.approx(13.824)


def test_a_kernel_of_two_anchors_takes_the_arithmetic_of_both_and_moves_nothing_in_between():
    image = TensorSpec((1, 16, 16, 16))
    expand = OpCall.make("conv2d", 0, 1, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1, out=(1, 16, 16))
    window = OpCall.make("depthwise", 3, 2, stride=(2, 2), padding=(1, 1, 1, 1), dilation=(1, 1), multiplier=1, channels=64)
    inputs = (image, TensorSpec((8, 1, 1, 16, 8), "weight"), TensorSpec((3, 3, 64), "weight"))
    both = Workload(inputs, (expand, window), TensorSpec((1, 8, 8, 64)), macs=64 * (256 * 16 + 64 * 9))
    first, second = both.stages
    model = AnalyticModel(make_profile())
    # 256 pixels x 8 vectors x 16 steps, two a cycle; 64 pixels x 8 vectors x 9 taps of a load and a multiply-add, two a cycle
    assert model.latencies_us([first])[0] == pytest.approx(16.384) and model.latencies_us([second])[0] == pytest.approx(4.608)
    assert model.latencies_us([both])[0] == pytest.approx(16.384 + 4.608)
    assert model.latencies_us([both, first])[1] == model.latencies_us([first])[0]
    assert both.bytes_moved < first.bytes_moved + second.bytes_moved - 2 * first.output.size_bytes + 1


def test_element_wise_by_hand():
    # Three tensors of 1x8x8x8 floats, 6,144 bytes, from L1 at 32 bytes x 2 a cycle: 0.096 us. Arithmetic: 64 vectors of one
    # instruction, two a cycle: 0.032 us. Memory is the longer.
    shape = TensorSpec((1, 8, 8, 8))
    workload = Workload((shape, shape), (OpCall.make("add", 0, 1),), shape)
    assert AnalyticModel(make_profile()).predict([workload])[0].latency_us == pytest.approx(0.096)


def test_large_tensors_move_at_dram_speed():
    shape = TensorSpec((1, 512, 512, 8))
    workload = Workload((shape, shape), (OpCall.make("add", 0, 1),), shape)
    assert AnalyticModel(make_profile()).predict([workload])[0].latency_us == pytest.approx(3 * 512 * 512 * 32 / 10e3)


def test_bandwidth_of_l1_and_l3_where_the_profile_gives_them():
    profile = make_profile()
    measured = profile.memory.model_copy(update={"l1_gb_per_s": 48.0, "l3_bytes": 1 << 25, "l3_gb_per_s": 20.0})
    model = AnalyticModel(profile.model_copy(update={"memory": measured}))
    for side, gb_per_s in ((8, 48.0), (256, 20.0)):
        shape = TensorSpec((1, side, side, 8))
        workload = Workload((shape, shape), (OpCall.make("add", 0, 1),), shape)
        assert model.predict([workload])[0].latency_us == pytest.approx(3 * side * side * 32 / (gb_per_s * 1e3))


def test_latency_over_output_width_is_a_staircase():
    model = AnalyticModel(make_profile())
    latency = [e.latency_us for e in model.predict([conv(16, co) for co in range(1, 41)])]
    assert latency == sorted(latency)
    assert len(set(latency[:8])) == 1  # 1 to 8 channels: one vector
    assert latency[8] > latency[7]


def test_half_a_vector_of_padding_takes_half_the_time_where_that_is_told():
    model = AnalyticModel(make_profile(fma_per_cycle=1))
    whole, half = conv(16, 24), conv(16, 20)
    told = Workload(half.inputs, (OpCall.make("conv2d", 0, 1, **dict(half.ops[0].attrs), half=1),), half.output, half.macs)
    all_three, untold, used = (e.latency_us for e in model.predict([whole, half, told]))
    assert untold == all_three and used == pytest.approx(all_three * 2.5 / 3)


def test_latency_over_input_width_is_proportional():
    model = AnalyticModel(make_profile())
    one, two = (e.latency_us for e in model.predict([conv(16, 16), conv(32, 16)]))
    assert two == pytest.approx(2 * one)


def test_latency_bound_core_needs_more_accumulators():
    fast, slow = (
        AnalyticModel(make_profile(fma_latency_cycles=n)).predict([conv(16, 8, side=1, kernel=1)])[0] for n in (2, 8)
    )
    assert slow.latency_us > fast.latency_us


def test_unknown_operator_is_refused_by_name():
    shape = TensorSpec((1, 8, 8, 8))
    with pytest.raises(NoLatency, match="'fft'"):
        AnalyticModel(make_profile()).predict([Workload((shape,), (OpCall.make("fft", 0),), shape)])


def test_knows_every_operator_that_kernels_compute():
    compute = pytest.importorskip("hwprune.kernels.compute")
    known = set(VECTOR_OPS) | SCALAR_OPS | ANCHORS
    assert {*compute.ELEMENTWISE, *compute.MOVEMENT, *compute.ANCHOR_RULES} <= known


def test_a_thousand_predictions_take_under_20_ms():
    model = AnalyticModel(make_profile())
    workloads = [conv(1 + i % 60, 1 + i % 50) for i in range(1000)]
    model.predict(workloads)
    assert least_seconds(lambda: model.predict(workloads), 0.02) < 0.02


def test_nothing_asked_nothing_answered():
    assert AnalyticModel(make_profile()).predict([]) == []
