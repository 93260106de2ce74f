"""A progress bar for slow loops."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from medvlm_r1.runs.ranks import is_rank_zero

T = TypeVar("T")
PATIENCE = 1.0  # seconds before the bar appears


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items; on a terminal, the first rank shows a progress bar after one second."""
    console = Console(stderr=True)
    if not console.is_terminal or not is_rank_zero():
        yield from items
        return
    start, updated = time.monotonic(), 0.0
    with Progress(console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task(description, total=total, visible=False)
        for number, item in enumerate(items):
            now = time.monotonic()
            if now - start > PATIENCE and now - updated > 0.1:
                updated = now
                bar.update(task, completed=number, visible=True, refresh=True)
            yield item
