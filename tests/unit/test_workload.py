"""Workloads as values: text, equality, bytes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprune.workload import OpCall, TensorSpec, Workload


def convolution(**changes) -> Workload:
    conv = OpCall.make("conv2d", 0, 1, stride=[2, 2], padding=[1, 1, 1, 1], layout="nhwc", groups=1)
    bias, relu = OpCall.make("add", 3, 2), OpCall.make("leaky_relu", 4, slope=0.1)
    inputs = (TensorSpec((1, 8, 8, 16)), TensorSpec((2, 3, 3, 16, 8), "weight"), TensorSpec((16,), "weight"))
    return replace(Workload(inputs, (conv, bias, relu), TensorSpec((1, 4, 4, 16)), macs=36864), **changes)


def test_key_is_canonical_text():
    assert convolution().key == (
        "(dfloat32[1,8,8,16],wfloat32[2,3,3,16,8],wfloat32[16])"
        "conv2d(0,1 groups=1 layout=nhwc padding=1x1x1x1 stride=2x2);add(3,2);leaky_relu(4 slope=0.1)"
        "->dfloat32[1,4,4,16]"
    )


def test_attributes_have_no_order_and_lists_are_tuples():
    assert OpCall.make("pool2d", 0, kind="max", kernel=[2, 3]) == OpCall.make("pool2d", 0, kernel=(2, 3), kind="max")
    assert hash(convolution()) == hash(convolution())


@pytest.mark.parametrize(
    "other",
    [
        convolution(inputs=(TensorSpec((1, 8, 8, 24)), *convolution().inputs[1:])),
        convolution(output=TensorSpec((1, 4, 4, 24))),
        convolution(ops=convolution().ops[:2]),
        convolution(ops=(*convolution().ops[:2], OpCall.make("leaky_relu", 4, slope=0.2))),
        convolution(ops=(*convolution().ops[:2], OpCall.make("leaky_relu", 3, slope=0.1))),
        convolution(inputs=(TensorSpec((1, 8, 8, 16), "weight"), *convolution().inputs[1:])),
        convolution(inputs=(TensorSpec((1, 8, 8, 16), dtype="float16"), *convolution().inputs[1:])),
    ],
)
def test_whatever_changes_the_kernel_changes_the_key(other):
    assert other.key != convolution().key


def test_macs_do_not_change_the_kernel():
    """Two widths in one vector run the same kernel: the measurement is shared."""
    assert convolution(macs=1).key == convolution().key


def test_bytes_are_hand_arithmetic():
    workload = convolution()
    assert workload.weight_bytes == 4 * (2 * 3 * 3 * 16 * 8 + 16)
    assert workload.bytes_moved == workload.weight_bytes + 4 * (8 * 8 * 16 + 4 * 4 * 16)
    assert TensorSpec((3, 5), dtype="int64").size_bytes == 120


def test_anchor():
    assert convolution().anchor.op == "conv2d"
    assert Workload((TensorSpec((4,)),), (OpCall.make("relu", 0),), TensorSpec((4,))).anchor is None


def test_attributes_by_name():
    call = OpCall.make("clip", 0, low=0.0, high=6.0)
    assert call["high"] == 6.0 and call.get("absent", 3) == 3
    with pytest.raises(KeyError):
        call["absent"]


numbers = st.one_of(st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False), st.none(), st.booleans())
values = st.one_of(numbers, st.text("ab", max_size=3), st.lists(st.integers(0, 9), max_size=4))
specs = st.builds(
    TensorSpec, st.lists(st.integers(1, 99), min_size=1, max_size=5).map(tuple), st.sampled_from(["data", "weight"])
)


@given(
    st.lists(specs, min_size=1, max_size=3).map(tuple),
    st.lists(st.dictionaries(st.sampled_from(["stride", "value", "low"]), values), min_size=1, max_size=3),
    specs,
    st.integers(0, 10**12),
)
def test_json_gives_the_same_workload_back(inputs, attributes, output, macs):
    workload = Workload(inputs, tuple(OpCall.make("op", 0, **a) for a in attributes), output, macs)
    back = Workload.from_json(json.dumps(workload.to_json()))
    assert back == workload and back.key == workload.key


def expansion() -> Workload:
    """A 1x1 convolution of 5 to 11 channels with a residual, and a depthwise one of stride 2, in one kernel."""
    ops = (
        OpCall.make("conv2d", 0, 1, stride=(1, 1), padding=(0, 0, 0, 0), out=(2, 8, 6)), OpCall.make("add", 6, 2), OpCall.make("add", 7, 3),
        OpCall.make("depthwise", 8, 4, stride=(2, 2), padding=(1, 1, 1, 1)), OpCall.make("add", 9, 5), OpCall.make("relu", 10),
    )  # fmt: skip
    inputs = (TensorSpec((2, 8, 6, 8)), TensorSpec((2, 1, 1, 5, 8), "weight"), TensorSpec((16,), "weight"), TensorSpec((2, 8, 6, 16)),
              TensorSpec((3, 3, 16), "weight"), TensorSpec((16,), "weight"))  # fmt: skip
    return Workload(inputs, ops, TensorSpec((2, 4, 3, 16)), macs=11 * (2 * 8 * 6 * 5 + 2 * 4 * 3 * 9))


def test_a_kernel_of_two_anchors_has_two_stages():
    first, second = expansion().stages
    assert [c.op for c in first.ops] == ["conv2d", "add", "add"] and [c.args for c in first.ops] == [(0, 1), (4, 2), (5, 3)]
    assert first.inputs == expansion().inputs[:4] and first.output.shape == (2, 8, 6, 16)
    assert [c.op for c in second.ops] == ["depthwise", "add", "relu"] and [c.args for c in second.ops] == [(0, 1), (3, 2), (4,)]
    assert second.inputs == (first.output, *expansion().inputs[4:]) and second.output == expansion().output
    assert (first.macs, second.macs) == (11 * 2 * 8 * 6 * 5, 11 * 2 * 4 * 3 * 9)
    assert expansion().inputs_of_stages == ((0, 1, 2, 3), (4, 5))


def test_a_kernel_of_one_anchor_or_none_is_its_own_stage():
    assert convolution().stages == (convolution(),) and convolution().inputs_of_stages == ((0, 1, 2),)
    add = Workload((TensorSpec((4, 8)),), (OpCall.make("relu", 0),), TensorSpec((4, 8)))
    assert add.stages == (add,) and add.anchors == ()
