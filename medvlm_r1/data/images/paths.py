"""What a row gives as an image's path: a file that is spelt otherwise, or no path at all."""

import functools
import re
import unicodedata
from pathlib import Path
from typing import Any

from medvlm_r1.data.sample import BadRowError, match_key
from medvlm_r1.runs.shorten import clip, shorten

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, of Linux
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BASE64 = re.compile(r"[A-Za-z0-9+/=_\s-]{64,}")
_MAGIC = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkq", "TU0A")  # PNG, JPEG, GIF, WebP, TIFF in base64


def entry_path(entry: Any) -> str:
    """Return the path of an image entry, a path or an object with one.

    Raises:
        BadRowError: the entry has none, or has the picture itself, a URL, or more than a path can hold.
    """
    path = entry.get("path") if isinstance(entry, dict) else entry
    if not isinstance(path, str) or not path:
        raise BadRowError(f"image is {shorten(entry)}: give a path, or an object with one as 'path'")
    if _is_picture(path):
        raise BadRowError(
            f"image is a picture in base64 ({len(path):,} characters): write the pictures to files, and give "
            "their paths"
        )
    if _URL.match(path):
        raise BadRowError(f"image {shorten(path)} is a URL: download the pictures, and give their paths")
    if len(path) > _LONGEST_NAME // 4:
        size = len(path.encode("utf-8", "surrogatepass"))
        names = (len(name.encode("utf-8", "surrogatepass")) for name in path.split("/"))
        if size > _LONGEST_PATH or max(names) > _LONGEST_NAME:
            raise BadRowError(f"image {shorten(path)} is longer than a path can be: give the path of a file")
    return path


def _is_picture(text: str) -> bool:
    if text.startswith("data:"):
        return True
    plausible = len(text) > _LONGEST_NAME or text.startswith(_MAGIC)
    return plausible and _BASE64.fullmatch(text) is not None


def other_forms(path: str) -> list[str]:
    """Return a path with accented letters as one character (NFC) and as two (NFD), as file systems differ."""
    forms = () if path.isascii() else ("NFC", "NFD")
    return [other for form in forms if (other := unicodedata.normalize(form, path)) != path]


def missing_image(path: Path) -> str:
    """Say that an image does not exist, and name a file of other case, suffix, slashes or folder."""
    near = _similar(path)
    return f"image {clip(str(path), 500)} does not exist" + (
        f" (there is {shorten(near.as_posix(), 300)})" if near else ""
    )


def _similar(path: Path) -> Path | None:
    path = Path(path.as_posix().replace("\\", "/"))
    missing: list[str] = []
    while not path.exists() and path != path.parent:
        missing.insert(0, path.name)
        path = path.parent
    if not missing:
        return path if path.is_file() else None
    if len(missing) > 1 and path.joinpath(*missing[1:]).is_file():
        return path.joinpath(*missing[1:])
    for name in missing:
        if (found := _listed(path, path.stat().st_mtime_ns).get(match_key(name))) is None:
            stems = _listed(path, path.stat().st_mtime_ns, stems=True)
            found = stems.get(match_key(Path(name).stem)) if name == missing[-1] else None
        if found is None or not (path / found).exists():
            return None
        path = path / found
    return path if path.is_file() else None


@functools.lru_cache(maxsize=32)
def _listed(folder: Path, changed: int, stems: bool = False) -> dict[str, str]:
    """Names in a folder (last changed at ``changed``) by themselves without case, or by their stems."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return {}
    return {match_key(Path(name).stem if stems else name): name for name in reversed(names)}
