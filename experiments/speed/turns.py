"""Run several training loops in turns, one optimiser step each."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch


class Turns:
    """A training loop in a thread of its own, which waits for :meth:`step` before each step.

    The libraries' loops run unmodified; only one thread works at any time.

    Args:
        loop: runs the training; must call its argument at the start of each step.
        threads: CPU threads of torch in this thread.
    """

    def __init__(self, loop: Callable[[Callable[[], None]], None], threads: int) -> None:
        self._loop, self._threads = loop, threads
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._around: AbstractContextManager = nullcontext()
        self._context = ExitStack()
        self._error: BaseException | None = None
        # a daemon, because a loop that waits for another step must not keep the process alive
        threading.Thread(target=self._run, daemon=True).start()
        self._wait()

    def step(self, around: AbstractContextManager | None = None) -> None:
        """Take one step inside the context ``around``, which the loop's thread enters and exits."""
        self._around = around or nullcontext()
        self._go.release()
        self._wait()

    def _wait(self) -> None:
        self._done.acquire()
        if self._error:
            raise self._error

    def _pause(self) -> None:
        self._context.close()
        self._done.release()
        self._go.acquire()
        self._context.enter_context(self._around)

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            self._loop(self._pause)
            self._context.close()
        except BaseException as error:  # step() raises it again
            self._error = error
        self._done.release()
