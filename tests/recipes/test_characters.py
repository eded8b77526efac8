"""Python's help as data, and the character model on it."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from lightning_tricks.recipes.character_net import CharacterNet
from lightning_tricks.recipes.characters import ALPHABET, CharacterData, CharacterModel, encoded, help_text
from tests.toys import trainer


@pytest.fixture(scope="module")
def data():
    data = CharacterData(length=32)
    data.setup("fit")
    return data


def decoded(indices):
    return "".join(ALPHABET[index] for index in indices)


def test_the_text_is_pythons_help_with_each_paragraph_once():
    text = help_text()
    assert len(text) > 250_000
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    assert "" not in paragraphs
    assert max(Counter(paragraphs).values()) == 1
    assert any(part.startswith("Assert statements are a convenient way") for part in paragraphs)


def test_the_alphabet_is_closed():
    assert len(ALPHABET) == len(set(ALPHABET)) == 97
    assert decoded(encoded("def f(x):\n\treturn ∑")) == "def f(x):\n\N{REPLACEMENT CHARACTER}return �"


def test_windows_are_the_text_and_validation_is_its_end(data):
    text = "".join(character if character in ALPHABET else ALPHABET[-1] for character in help_text())
    cut = len(text) - len(text) // 10
    for part, windows in ((text[:cut], data.train_set.tensors[0]), (text[cut:], data.val_set.tensors[0])):
        assert windows.shape[1] == 33
        for index in (0, 1, len(windows) - 1):
            assert decoded(windows[index]) == part[32 * index : 32 * index + 33]
        assert len(part) - 33 - 32 < 32 * (len(windows) - 1)  # nothing but an end too short is left out


def test_the_order_of_training_is_the_seeds():
    def first(seed):
        data = CharacterData(seed=seed)
        data.setup("fit")
        return next(iter(data.train_dataloader()))[0]

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))
    assert first(3).shape == (32, 65)


def unigram_bits(data):
    """The entropy of single characters in the training text, in bits."""
    counts = np.bincount(data.train_set.tensors[0][:, 1:].flatten(), minlength=97)
    return entropy(counts, base=2)


def test_it_soon_knows_more_than_how_often_characters_come(data):
    torch.manual_seed(0)
    module = CharacterModel(CharacterNet(97, length=32, width=32, blocks=1), lr=1e-2)
    run = trainer(max_steps=150, limit_val_batches=8)
    run.fit(module, datamodule=data)
    (found,) = run.validate(module, datamodule=data, verbose=False)
    assert found["val_bits"] < unigram_bits(data) - 0.5


def test_metrics_are_those_of_the_logits(data):
    module = CharacterModel(CharacterNet(97, length=32, width=8, blocks=1, heads=2)).eval()
    (found,) = trainer(limit_val_batches=2).validate(module, datamodule=data, verbose=False)
    windows = data.val_set.tensors[0][:512]
    with torch.no_grad():
        chances = module(windows[:, :-1]).double().softmax(-1)
    surprise = -np.log(np.take_along_axis(chances.numpy(), windows[:, 1:, None].numpy(), -1)).mean()
    assert found["val_loss"] == pytest.approx(surprise, rel=1e-5)
    assert found["val_bits"] == pytest.approx(surprise / math.log(2), rel=1e-5)
    assert found["val_perplexity"] == pytest.approx(math.exp(surprise), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"length": 100_000}, "length and batch_size must leave a training batch of .*, got 100000 and 32"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CharacterData(**settings).setup("fit")
