import sys

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss

from lightning_tricks.core.extras import extra
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData, with_label_noise
from lightning_tricks.recipes.residual import ResidualNet
from tests.toys import trainer

PIXELS, DIGITS = load_digits(return_X_y=True)


def ready(**settings):
    data = DigitsData(**settings)
    data.setup("fit")
    return data


def digits_of(images):
    """Return scikit-learn's label of each image, found by its pixels (0 to 16, no two images alike)."""
    known = {tuple(row): digit for row, digit in zip(PIXELS.tolist(), DIGITS.tolist(), strict=True)}
    assert len(known) == len(PIXELS)
    flat = images.flatten(1)
    low = flat.min()
    # Standardised pixels keep their distances: the smallest step is one grey level.
    step = (flat - low).unique()[1]
    return [known[tuple(row)] for row in ((flat - low) / step).round().tolist()]


def test_labels_are_the_digits_indices_among_the_classes():
    data = ready(classes=(5, 3), training=400)
    for images, labels in (data.train_set.tensors, data.val_set.tensors):
        assert digits_of(images) == [(5, 3)[label] for label in labels]


def test_all_images_are_used_once():
    data = ready(training=1000)
    found = digits_of(torch.cat([data.train_set.tensors[0], data.val_set.tensors[0]]))
    assert (len(data.train_set), len(data.val_set)) == (1000, 797)
    assert sorted(found) == sorted(DIGITS.tolist())


def test_training_pixels_are_standardised_and_those_of_validation_by_the_same_rule():
    data = ready(training=1000)
    std, mean = torch.std_mean(data.train_set.tensors[0])
    torch.testing.assert_close((std, mean), (torch.tensor(1.0), torch.tensor(0.0)), rtol=0, atol=1e-5)
    val_std, val_mean = torch.std_mean(data.val_set.tensors[0])
    assert (val_std, val_mean) != (1.0, 0.0)
    assert data.train_set.tensors[0].shape[1:] == (1, 8, 8)


def test_no_image_of_training_is_validated_on_with_other_classes():
    def keys(images):
        return {tuple(image) for image in images.flatten(1).tolist()}

    some, every = ready(classes=range(8), training=500), ready(training=500)
    assert keys(some.train_set.tensors[0]) < keys(every.train_set.tensors[0])
    assert keys(some.val_set.tensors[0]) < keys(every.val_set.tensors[0])
    assert keys(some.train_set.tensors[0]).isdisjoint(keys(every.val_set.tensors[0]))


def test_the_seed_decides_on_split_and_order():
    def first_batch(seed):
        return next(iter(ready(seed=seed).train_dataloader()))[0]

    assert torch.equal(first_batch(0), first_batch(0))
    assert not torch.equal(first_batch(0), first_batch(1))
    held_out = [ready(seed=seed).val_set.tensors[1] for seed in (0, 1)]
    assert not torch.equal(*held_out)


def test_each_epoch_has_its_order_and_whole_batches():
    loader = ready(training=100, batch_size=30).train_dataloader()
    first, second = list(loader), list(loader)
    assert [len(labels) for _, labels in first] == [30, 30, 30]
    assert not torch.equal(first[0][0], second[0][0])


@pytest.mark.parametrize(("share", "drawn"), [(0.0, 0), (0.25, 250), (1.0, 1000)])
def test_the_noise_draws_so_many_labels(share, drawn):
    # With 10^9 classes hardly any label is drawn by luck as it was.
    labels = torch.arange(1000)
    noisy = with_label_noise(labels, share=share, classes=10**9, seed=3)
    assert (noisy != labels).sum() == drawn
    assert torch.equal(labels, torch.arange(1000))


def test_noise_hits_all_classes_alike():
    noisy = with_label_noise(torch.zeros(10_000, dtype=torch.long), share=1.0, classes=4, seed=0)
    # Four standard deviations of a binomial count of 10,000 draws with chance 1/4.
    assert (noisy.bincount(minlength=4) - 2500).abs().max() < 4 * 43.3


def test_noise_leaves_images_and_validation_alone():
    clean, noisy = ready(), ready(label_noise=0.5)
    assert torch.equal(clean.train_set.tensors[0], noisy.train_set.tensors[0])
    assert torch.equal(clean.val_set.tensors[1], noisy.val_set.tensors[1])
    wrong = (clean.train_set.tensors[1] != noisy.train_set.tensors[1]).float().mean()
    assert 0.40 < wrong < 0.50  # a tenth of the half is drawn as it was


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": (1,)}, r"classes must hold at least two different digits, got \(1,\)"),
        ({"classes": (1, 1)}, "classes must hold at least two different digits"),
        ({"classes": (1, 10)}, "classes must hold at least two different digits"),
        ({"training": 1788}, "training must leave an image of each digit to validate on, got 1788"),
        ({"training": 9}, "training must be at least 10, got 9"),
        ({"label_noise": 1.5}, r"label_noise must lie in \[0.0, 1.0\], got 1.5"),
        ({"training": 50, "batch_size": 51}, "batch_size must be at most 50, got 51"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ready(**settings)


def test_metrics_are_those_of_scikit_learn():
    torch.manual_seed(0)
    module = DigitsClassifier(ResidualNet(widths=(4, 6)))
    run = trainer(max_epochs=1)
    run.fit(module, datamodule=DigitsData(training=900))
    images, labels = run.datamodule.val_set.tensors
    with torch.no_grad():
        logits = module.eval()(images).double()
    found = run.callback_metrics
    assert found["val_accuracy"].item() == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    loss = log_loss(labels, logits.softmax(1), labels=range(10))
    assert found["val_loss"].item() == pytest.approx(loss, rel=1e-5)
    assert found["train_loss"] > 0
    predicted = torch.cat(run.predict(module, datamodule=run.datamodule))
    torch.testing.assert_close(predicted.double(), logits.softmax(1))


def test_it_learns():
    module = DigitsClassifier(ResidualNet(widths=(8, 16), dropout=0.0))
    run = trainer(max_epochs=5)
    run.fit(module, datamodule=DigitsData(batch_size=20))
    assert run.callback_metrics["val_accuracy"] > 0.9


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"scikit-learn must be installed: pip install .*\[demo\]"):
        ready()


def test_other_errors_within_the_imports_stay_as_they_are():
    with pytest.raises(ImportError, match="no_such_name"), extra("demo"):
        from math import no_such_name  # noqa: F401
