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

import functools
import json
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from medvlm_r1.folder import empty, is_later_rank, new_run_folder, new_run_name, new_sweep_folder, run_log

if TYPE_CHECKING:
    from lightning import Trainer

    from medvlm_r1.data.module import VQADataModule
    from medvlm_r1.data.questions import Questions
    from medvlm_r1.module import VLMModule

CONF = Path(__file__).parent / "conf"
log = logging.getLogger("medvlm_r1")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def run(cfg: DictConfig) -> float:
    """One run: fit if the method trains, test, and leave everything in the run folder.

    Returns:
        The final validation accuracy, for sweepers that optimise.
    """
    with told_plainly():
        folder = settle(cfg)
        if (cfg.resume or cfg.ckpt_path) and (finished := folder / "metrics.json").exists():
            log.info("run %s: finished already (overwrite=true starts it again)", folder)
            return json.loads(finished.read_text())["validation"]["accuracy"]
    # Imports come late, so that --help, a mistyped option and missing weights are answered at once.
    with told_plainly():
        check_model(cfg)
    import lightning
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    from medvlm_r1.endpoint import EndpointError
    from medvlm_r1.evaluate.journal import Journal
    from medvlm_r1.record import Clock, write_record
    from medvlm_r1.report.comparison import compare
    from medvlm_r1.report.controls import control_summary
    from medvlm_r1.report.page import write_run_report
    from medvlm_r1.report.tables import accuracy_table, as_rich, table_console

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
        checkpoint = checkpoint_of(cfg, folder)
    if not is_later_rank() and (cfg.overwrite or (cfg.resume and module.trains and not checkpoint)):
        empty(folder)
    if not is_later_rank():
        log.info("run %s: %s", folder, describe(cfg, module, data))
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
            state = torch.load(best.best_model_path, weights_only=True, map_location="cpu")
            # as load_state_dict, for weights that are split over devices too
            how = StateDictOptions(full_state_dict=True, strict=False)
            set_model_state_dict(module, state["state_dict"], options=how)
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
        write_record(folder, OmegaConf.to_container(cfg, resolve=True), module, validation, clock, found)
        for journal in folder.glob("predictions-*.journal"):
            journal.unlink()
        page = write_run_report(folder)
        compared = compare([folder])
        for table in filter(None, (accuracy_table(compared), control_summary(compared))):
            table_console().print(as_rich(table))
        log.info("report: %s", page)
    return validation["validation/accuracy"]


def build(cfg: DictConfig, questions: "Questions") -> tuple["VLMModule", "VQADataModule", "Trainer"]:
    """Instantiate every part that works on the questions."""
    from medvlm_r1.data.module import VQADataModule
    from medvlm_r1.evaluate.controls import Variants, controls_of

    instantiate = hydra.utils.instantiate
    prompt, rewards = instantiate(cfg.prompt), instantiate(cfg.reward)
    if (sample := questions.an_open_one) is not None:  # a prompt or reward that needs a letter says so here
        prompt.ask(sample, "evaluate")
        rewards.score([prompt.read("", sample)], [sample])
    controls, not_run = controls_of(cfg.controls, prompt, served="url" in cfg.model)
    for name, reason in not_run.items() if not is_later_rank() else ():
        log.info("control %s is not run: %s", name, reason)
    policy = instantiate(cfg.model)
    engine = instantiate(cfg.rollout) if cfg.rollout else policy.engine
    method = instantiate(cfg.method)
    module = method(policy=policy, prompt=prompt, rewards=rewards, engine=engine, seed=cfg.seed)
    data = VQADataModule(
        questions,
        encode=functools.partial(
            policy.encoder.encode, prompt=prompt, cache=instantiate(cfg.pictures) if cfg.pictures else None
        ),
        prompts_per_step=cfg.model.recipe.prompts_per_step,
        evaluation_batch=cfg.model.recipe.evaluation_batch,
        seed=cfg.seed,
        workers=cfg.workers,
        variants=functools.partial(Variants, controls=controls, opening=prompt.opening),
    )
    if cfg.select == "best" and not (module.trains and "best" in (cfg.watch or {})):
        raise ValueError("select=best needs a method that trains (grpo, sft, ...), and watch.best")
    trainer = instantiate(
        cfg.trainer,
        callbacks=[instantiate(node) for node in (cfg.watch or {}).values()],
        logger=[instantiate(node) for node in cfg.logger.values()],
    )
    return module, data, trainer


def checkpoint_of(cfg: DictConfig, folder: Path) -> Path | None:
    """The checkpoint that this run goes on from."""
    from medvlm_r1.resume import damage, newest_whole

    if cfg.ckpt_path not in (None, "last"):
        path = Path(cfg.ckpt_path)
        if not path.exists():
            raise ValueError(f"ckpt_path: there is no {path}")
        if fault := damage(path):
            raise ValueError(f"ckpt_path: {path} is damaged ({fault})")
        return path
    found = newest_whole(folder / "checkpoints") if cfg.resume or cfg.ckpt_path else None
    if cfg.ckpt_path and not found:
        raise ValueError(f"ckpt_path=last: there is no checkpoint in {folder / 'checkpoints'}")
    return found


