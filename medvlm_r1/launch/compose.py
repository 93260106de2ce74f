"""Compose configurations with Hydra: every job of a command before the first one starts."""

import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml.error import MarkedYAMLError

from medvlm_r1.launch.help import help_text
from medvlm_r1.launch.silence import silence_libraries
from medvlm_r1.launch.suggest import suggest, suggest_quotes
from medvlm_r1.launch.trainer_settings import check_trainer
from medvlm_r1.launch.validate import check_same_run, check_settings
from medvlm_r1.runs import status
from medvlm_r1.runs.folder import run_name
from medvlm_r1.runs.places import CONF, pip_install
from medvlm_r1.runs.ranks import is_rank_zero
from medvlm_r1.runs.renames import renamed_overrides


class UserError(CompactHydraException):
    """An error that the user can fix; Hydra shows its message without a traceback."""


def cause_of(error: Exception) -> tuple[Exception, str | None]:
    """The error that a constructor raised under ``instantiate``, with the key of its config node."""
    if not isinstance(error, InstantiationException) or not isinstance(error.__cause__, Exception):
        return error, None
    node = re.search(r"full_key: (\S+)", str(error))
    return error.__cause__, node and node[1]


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """Parse a command line with Hydra's parser, overrides and options in any order; or UserError."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message} (python run.py --help shows the options)")

    parser.error = refuse
    return parser.parse_intermixed_args(arguments)


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """Rewrite a command line for Hydra.

    Options come first; old keys get their present names, with a line on stderr for each; ``GROUP=null``
    becomes ``~GROUP``; a group without a default, such as ``experiment``, gets its ``+``.
    """
    if "--version" in arguments:
        print(f"medvlm_r1 {version('medvlm_r1')}, Hydra {hydra.__version__}")
        raise SystemExit
    args = parse_arguments(arguments)
    overrides, notices = renamed_overrides(args.overrides)
    for notice in notices if is_rank_zero() else ():
        print(notice, file=sys.stderr)
    defaults = {
        group for node in OmegaConf.load(CONF / "config.yaml").defaults if node != "_self_" for group in node
    }

    def rewrite(override: str) -> str:
        group, _, option = override.partition("=")
        if "." in group or not any((folder / group).is_dir() for folder in conf_folders(args)):
            return override
        if "/" not in group and group not in defaults:
            return f"+{override}"
        return f"~{group}" if option == "null" else override

    options = [argument for argument in arguments if argument not in args.overrides]
    return options + [rewrite(override) for override in overrides]


def conf_folders(args: Namespace) -> list[Path]:
    """Folders with configuration, the user's before the package's."""
    return [Path(folder) for folder in (args.config_dir, CONF) if folder]


@contextmanager
def initialized_hydra(args: Namespace) -> Iterator[None]:
    """Let ``hydra.compose`` read the folders of :func:`conf_folders`."""
    if args.config_dir and not Path(args.config_dir).is_dir():
        raise UserError(f"--config-dir {args.config_dir}: there is no such folder")
    for option in CONF.rglob("*.yaml") if args.config_dir else ():
        if (own := Path(args.config_dir) / option.relative_to(CONF)).exists():  # Hydra would not read it
            raise UserError(f"{own}: medvlm_r1 has an option of this name: give yours another one")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        if args.config_dir:
            loader: Any = GlobalHydra.instance().config_loader()
            search_path = loader.get_search_path()
            search_path.prepend("command-line", f"file://{Path(args.config_dir).absolute()}")
            loader.repository.initialize_sources(search_path)
        yield


def compose_jobs(arguments: Sequence[str]) -> Path | None:
    """Compose and check all jobs, or print their plans and exit; returns a multirun's folder or ``None``."""
    args = parse_arguments(arguments)
    if args.help:
        print(help_text(conf_folders(args)))
        raise SystemExit
    if args.hydra_help or args.info or args.shell_completion:
        return None
    typed = dict(override.partition("=")[::2] for override in args.overrides)
    for group in ("hydra/launcher", "hydra/sweeper"):
        if group in typed:
            check_plugin(group, typed[group])
    jobs: dict[str, list[str]] = {}
    sweep, outputs = typed.get("sweep"), typed.get("paths.outputs", "outputs")
    # a search has an override syntax of its own
    if not {"hydra/sweeper", "hparams_search", "+hparams_search"} & typed.keys():
        with initialized_hydra(args):
            composed = compose(args)
            if args.cfg:
                return None
            if any(cfg.plan for _, cfg, _ in composed):
                raise SystemExit(max(show_plan(job) for job, *_ in composed))
        sweep, outputs = composed[-1][1].sweep, composed[-1][1].paths.outputs
        for job, cfg, name in composed:
            check_settings(cfg)
            with suppress(FileNotFoundError):
                Path(cfg.paths.outputs).stat()  # OSError for a folder that cannot be
            if (other := jobs.setdefault(name, list(job))) != list(job):
                both = " and ".join(map(" ".join, (other, job)))
                raise UserError(f"{both} would share the folder {name}: give each a sweep of its own")
    if not args.multirun:
        return None
    if not sweep:
        raise UserError(f"a multirun needs a name for its folder, {outputs}/sweeps/NAME: add sweep=NAME")
    folder = Path(outputs) / "sweeps" / sweep
    if is_rank_zero():
        status.record_jobs(folder, jobs)
        print(f"{folder}: {status.count_statuses(status.statuses_of(folder))}")
    return folder


