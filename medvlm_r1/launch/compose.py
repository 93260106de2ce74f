"""Compose configurations with Hydra: every job of a command before the first one starts."""

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from medvlm_r1.launch.silence import silence_libraries
from medvlm_r1.launch.suggest import suggest
from medvlm_r1.launch.validate import check_same_run, check_settings
from medvlm_r1.runs import status
from medvlm_r1.runs.folder import OUTPUTS, run_name
from medvlm_r1.runs.places import CONF
from medvlm_r1.runs.ranks import is_rank_zero
from medvlm_r1.runs.renames import renamed_overrides

# Options with which Hydra prints something and runs no job.
_PRINTS = {"-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--info", "-i", "-sc"}


class UserError(CompactHydraException):
    """An error that the user can fix; Hydra shows its message without a traceback."""


def cause_of(error: Exception) -> tuple[Exception, str | None]:
    """The error that a constructor raised under ``instantiate``, with the key of its config node."""
    if not isinstance(error, InstantiationException) or not isinstance(error.__cause__, Exception):
        return error, None
    node = re.search(r"full_key: (\S+)", str(error))
    return error.__cause__, node and node[1]


def hydra_arguments(arguments: list[str]) -> list[str]:
    """Rewrite arguments for Hydra: old keys, with a line on stderr for each, and GROUP=null as ~GROUP."""
    arguments, notices = renamed_overrides(arguments)
    for notice in notices if is_rank_zero() else ():
        print(notice, file=sys.stderr)
    groups = [argument.removesuffix("=null") for argument in arguments]
    return [
        f"~{group}" if group != argument and (CONF / group).is_dir() else argument
        for group, argument in zip(groups, arguments, strict=True)
    ]


def compose_jobs(arguments: list[str]) -> Path | None:
    """Compose and check all jobs, or print their plans and exit; returns a multirun's folder or ``None``."""
    if _PRINTS & set(arguments):
        return None
    overrides = [a for a in arguments if not a.startswith("-") and not a.startswith("hydra")]
    multirun = bool({"-m", "--multirun"} & set(arguments))
    for option in filter(re.compile("hydra/(launcher|sweeper)=").match, arguments):
        check_plugin(*option.split("="))
    jobs: dict[str, list[str]] = {}
    sweep = next((a.partition("=")[2] for a in overrides if a.startswith("sweep=")), None)
    if not any(a.startswith("hydra/sweeper=") for a in arguments):  # it has an override syntax of its own
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose(overrides, multirun)
            if any(cfg.plan for _, cfg, _ in composed):
                raise SystemExit(max(show_plan(job) for job, *_ in composed))
        sweep = composed[-1][1].sweep
        for job, cfg, name in composed:
            check_settings(cfg)
            if (other := jobs.setdefault(name, list(job))) != list(job):
                both = " and ".join(map(" ".join, (other, job)))
                raise UserError(f"{both} would share the folder {name}: give each a sweep of its own")
    if not multirun:
        return None
    if not sweep:
        raise UserError("a multirun needs a name for its folder, outputs/sweeps/NAME: add sweep=NAME")
    folder = OUTPUTS / "sweeps" / sweep
    if is_rank_zero():
        status.record_jobs(folder, jobs)
        print(f"{folder}: {status.count_statuses(status.statuses_of(folder))}")
    return folder


def compose(overrides: list[str], multirun: bool) -> list[tuple[Sequence[str], DictConfig, str]]:
    """Overrides, configuration and run name of every job of a command."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        jobs = BasicSweeper.split_arguments(parsed, None)[0] if multirun else [overrides]
        configs = [hydra.compose("config", overrides=job, return_hydra_config=True) for job in jobs]
        names = [run_name(_root_=cfg) for cfg in configs]
        configs = [OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]) for cfg in configs]
        return list(zip(jobs, configs, names, strict=True))
    except (HydraException, OmegaConfBaseException) as error:
        groups = [o for o in overrides if (CONF / o.lstrip("+").split("=")[0]).is_dir() and "," not in o]
        known = OmegaConf.create()
        with suppress(HydraException, OmegaConfBaseException):
            known = hydra.compose("config", overrides=groups)
        raise UserError(suggest(error, known, CONF)) from error


def check_plugin(group: str, option: str) -> None:
    """Raise if the package of a launcher or sweeper is missing; the option's file names its pip command."""
    if not (path := CONF / group / f"{option}.yaml").exists():
        return  # Hydra's own option, or one that a plugin adds
    try:
        import_module(OmegaConf.load(path)._target_.rpartition(".")[0])
    except ModuleNotFoundError as error:
        remedy = re.search("pip install .*", path.read_text())[0]
        raise UserError(f"{group}={option}: {error}; install what it needs with {remedy}") from error


def show_plan(overrides: Sequence[str]) -> int:
    """Print the plan of one job; returns the exit code: 3 if it does not fit, else 0."""
    cfg = hydra.compose("config", overrides=overrides)
    name = " ".join(o for o in overrides if re.split(r"[=@]", o)[0] not in ("plan", "card")) or "the default"
    if not cfg.model._target_.startswith("medvlm_r1.policy."):
        print(f"{name}: nothing to plan, the model ({cfg.model._target_}) runs elsewhere")
        return 0
    silence_libraries()
    from medvlm_r1.plan.console import show
    from medvlm_r1.plan.plan import plan, remedies
    from medvlm_r1.plan.workload import read_workload

    def replan(changes, timed=False):
        cfg = hydra.compose("config", overrides=[*overrides, *changes])
        parts = [hydra.utils.instantiate(node) for node in (cfg.model.recipe, cfg.model.tuning, cfg.prompt)]
        return plan(read_workload(OmegaConf.to_container(cfg, resolve=True), *parts), timed)

    first = replan([], timed=True)
    show(first, name, {} if first.fits else remedies(first.workload, replan))
    return 0 if first.fits else 3


class Job(NamedTuple):
    """The job that Hydra runs in this process."""

    folder: Path
    in_multirun: bool
    command: list[str]  # starts this job alone


def this_job() -> Job:
    cfg = HydraConfig.get()
    in_multirun = cfg.mode is RunMode.MULTIRUN
    command = ["run", *cfg.overrides.task] if in_multirun else sys.argv
    return Job(Path(cfg.runtime.output_dir), in_multirun, command)


def resolve_config(cfg: DictConfig, job: Job) -> None:
    """Fill in the keys that depend on the job, and check the settings."""
    hydra_cfg = HydraConfig.get()
    cfg.experiment = hydra_cfg.runtime.choices.get("experiment", "default")
    cfg.run_folder = str(job.folder)
    # Lightning's launcher resolves run.dir again when it starts the other ranks: fix it, or they would get
    # the next free folder.
    with read_write(hydra_cfg.run):
        hydra_cfg.run.dir = str(job.folder)
    if cfg.plan:
        raise ValueError("plan=true needs Hydra's own sweeper")
    check_settings(cfg)
    if job.in_multirun and not cfg.sweep:
        raise ValueError("a multirun needs a name for its folder: add sweep=NAME")
    if "url" in cfg.model and "rollout" in cfg:
        cfg.rollout = None  # an endpoint is its own engine
    if job.in_multirun and not (cfg.ckpt_path or cfg.overwrite):
        cfg.resume = "auto"
        job.command.append("resume=auto")
    if cfg.resume or cfg.ckpt_path:
        check_same_run(cfg, job.folder)
