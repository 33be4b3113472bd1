"""Data specs: layouts, splits, normalization, augmentation, and what each mistake says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hwprune.errors import DataError
from hwprune.spec.batches import Augment, Normalize
from hwprune.spec.data import check_fits, from_arrays, from_loaders, load_data, parse_normalize


def refusal(spec, **options):
    with pytest.raises(DataError) as caught:
        load_data(str(spec), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def arrays(shape=(20, 8, 8, 3), dtype=np.uint8, **changes):
    rng = np.random.default_rng(0)
    x = (rng.random(shape) * 255).astype(dtype)
    y = np.arange(shape[0]) % 4
    return {"train_x": x, "train_y": y, "test_x": x[:8], "test_y": y[:8], **changes}


def npz(tmp_path, **entries):
    path = tmp_path / "data.npz"
    np.savez(path, **entries)
    return path


# -- digits


def test_digits_split_is_fixed_and_stratified():
    data = load_data("digits")
    assert (len(data.train), len(data.test), data.num_classes, data.input_shape) == (1297, 500, 10, (1, 1, 8, 8))
    assert data.test.y.bincount().tolist() == [50, 51, 49, 51, 50, 51, 50, 50, 48, 50]
    assert torch.equal(data.test.x, load_data("digits").test.x)
    assert data.train.augment is None
    x = torch.cat([x for x, _ in data.train_batches(500)])
    assert abs(float(x.mean())) < 0.01 and abs(float(x.std()) - 1) < 0.01


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    assert "pip install scikit-learn" in refusal("digits")


def test_normalize_is_refused_where_it_has_no_place(tmp_path):
    assert "comes normalized" in refusal("digits", normalize="mean=0.5")
    assert "resize=32 is for image folders" in refusal(npz(tmp_path, **arrays()), normalize="resize=32")


# -- .npz


@pytest.mark.parametrize("shape, dtype, image", [
    ((20, 8, 8, 3), np.uint8, (3, 8, 8)),
    ((20, 3, 8, 8), np.uint8, (3, 8, 8)),
    ((20, 8, 9), np.uint8, (1, 8, 9)),
    ((20, 1, 8, 9), np.float32, (1, 8, 9)),
    ((20, 8, 9, 1), np.float64, (1, 8, 9)),
    ((20, 30), np.float32, (30,)),
])
def test_npz_layouts(tmp_path, shape, dtype, image):
    data = load_data(str(npz(tmp_path, **arrays(shape, dtype))))
    x, y = next(data.train_batches(6, seed=None))
    assert x.shape == (6, *image) and x.dtype == torch.float32 and y.tolist() == [0, 1, 2, 3, 0, 1]
    assert data.input_shape == (1, *image) and data.num_classes == 4


def test_npz_bytes_are_scaled_before_normalization(tmp_path):
    entries = arrays()
    path = npz(tmp_path, **entries)
    x, _ = next(load_data(str(path), "mean=0.5,0.4,0.3;std=0.2,0.3,0.4").train_batches(20, seed=None))
    expected = (entries["train_x"] / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(x.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


def test_npz_layout_that_shapes_do_not_tell(tmp_path):
    both = arrays((20, 3, 8, 3))
    assert "both axes could be 1, 3 or 4 channels; add an entry layout='NHWC'" in refusal(npz(tmp_path, **both))
    assert "neither axis" in refusal(npz(tmp_path, **arrays((20, 8, 8, 7))))
    assert load_data(str(npz(tmp_path, **both, layout="NCHW"))).input_shape == (1, 3, 8, 3)
    assert load_data(str(npz(tmp_path, **both, layout="NHWC"))).input_shape == (1, 3, 3, 8)
    assert "layout is 'HWCN'" in refusal(npz(tmp_path, **both, layout="HWCN"))


@pytest.mark.parametrize("changes, says", [
    ({"train_y": np.arange(19)}, "20 images in train_x but 19 labels in train_y"),
    ({"train_y": np.zeros(20)}, "train_y is float64 [20]; labels must be integers"),
    ({"train_y": np.zeros((20, 4), int)}, "train_y is int64 [20, 4]"),
    ({"test_y": np.full(8, -1)}, "test_y has the label -1"),
    ({"test_x": np.zeros((8, 9, 8, 3), np.uint8)}, "training images are 3x8x8 but test images 3x9x8"),
    ({"test_x": np.zeros((0, 8, 8, 3), np.uint8), "test_y": np.zeros(0, int)}, "the test part is empty"),
    ({"train_x": np.zeros((20, 8, 8, 3), np.int64)}, "train_x has type int64; images must be uint8 or float"),
    ({"train_x": np.full((20, 8, 8, 3), np.nan)}, "train_x has NaN or infinity, first in image 0"),
    ({"train_x": np.zeros((20,), np.float32)}, "train_x has shape [20]"),
    ({"train_x": np.array([None] * 20)}, "something else than plain arrays"),
])
def test_npz_mistakes(tmp_path, changes, says):
    assert says in refusal(npz(tmp_path, **arrays(**changes)))


def test_npz_files_that_are_none(tmp_path):
    assert "no data file" in refusal(tmp_path / "absent.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK not a zip")
    assert "bad.npz" in refusal(tmp_path / "bad.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    assert "one.npz is not a whole .npz file" in refusal(tmp_path / "one.npz")
    path = npz(tmp_path, train_x=np.zeros((2, 8, 8, 3)), images=np.zeros(2))
    assert "lacks train_y, test_x, test_y (it has train_x)" in refusal(path)


@pytest.mark.parametrize("text, says", [
    ("mean=0.5,x", "not understood at 'mean=0.5,x'"), ("avg=0.5", "at 'avg=0.5'"), ("mean=1;mean=2", "at 'mean=2'"),
    ("std=0", "divides by 0.0"), ("mean=", "at 'mean='"),
    ("resize=1.5", "one whole number of pixels"), ("resize=0", "one whole number of pixels"),
])
def test_normalization_texts(text, says):
    with pytest.raises(DataError, match="normalization") as caught:
        parse_normalize(text)
    assert says in str(caught.value)


def test_normalization_of_another_number_of_channels(tmp_path):
    text = refusal(npz(tmp_path, **arrays()), normalize="mean=1,2")
    assert "gives 2 numbers for mean, but the images have 3 channels" in text
    assert parse_normalize("mean=0.5; std=0.25") == (Normalize((0.5,), (0.25,)), None)
    assert parse_normalize("resize=224") == (Normalize(), 224)


# -- image folders


def folder(tmp_path, size=(9, 8), mode="RGB", test="test"):
    for part in ("train", test):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(3):
                pixel = 100 * label + index if mode == "L" else (100 * label + index, 7, 9)
                Image.new(mode, size, pixel).save(tmp_path / part / name / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("mode, channels, test", [("RGB", 3, "test"), ("L", 1, "val")])
def test_folder(tmp_path, mode, channels, test):
    data = load_data(str(folder(tmp_path, mode=mode, test=test)))
    assert data.input_shape == (1, channels, 8, 9) and data.num_classes == 2
    x, y = next(data.train_batches(6, seed=None))
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(x[:, 0, 0, 0] * 255, [0, 1, 2, 100, 101, 102], atol=1e-4)


def test_folder_sizes(tmp_path):
    root = folder(tmp_path)
    Image.new("RGB", (20, 10)).save(root / "test" / "dog" / "large.png")
    text = refusal(root)
    assert "large.png is 20x10 pixels but" in text and "is 9x8" in text
    assert load_data(str(root), "resize=6;mean=0.5").input_shape == (1, 3, 6, 6)


def test_folder_mistakes(tmp_path):
    assert "has no train folder" in refusal(tmp_path)
    root = folder(tmp_path)
    (root / "train" / "cat" / "bad.png").write_text("no image")
    assert "bad.png cannot be read as an image" in refusal(root)
    (root / "train" / "cat" / "bad.png").unlink()
    (root / "test" / "cow").mkdir()
    assert "has the classes cow that" in refusal(root)
    (root / "test" / "cow").rmdir()
    (root / "train" / "emu").mkdir()
    assert "emu has no images" in refusal(root)


# -- loaders


LOADERS = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def loaders():
    x, y = torch.rand(20, 1, 8, 8), torch.arange(20) % 4
    return DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True), DataLoader(TensorDataset(x, y), batch_size=5)

def one():
    return loaders()[0]

def fails():
    return open("/no/such/file")
"""


