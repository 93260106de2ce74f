"""Unpack an untrusted zip archive of images."""

import os
import shutil
import stat
import zipfile
from pathlib import Path

from medvlm_r1.data.sample import BadRowError

RATIO_LIMIT = 50
"""Limit of an archive's compression ratio, which is about 1 for compressed images, below 10 for raw scans and
1,000 for a zip bomb."""


def unzip(archive: Path, target: Path, below: str) -> None:
    """Unpack an archive completely or not at all; write only to ``target`` and ``target``.part.

    Checks every name before it writes anything. The size limit uses the sizes that the archive declares;
    zipfile reads no member beyond its declared size.

    Args:
        below: name of a subfolder for all members, if none of them is in a folder of that name.

    Raises:
        BadRowError: the archive is damaged, or contains a link, a path outside it or a zip bomb.
        OSError: the disk is full.
    """
    # Unpack to another folder and rename it, so that a killed run leaves no partial target.
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            members = [member for member in file.infolist() if not _is_of_macos(member.filename)]
            _check(archive, members)
            nested = any(f"/{below}/" in f"/{member.filename}" for member in members)
            file.extractall(part if nested else part / below, members)
    except (zipfile.BadZipFile, zipfile.zlib.error, EOFError, NotImplementedError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BadRowError(f"{archive} is damaged ({error}): fetch it again") from error
    os.replace(part, target)


def _is_of_macos(name: str) -> bool:
    """Whether a member is a file that macOS adds: ``__MACOSX/...``, ``._x.png``, ``.DS_Store``."""
    parts = name.split("/")
    return parts[0] == "__MACOSX" or parts[-1].startswith(("._", ".DS_Store"))


def _check(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        name = member.orig_filename.replace("\\", "/")
        faults = {
            "is an absolute path": name.startswith("/") or name[1:2] == ":",
            "leaves the archive by '..'": ".." in name.split("/"),
            "contains a NUL character": "\0" in name,
            "is a symbolic link": stat.S_ISLNK(member.external_attr >> 16),
            "is encrypted": member.flag_bits & 1,
        }
        if fault := next((text for text, present in faults.items() if present), None):
            raise BadRowError(
                f"{archive}: member {member.orig_filename!r} {fault}; nothing was unpacked: fetch the "
                "archive again from where it is published"
            )
    size, packed = sum(member.file_size for member in members), archive.stat().st_size
    if size > RATIO_LIMIT * packed:
        raise BadRowError(
            f"{archive} has {packed:,} bytes and would unpack to {size:,}, over {RATIO_LIMIT} times as many; "
            "nothing was unpacked: this is not the archive of images, fetch it again"
        )
