"""A progress bar with short metric names."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's bar with metric names so short that reward, KL and accuracy fit."""

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        return {name.replace("train/", "").replace("validation/", "val "): v for name, v in metrics.items()}
