"""Train the embedded model a few steps, as run.py does; for every test that needs a trained module."""

import functools

import torch
from command import ROOT, run_here
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from omegaconf import OmegaConf

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.optim import OptimizerSettings
from medvlm_r1.algorithms.rft import RFT
from medvlm_r1.algorithms.voting import Voting
from medvlm_r1.data.datamodule import VQADataModule
from medvlm_r1.data.splits import Questions
from medvlm_r1.evaluate.controls import PerturbedQuestions
from medvlm_r1.evaluate.journal import Journal
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy.loading.load import Recipe, load_policy
from medvlm_r1.rewards import Rewards, letter_accuracy, think_format
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

RECIPE = Recipe(
    grpo_lr=1e-3,
    sft_lr=1e-3,
    epochs=1,
    prompts_per_step=4,
    group_size=4,
    micro_batch=4,
    evaluation_batch=16,
    max_prompt_tokens=512,
    max_completion_tokens=24,
    min_pixels=112 * 112,
    max_pixels=112 * 112,
    dtype="float32",
)
# overrides of a run that ends in seconds
SHORT = [
    "data=phantom",
    "trainer.max_steps=2",
    "data.train.n=16",
    "data.validation.n=8",
    "data.test.mri.n=8",
    "data.test.ct.n=8",
    "data.test.xray.n=8",
]
PROMPT = instantiate(OmegaConf.load(ROOT / "conf/prompt/medvlm_r1.yaml"))
REWARDS = Rewards({"format": think_format, "accuracy": letter_accuracy}, {})
FORMAT = Rewards({"format": think_format}, {})


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr)


def module_of(kind, policy, **settings):
    lr, optimizer = settings.pop("lr", 1e-3), settings.pop("optimizer", torch.optim.AdamW)
    limits = {k: settings.pop(k) for k in ("max_skipped_updates",) if k in settings}
    optim = OptimizerSettings(lr=lr, optimizer=optimizer, **limits)
    name = settings.pop("name", "zero_shot" if kind is VLMModule else kind.__name__.lower())
    shared = {"policy": policy, "prompt": PROMPT, "seed": 0, "name": name}
    shared["engine"] = settings.pop("engine", SharedPrefixEngine())
    shared["rewards"] = settings.pop("rewards", REWARDS)
    if issubclass(kind, GRPO | RFT):
        settings.setdefault("sampling", Sampling(group_size=4, max_tokens=24))
    if kind is not VLMModule and not issubclass(kind, Voting):
        settings = {"micro_batch": 4, "optim": optim, **settings}
    return kind(max_completion_tokens=24, **shared, **settings)


def phantoms(n=8):
    """Questions to train, validate and test on."""
    return Questions(
        PhantomSource("mri", n, "train"),
        PhantomSource("mri", 8, "validation"),
        {"mri": PhantomSource("mri", 8, "test"), "xray": PhantomSource("xray", 6, "test")},
    )


def data_of(policy, questions, controls=("image",), workers=0, batch=4):
    """The data module of a policy's questions."""
    encode = functools.partial(policy.encoder.encode, prompt=PROMPT)
    perturb = functools.partial(
        PerturbedQuestions, controls=controls, assistant_prefix=PROMPT.assistant_prefix
    )
    return VQADataModule(questions, encode, 4, batch, seed=0, workers=workers, perturb=perturb)


def fit(
    kind,
    folder,
    steps=2,
    n=8,
    workers=0,
    questions=None,
    recipe=RECIPE,
    tuning=None,
    layout="packed",
    path="embedded",
    trainer=None,
    controls=("image",),
    ckpt_path=None,
    journal=None,
    **settings,
):
    """Train a few steps of the checkpoint at ``path`` as run.py does; returns the module.

    ``trainer`` holds further arguments of Lightning's trainer, ``settings`` those of the method. With
    ``journal`` the answers are kept in a journal of that.
    """
    seed_everything(0, verbose=False)
    policy = load_policy(path, recipe, tuning=tuning, layout=layout)
    module = module_of(kind, policy, **settings)
    data = data_of(policy, questions or phantoms(n), controls, workers)
    arguments = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": steps,
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "inference_mode": False,
    }
    trainer = Trainer(**arguments | (trainer or {}))
    if module.trains:
        trainer.fit(module, data, ckpt_path=ckpt_path)
    if journal is not None:
        module.journal = Journal(folder / "answers.journal", journal)
        data.answered = module.journal.answered
    trainer.test(module, data, verbose=False)
    return module


def launch(folder, *overrides, start=run_here):
    """One GRPO run of the embedded model through run.py in ``folder``; returns its run folder."""
    start(folder, "+experiment=grpo_600", "model=tiny", *overrides)
    return sorted((folder / "outputs" / "runs").iterdir())[-1]