def check_same_run(cfg: DictConfig, folder: Path) -> None:
    """What goes on must be what was begun."""
    from medvlm_r1.report.run_folder import flatten

    begun = folder / "config.yaml"
    if not begun.exists():
        return
    was, now = (flatten(OmegaConf.to_container(c, resolve=True)) for c in (OmegaConf.load(begun), cfg))
    free = ("resume", "ckpt_path", "overwrite", "workers", "pictures", "logger", "watch", "run_folder")
    changed = [
        k for k in sorted(was.keys() | now.keys()) if k.split(".")[0] not in free and was.get(k) != now.get(k)
    ]
    if changed:
        listed = ", ".join(f"{key} was {was.get(key)} and is {now.get(key)}" for key in changed[:4])
        raise ValueError(
            f"{folder} was begun with other settings ({listed}): give the command that it was begun with, or "
            "leave resume out"
        )


def settle(cfg: DictConfig) -> Path:
    """Fill in what only Hydra knows, and write the resolved configuration; returns the run folder."""
    hydra_cfg = HydraConfig.get()
    folder = Path(hydra_cfg.runtime.output_dir)
    cfg.experiment = hydra_cfg.runtime.choices.get("experiment", "default")
    cfg.run_folder = str(folder)
    # Lightning's launcher asks for run.dir again when it starts the other ranks: give it this answer
    # instead of a new decision, or they would write beside it.
    with read_write(hydra_cfg.run):
        hydra_cfg.run.dir = str(folder)
    if cfg.plan:
        raise ValueError("plan=true needs Hydra's own sweeper")
    if cfg.select not in ("last", "best"):
        raise ValueError(f"select is {cfg.select!r}: use 'last' or 'best'")
    from medvlm_r1.evaluate.controls import check_controls

    check_controls(cfg.controls, served="url" in cfg.model)
    if "url" in cfg.model:
        cfg.rollout = None  # an endpoint brings its own engine
    if cfg.resume not in (None, "auto"):
        raise ValueError(f"resume is {cfg.resume!r}: use auto, or leave it out")
    if cfg.overwrite and (cfg.resume or cfg.ckpt_path):
        raise ValueError("overwrite=true deletes what resume or ckpt_path would go on from: give one of them")
    if missing := OmegaConf.missing_keys(cfg):
        raise ValueError(f"missing: {', '.join(f'{key}=...' for key in sorted(missing))}")
    if cfg.resume or cfg.ckpt_path:
        check_same_run(cfg, folder)
    if not is_later_rank():
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    return folder


def check_model(cfg: DictConfig) -> None:
    """Stop within seconds where the model cannot be had, or cannot do what is wanted of it."""
    trains, is_endpoint = "optim" in cfg.method, "url" in cfg.model
    strategy = str(OmegaConf.select(cfg, "trainer.strategy._target_"))
    splits, deepspeed = (strategy.endswith(name) for name in ("ModelParallelStrategy", "DeepSpeedStrategy"))
    if trains and is_endpoint:
        raise ValueError(
            "an endpoint can be evaluated, not trained: take +experiment=zero_shot or method=zero_shot"
        )
    if trains and cfg.tune.train == "nothing":
        raise ValueError("this tune option trains nothing: take tune=qlora, or method=zero_shot to evaluate")
    if splits and (cfg.tune.quantize or is_endpoint):
        what = "an endpoint's weights" if is_endpoint else "weights held in 4 bits"
        raise ValueError(f"{what} cannot be split over devices: take trainer=single or trainer=ddp")
    if splits and "8bit" in cfg.optimizer._target_:
        raise ValueError("8-bit moments cannot be split over devices: take optimizer=adamw with trainer=fsdp")
    if deepspeed and (cfg.select == "best" or cfg.model.recipe.dtype != "bfloat16"):
        raise ValueError("trainer=deepspeed_zero2 wants model.recipe.dtype=bfloat16 and select=last")
    if not is_endpoint:
        from medvlm_r1.policy.weights import check_weights

        check_weights(cfg.model.path, cfg.model.revision, cfg.trainer.accelerator)
        return
    from medvlm_r1.endpoint import check_endpoint

    check_endpoint(cfg.model.url, cfg.model.name, cfg.model.api_key_variable)


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


def describe(cfg: DictConfig, module, data) -> str:
    """One line that says what is about to happen."""
    from medvlm_r1.record import model_name
    from medvlm_r1.report.run_folder import method_title

    counts = ", ".join(f"{len(source)} {name}" for name, source in data.questions.test.items())
    training = ""
    if module.trains:
        trained = sum(p.numel() for p in module.policy.trained)
        training = f"{len(data.questions.train)} training questions, {trained:,} parameters trained; "
    return f"{method_title(module.method)} of {model_name(cfg.model)}; {training}tests: {counts}"


