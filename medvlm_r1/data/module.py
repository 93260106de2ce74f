"""Serve questions to training, validation and test, encoded in workers."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from medvlm_r1.data.sample import VQASample

Source = Sequence[VQASample]
Phase = Literal["train", "evaluate"]
Encode = Callable[[VQASample, Phase], Any]


class VQADataModule(LightningDataModule):
    """Train, validation and test questions.

    Every device of a run takes its own share of each optimiser step's prompts. The order follows
    from (seed, epoch) alone, so methods that share a seed see the same questions in the same order,
    and the number of workers changes nothing.

    Args:
        train: training questions.
        validation: questions of the training domain that share no image with training.
        test: named test sets, in the order in which they are reported.
        workers: processes that decode and encode; 0 works in the main process.
        encode: (question, phase) -> tensors, run in the workers.
        prompts_per_step: prompts in one optimiser step, over all devices.
        evaluation_batch: prompts answered at once in evaluation, per device.
        seed: of the order.

    Raises:
        ValueError: no training questions, or validation shares an image with training.
    """

    def __init__(
        self,
        train: Source,
        validation: Source,
        test: Mapping[str, Source],
        workers: int,
        encode: Encode,
        prompts_per_step: int,
        evaluation_batch: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.train, self.validation, self.test = train, validation, dict(test)
        self.encode = encode
        self.prompts_per_step, self.evaluation_batch = prompts_per_step, evaluation_batch
        self.workers, self.seed = workers, seed
        if len(train) < prompts_per_step:
            raise ValueError(
                f"{len(train)} training questions do not fill a step of {prompts_per_step} prompts"
            )
        seen = {sample.image_group for sample in train}
        if shared := seen & {sample.image_group for sample in validation}:
            raise ValueError(
                f"{len(shared)} images stand in training and in validation, e.g. {min(shared)}: split by "
                "image"
            )
        for name, source in self.test.items():
            if shared := sum(sample.image_group in seen for sample in source):
                warnings.warn(
                    f"{shared} of {len(source)} questions of test set {name!r} show an image of training",
                    stacklevel=2,
                )

    def train_dataloader(self) -> DataLoader:
        world = self.trainer.world_size if self.trainer else 1
        if self.prompts_per_step % world:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} is no multiple of the {world} devices: "
                "set method.prompts_per_step to one"
            )
        rank = self.trainer.global_rank if self.trainer else 0
        # Lightning calls set_epoch on this sampler at the start of every epoch.
        sampler = DistributedSampler(self.train, world, rank, shuffle=True, seed=self.seed, drop_last=True)
        return self._loader(self.train, "train", self.prompts_per_step // world, sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.validation)

    def test_dataloader(self) -> list[DataLoader]:
        return [self._evaluation_loader(source) for source in self.test.values()]

    def _evaluation_loader(self, source: Source) -> DataLoader:
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        share = _Share(source, rank, world)
        return self._loader(share, "evaluate", self.evaluation_batch, sampler=None, drop_last=False)

    def _loader(self, source, phase: Phase, batch_size: int, sampler, drop_last: bool) -> DataLoader:
        return DataLoader(
            _Encoded(source, self.encode, phase),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=list,
            drop_last=drop_last,
        )


class _Share(Sequence[VQASample]):
    """Every ``world``-th question: no question is answered twice, ranks may differ by one."""

    def __init__(self, source: Source, rank: int, world: int) -> None:
        self.source, self.indices = source, range(rank, len(source), world)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> VQASample:
        return self.source[self.indices[index]]


class _Encoded(Dataset):
    def __init__(self, source: Source, encode: Encode, phase: Phase) -> None:
        self.source, self.encode, self.phase = source, encode, phase

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.encode(self.source[index], self.phase)
