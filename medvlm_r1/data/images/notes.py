"""What a decoder notes about an image that it could read: nothing is shown, or not all of the file.

A decoder attaches its notes to the image that it returns; the checks before training and the audit count them.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from PIL import Image

BLANK = "show nothing: every pixel has the same value"
FRAMES = "hold several frames, of which one is shown"
VOLUMES = "hold several times, b-values or echoes, of which one is shown"
LEFT_OUT = "are folders of which files are left out"
GAP = "are series with a gap"


class Note(NamedTuple):
    """One remark about one image.

    Attributes:
        kind: one of the constants of this module, a predicate of several images.
        detail: what is special about this image; names the file.
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
    image.info = {"notes": tuple(notes)}
    return image


def notes_of(image: Image.Image, name: str) -> tuple[Note, ...]:
    """Return the notes about a decoded image, and whether it is blank."""
    return (*image.info.get("notes", ()), *([Note(BLANK, name)] if is_blank(image) else ()))


def counted(notes: Mapping[str, Iterable[Note]]) -> dict[str, dict[str, int | str]]:
    """Count the notes about images by kind, most frequent first.

    Slices of one file share what is noted about the file, which counts once.

    Args:
        notes: image name -> its notes.

    Returns:
        Kind -> ``n``, the number of different details, and ``first``, the first of them.
    """
    kinds: dict[str, dict[str, None]] = {}
    for of_image in notes.values():
        for kind, detail in of_image:
            kinds.setdefault(kind, {})[detail] = None
    frequent = sorted(kinds.items(), key=lambda item: -len(item[1]))
    return {kind: {"n": len(details), "first": next(iter(details))} for kind, details in frequent}
