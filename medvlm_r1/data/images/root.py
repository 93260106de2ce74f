"""Where the image paths of a data file start from, and may not leave."""

import os
import zlib
from pathlib import Path
from typing import Any

from medvlm_r1.data.images.resolve import entry_path, image_handles
from medvlm_r1.data.images.volume import Volumes
from medvlm_r1.data.sample import BadRowError, ImageHandle


class ImageRoot:
    """A folder of images.

    Args:
        folder: image paths start here.
        follow_links: also take what lies outside ``folder``, by ``..``, an absolute path or a symbolic link.
            A data file comes from somebody else: by default it cannot name other files of this machine.
        key: the setting that names the folder, for messages.
        volumes: how DICOM and NIfTI files are shown where an entry does not say otherwise.
    """

    def __init__(
        self,
        folder: str | Path,
        follow_links: bool = False,
        key: str = "data.images",
        volumes: Volumes | None = None,
    ) -> None:
        self.folder, self.follow_links, self.key = Path(folder), follow_links, key
        self.volumes = volumes or Volumes()
        self._real, self._absolute = os.path.realpath(folder), os.path.abspath(folder)
        self._parents: dict[str, str] = {}
        # Many questions may show one image.
        self._identities: dict[str, str] = {}
        self._handles: dict[str, tuple[ImageHandle, ...]] = {}

    def images(self, entry: Any) -> tuple[ImageHandle, ...]:
        """The pictures of one entry, a path or an object; see :func:`image_handles`.

        Whether a picture exists is not asked here.

        Raises:
            BadRowError: a path holds a NUL character or leaves the folder; a setting cannot be.
        """
        self.identity(entry)
        if not isinstance(entry, str):
            return tuple(image_handles(entry, self.folder, self.volumes))
        if entry not in self._handles:
            self._handles[entry] = tuple(image_handles(entry, self.folder, self.volumes))
        return self._handles[entry]

    def identity(self, entry: Any) -> str:
        """Its file name with a mark of its place: folders may each have an ``images/1.png`` of their own.

        Raises:
            BadRowError: the path holds a NUL character, or leaves the folder.
        """
        path = entry_path(entry)
        if path not in self._identities:
            self._identities[path] = self._look(path)
        return self._identities[path]

    def _look(self, path: str) -> str:
        if "\0" in path:
            raise BadRowError(f"image {path!r} holds a NUL character: correct the file's name")
        if not path.isprintable() and any("\ud800" <= c <= "\udfff" for c in path):
            raise BadRowError(f"image {path!r} holds half a character: correct the file's name")
        file = self.folder / path
        real = self._really(file)
        if not self.follow_links:
            remedy = "data.follow_links=true takes it nevertheless, if you trust the data file"
            if not _inside(os.path.abspath(file), self._absolute):
                raise BadRowError(
                    f"image {path!r} lies outside the folder that image paths start from, {self.folder}: set "
                    f"{self.key} to a folder above all images and write the paths from there; {remedy}"
                )
            if not _inside(real, self._real):
                raise BadRowError(
                    f"image {path!r} is a symbolic link out of the folder {self.folder}, to {real}: copy the "
                    f"images, or set {self.key} to the folder they are really in; {remedy}"
                )
        return f"{file.name}-{zlib.crc32(os.fsencode(real)):08x}"

    def _really(self, file: Path) -> str:
        """Its path without links; those of its folder are followed once."""
        if file.name in ("", "..") or os.path.islink(file):
            return os.path.realpath(file)
        parent, name = os.path.split(file)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        return os.path.join(self._parents[parent], name)


def _inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)
