"""Start run.py in this process, which has its libraries loaded, or in a new process, as a user does."""

import io
import logging
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from medvlm_r1 import run

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Printed:
    """Text that a command printed."""

    stdout: str
    stderr: str


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def python(folder, *command, code=0, **more):
    """Run a Python command in a new process; fails if its exit code is not ``code``."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, env=environment(**more)
    )
    assert done.returncode == code, done.stdout[-1000:] + done.stderr[-3000:]
    return done


def run_alone(folder, *arguments, code=0, **more):
    """Run ``python run.py`` in a new process."""
    return python(folder, ROOT / "run.py", *arguments, code=code, **more)


def run_here(folder, *arguments, code=0):
    """Run the same command line in this process, which saves ten seconds of imports."""
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    loggers = [logging.getLogger(), *map(logging.getLogger, ("lightning.pytorch", "lightning.fabric"))]
    saved = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    status = 0
    with pytest.MonkeyPatch.context() as patch, chdir(folder), redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
        torch.set_num_threads(1)  # as OMP_NUM_THREADS=1 does
        try:
            run.main()
        except SystemExit as stopped:
            status = stopped.code or 0
        finally:
            torch.set_num_threads(threads)
            for logger, level, handlers in saved:
                for handler in set(logger.handlers) - set(handlers):
                    handler.close()
                logger.setLevel(level)
                logger.handlers[:] = handlers
    assert status == code, out.getvalue()[-1000:] + err.getvalue()[-3000:]
    return Printed(out.getvalue(), err.getvalue())