def devices_in_all(*, _root_: DictConfig) -> int:
    """Devices of a run over all its machines."""
    devices, nodes = _root_.trainer.devices, _root_.trainer.num_nodes
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices is {devices}: this strategy needs their number")
    return devices * nodes


for resolver in (new_run_folder, new_sweep_folder, new_run_name, run_log, devices_in_all):
    OmegaConf.register_new_resolver(resolver.__name__, resolver)


# --- mistakes --------------------------------------------------------------------------------------


@contextmanager
def told_plainly(*known: type[Exception]) -> Iterator[None]:
    """Turn a mistake in configuration or data, or the ``known`` ones, into a message without traceback."""
    try:
        yield
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
        stop(f"{cause or error}\n({where}HYDRA_FULL_ERROR=1 shows the traceback)")


def stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def check_command_line(arguments: list[str]) -> None:
    """Compose every job of this command before the first one starts; stop on a mistake with its remedy."""
    overrides = [a for a in arguments if not a.startswith("-") and not a.startswith("hydra")]
    multirun = bool({"-m", "--multirun"} & set(arguments))
    if any(a.startswith("hydra/sweeper") for a in arguments):
        return  # another sweeper has a syntax of its own
    if {"-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--info", "-i", "-sc"} & set(arguments):
        return
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        groups = [o for o in overrides if (CONF / o.lstrip("+").split("=")[0]).is_dir() and "," not in o]
        known = None
        try:
            known = hydra.compose("config", overrides=groups)
            jobs = [overrides]
            if multirun:
                parsed = OverridesParser.create().parse_overrides(overrides)
                jobs = BasicSweeper.split_arguments(parsed, None)[0]
            composed = [hydra.compose("config", overrides=job) for job in jobs]
        except (HydraException, OmegaConfBaseException) as error:
            stop(explained(error, known))
        if any(cfg.plan for cfg in composed):
            with told_plainly():
                raise SystemExit(max(show_plan(job) for job in jobs))
        cfg = composed[-1]
    if multirun and not cfg.sweep:
        stop("a multirun needs a name for its folder: add sweep=NAME (it becomes outputs/sweeps/NAME)")


def show_plan(overrides: list[str]) -> int:
    """Plan one job instead of running it; returns the exit status: 3 if it does not fit, else 0."""
    cfg = hydra.compose("config", overrides=overrides)
    name = " ".join(o for o in overrides if re.split(r"[=@]", o)[0] not in ("plan", "card")) or "the default"
    if not cfg.model._target_.startswith("medvlm_r1.policy."):
        print(f"{name}: nothing to plan, the model ({cfg.model._target_}) runs elsewhere")
        return 0
    hush()
    from medvlm_r1.plan.console import show
    from medvlm_r1.plan.job import job
    from medvlm_r1.plan.plan import plan, remedies

    def replan(changes, timed=False):
        cfg = hydra.compose("config", overrides=[*overrides, *changes])
        parts = [hydra.utils.instantiate(node) for node in (cfg.model.recipe, cfg.model.tuning, cfg.prompt)]
        return plan(job(OmegaConf.to_container(cfg, resolve=True), *parts), timed)

    made = replan([], timed=True)
    show(made, name, {} if made.fits else remedies(made.job, replan))
    return 0 if made.fits else 3


def explained(error: Exception, known: DictConfig | None) -> str:
    """Hydra's message, with the nearest right spelling."""
    message = str(error)
    if key := re.search(r"Could not override '([^']+)'", message):
        near = nearest(key[1], keys_of(known or OmegaConf.create()))
        hint = f"did you mean {' or '.join(near)}?" if near else "python run.py --cfg job prints every key"
        return f"there is no key {key[1]!r} in the configuration: {hint}"
    if option := re.search(r"Could not find '([^']+)'", message):
        group, _, name = option[1].rpartition("/")
        options = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        near = get_close_matches(name, options, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return f"{group} has no option {name!r}: {hint}The options are {', '.join(options)}"
    return message


def nearest(key: str, known: list[str]) -> list[str]:
    """Keys that may be meant: first those of the same group whose last word is nearly the same."""
    group, _, word = key.rpartition(".")
    beside = [name for name in known if name.startswith(group.split(".")[0] + ".")]
    words = get_close_matches(word, {name.rpartition(".")[2] for name in beside}, n=1, cutoff=0.7)
    close = [name for name in beside if name.rpartition(".")[2] in words]
    return list(dict.fromkeys(close + get_close_matches(key, known, n=3, cutoff=0.6)))[:3]


def keys_of(cfg: DictConfig) -> list[str]:
    """Dotted names of everything below a group, and of the single values beside the groups."""
    keys = []
    for name in cfg:
        node = cfg._get_node(name)
        below = [f"{name}.{key}" for key in keys_of(node)] if OmegaConf.is_dict(node) and node else []
        keys += below or [name]
    return keys


if __name__ == "__main__":
    check_command_line(sys.argv[1:])
    try:
        run()
    except SystemExit as stopped:
        if type(stopped).__name__ == "SIGTERMException":  # Lightning's, which would pass for success
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
