"""Write files that survive a kill or a full disk."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a kill or a full disk leaves the old one or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
