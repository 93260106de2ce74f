"""What a decoder notes about an image that it could read: nothing is shown, or not all of the file.

A decoder attaches its notes to the image that it returns; the checks before training and the audit count
them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from PIL import Image

BLANK = "show nothing: every pixel has the same value"
FRAMES = "hold several frames, of which one is shown"
VOLUMES = "hold several times, b-values or echoes, of which one is shown"
LEFT_OUT = "are folders of which files are left out"
GAP = "are series with a gap"
NUMBERED = "are series in the order of InstanceNumber, since images lack a position"


_SETTINGS = re.compile(r"#(?:montage\b|\w+=)[^/]*$")  # at the end of an image's name


class Note(NamedTuple):
    """One remark about one image.

    Attributes:
        kind: one of the constants of this module, a predicate of several images.
        detail: what is special about this image, without its name: copies of a file share its notes.
    """

    kind: str
    detail: str


def is_blank(image: Image.Image) -> bool:
    """Whether every pixel has the same value, e.g. since all of the file's pixels are transparent."""
    extrema = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low == high for low, high in bands)


def with_notes(image: Image.Image, notes: Iterable[Note]) -> Image.Image:
    """Attach notes to a decoded image, in place of what its file says about itself (profiles, EXIF)."""
    image.info = {"notes": found} if (found := tuple(notes)) else {}
    return image


def notes_of(image: Image.Image) -> tuple[Note, ...]:
    """Return the notes about a decoded image, and whether it is blank."""
    return (*image.info.get("notes", ()), *([Note(BLANK, "")] if is_blank(image) else ()))


def counted(notes: Mapping[str, Iterable[Note]]) -> dict[str, dict[str, int | str]]:
    """Count the notes about images by kind, most frequent first.

    Slices of one file share what is noted about the file, which counts once.

    Args:
        notes: image name -> its notes.

    Returns:
        Kind -> ``n``, the number of images or files, and ``first``, name and detail of the first of them.
    """
    kinds: dict[str, dict[str, str]] = {}
    for name, of_image in notes.items():
        for kind, detail in of_image:
            what = name if kind == BLANK else _SETTINGS.sub("", name)
            kinds.setdefault(kind, {}).setdefault(what, f"{what}: {detail}" if detail else what)
    frequent = sorted(kinds.items(), key=lambda item: -len(item[1]))
    return {kind: {"n": len(files), "first": next(iter(files.values()))} for kind, files in frequent}
