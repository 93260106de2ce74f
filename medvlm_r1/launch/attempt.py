"""Attempts on a run: lock, what to resume, failure; exit codes of a command."""

import errno
import json
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from medvlm_r1.launch.compose import Job, UserError, compose_jobs, hydra_arguments, resolve_config, this_job
from medvlm_r1.launch.errors import exit_with_error, user_errors
from medvlm_r1.launch.validate import check_model
from medvlm_r1.runs import status
from medvlm_r1.runs.durable import write_whole
from medvlm_r1.runs.folder import empty
from medvlm_r1.runs.ranks import has_other_ranks, is_rank_zero
from medvlm_r1.runs.shorten import MAX_ERROR, clip

log = logging.getLogger("medvlm_r1")
_SIGNALS = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Attempt:
    """The work of this process on a run; there is something to do if ``result`` is ``None``."""

    job: Job
    result: float | None = None  # optimized_metric of a finished run; nan if another process works on it
    record: Callable[..., None] | None = None  # on rank 0, adds facts to attempts.json

    def start(self, cfg: DictConfig, trains: bool, **facts: Any) -> Path | None:
        """Return the checkpoint to resume from; on rank 0, write ``config.yaml`` and facts of the attempt."""
        from medvlm_r1.callbacks.checkpoint import find_checkpoint

        folder = self.job.folder
        with user_errors():
            checkpoint = find_checkpoint(folder, cfg.ckpt_path, cfg.resume)
        if self.record:
            self.record(**facts)
            # a run starts from scratch: until here, a user error deletes nothing
            if cfg.overwrite or (cfg.resume and trains and not checkpoint):
                empty(folder, keep_samples=not cfg.overwrite)
            write_whole(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        return checkpoint


@contextmanager
def attempt(cfg: DictConfig) -> Iterator[Attempt]:
    """Check config and model, lock the run folder, and record why the attempt fails.

    Exits with code 2 after an error that the user can fix. In a multirun, errors go to Hydra, which starts
    the next job.
    """
    job, rank_zero, started = this_job(), is_rank_zero(), False
    log.setLevel(logging.NOTSET if rank_zero else logging.WARNING)
    try:
        with user_errors():
            resolve_config(cfg, job)
        with status.run_lock(job.folder) if rank_zero else nullcontext():
            with user_errors():
                result = finished_result(cfg, job)
            if result is not None:
                yield Attempt(job, result)
                return
            started = True
            with status.attempt(job.folder, cfg.overwrite) if rank_zero else nullcontext() as record:
                with user_errors():
                    check_model(cfg)
                yield Attempt(job, record=record)
    except status.RunIsBusyError as error:
        if not job.in_multirun:
            exit_with_error(str(error))
        if has_other_ranks():
            raise SystemExit(1) from error
        log.info("run %s: left to the process that is working on it", job.folder.name)
        yield Attempt(job, math.nan)
    except Exception as error:
        if not rank_zero:
            status.record_failure(job.folder, error)
        if job.in_multirun:
            log.error("run %s failed: %s", job.folder.name, clip(str(error), MAX_ERROR))
            if started and has_other_ranks():  # the ranks may have failed at different steps: end them all
                raise SystemExit(1) from error
            raise
        if isinstance(error, UserError):
            exit_with_error(str(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "files on disk are intact: free space and rerun the same command with resume=auto"
            exit_with_error(f"{error}\n({remedy})")
        raise


def finished_result(cfg: DictConfig, job: Job) -> float | None:
    """``optimized_metric`` if the run is finished; raises ``ValueError`` if it failed and is not to retry."""
    if not (cfg.resume or cfg.ckpt_path):
        return None
    result = status.result_of(job.folder)
    if job.in_multirun and result == status.FAILED and not cfg.retry:
        raise ValueError(f"it failed before (retry=true tries again): {status.failure_reason(job.folder)}")
    if result != status.FINISHED:
        return None
    log.info("run %s: finished already (overwrite=true starts it again)", job.folder)
    if is_rank_zero() and not (job.folder / "report.html").exists():  # killed between metrics and report
        write_report(job.folder)
    return metric_of(
        json.loads((job.folder / "metrics.json").read_text())["validation"], cfg.optimized_metric
    )


def metric_of(validation: dict[str, float], name: str) -> float:
    """Return a metric of the validation by ``optimized_metric``; raises ``ValueError`` for an unknown one."""
    values = {key if "/" in key else f"validation/{key}": value for key, value in validation.items()}
    if name not in values:
        raise ValueError(f"optimized_metric is {name!r}: take one of {', '.join(sorted(values))}")
    return values[name]


def write_report(folder: Path) -> None:
    """Print the tables of a finished run, write its page and delete its answer journals."""
    from medvlm_r1.report.comparison import compare
    from medvlm_r1.report.page.render import write_run_report
    from medvlm_r1.report.tables.controls import control_summary
    from medvlm_r1.report.tables.table import accuracy_table, print_table, table_console

    comparison = compare([folder])
    for table in filter(None, (accuracy_table(comparison), control_summary(comparison))):
        print_table(table, table_console())
    for journal in folder.glob("predictions-*.journal"):
        journal.unlink(missing_ok=True)
    log.info("report: %s", write_run_report(folder))


def _interrupt(*signal_and_frame: Any) -> None:
    """End the process after Ctrl-C; Lightning would turn a KeyboardInterrupt into exit code 1."""
    raise SystemExit(128 + signal.SIGINT)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Check the jobs of a command, run it, and print the statuses of a multirun's runs.

    Exit codes: 1 if a run of a multirun failed, 2 for an error that the user can fix, 3 if a plan does not
    fit, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        with user_errors():
            sys.argv[1:] = hydra_arguments(sys.argv[1:])
            sweep = compose_jobs(sys.argv[1:])
    except UserError as error:
        exit_with_error(str(error))
    main_thread = threading.current_thread() is threading.main_thread()
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a shell starts `command &` in a script so
    handler = signal.signal(signal.SIGINT, _interrupt) if main_thread and not ignored else None
    try:
        yield
    except SystemExit as error:
        # Lightning's exception after SIGTERM has no code
        code = 128 + signal.SIGTERM if type(error).__name__ == "SIGTERMException" else error.code
        if code in _SIGNALS and is_rank_zero():
            command = "the same command" if sweep else "the same command with resume=auto"
            print(f"stopped: {command} continues from the newest checkpoint", file=sys.stderr)
        raise SystemExit(error.code or code) from None
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if sweep and is_rank_zero():
            print(status.sweep_summary(sweep))
    if sweep and status.FAILED in status.statuses_of(sweep).values():  # a search continues after a failure
        raise SystemExit(1)
