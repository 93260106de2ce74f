"""Train and evaluate a reasoning vision-language model on medical questions.

    python run.py                                          tiny model, phantom images, any machine
    python run.py +experiment=grpo_600                     MedVLM-R1's run on Qwen2-VL-2B
    python run.py +experiment=grpo_600 model=tiny data=phantom
    python run.py -m +experiment=zero_shot,sft_600,grpo_600 seed=0,1,2 sweep=main_table
    python run.py +experiment=grpo_600 plan=true card=a100_80gb      does it fit, how long would it take?
    python run.py --help                                   every group and option

The composition root: build the parts that conf/ names, then fit, select weights, test and write the results.
Torch and Lightning are imported late: --help, misspelt options and missing weights show within seconds.
"""

import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from medvlm_r1.evaluate.controls import PerturbedQuestions, controls_of
from medvlm_r1.inference.endpoint_client import EndpointError
from medvlm_r1.launch.attempt import Attempt, attempt, exit_codes, metric_of, write_report
from medvlm_r1.launch.errors import user_errors
from medvlm_r1.launch.silence import silence_libraries
from medvlm_r1.runs.places import CONF
from medvlm_r1.runs.ranks import own_processes
from medvlm_r1.runs.vllm_server import VLLMServerError
from medvlm_r1.tracking.wandb_run import wandb_run

log = logging.getLogger("medvlm_r1")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(cfg: DictConfig) -> float:
    """Run or resume one job; returns ``optimized_metric`` of the selected weights, for sweepers."""
    configure_allocator()
    with attempt(cfg) as this, wandb_run(this.job.folder / "logs"):
        return execute(cfg, this) if this.result is None else this.result


