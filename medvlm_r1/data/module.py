"""Serve questions to training, validation and test, encoded in workers."""

from collections.abc import Callable
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from medvlm_r1.data.questions import Questions, Source
from medvlm_r1.data.sample import Phase, VQASample

Encode = Callable[[VQASample, Phase], Any]


class VQADataModule(LightningDataModule):
    """Train, validation and test questions.

    Every device of a run takes its own share of each optimiser step's prompts. The order follows
    from (seed, epoch) alone, so methods that share a seed see the same questions in the same order,
    and the number of workers changes nothing.

    Args:
        questions: what trains, validates and tests.
        encode: (question, phase) -> tensors, run in the workers.
        prompts_per_step: prompts in one optimiser step, over all devices.
        evaluation_batch: prompts answered at once in evaluation, per device.
        seed: of the order.
        workers: processes that decode and encode; 0 works in the main process.

    Raises:
        ValueError: the training questions do not fill one step.
    """

    def __init__(
        self,
        questions: Questions,
        encode: Encode,
        prompts_per_step: int,
        evaluation_batch: int,
        seed: int,
        workers: int,
    ) -> None:
        super().__init__()
        # A test set may hold fewer questions than there are devices.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.questions, self.encode = questions, encode
        self.prompts_per_step, self.evaluation_batch = prompts_per_step, evaluation_batch
        self.seed, self.workers = seed, workers
        if len(questions.train) < prompts_per_step:
            raise ValueError(
                f"{len(questions.train)} training questions do not fill a step of {prompts_per_step}: "
                "lower model.recipe.prompts_per_step"
            )

    def train_dataloader(self) -> DataLoader:
        world = self.trainer.world_size if self.trainer else 1
        if len(self.questions.validation) < world:
            raise ValueError(
                f"{len(self.questions.validation)} validation questions are fewer than the {world} devices, "
                "and a device with none would keep the others waiting: take more of them, or fewer devices"
            )
        if self.prompts_per_step % world:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} is no multiple of the {world} devices: "
                "set model.recipe.prompts_per_step to one"
            )
        rank = self.trainer.global_rank if self.trainer else 0
        # Lightning calls set_epoch on this sampler at the start of every epoch.
        sampler = DistributedSampler(
            self.questions.train, world, rank, shuffle=True, seed=self.seed, drop_last=True
        )
        return self._loader(
            self.questions.train, "train", self.prompts_per_step // world, sampler, drop_last=True
        )

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.questions.validation)

    def test_dataloader(self) -> list[DataLoader]:
        return [self._evaluation_loader(source) for source in self.questions.test.values()]

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


class _Share:
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