def compose(args: Namespace) -> list[tuple[Sequence[str], DictConfig, str]]:
    """Overrides, configuration and run name of every job of a command."""
    # Hydra's own settings are composed where it runs the job; its search path is needed here.
    overrides = [o for o in args.overrides if not o.startswith("hydra") or o.startswith("hydra.searchpath")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        jobs = BasicSweeper.split_arguments(parsed, None)[0] if args.multirun else [overrides]
        configs = [hydra.compose("config", overrides=job, return_hydra_config=True) for job in jobs]
        names = [run_name(_root_=cfg) for cfg in configs]
        configs = [OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]) for cfg in configs]
        return list(zip(jobs, configs, names, strict=True))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{mark.name}, line {mark.line + 1}: " if mark else ""
        raise UserError(f"{place}{error.problem or error.context}") from error
    except OverrideParseException as error:
        raise UserError(suggest_quotes(error.override, str(error))) from error
    except (HydraException, OmegaConfBaseException) as error:
        folders = conf_folders(args)
        groups = [o.partition("=")[0].lstrip("+") for o in overrides]
        chosen = [
            override
            for override, group in zip(overrides, groups, strict=True)
            if "," not in override and any((folder / group).is_dir() for folder in folders)
        ]
        known = OmegaConf.create()
        with suppress(HydraException, OmegaConfBaseException):
            known = hydra.compose("config", overrides=chosen)
        raise UserError(suggest(error, known, folders)) from error


def check_plugin(group: str, option: str) -> None:
    """Raise if the package of a launcher or sweeper is missing; the option's file names its pip command."""
    if not (path := CONF / group / f"{option}.yaml").exists():
        return  # Hydra's own option, or one that a plugin adds
    try:
        import_module(OmegaConf.load(path)._target_.rpartition(".")[0])
    except ModuleNotFoundError as error:
        remedy = pip_install(re.findall(r"pip install -e '.\[(\w+)", path.read_text())[0])
        raise UserError(f"{group}={option}: {error}; install what it needs with {remedy}") from error


def show_plan(overrides: Sequence[str]) -> int:
    """Print the plan of one job; returns the exit code: 3 if it does not fit, else 0."""
    cfg = hydra.compose("config", overrides=overrides)
    check_trainer(cfg)
    name = " ".join(o for o in overrides if re.split(r"[=@]", o)[0] not in ("plan", "card")) or "the default"
    if not cfg.model._target_.startswith("medvlm_r1.policy."):
        print(f"{name}: nothing to plan, the model ({cfg.model._target_}) runs elsewhere")
        return 0
    if str(OmegaConf.select(cfg, "rollout._target_")).endswith(".VLLMEngine"):
        print(f"{name}: vLLM's memory and time are unknown to a plan: plan with rollout=shared_prefix")
        return 0
    silence_libraries()
    from medvlm_r1.plan.console import show
    from medvlm_r1.plan.devices import device_plans
    from medvlm_r1.plan.plan import plan, remedies
    from medvlm_r1.plan.workload import read_workload

    def replan(changes, timed=False):
        cfg = hydra.compose("config", overrides=[*overrides, *changes])
        nodes = cfg.model.recipe, cfg.model.tuning, cfg.prompt, cfg.rollout
        parts = [hydra.utils.instantiate(node) for node in nodes]
        return plan(read_workload(OmegaConf.to_container(cfg, resolve=True), *parts), timed)

    first = replan([], timed=True)
    smaller = {} if first.fits else remedies(first.workload, replan)
    show(first, name, smaller, device_plans(first.workload))
    return 0 if first.fits else 3


class Job(NamedTuple):
    """The job that Hydra runs in this process."""

    folder: Path
    in_multirun: bool
    command: list[str]  # starts this job alone


def this_job() -> Job:
    cfg = HydraConfig.get()
    in_multirun = cfg.mode is RunMode.MULTIRUN
    folders = [source.path for source in cfg.runtime.config_sources if source.provider == "command-line"]
    options = [f"--config-dir={folder}" for folder in folders]
    command = ["run", *options, *cfg.overrides.task] if in_multirun else sys.argv
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
