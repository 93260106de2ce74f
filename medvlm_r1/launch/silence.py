"""Library messages that no user can act on."""

import logging
import warnings


def silence_libraries() -> None:
    """Hide messages that appear on every run; call it after Lightning's import, which sets log levels."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for message in (
        ".*Experiment logs directory .* exists and is not empty.*",  # the run folder, which Hydra creates
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*overridden `transfer_batch_to_device` in `LightningModule`.*",  # on purpose
        ".*does not have many workers.*",  # one worker keeps two cores busy
        ".*`tensorboardX` has been removed.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*resuming from a checkpoint that ended before the epoch.*",  # VQADataModule restores its place
        ".*`is_gradient_checkpointing` is deprecated.*",  # from peft
        ".*Total length of .* across ranks is zero.*",  # a resumed run that has answered every question
    ):
        warnings.filterwarnings("ignore", message)