def configure_allocator() -> None:
    """Let torch's memory segments on a GPU grow, unless the user has set its allocator; before torch loads.

    Packed passes differ in size from step to step: segments of fixed size would fragment the memory.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def execute(cfg: DictConfig, this: Attempt) -> float:
    """Build all parts, fit, select weights, test, and write the results; returns as :func:`run` does."""
    from lightning import seed_everything

    from medvlm_r1.algorithms.optim import NonFiniteGradientError
    from medvlm_r1.algorithms.rft import NoRightCompletionError
    from medvlm_r1.algorithms.steps import check_length
    from medvlm_r1.algorithms.voting import TokenBudgetError
    from medvlm_r1.artifacts.record import Clock, commit, describe, hardware, write_artifacts
    from medvlm_r1.callbacks.alarms import BrokenSamplerError
    from medvlm_r1.rollout.engine import RemoteEngine, stopped_after
    from medvlm_r1.tracking.run import log_end, log_start

    silence_libraries()
    clock = Clock()
    seed_everything(cfg.seed, workers=True, verbose=False)
    with user_errors():
        questions, findings = load_questions(cfg, clock)
        check_length(cfg, len(questions.train))
        with clock.phase("build"):
            module, data, trainer = build(cfg, questions)
    log.info("run %s: %s", this.job.folder, describe(cfg, module, data.questions))
    facts = {"devices": trainer.world_size, "hardware": hardware(), "commit": commit()}
    checkpoint = this.start(cfg, module.trains, **facts)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    if this.record:
        with user_errors():
            log_start(trainer.loggers, config, findings, trainer.world_size)
    with own_processes(trainer, this.job.command), stopped_after(module.engine):
        if module.trains:
            if checkpoint:
                log.info("resuming from %s", checkpoint)
                if isinstance(module.engine, RemoteEngine):
                    log.info("its engine draws other completions than without the stop; all else is kept")
            else:
                with user_errors(VLLMServerError):
                    (first,) = trainer.validate(module, data, verbose=False)  # first point of the curve
                with user_errors():
                    metric_of(first, cfg.optimized_metric)
            stops = (NonFiniteGradientError, BrokenSamplerError, VLLMServerError, NoRightCompletionError)
            with clock.phase("fit"), user_errors(*stops):
                trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
            trainer.strategy.optimizers = []  # frees their fp32 copies on the device
        with clock.phase("validate"), user_errors(EndpointError, VLLMServerError, TokenBudgetError):
            validation = select(cfg, module, data, trainer)
        with clock.phase("test"), user_errors(EndpointError, VLLMServerError):
            test(cfg, module, data, trainer, this.job.folder)
    if trainer.is_global_zero:
        write_artifacts(this.job.folder, config, module, validation, clock, findings)
        write_report(this.job.folder)
        log_end(trainer.loggers, this.job.folder, cfg.track)
    return metric_of(validation, cfg.optimized_metric)


def load_questions(cfg: DictConfig, clock: Any) -> tuple[Any, dict[str, Any]]:
    """Load and audit the questions, before the weights: a bad row should not wait for them."""
    if cfg.audit:  # the audit reports more than this warning
        warnings.filterwarnings("ignore", message=".* show an image of training")
    with clock.phase("data"):
        questions, band = instantiate(cfg.difficulty)(instantiate(cfg.data), cfg.seed)
    if band:
        log.info("difficulty: %s", band)
    with clock.phase("audit"):
        if not cfg.audit:
            return questions, {}
        questions, findings = instantiate(cfg.audit)(questions)
    log.info("audit: %s", findings.verdict)
    return questions, findings.as_dict(pairs=20)


def build(cfg: DictConfig, questions: Any) -> tuple[Any, Any, Any]:
    """Instantiate the :class:`VLMModule`, :class:`VQADataModule` and Lightning trainer."""
    from medvlm_r1.data.datamodule import VQADataModule
    from medvlm_r1.data.prompt_check import check_prompts

    prompt, rewards = instantiate(cfg.prompt), instantiate(cfg.reward)
    if (sample := questions.open_question) is not None:  # raises if prompt or reward needs letters
        prompt.render(sample, "evaluate")
        rewards.score([prompt.parse("", sample)], [sample])
    controls, not_run = controls_of(cfg.controls, prompt, served="url" in cfg.model)
    for name, why in not_run.items():
        log.info("control %s is not run: %s", name, why)
    policy = instantiate(cfg.model)
    perturb = partial(PerturbedQuestions, controls=controls, assistant_prefix=prompt.assistant_prefix)
    engine = instantiate(cfg.get("rollout")) or policy.engine
    parts = {"policy": policy, "prompt": prompt, "engine": engine, "rewards": rewards, "seed": cfg.seed}
    module = instantiate(cfg.method)(**parts)
    faults: Any = {phase: module.fault(phase) for phase in ("train", "evaluate")}
    on_bad_image = OmegaConf.select(cfg, "data.rows.on_bad_image")
    questions = check_prompts(questions, faults, perturb, on_bad_image)
    data = VQADataModule(
        questions,
        encode=partial(policy.encoder.encode, prompt=prompt, cache=instantiate(cfg.image_cache)),
        prompts_per_step=cfg.model.recipe.prompts_per_step,
        evaluation_batch=cfg.model.recipe.evaluation_batch,
        seed=cfg.seed,
        workers=cfg.workers,
        perturb=perturb,
    )
    callbacks = [instantiate(node) for node in (cfg.get("callbacks") or {}).values() if node]
    logger = [instantiate(node) for node in (cfg.get("logger") or {}).values()]
    return module, data, instantiate(cfg.trainer, callbacks=callbacks, logger=logger)


def select(cfg: DictConfig, module: Any, data: Any, trainer: Any) -> dict[str, float]:
    """Validate; with select=best, load the best weights where they are better; returns the metrics."""
    from medvlm_r1.callbacks.checkpoint import load_weights

    (validation,) = trainer.validate(module, data, verbose=False)
    best = next((c for c in trainer.checkpoint_callbacks if c.monitor and c.best_model_path), None)
    if cfg.select == "best" and best and best.best_model_score > validation[best.monitor]:
        load_weights(module, best.best_model_path)
        (validation,) = trainer.validate(module, data, verbose=False)
    return validation


def test(cfg: DictConfig, module: Any, data: Any, trainer: Any, folder: Path) -> None:
    """Answer the test questions that the journal of an earlier attempt does not hold yet."""
    from medvlm_r1.evaluate.journal import Journal

    key = {"step": module.step, "select": cfg.select, "devices": trainer.world_size}
    module.journal = Journal(folder / f"predictions-{trainer.global_rank}.journal", key)
    data.answered = module.journal.answered
    if data.answered:
        log.info("%d test questions are answered already", len(data.answered))
    trainer.test(module, data, verbose=False)


def main() -> None:
    sys.path.append(os.getcwd())  # the user's own parts, named by _target_
    with exit_codes():
        run()


if __name__ == "__main__":
    main()
