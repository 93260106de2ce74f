"""Let several training loops take turns, one optimiser step each."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch


class Turns:
    """A training loop in a thread of its own that waits before each step until it is told to go on.

    The libraries' own loops run whole and unchanged, and yet steps of different loops can be interleaved:
    only one thread ever works.

    Args:
        loop: runs the training; calls the function that it is given at the start of each step.
        threads: CPU threads of torch, which are set per thread.
    """

    def __init__(self, loop: Callable[[Callable[[], None]], None], threads: int) -> None:
        self._loop, self._threads = loop, threads
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._around: AbstractContextManager = nullcontext()
        self._under_way = ExitStack()
        self._error: BaseException | None = None
        # a daemon: what is left waiting before one more step must not keep the process
        threading.Thread(target=self._run, daemon=True).start()
        self._wait()

    def step(self, around: AbstractContextManager | None = None) -> None:
        """One step, inside ``around``, which is entered and left in the loop's thread."""
        self._around = around or nullcontext()
        self._go.release()
        self._wait()

    def _wait(self) -> None:
        self._done.acquire()
        if self._error:
            raise self._error

    def _pause(self) -> None:
        self._under_way.close()
        self._done.release()
        self._go.acquire()
        self._under_way.enter_context(self._around)

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            self._loop(self._pause)
            self._under_way.close()
        except BaseException as error:  # raised again where step() waits
            self._error = error
        self._done.release()
