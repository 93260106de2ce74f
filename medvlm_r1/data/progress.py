"""A bar for work that keeps its user waiting."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")
PATIENCE = 1.0  # seconds without a bar; what ends sooner needs none


def tracked(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar on a terminal once they have taken a second; of several ranks the first shows it.

    Args:
        items: what is gone through.
        description: what is done with them.
        total: how many there are, where that is known.
    """
    console = Console(stderr=True)
    if not console.is_terminal or os.environ.get("LOCAL_RANK", "0") != "0":
        yield from items
        return
    begun, shown = time.monotonic(), 0.0
    with Progress(console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task(description, total=total, visible=False)
        for number, item in enumerate(items):
            now = time.monotonic()
            if now - begun > PATIENCE and now - shown > 0.1:
                shown = now
                bar.update(task, completed=number, visible=True, refresh=True)
            yield item
