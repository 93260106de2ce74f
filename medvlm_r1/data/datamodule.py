"""The Lightning data module: workers encode the questions of training, validation and test."""

import copyreg
import io
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence, Set
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from medvlm_r1.data.perturbation import Perturbation, Unperturbed
from medvlm_r1.data.sample import Phase
from medvlm_r1.data.splits import Questions, Source

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
Encode = Callable[..., Any]  # (question, phase); for test questions also assistant_prefix and memo
Perturb = Callable[[Source], Sequence[list[Perturbation]]]


class VQADataModule(LightningDataModule):
    """Train, validation and test questions.

    Each device takes its own share of the prompts of a step. The order depends on (seed, epoch)
    alone: methods with the same seed see the same questions in the same order, for any number of workers.

    A test batch holds, per question, its perturbations with their tensors.

    Args:
        encode: (question, phase) -> tensors, run in the workers. For test questions it also takes
            ``assistant_prefix``, the first text of the answer, and ``memo``, the images that all
            perturbations of one question share.
        prompts_per_step: prompts per step, over all devices.
        evaluation_batch: prompts per evaluation batch and device.
        workers: DataLoader workers; 0 encodes in the main process.
        perturb: test set -> the perturbations of each question; by default the unchanged question alone.

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
        perturb: Perturb = Unperturbed,
    ) -> None:
        super().__init__()
        # A test set may hold fewer questions than there are devices.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.questions, self.encode = questions, encode
        self.prompts_per_step, self.evaluation_batch = prompts_per_step, evaluation_batch
        self.seed, self.workers, self.perturb = seed, workers, perturb
        self.answered: Set[tuple[str, str]] = frozenset()  # (test set, id) of answered questions
        self._taken = 0  # batches of the current epoch that a resumed run skips
        self._sampler: _Shuffled | None = None
        if len(questions.train) < prompts_per_step:
            raise ValueError(
                f"{len(questions.train)} training questions do not fill a step of {prompts_per_step}: "
                "lower model.recipe.prompts_per_step"
            )

    def train_dataloader(self) -> DataLoader:
        world, rank = self._world_and_rank()
        if len(self.questions.validation) < world:
            raise ValueError(
                f"{len(self.questions.validation)} validation questions are fewer than the {world} devices, "
                "and a device without one would block the others: use more questions, or fewer devices"
            )
        if self.prompts_per_step % world:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} is no multiple of the {world} devices: "
                "set model.recipe.prompts_per_step to one"
            )
        share = self.prompts_per_step // world
        # Lightning calls set_epoch on this sampler at the start of every epoch.
        train, skip = self.questions.train, self._taken * share
        sampler = _Shuffled(train, world, rank, seed=self.seed, drop_last=True, skip=skip)
        self._taken, self._sampler = 0, sampler
        encoded = _Encoded(train, self.encode, "train")
        return self._loader(encoded, batch_size=share, sampler=sampler, drop_last=True)

    def state_dict(self) -> dict[str, int]:
        """Number of finished batches of the epoch; 0 at its end."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        return {"batches": done % max(1, int(self.trainer.num_training_batches))}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._taken = state_dict["batches"]
        if self._sampler:  # strategies that shard the weights load after the loader exists
            self._sampler.skip = self._taken * self.prompts_per_step // self._sampler.num_replicas
            self._taken = 0

    def spare(self, count: int, step: int, attempt: int, taken: Set[str]) -> list:
        """Draw and encode further training questions for this device; other devices get others.

        The draw depends on (seed, step, attempt) alone, so a resumed run draws the same questions.

        Args:
            count: questions per device; if too few are left, every device gets equally fewer.
            taken: ids of the questions that the devices already have in this step.
        """
        world, rank = self._world_and_rank()
        source = self.questions.train
        order = np.random.default_rng([self.seed, step, attempt]).permutation(len(source))
        free = (i for i in order.tolist() if source[i].id not in taken)
        chosen = list(islice(free, count * world))
        count = len(chosen) // world
        mine = chosen[rank * count : (rank + 1) * count]
        return [self.encode(source[i], "train") for i in mine]

    def val_dataloader(self) -> DataLoader:
        encoded = _Encoded(self._share(self.questions.validation), self.encode, "evaluate")
        return self._loader(encoded, batch_size=self.evaluation_batch)

    def test_dataloader(self) -> list[DataLoader]:
        return [self._test_loader(name, source) for name, source in self.questions.test.items()]

    def _test_loader(self, name: str, source: Source) -> DataLoader:
        """Batches of a test set without the fully answered ones; the other batches do not change."""
        share = self._share(source)
        batches = [part.tolist() for part in torch.arange(len(share)).split(self.evaluation_batch)]
        if self.answered:
            batches = [
                part for part in batches if any((name, share[i].id) not in self.answered for i in part)
            ]
        encoded = _EncodedPerturbations(self._share(self.perturb(source)), self.encode, "evaluate")
        return self._loader(encoded, batch_sampler=batches)

    def _world_and_rank(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _share(self, source: Sequence) -> "_Share":
        return _Share(source, *self._world_and_rank())

    def _loader(self, encoded: Dataset, **batching: Any) -> DataLoader:
        # In a process of joblib (hydra/launcher=processes) the default method starts joblib's processes only.
        context = (
            "fork" if self.workers and multiprocessing.get_start_method(allow_none=True) == "loky" else None
        )
        return _Loader(
            encoded,
            num_workers=self.workers,
            prefetch_factor=1 if self.workers else None,  # a test batch may hold 100 MB of pixels
            collate_fn=_Batch,
            worker_init_fn=_survive_signals,
            multiprocessing_context=context,
            **batching,
        )


class _Loader(DataLoader):
    """A DataLoader whose workers start with signals blocked, until :func:`_survive_signals` handles them.

    In this process they wait as well: Python drops an exception that a handler raises in a hook of os.fork.
    """

    def _get_iterator(self) -> Any:
        earlier = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS if self.num_workers else ())
        try:
            return super()._get_iterator()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


