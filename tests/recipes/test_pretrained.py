"""Fine-tuning what somebody else trained: the speech encoder whose weights the package Resemblyzer brings.

    pip install --no-deps resemblyzer==0.1.4

Its three LSTM layers, trained to tell people apart, learn to tell ten synthetic voices apart.

Reference: Wan et al., "Generalized End-to-End Loss for Speaker Verification", 2018,
https://arxiv.org/abs/1710.10467.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import PackageNotFoundError, PackagePath, files

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt
from lightning_tricks.recipes import finetune
from lightning_tricks.recipes.digits import DigitsClassifier
from tests.recipes.changing import Changed
from tests.recipes.voices import utterances
from tests.toys import trainer

pytestmark = [pytest.mark.pretrained, pytest.mark.slow]
LAYERS = [f"network.encoder.lstm.*_l{layer}" for layer in (2, 1, 0)]
STAGES = ["network.head", "network.encoder.linear", *LAYERS]
EPOCHS = 8


class VoiceEncoder(nn.Module):
    """The architecture of the package's encoder, whose own code would ask for packages for sound files."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, spectra: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(spectra)
        return F.normalize(F.relu(self.linear(hidden[-1])))


class Speakers(nn.Module):
    """Spectra to logits of the speakers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = VoiceEncoder(), nn.Linear(256, 10)

    def forward(self, spectra: Tensor) -> Tensor:
        # Embeddings have length 1, with which the head would be slow to become sure.
        return self.head(10 * self.encoder(spectra))


class SpeakerClassifier(DigitsClassifier):
    """With Adam, as the encoder was trained."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


@pytest.fixture(scope="module")
def weights() -> PackagePath:
    try:
        found = files("resemblyzer") or []
    except PackageNotFoundError:
        pytest.skip("Resemblyzer is not installed: pip install --no-deps resemblyzer==0.1.4")
    return next(path for path in found if path.name == "pretrained.pt")


@pytest.fixture(scope="module")
def learned(weights):
    """What the package's file holds for the encoder."""
    checkpoint = torch.load(weights.locate(), map_location="cpu", weights_only=True)
    # The two others scale similarities in the loss that it was trained with.
    return {name: value for name, value in checkpoint["model_state"].items() if "similarity" not in name}


@pytest.fixture(scope="module")
def data():
    return TensorDataset(*utterances(8, seed=2)), TensorDataset(*utterances(15, seed=1))


def fit(network, data, techniques):
    torch.manual_seed(0)
    module, changed = SpeakerClassifier(network, lr=3e-3), Changed()
    runner = trainer(*techniques, changed, max_epochs=EPOCHS)
    training, validation = data
    loader = DataLoader(training, 10, shuffle=True, drop_last=True)
    runner.fit(module, loader, DataLoader(validation, len(validation)))
    return float(runner.callback_metrics["val_accuracy"]), changed


@pytest.fixture(scope="module")
def fine_tuned(learned, data):
    torch.manual_seed(0)
    network = Speakers()
    network.encoder.load_state_dict(learned)
    techniques = finetune(stages=STAGES, weight_decay=False)
    accuracy, changed = fit(network, data, techniques)
    return accuracy, changed, techniques


def test_the_weights_are_those_that_the_package_was_published_with(weights, learned):
    found = hashlib.sha256(weights.locate().read_bytes()).digest()
    assert base64.urlsafe_b64encode(found).rstrip(b"=").decode() == weights.hash.value
    assert sum(value.numel() for value in learned.values()) == 1_423_616
    network = VoiceEncoder()
    assert network.load_state_dict(learned).missing_keys == []


def test_each_stage_keeps_the_packages_weights_to_the_bit_until_it_opens(fine_tuned, learned):
    _, changed, techniques = fine_tuned
    assert techniques[-1].outcome()["opened"] == len(STAGES)
    for name, value in learned.items():
        assert torch.equal(changed.start[f"network.encoder.{name}"], value)
    opens = {"head": 0, "encoder.linear": 1, "_l2": 2, "_l1": 3, "_l0": 4}
    for epoch, (names, remembered) in enumerate(zip(changed.names, changed.remembered, strict=True)):
        due = {
            name
            for name in changed.start
            if name.startswith("network.") and next(at for part, at in opens.items() if part in name) <= epoch
        }
        assert names == remembered == due


def test_it_learns_the_voices(fine_tuned):
    accuracy, changed, _ = fine_tuned
    assert changed.losses[-1] < 0.5 * changed.losses[0]
    assert accuracy > 0.5


def test_the_same_network_from_random_weights_does_not(fine_tuned, data):
    torch.manual_seed(0)
    plain = [lt.GradientClip(max_norm=1.0), lt.LearningRate(schedule="warmup('10%') >> linear(to=0.03125)")]
    accuracy, _ = fit(Speakers(), data, plain)
    print(f"accuracy on 150 utterances: {fine_tuned[0]:.3f} fine-tuned, {accuracy:.3f} from random weights")
    assert accuracy < fine_tuned[0]
