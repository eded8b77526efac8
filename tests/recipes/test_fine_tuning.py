"""The demo's pretrained checkpoint of eight digits, fine-tuned stage by stage on all ten."""

from __future__ import annotations

import pytest
import torch

from lightning_tricks.cli.demo_settings import Demo
from lightning_tricks.recipes import finetune
from lightning_tricks.recipes.digits import DigitsClassifier
from tests.recipes.changing import Changed
from tests.toys import trainer

DEMO = Demo(widths=(8, 16), blocks=1, label_noise=0.0)
STAGES = ["network.head", "network.groups.1", "network.groups.0", "network.stem"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The file that training on eight digits leaves."""
    torch.manual_seed(0)
    runner = trainer(max_epochs=4)
    runner.fit(DigitsClassifier(DEMO.network(8), classes=8, lr=DEMO.rate), datamodule=DEMO.data(0))
    path = tmp_path_factory.mktemp("pretrained") / "eight_digits.ckpt"
    runner.save_checkpoint(path)
    return path


def ten_digits(checkpoint):
    """The classifier of all ten: a new head on what the checkpoint holds; random weights without one."""
    torch.manual_seed(1)
    module = DigitsClassifier(DEMO.network(10), lr=DEMO.rate, weight_decay=0.0)
    if checkpoint is not None:
        learned = torch.load(checkpoint, weights_only=True)["state_dict"]
        body = {name: value for name, value in learned.items() if "head" not in name}
        left = module.load_state_dict(body, strict=False)
        assert set(left.missing_keys) == {"network.head.weight", "network.head.bias"}
    return module


@pytest.fixture(scope="module")
def fine_tuned(checkpoint):
    changed, techniques, module = Changed(), finetune(stages=STAGES), ten_digits(checkpoint)
    runner = trainer(*techniques, changed, max_epochs=6)
    runner.fit(module, datamodule=DEMO.data(1))
    return runner, changed, techniques


def test_each_stage_is_the_checkpoints_to_the_bit_until_it_opens(fine_tuned, checkpoint):
    _, changed, techniques = fine_tuned
    learned = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(changed.start[name], learned[name]) for name in learned if "head" not in name)
    places = [stage.removesuffix(".*") for stage in STAGES]
    for epoch, names in enumerate(changed.names):
        due = {name for name in changed.start if any(name.startswith(part) for part in places[: epoch + 1])}
        assert names == due  # running statistics and their counters included
    assert techniques[-1].outcome()["opened"] == 4


def test_what_eight_digits_taught_helps_with_ten(fine_tuned):
    runner, changed, _ = fine_tuned
    assert changed.losses[-1] < changed.losses[0]
    other = trainer(*finetune(stages=STAGES), max_epochs=6)
    other.fit(ten_digits(None), datamodule=DEMO.data(1))
    found, without = (float(each.callback_metrics["val_accuracy"]) for each in (runner, other))
    print(f"accuracy: {found:.3f} from the checkpoint, {without:.3f} from random weights")
    assert found > without + 0.05
    assert found > 0.8
