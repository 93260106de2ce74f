"""The same optimiser step in one process or in two; run by test_strategies.py, not by pytest.

    python tests/support/two_processes.py FOLDER ddp fsdp

Every rank writes what it saw to FOLDER/<strategy>/<scenario>-<rank>.pt. FOLDER holds the checkpoints that
scenarios name.
"""

import dataclasses
import math
import sys
from pathlib import Path

import torch
from lightning import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from peft import LoraConfig
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor
from training import RECIPE, fit, phantoms, sgd

from medvlm_r1.algorithms.advantages import Asymmetric, GroupRelative, LeaveOneOut, PerTerm
from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.losses import PolicyLoss
from medvlm_r1.algorithms.sft import SFT
from medvlm_r1.data.perturbation import PLAIN
from medvlm_r1.evaluate.controls import CONTROLS
from medvlm_r1.policy.loading.tuning import Tuning

LORA = Tuning("adapter", LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))


class Infinite(SFT):
    """The gradient of the last rank is not finite."""

    def accumulate(self, loss, last):
        super().accumulate(loss * math.inf if self.trainer.world_size - self.global_rank == 1 else loss, last)


STRATEGIES = {
    "single": dict,
    "ddp": lambda: {"strategy": "ddp", "devices": 2},
    "fsdp": lambda: {
        "strategy": ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
        ),
        "devices": 2,
    },
}
SCENARIOS = {
    "sft": {"kind": SFT, "micro_batch": 1},
    "grpo": {"kind": GRPO, "loss": PolicyLoss(loss_type="token"), "micro_batch": 1},
    "normalised": {
        "kind": GRPO,
        "loss": PolicyLoss(loss_type="token"),
        "advantages": PerTerm(),
        "kl_placement": "token",
        "normalize_advantages": True,
        "num_iterations": 2,
    },
    "rloo": {
        "kind": GRPO,
        "advantages": LeaveOneOut(),
        "kl_placement": "reward",
        "loss": PolicyLoss(importance_sampling_level="completion"),
    },
    "limit": {
        "kind": GRPO,
        "advantages": Asymmetric(GroupRelative("none")),
        "loss": PolicyLoss(loss_type="limit"),
    },
    # ranks fill their own places, so this need not agree; it must end
    "dynamic_sampling": {"kind": GRPO, "dynamic_sampling_rounds": 2, "questions": 16},
    "grpo_two_passes": {"kind": GRPO, "num_iterations": 2, "micro_batch": 1},
    "lora": {"kind": GRPO, "loss": PolicyLoss(loss_type="token"), "tuning": LORA, "lr": 0.5},
    "language_model": {"kind": GRPO, "tuning": Tuning("language_model")},
    "pictureless": {"kind": SFT, "pictureless": True, "micro_batch": 1},
    "qwen3_vl": {"kind": SFT, "path": "qwen3_vl", "pictureless": True, "micro_batch": 1},
    "qwen3_vl_frozen_tower": {"kind": SFT, "path": "qwen3_vl", "tuning": Tuning("language_model")},
    "infinite": {"kind": Infinite},
    "bfloat16": {"kind": SFT, "recipe": dataclasses.replace(RECIPE, dtype="bfloat16")},
}
# What the trained model answers is compared once.
NO_ANSWERS = {"limit_val_batches": 0, "limit_test_batches": 0}


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


class Witness(Callback):
    """Keeps what the first update was made of, and the weights behind it."""

    def __init__(self):
        self.seen = {"reduced": 0}

    def on_train_start(self, trainer, module):
        if isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy.model.register_comm_hook(None, self.reduce)
        named = dict(module.policy.named_parameters())
        self.seen["start"] = {name: whole(p) for name, p in named.items()}
        self.seen["held"] = {
            name: (p.to_local() if isinstance(p, DTensor) else p).numel() for name, p in named.items()
        }

    def reduce(self, _, bucket):
        """Count the entries of gradients that DDP reduces over the ranks."""
        self.seen["reduced"] += bucket.buffer().numel()
        return allreduce_hook(torch.distributed.group.WORLD, bucket)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        named = module.policy.named_parameters()
        gradients = {name: whole(p.grad) for name, p in named if p.requires_grad and p.grad is not None}
        self.seen.setdefault("gradients", gradients)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen["weights"] = {name: whole(p) for name, p in module.policy.named_parameters()}
        self.seen["metrics"] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if trajectory := (outputs or {}).get("trajectory"):
            self.seen["tokens"] = trajectory.rollout.lengths.tolist()


def without_pictures(questions):
    """Each micro-batch of one question has a picture on one of two ranks; the first rank's last has none."""
    source = questions.train
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).tolist()
    blind = set(order[1:3])
    samples = [
        dataclasses.replace(source[i], images=()) if i in blind else source[i] for i in range(len(source))
    ]
    return dataclasses.replace(questions, train=samples)


def steps(strategy, folder):
    """One step of every scenario."""
    for name, scenario in SCENARIOS.items():
        scenario, witness = dict(scenario), Witness()
        less = {} if name == "grpo" else NO_ANSWERS
        questions = phantoms(scenario.pop("questions", 4))
        # ranks answer 4 and 3 questions of one set, 1 and 0 of the other
        questions = dataclasses.replace(
            questions, test={"mri": list(questions.test["mri"])[:7], "xray": list(questions.test["xray"])[:1]}
        )
        if scenario.pop("pictureless", False):
            questions = without_pictures(questions)
        settings = {"micro_batch": 2, "optimizer": sgd, "lr": 0.1} | scenario
        if "path" in settings:
            settings["path"] = str(folder.parent / settings["path"])
        module = fit(
            settings.pop("kind"),
            folder / name,
            controls=CONTROLS if name == "grpo" else (PLAIN,),
            steps=settings.get("num_iterations", 1),
            questions=questions,
            trainer=STRATEGIES[strategy]() | {"callbacks": [witness]} | less,
            **settings,
        )
        witness.seen["answers"] = [
            (p.test_set, p.control, p.sample_id, p.text, p.order, p.picture_of) for p in module.predictions
        ]
        folder.mkdir(exist_ok=True)
        torch.save(witness.seen, folder / f"{name}-{module.global_rank}.pt")


if __name__ == "__main__":
    for strategy in sys.argv[2:]:
        steps(strategy, Path(sys.argv[1], strategy))
