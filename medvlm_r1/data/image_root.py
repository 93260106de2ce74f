"""Where the image paths of a data file start from, and may not leave."""

import os
import zlib
from pathlib import Path

from medvlm_r1.data.sample import BadRowError, ImageFile


class ImageRoot:
    """A folder of images.

    Args:
        folder: image paths start here.
        follow_links: also take what lies outside ``folder``, by ``..``, an absolute path or a symbolic link.
            A data file comes from somebody else: by default it cannot name other files of this machine.
        key: the setting that names the folder, for messages.
    """

    def __init__(self, folder: str | Path, follow_links: bool = False, key: str = "data.images") -> None:
        self.folder, self.follow_links, self.key = Path(folder), follow_links, key
        self._real = os.path.realpath(folder)
        self._found: dict[str, tuple[ImageFile, str]] = {}  # many questions may show one image

    def image(self, path: str) -> ImageFile:
        """The image of that path. Whether it exists is not asked here.

        Raises:
            BadRowError: the path holds a NUL character, or leaves the folder.
        """
        return self._find(path)[0]

    def identity(self, path: str) -> str:
        """Its file name with a mark of its place: folders may each have an ``images/1.png`` of their own."""
        return self._find(path)[1]

    def _find(self, path: str) -> tuple[ImageFile, str]:
        if path not in self._found:
            self._found[path] = self._look(path)
        return self._found[path]

    def _look(self, path: str) -> tuple[ImageFile, str]:
        if "\0" in path:
            raise BadRowError(f"image {path!r} holds a NUL character: correct the file's name")
        if not path.isprintable() and any("\ud800" <= c <= "\udfff" for c in path):
            raise BadRowError(f"image {path!r} holds half a character: correct the file's name")
        file = self.folder / path
        real = os.path.realpath(file)
        if not self.follow_links:
            remedy = "data.follow_links=true takes it nevertheless, if you trust the data file"
            if not _inside(os.path.abspath(file), os.path.abspath(self.folder)):
                raise BadRowError(
                    f"image {path!r} lies outside the folder that image paths start from, {self.folder}: set "
                    f"{self.key} to a folder above all images and write the paths from there; {remedy}"
                )
            if not _inside(real, self._real):
                raise BadRowError(
                    f"image {path!r} is a symbolic link out of the folder {self.folder}, to {real}: copy the "
                    f"images, or set {self.key} to the folder they are really in; {remedy}"
                )
        return ImageFile(file), f"{file.name}-{zlib.crc32(os.fsencode(real)):08x}"


def _inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)
