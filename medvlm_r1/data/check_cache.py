"""Which images were found good before: by path, size and time of change, in a small file of the user's."""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub.constants
import PIL
from filelock import FileLock

logger = logging.getLogger(__name__)

Stamp = list[int]

_RULES = f"1, Pillow {PIL.__version__}"
"""Another number or Pillow may judge otherwise: then nothing is taken over."""
_KEPT = 1_000_000  # images, the latest; about 100 MB


def cache_folder() -> Path:
    """Where this package keeps what it may rebuild: beside the hub client's cache."""
    return Path(huggingface_hub.constants.HF_HOME) / "medvlm_r1"


class CheckCache:
    """Images that decoded before and have not changed since. Damaged ones are not kept: they are mended.

    The file is replaced as a whole, so a killed run leaves the one before; one that cannot be read is
    as good as none.

    Args:
        path: the file. Default: ``image_checks.json`` in :func:`cache_folder`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / "image_checks.json"
        self._good = self._read()

    def has(self, image: Path, stamp: Stamp | None) -> bool:
        """Whether the image, as it is now, was found good."""
        return stamp is not None and self._good.get(os.path.abspath(image)) == stamp

    def add(self, images: Mapping[Path, Stamp]) -> None:
        """Keep these, found good just now, beside what other runs have kept in the meantime.

        Args:
            images: by path, the stamp from before the image was decoded: it may change meanwhile.
        """
        if not images:
            return
        new = {os.path.abspath(image): stamp for image, stamp in images.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                merged = list((self._read() | new).items())[-_KEPT:]
                with tempfile.NamedTemporaryFile(
                    "w", dir=self.path.parent, prefix=".image_checks-", encoding="utf-8", delete=False
                ) as file:
                    json.dump({"rules": _RULES, "good": dict(merged)}, file)
                os.replace(file.name, self.path)
        except OSError as error:  # a full or read-only home costs time at the next run, nothing else
            logger.info("%s: image checks are not kept (%s)", self.path, error)
        self._good |= new

    def _read(self) -> dict[str, Stamp]:
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["rules"] != _RULES or not isinstance(kept["good"], dict):
                return {}
            return kept["good"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def stamp_of(image: Path) -> Stamp | None:
    """Size in bytes and time of change; ``None`` if the file is not there."""
    try:
        status = image.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]
