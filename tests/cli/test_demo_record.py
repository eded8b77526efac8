import math

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.cli.demo_record import Recorder, evaluate
from lightning_tricks.gradients.clip import GradientClip
from lightning_tricks.network.unfreeze import ProgressiveUnfreeze
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
from lightning_tricks.recipes.residual import ResidualNet
from tests.toys import trainer

STAGES = ["network.head", "network.groups.0", "network.stem"]


def trained(*techniques, epochs=2):
    """Train on 100 digits in 2 batches an epoch; return the record, the module and the data."""
    data, module = DigitsData(training=100, batch_size=50), DigitsClassifier(ResidualNet(widths=(4,)))
    steps = []
    recorder = Recorder(classes=10, on_step=lambda: steps.append(1))
    trainer(recorder, *techniques, max_epochs=epochs).fit(module, datamodule=data)
    assert len(steps) == recorder.record.steps == 2 * epochs
    return recorder.record, module, data


def test_a_score_is_that_of_scikit_learn_and_the_module_stays_as_it_was():
    data, module = DigitsData(), DigitsClassifier(ResidualNet(widths=(4,)))
    data.setup("fit")
    module.network.stem.eval()  # modes differ from part to part
    modes = [part.training for part in module.modules()]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    score = evaluate(module, data.val_dataloader(), classes=10)
    assert [part.training for part in module.modules()] == modes
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    images, labels = data.val_set.tensors
    with torch.no_grad():
        logits = module.eval()(images).double()
    assert score.accuracy == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    expected = log_loss(labels, logits.softmax(1), labels=range(10))
    assert score.loss == pytest.approx(expected, rel=1e-5)


def test_of_a_plain_run_the_weights_trained_are_those_validated():
    record, module, data = trained()
    assert record.epoch_ends == [2, 4]
    assert len(record.live) == len(record.validated) == 2
    for live, validated in zip(record.live, record.validated, strict=True):
        assert live == pytest.approx(validated, rel=1e-5)
    assert record.live[-1] == evaluate(module, data.val_dataloader(), classes=10)


def test_beside_an_average_both_are_scored():
    torch.manual_seed(0)
    start = DigitsClassifier(ResidualNet(widths=(4,)))
    torch.manual_seed(0)
    # A decay of 1 keeps the first weights, with the live statistics of BatchNorm.
    record, module, data = trained(EMAWeights(decay=1.0, decay_warmup=False))
    buffers = {name: value for name, value in module.state_dict().items() if "running" in name}
    start.load_state_dict(buffers, strict=False)
    first = evaluate(start, data.val_dataloader(), classes=10)
    assert record.validated[-1] == pytest.approx(first, rel=1e-5)
    assert record.live[-1] != record.validated[-1]


def test_norms_before_and_after_clipping():
    record, _, _ = trained(GradientClip(max_norm=0.125))
    assert min(record.norms) > 0.125
    assert record.clipped_norms == pytest.approx([0.125] * 4, rel=1e-4)


def test_without_clipping_both_norms_are_the_gradients():
    norms = []

    class Twin(Recorder):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            flat = [p.grad.flatten() for p in pl_module.parameters()]
            norms.append(torch.linalg.vector_norm(torch.cat(flat)).item())

    twin = Twin(classes=10, on_step=lambda: None)
    data = DigitsData(training=100, batch_size=50)
    trainer(twin, max_epochs=1).fit(DigitsClassifier(ResidualNet(widths=(4,))), datamodule=data)
    assert twin.record.norms == twin.record.clipped_norms == pytest.approx(norms)


def test_a_frozen_group_has_no_rate_and_counts_as_not_trainable():
    record, module, _ = trained(ProgressiveUnfreeze(stages=STAGES, at=1, lr_factor=0.5))
    head, group, stem = (
        sum(p.numel() for p in part.parameters())
        for part in (module.network.head, module.network.groups, module.network.stem)
    )
    assert record.trainable == [head, head + group, head + group + stem, head + group + stem]
    assert list(record.rates) == ["head", "groups.0", "stem"]
    nan = math.nan
    assert record.rates["head"] == [0.05] * 4
    assert record.rates["groups.0"] == pytest.approx([nan, 0.025, 0.025, 0.025], nan_ok=True)
    assert record.rates["stem"] == pytest.approx([nan, nan, 0.0125, 0.0125], nan_ok=True)


def test_one_group_is_called_all_layers():
    record, _, _ = trained(epochs=1)
    assert record.rates == {"all layers": [0.05, 0.05]}


def test_times_are_those_of_steps_and_not_of_validation():
    record, _, _ = trained(epochs=3)
    assert len(record.seconds) == 3  # two steps an epoch: one whole step each
    assert all(0 < seconds < 1 for seconds in record.seconds)