def test_loaders_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(LOADERS)
    data = load_data(f"{tmp_path / 'mine.py'}:loaders")
    assert data.input_shape == (1, 1, 8, 8) and data.num_classes is None and len(data.train) == 20
    first, again, other = ([y.tolist() for _, y in data.train_batches(seed=s)] for s in (1, 1, 2))
    assert first == again != other and [len(y) for y in first] == [5] * 4
    assert "it must return two loaders" in refusal(f"{tmp_path / 'mine.py'}:one")
    assert "FileNotFoundError" in refusal(f"{tmp_path / 'mine.py'}:fails")


def loader(x=None, y=None):
    x = torch.rand(8, 1, 8, 8) if x is None else x
    return DataLoader(TensorDataset(x, torch.arange(len(x)) % 4 if y is None else y), batch_size=4)


@pytest.mark.parametrize("pair, says", [
    (lambda: (loader(), loader(torch.rand(8, 1, 9, 9))), "disagree on the shape of an image: train 1x8x8, test 1x9x9"),
    (lambda: (loader(), []), "the test loader is empty"),
    (lambda: (iter(loader()), loader()), "good for one pass"),
    (lambda: (loader(torch.zeros(8, 1, 8, 8, dtype=torch.uint8)), loader()), "gave x of type torch.uint8"),
    (lambda: (loader(y=torch.rand(8)), loader()), "one integer label for each of the 4 images"),
    (lambda: (loader(y=torch.full((8,), -2)), loader()), "the label -2"),
    (lambda: ([torch.rand(4, 1, 8, 8)], loader()), "gave a Tensor; each batch must be two tensors"),
    (lambda: (loader(torch.full((8, 1, 8, 8), float("inf"))), loader()), "NaN or infinity"),
    (lambda: 5, "returned a int"),
])
def test_loader_mistakes(pair, says):
    with pytest.raises(DataError) as caught:
        from_loaders("mine", pair())
    assert says in str(caught.value)


