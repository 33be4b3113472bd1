"""Evaluation, BatchNorm recalibration, the loss and the schedule."""

import math

import pytest
import torch
from torch import nn

from hwprune.errors import DataError, UsageError
from hwprune.spec.data import from_arrays
from hwprune.train.bn import recalibrate
from hwprune.train.evaluate import accuracy, evaluate
from hwprune.train.loss import distillation
from hwprune.train.recipe import Recipe


class Fixed(nn.Module):
    """Logits that name the class in the first pixel, whatever the mode."""

    def forward(self, x):
        return nn.functional.one_hot(x[:, 0, 0, 0].long(), 4).float() * 10


def test_accuracy_is_the_share_of_right_answers():
    x = torch.tensor([0, 1, 2, 3, 0.0]).view(5, 1, 1, 1)
    data = from_arrays("five", x, torch.tensor([0, 1, 2, 3, 3]), x, torch.tensor([0, 1, 2, 3, 3]))
    assert accuracy(Fixed(), data, batch_size=2) == 0.8
    result = evaluate(Fixed(), data.test_batches(2))
    right, wrong = math.log(1 + 3 * math.exp(-10)), math.log(3 + math.exp(10))
    assert result.images == 5 and result.loss == pytest.approx((4 * right + wrong) / 5, rel=1e-5)


def test_evaluation_uses_eval_mode_and_puts_each_flag_back():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Dropout(0.9))
    model.train()
    model[1].eval()
    batch = [(torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 1]))]
    assert evaluate(model, batch) == evaluate(model, batch)
    assert [m.training for m in model.modules()] == [True, True, False, True]


def test_evaluation_refuses_labels_outside_and_no_data():
    with pytest.raises(DataError, match="labels of mine reach 7 but the network has 4 outputs"):
        evaluate(Fixed(), [(torch.zeros(1, 1, 1, 1), torch.tensor([7]))], "mine")
    with pytest.raises(DataError, match="gave no batches"):
        evaluate(Fixed(), [])


def test_recalibration_is_the_plain_average_over_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)).train()
    batches = [(torch.randn(5, 3, 4, 4) * (i + 1) + i, None) for i in range(4)]
    model[1].running_mean.fill_(99)
    assert recalibrate(model, batches) == 4
    means = torch.stack([x.mean((0, 2, 3)) for x, _ in batches])
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x, _ in batches])
    torch.testing.assert_close(model[1].running_mean, means.mean(0))
    torch.testing.assert_close(model[1].running_var, variances.mean(0))
    assert model[1].momentum == 0.1 and model[0].training and model[1].training


def test_recalibration_without_batchnorm_reads_nothing():
    def never():
        raise AssertionError("no batch is needed")
        yield

    assert recalibrate(nn.Linear(2, 2), never()) == 0


def test_distillation_is_the_formula_written_out():
    student, teacher, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([0])
    # T = 2: the teacher says softmax(0, 1), the student softmax(0.5, 0)
    p = [1 / (1 + math.e), math.e / (1 + math.e)]
    q = [math.exp(0.5) / (math.exp(0.5) + 1), 1 / (math.exp(0.5) + 1)]
    kl = sum(a * math.log(a / b) for a, b in zip(p, q))
    ce = -math.log(math.e / (math.e + 1))
    assert distillation(student, teacher, y, 2.0, 0.25).item() == pytest.approx(0.75 * ce + 0.25 * 4 * kl, rel=1e-5)
    assert distillation(student, None, y, 2.0, 0.25).item() == pytest.approx(ce, rel=1e-5)
    assert distillation(student, student, y, 2.0, 1.0).item() == pytest.approx(0, abs=1e-6)


def test_rate_rises_then_falls_to_zero():
    recipe = Recipe(learning_rate=0.8, warmup_share=0.25)
    rates = [recipe.rate(step, 16) for step in range(16)]
    assert rates[:4] == pytest.approx([0.16, 0.32, 0.48, 0.64]) and rates[4] == 0.8 == max(rates)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[10] == pytest.approx(0.4) and 0 < rates[15] < 0.02
    assert recipe.rate(0, 1) == 0.8


@pytest.mark.parametrize("setting", [
    {"learning_rate": 0}, {"learning_rate": float("nan")}, {"batch_size": -1}, {"steps_per_epoch": 0},
    {"momentum": 1.0}, {"validation_share": -0.1}, {"soft_share": 1.5}, {"weight_decay": -1}, {"temperature": 0},
])
def test_impossible_settings_are_refused_with_their_value(setting):
    (name, value), = setting.items()
    with pytest.raises(UsageError, match=name) as caught:
        Recipe(**setting)
    assert str(value) in str(caught.value)