class _Shuffled(DistributedSampler):
    """A DistributedSampler that skips the first ``skip`` questions of the first epoch."""

    def __init__(self, *args: Any, skip: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skip = skip

    def __iter__(self) -> Iterator[int]:
        skip, self.skip = self.skip, 0
        return islice(super().__iter__(), skip, None)


class _Share:
    """Every ``world``-th question: no question is answered twice; ranks may differ by one question."""

    def __init__(self, source: Sequence, world: int, rank: int) -> None:
        self.source, self.indices = source, range(rank, len(source), world)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.source[self.indices[index]]


class _Encoded(Dataset):
    def __init__(self, source: Source | _Share, encode: Encode, phase: Phase) -> None:
        self.source, self.encode, self.phase = source, encode, phase

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.encode(self.source[index], self.phase)


class _EncodedPerturbations(_Encoded):
    """All perturbations of a question together: its images are decoded and cut into patches once."""

    def __getitem__(self, index: int) -> list[tuple[Perturbation, Any]]:
        memo: dict = {}
        return [
            (p, self.encode(p.sample, self.phase, assistant_prefix=p.assistant_prefix, memo=memo))
            for p in self.source[index]
        ]


class _Batch(list):
    """Encoded questions, which leave their worker as bytes through its pipe.

    By itself torch would send every tensor as an open file in /dev/shm. A tensor of several prompts is sent
    once.
    """

    def __reduce__(self) -> tuple[Callable, tuple[bytes]]:
        file = io.BytesIO()
        pickler = pickle.Pickler(file, protocol=5)
        pickler.dispatch_table = copyreg.dispatch_table | {torch.Tensor: _as_array}
        pickler.dump(list(self))
        return pickle.loads, (file.getvalue(),)


def _as_array(tensor: torch.Tensor) -> tuple[Callable, tuple[np.ndarray]]:
    return torch.from_numpy, (tensor.numpy(),)


def _survive_signals(worker: int) -> None:
    """Go on serving the main process, which finishes the step that it is in.

    Ctrl-C reaches all processes of a terminal, and SIGTERM all of a job that Slurm, systemd or ``timeout``
    ends. A second SIGTERM ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
