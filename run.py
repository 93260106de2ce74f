"""Train and judge a reasoning vision-language model on medical questions.

    python run.py                                          tiny model, phantom images, any machine
    python run.py +experiment=grpo_600                     MedVLM-R1's run on Qwen2-VL-2B
    python run.py +experiment=grpo_600 model=tiny data=phantom
    python run.py -m +experiment=zero_shot,sft_600,grpo_600 seed=0,1,2 sweep=main_table
    python run.py +experiment=grpo_600 plan=true card=a100_80gb      does it fit, how long would it take?
    python run.py --help                                   every group, option and key

Compose the parts from conf/, build them, hand them to each other, fit, test, summarise. The only
file that knows Hydra.
"""

import errno
import functools
import json
import logging
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from medvlm_r1.launch.suggest import explained
from medvlm_r1.launch.validate import check_model, check_same_run, check_settings
from medvlm_r1.runs import durable, status
from medvlm_r1.runs.folder import OUTPUTS, empty, run_name
from medvlm_r1.runs.ranks import has_other_ranks, is_later_rank, own_processes
from medvlm_r1.runs.renames import renamed_overrides

if TYPE_CHECKING:
    from lightning import Trainer

    from medvlm_r1.algorithms.base import VLMModule
    from medvlm_r1.data.datamodule import VQADataModule
    from medvlm_r1.data.splits import Questions

