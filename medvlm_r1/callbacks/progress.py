"""A progress bar with short metric names, whose unit is the step."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from medvlm_r1.algorithms.base import VLMModule


class Progress(RichProgressBar):
    """Lightning's bar with metric names so short that reward, KL and accuracy fit.

    It counts the steps of an epoch; the last epoch has fewer where ``trainer.max_steps`` updates end the run.
    """

    @property
    def total_train_batches(self) -> int | float:
        per_epoch, module = self.trainer.num_training_batches, self.trainer.lightning_module
        assert isinstance(module, VLMModule)
        return min(per_epoch, module.total_steps - self.trainer.current_epoch * per_epoch)

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        return {name.replace("train/", "").replace("validation/", "val "): v for name, v in metrics.items()}
