"""Start run.py: in this process, which has loaded its libraries, or as a user does, in one of its own."""

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

import run

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Said:
    """What a command printed."""

    stdout: str
    stderr: str


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def python(folder, *command, code=0, **more):
    """A command in a process of its own; fails where its exit status is not ``code``."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, env=environment(**more)
    )
    assert done.returncode == code, done.stdout[-1000:] + done.stderr[-3000:]
    return done


def run_alone(folder, *arguments, code=0, **more):
    """``python run.py`` as a user starts it."""
    return python(folder, ROOT / "run.py", *arguments, code=code, **more)


def run_here(folder, *arguments, code=0):
    """The same command line in this process: some ten seconds less, which the imports take."""
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    loggers = [logging.getLogger(), *map(logging.getLogger, ("lightning.pytorch", "lightning.fabric"))]
    kept = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    status = 0
    with pytest.MonkeyPatch.context() as patch, chdir(folder), redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
        patch.setenv("HYDRA_MAIN_MODULE", "__main__")  # Hydra looks for conf/ beside the file, not the module
        torch.set_num_threads(1)  # as OMP_NUM_THREADS=1 does
        try:
            run.main()
        except SystemExit as stopped:
            status = stopped.code
        finally:
            torch.set_num_threads(threads)
            for logger, level, handlers in kept:
                for handler in set(logger.handlers) - set(handlers):
                    handler.close()
                logger.setLevel(level)
                logger.handlers[:] = handlers
    assert status == code, out.getvalue()[-1000:] + err.getvalue()[-3000:]
    return Said(out.getvalue(), err.getvalue())
