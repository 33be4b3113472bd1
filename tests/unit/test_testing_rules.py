"""The contract of operator rules, inherited for a sample of the package's own; wrong rules and entry points."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hwprune.errors import UsageError
from hwprune.graph import rules
from hwprune.testing.rules import RuleCase, RuleContract


def size(random, low=2, high=6):
    return int(random.integers(low, high))


class Contract(RuleContract):
    examples = 5


class TestConvolution(Contract):
    def case(self, random):
        groups, i, o = size(random, 1, 4), size(random, 1, 4), size(random, 1, 4)
        function = lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=groups)
        return RuleCase(function, [(2, groups * i, 4, 4)], [(groups * o, i, 3, 3), (groups * o,)])


class TestTransposedConvolution(Contract):
    def case(self, random):
        groups, i, o = size(random, 1, 3), size(random, 1, 4), size(random, 1, 4)
        function = lambda x, w: F.conv_transpose1d(x, w, groups=groups)
        return RuleCase(function, [(2, groups * i, 5)], [(groups * i, o, 2)])


class TestLinear(Contract):
    def case(self, random):
        i, o = size(random), size(random)
        return RuleCase(F.linear, [(2, size(random), i)], [(o, i), (o,)])


class TestMatmul(Contract):
    def case(self, random):
        a, b, c, d = (size(random) for _ in range(4))
        return RuleCase(torch.matmul, [(2, a, b, c), (2, a, c, d)])


class TestAttention(Contract):
    def case(self, random):
        h, t, s, d, e = (size(random) for _ in range(5))
        return RuleCase(F.scaled_dot_product_attention, [(2, h, t, d), (2, h, s, d), (2, h, s, e)])


class TestBroadcast(Contract):
    def case(self, random):
        a, b, c = (size(random) for _ in range(3))
        return RuleCase(lambda x, y, w: x * y + w, [(2, a, b, c), (2, 1, b, c)], [(c,)])


class TestConcatenation(Contract):
    def case(self, random):
        a, b, c = (size(random) for _ in range(3))
        return RuleCase(lambda x, y: torch.cat([x, y, x], 1), [(2, a, c), (2, b, c)])


class TestSplit(Contract):
    def case(self, random):
        a, b = 2 * size(random), size(random)
        return RuleCase(lambda x: x.chunk(2, 1), [(2, a, b)])


class TestGatedUnit(Contract):
    def case(self, random):
        return RuleCase(lambda x: F.glu(x, 1), [(2, 2 * size(random), size(random))])


class TestLayerNorm(Contract):
    def case(self, random):
        a, b = size(random), size(random)
        shape = [b] if random.random() < 0.5 else [a, b]
        return RuleCase(lambda x, w, v: F.layer_norm(x, w.shape, w, v), [(2, a, b)], [tuple(shape), tuple(shape)])


class TestGroupNorm(Contract):
    def case(self, random):
        groups, a = size(random, 1, 4), size(random)
        function = lambda x, w, b: F.group_norm(x, groups, w, b)
        return RuleCase(function, [(2, groups * a, size(random))], [(groups * a,)] * 2)


class TestPixelShuffle(Contract):
    def case(self, random):
        return RuleCase(lambda x: F.pixel_shuffle(x, 2), [(2, 4 * size(random), 2, 3)])


class TestUnfold(Contract):
    def case(self, random):
        return RuleCase(lambda x: F.unfold(x, (2, 3), padding=1, stride=2), [(2, size(random), 4, 5)])


class TestFold(Contract):
    def case(self, random):
        return RuleCase(lambda x: F.fold(x, (4, 3), (2, 1), stride=2), [(2, 2 * size(random), 4)])


class TestLSTM(Contract):
    """Two layers in one direction or both; the states are made as well."""

    def case(self, random):
        i, h, both = size(random), size(random), bool(random.integers(2))
        d = 1 + both
        function = lambda x, a, b, *w: torch.lstm(
            x, [s.transpose(0, 1).contiguous() for s in (a, b)], w, True, 2, 0.0, False, both, True
        )
        layer = lambda n: [(4 * h, n), (4 * h, h), (4 * h,), (4 * h,)] * d
        return RuleCase(function, [(2, 3, i), (2, 2 * d, h), (2, 2 * d, h)], [*layer(i), *layer(d * h)])


class TestGRU(Contract):
    def case(self, random):
        i, h = size(random), size(random)
        function = lambda x, s, *w: torch.gru(x, s[None], w, False, 1, 0.0, False, False, True)
        return RuleCase(function, [(2, 3, i), (2, h)], [(3 * h, i), (3 * h, h)])


class TestCell(Contract):
    def case(self, random):
        i, h = size(random), size(random)
        function = lambda x, a, b, *w: torch.lstm_cell(x, (a, b), *w)
        return RuleCase(function, [(2, i), (2, h), (2, h)], [(4 * h, i), (4 * h, h), (4 * h,), (4 * h,)])


class TestGridSample(Contract):
    def case(self, random):
        function = lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False)
        return RuleCase(function, [(2, size(random), 4, 3), (2, size(random), 3, 2)])


class TestMaxUnpool(Contract):
    def case(self, random):
        return RuleCase(lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2), [(2, size(random), 6)])


class TestCosineSimilarity(Contract):
    def case(self, random):
        a, b, c = (size(random) for _ in range(3))
        dim = int(random.integers(1, 3))
        return RuleCase(lambda x, y: F.cosine_similarity(x, y, dim=dim), [(2, a, b, c), (2, 1, b, c)])


class TestPairwiseDistance(Contract):
    def case(self, random):
        a, b = size(random), size(random)
        return RuleCase(lambda x, y: F.pairwise_distance(x, y, p=1.0, keepdim=True), [(2, a, b), (2, a, b)])


class TestCdist(Contract):
    def case(self, random):
        c = size(random)
        return RuleCase(torch.cdist, [(2, size(random), c), (2, size(random), c)])


class TestBilinear(Contract):
    def case(self, random):
        a, b, c, d = (size(random) for _ in range(4))
        return RuleCase(F.bilinear, [(2, a, b), (2, a, c)], [(d, b, c), (d,)])


class TestTensordot(Contract):
    def case(self, random):
        a, b, c, d = (size(random) for _ in range(4))
        return RuleCase(lambda x, w: torch.tensordot(x, w, dims=([1, 2], [2, 0])), [(2, a, b, c)], [(b, d, a)])


class TestInner(Contract):
    def case(self, random):
        a, b, c = (size(random) for _ in range(3))
        return RuleCase(torch.inner, [(2, a, b)], [(c, b)])


class TestBatchedProductWithSum(Contract):
    def case(self, random):
        a, b, c = (size(random) for _ in range(3))
        return RuleCase(torch.baddbmm, [(2, 1, c), (2, a, b), (2, b, c)])


class TestEinsum(Contract):
    def case(self, random):
        a, b, c, d = (size(random) for _ in range(4))
        equation = ("...ic,...jc->...ij", "...ic,...jc", "n...c,n...c->n...", "nijc,nkbc->nkj")[random.integers(4)]
        second = (2, a, b, c) if equation.startswith("n...") else (2, a, d, c)
        return RuleCase(lambda x, y: torch.einsum(equation, x, y), [(2, a, b, c), second])


class TestWeightNorm(Contract):
    def case(self, random):
        i, o, dim = size(random), size(random), int(random.integers(-1, 2))
        g = {-1: (), 0: (o, 1), 1: (1, i)}[dim]
        function = lambda x, v, g: F.linear(x, torch._weight_norm(v, g, dim))
        return RuleCase(function, [(2, 3, i)], [(o, i), g])


class TestGather(Contract):
    """By places that broadcast, and by places that an activation has."""

    def case(self, random):
        a, b = size(random), size(random, 3)
        if random.random() < 0.5:
            return RuleCase(lambda x: x.take_along_dim(torch.tensor([[[0, 2]]]), 2), [(2, a, b)])
        return RuleCase(lambda x: x.gather(2, x.argmax(2, keepdim=True)), [(2, a, b)])


class TestScatter(Contract):
    def case(self, random):
        a, b = size(random), size(random)
        function = lambda x, y: x.scatter_add(2, y.argmax(2, keepdim=True), y)
        return RuleCase(function, [(2, a, b), (2, a, 2)])


class TestIndexAdd(Contract):
    def case(self, random):
        a, b = size(random), size(random, 3)
        return RuleCase(lambda x, y: x.index_add(2, torch.tensor([0, 2]), y), [(2, a, b), (2, a, 2)])


class TestDiagonal(Contract):
    def case(self, random):
        return RuleCase(lambda x: x.diagonal(dim1=1, dim2=3), [(2, size(random), size(random), size(random))])


class TestFourier(Contract):
    def case(self, random):
        return RuleCase(lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=(4, 4)), [(2, size(random), 4, 4)])


class TestComplexProduct(Contract):
    def case(self, random):
        a, b = size(random), size(random)
        function = lambda x, w: torch.view_as_real(torch.view_as_complex(x.contiguous()) * torch.view_as_complex(w))
        return RuleCase(function, [(2, a, b, 2)], [(b, 2)])


class TestNormOfMatrix(Contract):
    def case(self, random):
        return RuleCase(lambda x: x / torch.linalg.norm(x, dim=(1, 2), keepdim=True), [(2, size(random), size(random))])


class TestStacked(Contract):
    def case(self, random):
        a, b, c = (size(random) for _ in range(3))
        return RuleCase(lambda x, y: torch.hstack([x, y]), [(2, a, c), (2, b, c)])


class TestBagOfWords(Contract):
    def case(self, random):
        d = size(random)
        function = lambda x, w: x + F.embedding_bag(torch.tensor([[0, 1], [2, 0]]), w, mode="sum")
        return RuleCase(function, [(2, d)], [(3, d)])


class TestSoftmax(Contract):
    def case(self, random):
        return RuleCase(lambda x: x.softmax(-1), [(2, size(random), size(random))])


class TestMean(Contract):
    def case(self, random):
        return RuleCase(lambda x: x.mean(2), [(2, size(random), size(random), size(random))])


class TestInstanceNorm(Contract):
    def case(self, random):
        a = size(random)
        return RuleCase(lambda x, w, b: F.instance_norm(x, None, None, w, b), [(2, a, size(random), 3)], [(a,)] * 2)


class TestPRelu(Contract):
    def case(self, random):
        a = size(random)
        return RuleCase(F.prelu, [(2, a, size(random))], [(a,)])


# -- rules that are wrong, and rules of other packages


@torch.library.custom_op("hwprune_tests::reversed", mutates_args=())
def reversed_channels(x: torch.Tensor) -> torch.Tensor:
    return x.flip(1)


@reversed_channels.register_fake
def _(x):
    return torch.empty_like(x)


class Reversed(Contract):
    def case(self, random):
        return RuleCase(torch.ops.hwprune_tests.reversed, [(2, size(random, 3), 4)])


def labelled_by(monkeypatch, function):
    rules.find(torch.ops.aten.linear.default)  # the package's own rules are loaded before one is added
    monkeypatch.setitem(rules._RULES, torch.ops.hwprune_tests.reversed.default, function)


def flipped(call):
    (x,) = call.values()
    ids = call.atoms.axis(x, 1)
    rest = [f for f in x.fields if 1 not in f.axes]
    return call.result(rest if ids is None else [*rest, rules.Field((1,), ids[::-1].copy())])


def test_right_rule_of_a_user_passes(monkeypatch):
    labelled_by(monkeypatch, flipped)
    Reversed().test_labels_fit_the_results()
    Reversed().test_pruned_network_is_proved()
    Reversed().test_something_can_go()


def test_rule_that_labels_wrongly_is_found(monkeypatch):
    labelled_by(monkeypatch, lambda call: call.result(next(call.values()).fields))
    with pytest.raises(AssertionError, match="off by"):
        Reversed().test_pruned_network_is_proved()


def test_rule_of_a_wrong_shape_is_found(monkeypatch):
    labelled_by(monkeypatch, lambda call: rules.Value((1,)))
    with pytest.raises(AssertionError, match=r"says shape \(1,\)"):
        Reversed().test_labels_fit_the_results()


def test_operator_without_a_rule_is_found():
    class Free(Reversed):
        def case(self, random):
            return RuleCase(torch.ops.hwprune_tests.reversed, [(2, 3)])

    with pytest.raises(AssertionError, match="does the operator have a rule"):
        Free().test_something_can_go()


def test_two_rules_for_one_operator_are_refused():
    rules.find(torch.ops.aten.linear.default)
    with pytest.raises(ValueError, match="two rules for aten.linear.default: hwprune.graph.rules.contraction and "):
        rules.rule(torch.ops.aten.linear.default)(flipped)


def test_entry_point_that_fails_is_named(monkeypatch):
    def load():
        raise ImportError("no module named 'nothing'")

    point = SimpleNamespace(name="mine", value="nothing.rules", dist=SimpleNamespace(name="their-package"), load=load)
    monkeypatch.setattr(rules.metadata, "entry_points", lambda group: [point] if group == "hwprune.rules" else [])
    with pytest.raises(UsageError, match="rules 'nothing.rules' of their-package cannot be loaded: no module"):
        rules.load_user_rules()


USER_RULES = '''
import torch
from hwprune.graph.rules import rule

@torch.library.custom_op("theirs::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2

@twice.register_fake
def _(x):
    return torch.empty_like(x)

@rule(torch.ops.theirs.twice.default)
def same(call):
    (x,) = call.values()
    return call.result(x.fields)
'''

USE = '''
import torch
from hwprune.graph.rules import find
find(torch.ops.aten.relu.default)
print(find(torch.ops.theirs.twice.default).__module__)
'''


def test_installed_package_adds_rules(tmp_path):
    (tmp_path / "their_rules.py").write_text(USER_RULES)
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hwprune.rules]\nmine = their_rules\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{USE}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "their_rules", run.stderr
