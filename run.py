"""Train and evaluate a reasoning vision-language model on medical questions.

    python run.py                                          tiny model, phantom images, any machine
    python run.py +experiment=grpo_600                     MedVLM-R1's run on Qwen2-VL-2B
    python run.py +experiment=grpo_600 model=tiny data=phantom
    python run.py -m +experiment=zero_shot,sft_600,grpo_600 seed=0,1,2 sweep=main_table
    python run.py +experiment=grpo_600 plan=true card=a100_80gb      does it fit, how long would it take?
    python run.py --help                                   every group, option and key

The composition root: build the parts that conf/ names, then fit, select weights, test and write the results.
"""

import functools
import logging
import sys
import warnings
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig, OmegaConf

from medvlm_r1.launch.attempt import Attempt, attempt, exit_codes, write_report
from medvlm_r1.launch.compose import hydra_arguments
from medvlm_r1.launch.errors import user_errors
from medvlm_r1.launch.silence import silence_libraries
from medvlm_r1.launch.validate import check_model
from medvlm_r1.runs.ranks import is_rank_zero, own_processes

if TYPE_CHECKING:
    from lightning import Trainer

    from medvlm_r1.algorithms.base import VLMModule
    from medvlm_r1.data.datamodule import VQADataModule
    from medvlm_r1.data.splits import Questions

log = logging.getLogger("medvlm_r1")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def run(cfg: DictConfig) -> float:
    """Run one job. If it was started before, resume it; if it is finished, return its result.

    Returns:
        Validation accuracy of the final weights, for sweepers that optimise.
    """
    with attempt(cfg) as this:
        return execute(cfg, this) if this.result is None else this.result


def execute(cfg: DictConfig, this: Attempt) -> float:
    """Build all parts, fit, select weights, test, and write the results; returns as :func:`run` does."""
    with user_errors():
        check_model(cfg)
    # Imported late, so that --help, misspelt options and missing weights are reported within seconds.
    import lightning

    from medvlm_r1.artifacts.record import Clock, commit, describe, hardware, write_artifacts
    from medvlm_r1.inference.endpoint_client import EndpointError

    silence_libraries()  # after the import of lightning, which sets the level of its logger
    clock = Clock()
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.audit:  # it reports more than this warning of the data
        warnings.filterwarnings("ignore", message=".* show an image of training")
    with user_errors():
        with clock.phase("data"):  # before the weights: a bad row should not wait for them
            questions = hydra.utils.instantiate(cfg.data)
        with clock.phase("audit"):
            findings = None
            if cfg.audit:
                questions, findings = hydra.utils.instantiate(cfg.audit)(questions)
                if is_rank_zero():
                    log.info("audit: %s", findings.verdict)
        with clock.phase("build"):
            module, data, trainer = build(cfg, questions)
        checkpoint = this.checkpoint(cfg)
    from_scratch = cfg.overwrite or bool(cfg.resume and module.trains and not checkpoint)
    facts = {"devices": trainer.world_size, "hardware": hardware(), "commit": commit()}
    this.start(cfg, describe(cfg, module, questions), from_scratch, **facts)
    with own_processes(trainer, this.command):
        if module.trains:
            if checkpoint:
                log.info("resuming from %s", checkpoint)
            else:
                trainer.validate(module, data, verbose=False)  # first point of the curve
            with clock.phase("fit"):
                trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
            trainer.strategy.optimizers = []  # frees their fp32 copies on the device
        with clock.phase("validate"), user_errors(EndpointError):
            validation = select(cfg, module, data, trainer)
        with clock.phase("test"), user_errors(EndpointError):
            test(cfg, module, data, trainer, this)
    if trainer.is_global_zero:
        config = OmegaConf.to_container(cfg, resolve=True)
        found = findings.as_dict(pairs=20) if findings else {}
        write_artifacts(this.folder, config, module, validation, clock, found)
        write_report(this.folder)
    return validation["validation/accuracy"]


def build(cfg: DictConfig, questions: "Questions") -> tuple["VLMModule", "VQADataModule", "Trainer"]:
    """Instantiate module, data module and trainer."""
    from medvlm_r1.data.datamodule import VQADataModule
    from medvlm_r1.evaluate.controls import PerturbedQuestions, controls_of

    instantiate = hydra.utils.instantiate
    prompt, rewards = instantiate(cfg.prompt), instantiate(cfg.reward)
    if (sample := questions.open_question) is not None:  # raises if prompt or reward needs lettered options
        prompt.render(sample, "evaluate")
        rewards.score([prompt.parse("", sample)], [sample])
    controls, not_run = controls_of(cfg.controls, prompt, served="url" in cfg.model)
    for name, why in not_run.items() if is_rank_zero() else ():
        log.info("control %s is not run: %s", name, why)
    policy = instantiate(cfg.model)
    engine = instantiate(cfg.rollout) if cfg.get("rollout") else policy.engine
    module = instantiate(cfg.method)(
        policy=policy, prompt=prompt, rewards=rewards, engine=engine, seed=cfg.seed
    )
    cache = instantiate(cfg.image_cache) if cfg.image_cache else None
    data = VQADataModule(
        questions,
        encode=functools.partial(policy.encoder.encode, prompt=prompt, cache=cache),
        prompts_per_step=cfg.model.recipe.prompts_per_step,
        evaluation_batch=cfg.model.recipe.evaluation_batch,
        seed=cfg.seed,
        workers=cfg.workers,
        perturb=functools.partial(
            PerturbedQuestions, controls=controls, assistant_prefix=prompt.assistant_prefix
        ),
    )
    callbacks = cfg.get("callbacks") or {}
    if cfg.select == "best" and not (module.trains and "best" in callbacks):
        raise ValueError("select=best needs a method that trains (grpo, sft, ...), and callbacks.best")
    trainer = instantiate(
        cfg.trainer,
        callbacks=[instantiate(node) for node in callbacks.values()],
        logger=[instantiate(node) for node in (cfg.get("logger") or {}).values()],
    )
    return module, data, trainer


def select(
    cfg: DictConfig, module: "VLMModule", data: "VQADataModule", trainer: "Trainer"
) -> dict[str, float]:
    """Validate; with select=best, load the best weights where they are better; returns the metrics."""
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    (validation,) = trainer.validate(module, data, verbose=False)
    best = next((c for c in trainer.checkpoint_callbacks if c.monitor and c.best_model_path), None)
    if cfg.select == "best" and best and best.best_model_score > validation[best.monitor]:
        weights = torch.load(best.best_model_path, weights_only=True, map_location="cpu")["state_dict"]
        # as load_state_dict, but also for weights split over devices
        set_model_state_dict(module, weights, options=StateDictOptions(full_state_dict=True, strict=False))
        (validation,) = trainer.validate(module, data, verbose=False)
    return validation


def test(
    cfg: DictConfig, module: "VLMModule", data: "VQADataModule", trainer: "Trainer", this: Attempt
) -> None:
    """Answer the test questions that the journal of an earlier attempt does not hold yet."""
    from medvlm_r1.evaluate.journal import Journal

    key = {"step": module.step, "select": cfg.select, "devices": trainer.world_size}
    module.journal = Journal(this.folder / f"predictions-{trainer.global_rank}.journal", key)
    data.answered = module.journal.answered
    if data.answered and is_rank_zero():
        log.info("%d test questions are answered already", len(data.answered))
    trainer.test(module, data, verbose=False)


def main() -> None:
    """The command line."""
    sys.argv[1:] = hydra_arguments(sys.argv[1:])
    with exit_codes(sys.argv[1:]):
        run()


if __name__ == "__main__":
    main()
