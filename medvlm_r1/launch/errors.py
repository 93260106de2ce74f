"""Errors that a user can fix."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from omegaconf.errors import OmegaConfBaseException

from medvlm_r1.launch.compose import UserError, cause_of
from medvlm_r1.runs.shorten import MAX_ERROR, clip


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of some kinds, by default those that settings or data cause, into a :class:`UserError`."""
    try:
        yield
    except Exception as error:
        cause, node = cause_of(error)
        # only once Lightning is loaded: an error before that must not wait for the import
        lightning = sys.modules.get("lightning.pytorch.utilities.exceptions")
        more = [lightning.MisconfigurationException] if lightning else []
        kinds = kinds or (ValueError, OSError, TypeError, RuntimeError, OmegaConfBaseException, *more)
        if os.environ.get("HYDRA_FULL_ERROR") or not isinstance(cause, kinds):
            raise
        where = f"while building {node}; " if node else ""
        what = clip(str(cause), MAX_ERROR - 200)
        raise UserError(f"{what}\n({where}HYDRA_FULL_ERROR=1 shows the traceback)") from error


def exit_with_error(message: str) -> NoReturn:
    """Print the message, whose middle is left out if it is too long, to stderr and exit with code 2."""
    print(f"error: {clip(message, MAX_ERROR)}", file=sys.stderr)
    raise SystemExit(2)