def test_three_loaders_bring_a_validation_part():
    data = from_loaders("mine", (loader(), loader(torch.rand(6, 1, 8, 8)), loader()))
    assert len(data.validation) == 6 and data.hold_out(0.5) is data


# -- what every data set does


def dataset(n=40, **options):
    x = torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 1, 8, 8).clone()
    return from_arrays("some", x, torch.arange(n) % 4, x[:8], torch.arange(8) % 4, **options)


def test_batches_are_shuffled_by_the_seed_alone():
    data = dataset()
    order = lambda seed: torch.cat([x[:, 0, 0, 0] for x, _ in data.train_batches(16, seed=seed)]).tolist()
    assert order(3) == order(3) != order(4)
    assert sorted(order(3)) == order(None) == list(range(40))
    assert [len(y) for _, y in data.train_batches(16)] == [16, 16, 8]
    assert [len(y) for _, y in data.train_batches(16, drop_last=True)] == [16, 16]
    assert [len(y) for _, y in data.train_batches(64, drop_last=True)] == [40], "a small set gives its one batch"


def test_hold_out_takes_a_share_of_each_class_from_training_only():
    data = dataset()
    held = data.hold_out(0.2)
    assert held.validation.y.bincount().tolist() == [2, 2, 2, 2] and len(held.train) == 32
    ids = lambda part: set(part.x[:, 0, 0, 0].tolist())
    assert ids(held.train) | ids(held.validation) == ids(data.train) and not ids(held.train) & ids(held.validation)
    assert held.test is data.test and data.hold_out(0.0) is data
    with pytest.raises(DataError, match="no validation part"):
        data.validation_batches()


