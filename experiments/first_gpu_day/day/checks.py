"""The checks in their order, with the time limit of each."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from day.base import Day, Result

TOTAL = 1500  # seconds of a day on one GPU
SEVERAL = 600  # seconds more where there are several
GPUS = "two GPUs"
WEIGHTS = "weights that know answers: --weights DIR of Qwen2-VL-2B-Instruct"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        place: module and function.
        title: as a question.
        seconds: time limit.
        needs: ``GPUS`` or ``WEIGHTS``; without them it is skipped.
    """

    place: str
    title: str
    seconds: int
    needs: str = ""

    @property
    def name(self) -> str:
        return self.place.partition(":")[2]

    @property
    def function(self) -> Callable[[Day], Result]:
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(f"day.{module}"), name)


CHECKS = (
    Check("machine:environment", "Is everything there that a run needs?", 20),
    Check("machine:weights", "Do weights of the genuine size load?", 80),
    Check("recorded:recorded_steps", "Do recorded steps compute what plain steps compute?", 120),
    Check("recorded:recorded_steps_lora", "And with an adapter?", 80),
    Check("recorded:recorded_flow", "And across validate, fit, validate and test?", 110),
    Check("gap:sampler_gap", "How far is the sampler from the trainer and from transformers?", 120),
    Check("memory_use:memory", "Does memory stay flat, and is the plan right?", 150),
    Check("decoding:decoding_speed", "How long does a decoding step take, and how many launches?", 180),
    Check("decoding:draw_kernel", "Does the fused draw agree with torch, and is it faster?", 50),
    Check(
        "training_run:zero_shot", "Does the untrained model reach its published accuracy?", 130, needs=WEIGHTS
    ),
    Check("training_run:real_size", "Do log-probabilities and a resumed step agree with plain code?", 120),
    Check("training_run:grpo_steps", "Do 20 steps of the paper's run work?", 190),
    Check("training_run:kill_and_resume", "Does a killed run resume?", 150),
    Check("devices:ddp_against_one", "Do several GPUs take the step of one?", 150, needs=GPUS),
    Check("devices:capture_under_nccl", "Can steps be recorded beside NCCL?", 90, needs=GPUS),
    Check("devices:fsdp", "Does FSDP train?", 120, needs=GPUS),
    Check("devices:ddp_lora", "Does DDP train an adapter?", 100, needs=GPUS),
    Check("devices:ddp_qlora", "And one on weights in 4 bits?", 120, needs=GPUS),
)