CONF = Path(__file__).parent / "conf"
log = logging.getLogger("medvlm_r1")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def run(cfg: DictConfig) -> float:
    """One run, or one of a multirun's: what is left of it, if it was begun before.

    Returns:
        The final validation accuracy, for sweepers that optimise.
    """
    in_multirun = HydraConfig.get().mode is RunMode.MULTIRUN
    folder = Path(HydraConfig.get().runtime.output_dir)
    later, begun = is_later_rank(), False
    try:
        with told_plainly():
            settle(cfg, folder, in_multirun)
        # the first process of a run holds its folder, and keeps what becomes of it
        with nullcontext() if later else status.run_lock(folder):
            with told_plainly():
                done = recorded(cfg, folder, in_multirun)
            if done is not None:
                return done
            begun = True
            with nullcontext() if later else status.attempt(folder) as this:
                return carry_out(cfg, folder, this)
    except status.RunIsBusyError as error:
        if not in_multirun:
            stop(str(error))
        if has_other_ranks():
            raise SystemExit(1) from error
        log.info("run %s: left to the process that works on it", folder.name)
        return math.nan
    except Exception as error:
        if later:
            status.record_failure(folder, error)
        if in_multirun:
            log.error("run %s failed: %s", folder.name, error)
            if begun and has_other_ranks():  # perhaps at another point: they must not meet in the next run
                raise SystemExit(1) from error
            raise  # Hydra goes on with the other runs
        if isinstance(error, Mistake):
            stop(str(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "what is written is whole; with some space the same command with resume=auto goes on"
            stop(f"{error}\n({remedy})")
        raise


def recorded(cfg: DictConfig, folder: Path, in_multirun: bool) -> float | None:
    """What the run gave when it was finished; ``None`` where there is something to do.

    Raises:
        ValueError: it is a run of a multirun that has failed before, and shall not be tried again.
    """
    if not (cfg.resume or cfg.ckpt_path):
        return None
    found = status.result_of(folder)
    if in_multirun and found == status.FAILED and not cfg.retry:
        raise ValueError(f"it failed before (retry=true tries again): {status.failure_reason(folder)}")
    if found != status.FINISHED:
        return None
    if not is_later_rank():
        log.info("run %s: finished already (overwrite=true starts it again)", folder)
        if not (folder / "report.html").exists():  # it was killed on its last steps
            wrap_up(folder)
    return json.loads((folder / "metrics.json").read_text())["validation"]["accuracy"]


def carry_out(cfg: DictConfig, folder: Path, this: status.Attempt | None = None) -> float:
    """Fit if the method trains, test, and leave everything in the run folder; returns as :func:`run` does.

    ``this`` is told the devices.
    """
    # Imports come late, so that --help, a mistyped option and missing weights are answered at once.
    with told_plainly():
        check_model(cfg)
    import lightning
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    from medvlm_r1.artifacts.record import Clock, describe, hardware, write_artifacts
    from medvlm_r1.callbacks.checkpoint import checkpoint_of
    from medvlm_r1.evaluate.journal import Journal
    from medvlm_r1.inference.endpoint_client import EndpointError

    hush()  # not before: lightning sets the level of its log when it is imported
    clock = Clock()
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.audit:  # which tells it with more
        warnings.filterwarnings("ignore", message=".* show an image of training")
    with clock.phase("data"), told_plainly():  # before the weights: a bad row should not wait for them
        questions = hydra.utils.instantiate(cfg.data)
    with clock.phase("audit"), told_plainly():
        questions, findings = (
            hydra.utils.instantiate(cfg.audit)(questions) if cfg.audit else (questions, None)
        )
        if findings and not is_later_rank():
            log.info("audit: %s", findings.verdict)
    with clock.phase("build"), told_plainly():
        module, data, trainer = build(cfg, questions)
    with told_plainly():
        checkpoint = checkpoint_of(folder, cfg.ckpt_path, cfg.resume)
    if this:
        this.record(devices=trainer.world_size, hardware=hardware())
        if cfg.overwrite or (cfg.resume and module.trains and not checkpoint):
            empty(folder)
        durable.write_whole(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        log.info("run %s: %s", folder, describe(cfg, module, questions))
    command = [str(CONF.with_name("run.py")), *HydraConfig.get().overrides.task]
    command += [f"resume={cfg.resume}"] if cfg.resume else []
    with own_processes(trainer, command if HydraConfig.get().mode is RunMode.MULTIRUN else sys.argv):
        if module.trains:
            if checkpoint:
                log.info("going on from %s", checkpoint)
            else:
                trainer.validate(module, data, verbose=False)  # where the curve starts
            with clock.phase("fit"):
                trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
            trainer.strategy.optimizers = []  # their fp32 copies would stay on the device
        with clock.phase("validate"), told_plainly(EndpointError):
            (validation,) = trainer.validate(module, data, verbose=False)
            best = next((c for c in trainer.checkpoint_callbacks if c.monitor and c.best_model_path), None)
            if cfg.select == "best" and best and best.best_model_score > validation[best.monitor]:
                best_weights = torch.load(best.best_model_path, weights_only=True, map_location="cpu")
                # as load_state_dict, for weights that are split over devices too
                how = StateDictOptions(full_state_dict=True, strict=False)
                set_model_state_dict(module, best_weights["state_dict"], options=how)
                (validation,) = trainer.validate(module, data, verbose=False)
        about = {"step": module.step, "select": cfg.select, "devices": trainer.world_size}
        module.journal = Journal(folder / f"predictions-{trainer.global_rank}.journal", about)
        data.answered = module.journal.answered
        if data.answered and not is_later_rank():
            log.info("%d test questions are answered already", len(data.answered))
        with clock.phase("test"), told_plainly(EndpointError):
            trainer.test(module, data, verbose=False)
    if trainer.is_global_zero:
        found = findings.as_dict(pairs=20) if findings else {}
        write_artifacts(folder, OmegaConf.to_container(cfg, resolve=True), module, validation, clock, found)
        wrap_up(folder)
    return validation["validation/accuracy"]


def wrap_up(folder: Path) -> None:
    """Write the page of a finished run, print its table and drop what is no longer needed."""
    from medvlm_r1.report.comparison import compare
    from medvlm_r1.report.page.render import write_run_report
    from medvlm_r1.report.tables.controls import control_summary
    from medvlm_r1.report.tables.table import accuracy_table, as_rich, table_console

    compared = compare([folder])
    for table in filter(None, (accuracy_table(compared), control_summary(compared))):
        table_console().print(as_rich(table))
    for journal in folder.glob("predictions-*.journal"):
        journal.unlink(missing_ok=True)
    log.info("report: %s", write_run_report(folder))


def build(cfg: DictConfig, questions: "Questions") -> tuple["VLMModule", "VQADataModule", "Trainer"]:
    """Instantiate every part that works on the questions."""
    from medvlm_r1.data.datamodule import VQADataModule
    from medvlm_r1.evaluate.controls import PerturbedQuestions, controls_of

    instantiate = hydra.utils.instantiate
    prompt, rewards = instantiate(cfg.prompt), instantiate(cfg.reward)
    if (sample := questions.an_open_one) is not None:  # a prompt or reward that needs a letter says so here
        prompt.render(sample, "evaluate")
        rewards.score([prompt.parse("", sample)], [sample])
    controls, not_run = controls_of(cfg.controls, prompt, served="url" in cfg.model)
    for name, why in not_run.items() if not is_later_rank() else ():
        log.info("control %s is not run: %s", name, why)
    policy = instantiate(cfg.model)
    engine = instantiate(cfg.rollout) if cfg.get("rollout") else policy.engine
    method = instantiate(cfg.method)
    module = method(policy=policy, prompt=prompt, rewards=rewards, engine=engine, seed=cfg.seed)
    data = VQADataModule(
        questions,
        encode=functools.partial(
            policy.encoder.encode,
            prompt=prompt,
            cache=instantiate(cfg.image_cache) if cfg.image_cache else None,
        ),
        prompts_per_step=cfg.model.recipe.prompts_per_step,
        evaluation_batch=cfg.model.recipe.evaluation_batch,
        seed=cfg.seed,
        workers=cfg.workers,
        perturb=functools.partial(
            PerturbedQuestions, controls=controls, assistant_prefix=prompt.assistant_prefix
        ),
    )
    if cfg.select == "best" and not (module.trains and "best" in (cfg.get("callbacks") or {})):
        raise ValueError("select=best needs a method that trains (grpo, sft, ...), and callbacks.best")
    trainer = instantiate(
        cfg.trainer,
        callbacks=[instantiate(node) for node in (cfg.get("callbacks") or {}).values()],
        logger=[instantiate(node) for node in cfg.logger.values()],
    )
    return module, data, trainer


def settle(cfg: DictConfig, folder: Path, in_multirun: bool) -> None:
    """Fill in what only Hydra knows, and look for what cannot be."""
    hydra_cfg = HydraConfig.get()
    cfg.experiment = hydra_cfg.runtime.choices.get("experiment", "default")
    cfg.run_folder = str(folder)
    # Lightning's launcher asks for run.dir again when it starts the other ranks: give it this answer
    # instead of a new decision, or they would write beside it.
    with read_write(hydra_cfg.run):
        hydra_cfg.run.dir = str(folder)
    if cfg.plan:
        raise ValueError("plan=true needs Hydra's own sweeper")
    check_settings(cfg)
    if "url" in cfg.model:
        cfg.rollout = None  # an endpoint brings its own engine
    if in_multirun and not (cfg.ckpt_path or cfg.overwrite):
        cfg.resume = "auto"
    if cfg.resume or cfg.ckpt_path:
        check_same_run(cfg, folder)


def hush() -> None:
    """Silence what libraries say on every run and nobody can act on."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for message in (
        ".*Experiment logs directory .* exists and is not empty.*",  # the run folder, which Hydra made
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*overridden `transfer_batch_to_device` in `LightningModule`.*",  # on purpose
        ".*does not have many workers.*",  # one worker keeps two cores busy
        ".*`tensorboardX` has been removed.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*`is_gradient_checkpointing` is deprecated.*",  # asked for by peft
    ):
        warnings.filterwarnings("ignore", message)


# --- mistakes --------------------------------------------------------------------------------------


class Mistake(CompactHydraException):
    """What a user can put right, told without a traceback."""


@contextmanager
def told_plainly(*known: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong with configuration or data, or in the ``known`` ways, into a :class:`Mistake`."""
    try:
        yield
    except Mistake:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        # Lightning's own kind, once it is loaded: before, a mistake need not wait for it
        lightning = sys.modules.get("lightning.pytorch.utilities.exceptions")
        mistakes = known or (
            ValueError,
            OSError,
            TypeError,
            RuntimeError,
            OmegaConfBaseException,
            *([lightning.MisconfigurationException] if lightning else []),
        )
        if os.environ.get("HYDRA_FULL_ERROR") or not isinstance(cause or error, mistakes):
            raise
        node = re.search(r"full_key: (\S+)", str(error)) if cause else None
        where = f"while building {node[1]}; " if node else ""
        raise Mistake(f"{cause or error}\n({where}HYDRA_FULL_ERROR=1 shows the traceback)") from error


def stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def check_command_line(arguments: list[str]) -> Path | None:
    """Compose every job of this command before the first one starts; stop on a mistake with its remedy.

    Returns:
        The folder of a multirun.
    """
    if {"-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--info", "-i", "-sc"} & set(arguments):
        return None
    overrides = [a for a in arguments if not a.startswith("-") and not a.startswith("hydra")]
    multirun = bool({"-m", "--multirun"} & set(arguments))
    for option in filter(re.compile("hydra/(launcher|sweeper)=").match, arguments):
        check_plugin(*option.split("="))
    if any(a.startswith("hydra/sweeper=") for a in arguments):  # which has a syntax of its own
        sweep, jobs = next((a.partition("=")[2] for a in overrides if a.startswith("sweep=")), None), {}
    else:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose(overrides, multirun)
            if any(cfg.plan for _, cfg, _ in composed):
                with told_plainly():
                    raise SystemExit(max(show_plan(job) for job, *_ in composed))
        sweep, jobs = composed[-1][1].sweep, {}
        for job, cfg, name in composed:
            with told_plainly():
                check_settings(cfg)
            other = jobs.setdefault(name, list(job))
            if other != list(job):
                both = " and ".join(map(" ".join, (other, job)))
                stop(f"{both} would share the folder {name}: give each a sweep of its own")
    if not multirun:
        return None
    if not sweep:
        stop("a multirun needs a name for its folder: add sweep=NAME (it becomes outputs/sweeps/NAME)")
    folder = OUTPUTS / "sweeps" / sweep
    if not is_later_rank():
        status.record_jobs(folder, jobs)
        print(f"{folder}: {status.count_statuses(status.statuses_of(folder))}")
    return folder


def compose(overrides: list[str], multirun: bool) -> list[tuple[Sequence[str], DictConfig, str]]:
    """Overrides, configuration and run name of every job of a command."""
    try:
        jobs = [overrides]
        if multirun:
            parsed = OverridesParser.create().parse_overrides(overrides)
            jobs = BasicSweeper.split_arguments(parsed, None)[0]
        composed = []
        for job in jobs:
            cfg = hydra.compose("config", overrides=job, return_hydra_config=True)
            name = run_name(_root_=cfg)
            with read_write(cfg), open_dict(cfg):
                del cfg["hydra"]
            composed.append((job, cfg, name))
        return composed
    except (HydraException, OmegaConfBaseException) as error:
        groups = [o for o in overrides if (CONF / o.lstrip("+").split("=")[0]).is_dir() and "," not in o]
        known = None
        with suppress(HydraException, OmegaConfBaseException):
            known = hydra.compose("config", overrides=groups)
        stop(explained(error, known, CONF))


def check_plugin(group: str, option: str) -> None:
    """A launcher or sweeper is a package of its own; its file says how to install it."""
    path = CONF / group / f"{option}.yaml"
    if not path.exists():
        return  # Hydra's own, or a plugin's by the plugin's name
    try:
        import_module(OmegaConf.load(path)._target_.rpartition(".")[0])
    except ModuleNotFoundError as error:
        remedy = re.search("pip install .*", path.read_text())[0]
        stop(f"{group}={option}: {error}; install what it needs with {remedy}")


def show_plan(overrides: list[str]) -> int:
    """Plan one job instead of running it; returns the exit status: 3 if it does not fit, else 0."""
    cfg = hydra.compose("config", overrides=overrides)
    name = " ".join(o for o in overrides if re.split(r"[=@]", o)[0] not in ("plan", "card")) or "the default"
    if not cfg.model._target_.startswith("medvlm_r1.policy."):
        print(f"{name}: nothing to plan, the model ({cfg.model._target_}) runs elsewhere")
        return 0
    hush()
    from medvlm_r1.plan.console import show
    from medvlm_r1.plan.plan import plan, remedies
    from medvlm_r1.plan.workload import read_workload

    def replan(changes, timed=False):
        cfg = hydra.compose("config", overrides=[*overrides, *changes])
        parts = [hydra.utils.instantiate(node) for node in (cfg.model.recipe, cfg.model.tuning, cfg.prompt)]
        return plan(read_workload(OmegaConf.to_container(cfg, resolve=True), *parts), timed)

    made = replan([], timed=True)
    show(made, name, {} if made.fits else remedies(made.workload, replan))
    return 0 if made.fits else 3


def main() -> None:
    """The command line."""
    sys.argv[1:], notices = renamed_overrides(sys.argv[1:])
    for notice in notices if not is_later_rank() else ():
        print(notice, file=sys.stderr)
    # Hydra cannot take null for a group
    sys.argv[1:] = [re.sub(r"^(callbacks|rollout)=null$", r"~\1", argument) for argument in sys.argv[1:]]
    try:
        sweep = check_command_line(sys.argv[1:])
    except Mistake as mistake:
        stop(str(mistake))
    try:
        run()
    except SystemExit as stopped:
        if type(stopped).__name__ == "SIGTERMException":  # Lightning's, which would pass for success
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        if sweep and not is_later_rank():
            print(status.sweep_summary(sweep))
    if sweep and status.FAILED in status.statuses_of(sweep).values():  # a search goes on with the others
        raise SystemExit(1)


if __name__ == "__main__":
    main()