def test_augmentation_shifts_and_flips_whole_images():
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(1, 37, dtype=torch.float32).view(1, 1, 6, 6).repeat(64, 2, 1, 1)
    padded = torch.nn.functional.pad(x[0, 0], (2,) * 4)
    windows = {tuple(w.flatten().tolist()) for w in padded.unfold(0, 6, 1).unfold(1, 6, 1).reshape(-1, 6, 6)}
    flipped = {tuple(w.flatten().tolist()) for w in padded.unfold(0, 6, 1).unfold(1, 6, 1).reshape(-1, 6, 6).flip(2)}
    out = Augment(pad=2, flip=True)(x, generator)
    assert out.shape == x.shape and torch.equal(out[:, 0], out[:, 1]), "channels move together"
    seen = {tuple(image.flatten().tolist()) for image in out[:, 0]}
    assert seen <= windows | flipped and seen & windows and seen & flipped and len(seen) > 20
    plain = Augment(pad=2, flip=False)(x, generator)
    assert {tuple(image.flatten().tolist()) for image in plain[:, 0]} <= windows


def test_augmentation_is_for_natural_images_and_only_when_asked():
    big = from_arrays("big", torch.rand(4, 3, 32, 32), torch.arange(4), torch.rand(4, 3, 32, 32), torch.arange(4))
    assert big.train.augment == Augment(pad=4, flip=True) and big.test.augment is None
    assert dataset().train.augment is None
    plain, changed = (next(big.train_batches(4, seed=1, augment=a))[0] for a in (False, True))
    assert not torch.equal(plain, changed)


@pytest.mark.parametrize("model, says", [
    (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "labels of some reach 3 but the network has 3 outputs"),
    (nn.Conv2d(3, 4, 3), "the network does not take the 1x8x8 images of some"),
    (nn.Conv2d(1, 4, 3), "gives a tensor 8x4x6x6 for 8 images of some; it must give logits 8xclasses"),
    (nn.LSTM(8, 4), "the network"),
    (nn.Bilinear(8, 8, 4), "the network does not take the 1x8x8 images of some (Bilinear.forward() missing 1"),
])
def test_models_that_do_not_fit(model, says):
    with pytest.raises(DataError) as caught:
        check_fits(model, dataset())
    assert says in str(caught.value)


def test_a_model_with_more_outputs_than_labels_fits_and_keeps_its_mode():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1000)).train()
    model[1].eval()
    check_fits(model, dataset())
    assert [m.training for m in model.modules()] == [True, True, False]


def test_labels_seen_only_in_training_count():
    data = dataset()
    data.train.y[5] = 9
    data = from_arrays("some", data.train.x, data.train.y, data.test.x, data.test.y)
    with pytest.raises(DataError, match="reach 9 but the network has 4 outputs"):
        check_fits(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), data)
    assert replace(data, num_classes=None).num_classes is None


@pytest.mark.parametrize("spec, says", [("nothing", "no data 'nothing'; data is"), ("a.npz", "no data file a.npz")])
def test_specs_that_name_nothing(spec, says):
    assert says in refusal(spec)


def test_large_images_are_evaluated_few_at_a_time():
    assert dataset().evaluation_batch == 256
    assert replace(dataset(), input_shape=(1, 3, 224, 224)).evaluation_batch == 2**22 // (3 * 224 * 224) == 27
    assert replace(dataset(), input_shape=(1, 3, 4096, 4096)).evaluation_batch == 1
