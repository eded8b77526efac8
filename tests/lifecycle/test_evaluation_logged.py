"""What the validation that just ended has logged: in all, and in the hooks of the module."""

from __future__ import annotations

from lightning.pytorch import Callback

from lightning_tricks.lifecycle.evaluation import logged_by_module, logged_by_validation, validate_again
from tests.lifecycle.passes import fixed, run
from tests.toys import Loader, Toy, trainer


class Several(Toy):
    """Validates on one loader or on several."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0) -> None:
        super().validation_step(batch, batch_idx)


def test_logged_by_validation_is_what_this_validation_logged():
    class Listen(Callback):
        heard: list[set[str]] = []  # noqa: RUF012

        def on_validation_end(self, trainer, pl_module):
            self.heard.append(set(logged_by_validation(trainer)))
            assert {"train_loss"} <= set(trainer.callback_metrics)

    class Logs(Toy):
        def training_step(self, batch, batch_idx):
            self.log("train_loss", 1.0)
            return super().training_step(batch, batch_idx)

        def on_validation_epoch_end(self):
            self.log("val_epoch", 2.0)

    trainer(Listen()).fit(Logs(), Loader(), Loader(2, seed=9))
    assert Listen.heard == [{"val_loss", "val_epoch"}] * 3


def test_logged_by_module_is_what_a_pass_without_callbacks_logs():
    class Theirs(Callback):
        heard: list[tuple[dict[str, float], set[str]]] = []  # noqa: RUF012

        def on_validation_batch_end(self, trainer, pl_module, *_):
            pl_module.log("theirs", 1.0)
            pl_module.log("both", 2.0)

        def on_validation_epoch_end(self, trainer, pl_module):
            self.log("late", 1.0)

        def on_validation_end(self, trainer, pl_module):
            self.heard.append((logged_by_module(trainer, pl_module), set(logged_by_validation(trainer))))

    class Ours(Several):
        def on_validation_epoch_start(self):
            self.log("both", 3.0)

    for val, names in (
        (fixed(2), {"val_loss"}),
        ([fixed(2)] * 2, {"val_loss/dataloader_idx_0", "val_loss/dataloader_idx_1"}),
    ):
        wanted = run(Ours(), validate_again, Theirs(), val=val).result
        ours, everything = Theirs.heard[-1]
        assert ours == wanted
        assert set(ours) == {*names, "both"}
        assert len(everything) > len(ours)
