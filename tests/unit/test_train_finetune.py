"""Fine-tuning learns, keeps the best epoch, and resumes as if it had not been stopped."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hwprune.errors import DataError, HwpruneError, UsageError
from hwprune.spec.batches import Augment
from hwprune.spec.data import from_arrays, from_loaders
from hwprune.train.checkpoint import Checkpoints
from hwprune.train.evaluate import Evaluation
from hwprune.train.finetune import finetune
from hwprune.train.recipe import Recipe

QUICK = Recipe(batch_size=16, learning_rate=0.1, calibration_batches=2)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in another order are other bits; one thread also keeps these tests off their neighbours' cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network():
    """With dropout, so that a resume must restore the random numbers of the network too."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
                         nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
                         nn.Flatten(), nn.Dropout(0.2), nn.Linear(80, 4))


def dataset(augment=True):
    """The class is the bright quarter of the image."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(160) % 4
    x = torch.randn(160, 1, 8, 8, generator=generator) * 0.5
    for index, label in enumerate(y.tolist()):
        x[index, 0, (label // 2) * 4:(label // 2) * 4 + 4, (label % 2) * 4:(label % 2) * 4 + 4] += 1
    data = from_arrays("quarters", x[:120], y[:120], x[120:], y[120:])
    return replace(data, train=replace(data.train, augment=Augment(pad=1, flip=False) if augment else None))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_and_reports():
    model, data = network(), dataset()
    report = finetune(model, None, data, epochs=5, recipe=QUICK)
    assert report.best_accuracy > 0.9 > 0.5 > report.start_accuracy
    assert [record.epoch for record in report.history] == [0, 1, 2, 3, 4, 5]
    assert report.history[5].train_loss < report.history[1].train_loss
    assert report.settings["train_images"] == 108 and "12 validation images" in report.selected_by
    assert not model.training and model[0].weight.is_contiguous()
    json.dumps(report.to_dict())


def test_the_teacher_teaches_and_stays_what_it_was():
    teacher, data = network(), dataset()
    finetune(teacher, None, data, epochs=5, recipe=QUICK)
    before, student = weights(teacher), network()
    wrong = replace(data, train=replace(data.train, y=(data.train.y + 1) % 4))
    finetune(student, teacher, wrong, epochs=5, recipe=replace(QUICK, soft_share=1.0, validation_share=0))
    x = data.test.normalize(data.test.x)
    assert (student(x).argmax(1) == teacher(x).argmax(1)).float().mean() > 0.9, "it follows the teacher, not the labels"
    assert equal(before, weights(teacher))


def test_equal_seeds_give_equal_weights_and_leave_the_random_numbers_alone():
    results = []
    for seed in (1, 1, 2):
        model = network()
        state = torch.random.get_rng_state()
        finetune(model, None, dataset(), epochs=2, seed=seed, recipe=QUICK)
        assert torch.equal(state, torch.random.get_rng_state())
        results.append(weights(model))
    assert equal(results[0], results[1]) and not equal(results[0], results[2])


class Stop(Exception):
    pass


def stopped_after(monkeypatch, epoch, **options):
    """Run until ``epoch`` was written, then die as a kill between two epochs would."""
    original = Checkpoints.write

    def write(self, state, last, best):
        original(self, state, last, best)
        if state["history"][-1]["epoch"] == epoch:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", write)
        with pytest.raises(Stop):
            finetune(network(), None, **options)


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, epoch):
    options = dict(data=dataset(), epochs=4, seed=5, recipe=QUICK)
    whole = network()
    expected = finetune(whole, None, folder=tmp_path / "whole", **options)
    stopped_after(monkeypatch, epoch, folder=tmp_path / "cut", **options)
    torch.manual_seed(999)
    resumed = network()
    with torch.no_grad():
        resumed[0].weight.zero_()
    report = finetune(resumed, None, folder=tmp_path / "cut", resume=True, **options)
    assert equal(weights(whole), weights(resumed))
    timeless = lambda r: [replace(record, seconds=0.0) for record in r.history]
    assert timeless(report) == timeless(expected) and report.best_epoch == expected.best_epoch
    assert report.best_accuracy == expected.best_accuracy and report.start_accuracy == expected.start_accuracy
    last = {p.name for p in (tmp_path / "cut").iterdir()}
    assert last == {p.name for p in (tmp_path / "whole").iterdir()}, "files are named by their content"


def test_a_run_killed_within_an_epoch_resumes(tmp_path):
    """A real kill -9 in the middle of training, in a process of its own."""
    code = ("import sys, torch; sys.path.insert(0, sys.argv[1]); torch.set_num_threads(1)\n"
            "import test_train_finetune as t\n"
            "from pathlib import Path; from hwprune.progress import SILENT\n"
            "import os, signal\n"
            "class Kill(type(SILENT)):\n"
            "    steps = 0\n"
            "    def advance(self, steps=1):\n"
            "        self.steps += steps\n"
            "        if self.steps == 17: os.kill(os.getpid(), signal.SIGKILL)\n"
            "t.finetune(t.network(), None, t.dataset(), epochs=4, seed=5, recipe=t.QUICK,\n"
            "           folder=Path(sys.argv[2]), progress=Kill())\n")
    folder = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(folder)],
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert 0 < len(json.loads((folder / "state.json").read_text())["history"]) < 5
    resumed, whole = network(), network()
    options = dict(epochs=4, seed=5, recipe=QUICK)
    finetune(resumed, None, dataset(), folder=folder, resume=True, **options)
    finetune(whole, None, dataset(), **options)
    assert equal(weights(resumed), weights(whole))


def test_a_kill_while_writing_leaves_the_previous_epoch(tmp_path, monkeypatch):
    options = dict(data=dataset(), epochs=3, recipe=QUICK)
    folder = tmp_path / "run"
    stopped_after(monkeypatch, 1, folder=folder, **options)

    def dies(path, data):
        raise Stop

    with monkeypatch.context() as patch:  # tensors are written, state.json is not
        patch.setattr("hwprune.train.checkpoint.write_json_atomic", dies)
        with pytest.raises(Stop):
            finetune(network(), None, folder=folder, resume=True, **options)
    assert len(Checkpoints(folder).read()["history"]) == 2
    resumed, whole = network(), network()
    finetune(resumed, None, folder=folder, resume=True, **options)
    finetune(whole, None, **options)
    assert equal(weights(resumed), weights(whole))


def test_a_new_run_that_dies_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    folder, options = tmp_path / "run", dict(data=dataset(), recipe=QUICK)
    done = finetune(network(), None, folder=folder, epochs=1, **options)

    def full(path, data):
        raise HwpruneError("cannot write: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hwprune.train.checkpoint.write_json_atomic", full)
        with pytest.raises(HwpruneError, match="No space left"):
            finetune(network(), None, folder=folder, epochs=2, **options)
    again = finetune(network(), None, folder=folder, epochs=1, resume=True, **options)
    assert again.best_accuracy == done.best_accuracy and again.history == done.history


def test_resuming_what_is_done_trains_nothing(tmp_path):
    options = dict(data=dataset(), epochs=2, recipe=QUICK, folder=tmp_path)
    model = network()
    first = finetune(model, None, **options)
    state, again = (tmp_path / "state.json").read_bytes(), network()
    second = finetune(again, None, resume=True, **options)
    assert first == second and equal(weights(model), weights(again)) and (tmp_path / "state.json").read_bytes() == state


def test_nothing_is_pickled(tmp_path):
    finetune(network(), None, dataset(), epochs=1, recipe=QUICK, folder=tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors", ".json"} and len(list(tmp_path.iterdir())) == 3


def test_resume_refuses_other_settings_and_other_networks(tmp_path):
    options = dict(data=dataset(), recipe=QUICK, folder=tmp_path)
    finetune(network(), None, epochs=1, **options)
    with pytest.raises(UsageError, match="begun with epochs=1, but now epochs is 3"):
        finetune(network(), None, epochs=3, resume=True, **options)
    with pytest.raises(UsageError, match="begun with learning_rate=0.1, but now learning_rate is 0.5"):
        finetune(network(), None, epochs=1, lr=0.5, resume=True, **options)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(UsageError, match="is of another network: .* tensors differ"):
        finetune(other, None, epochs=1, resume=True, **options)


def test_resume_refuses_damaged_checkpoints(tmp_path):
    options = dict(data=dataset(), epochs=1, recipe=QUICK, folder=tmp_path, resume=True)
    finetune(network(), None, **options)
    last, = tmp_path.glob("last-*")
    data = last.read_bytes()
    last.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UsageError, match="was altered"):
        finetune(network(), None, **options)
    last.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        finetune(network(), None, **options)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UsageError, match="state.json cannot be read"):
        finetune(network(), None, **options)
    with pytest.raises(UsageError, match="nothing to resume without a folder"):
        finetune(network(), None, dataset(), epochs=1, resume=True)


def test_the_best_epoch_is_kept_not_the_last(monkeypatch):
    """Make epoch 2 the best on the validation images by replacing what evaluation finds there."""
    from hwprune.train import finetune as module

    found = iter([0.1, 0.5, 0.9, 0.7])
    seen = []

    def fake(model, batches, name):
        seen.append(weights(model))
        return Evaluation(next(found), 1.0, 12)

    monkeypatch.setattr(module, "evaluate", fake)
    model = network()
    report = finetune(model, None, dataset(), epochs=3, recipe=QUICK)
    assert report.best_epoch == 2 and equal(weights(model), seen[2]) and not equal(seen[2], seen[3])


def test_test_images_decide_nothing():
    """Other test labels change what is reported, and no weight."""
    data, results = dataset(), []
    for shift in (0, 1):
        model = network()
        changed = replace(data, test=replace(data.test, y=(data.test.y + shift) % 4))
        finetune(model, None, changed, epochs=3, recipe=QUICK)
        results.append(weights(model))
    assert equal(*results)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_best(tmp_path):
    model = network()
    says = r"the loss became (nan|inf) in epoch \d+, step \d+ of \d+; .* learning rate of 1e\+30"
    with pytest.raises(HwpruneError, match=says) as caught:
        finetune(model, None, dataset(), epochs=3, recipe=replace(QUICK, warmup_share=0.0), lr=1e30, folder=tmp_path)
    assert "\n" not in str(caught.value)
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    assert Checkpoints(tmp_path).exists()


def test_no_epochs_only_recalibrates():
    model = network()
    before = weights(model)
    report = finetune(model, None, dataset(), epochs=0, recipe=QUICK)
    after = weights(model)
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["1.running_mean"], after["1.running_mean"])
    assert report.best_epoch == 0 and report.best_accuracy == report.start_accuracy and len(report.history) == 1


def loaders_of(data):
    return [DataLoader(TensorDataset(part.x, part.y), 16, shuffle=True) for part in (data.train, data.test)]


def test_loaders_train_and_keep_the_last_epoch_or_the_validated_one():
    train, test = loaders_of(dataset())
    two = finetune(network(), None, from_loaders("mine", (train, test)), epochs=3, recipe=QUICK)
    assert two.best_epoch == 3 and two.selected_by == "the last epoch (no validation images)"
    assert two.best_accuracy > 0.8
    three = from_loaders("mine", (train, test, test))
    report = finetune(network(), None, three, epochs=3, recipe=QUICK)
    assert report.history[0].validation_accuracy is not None and "validation images" in report.selected_by


def test_loader_runs_repeat_with_the_seed():
    data, results = dataset(), []
    for _ in range(2):
        model = network()
        finetune(model, None, from_loaders("mine", loaders_of(data)), epochs=2, recipe=QUICK)
        results.append(weights(model))
        torch.rand(3)
    assert equal(*results)


def test_impossible_requests():
    with pytest.raises(UsageError, match="epochs must not be negative, but got -1"):
        finetune(network(), None, dataset(), epochs=-1)
    with pytest.raises(UsageError, match="nothing to fine-tune"):
        finetune(network().requires_grad_(False), None, dataset(), epochs=1)
    with pytest.raises(DataError, match="3 outputs"):
        finetune(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), None, dataset(), epochs=1)


def test_decay_spares_biases_and_batchnorm():
    from hwprune.train.finetune import _optimizer

    decayed, spared = _optimizer(network(), QUICK).param_groups
    assert [p.ndim for p in decayed["params"]] == [4, 4, 2] and {p.ndim for p in spared["params"]} == {1}
    assert decayed["weight_decay"] == QUICK.weight_decay and spared["weight_decay"] == 0
