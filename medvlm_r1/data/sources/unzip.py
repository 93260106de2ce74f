"""Unpack a zip of images that somebody else made."""

import os
import shutil
import stat
import zipfile
from pathlib import Path

from medvlm_r1.data.sample import BadRowError

RATIO_LIMIT = 50
"""Unpacked over packed bytes of a whole archive. Images are compressed already: theirs is about 1, a raw
scan's below 10, a bomb's 1,000."""


def unzip(archive: Path, target: Path, below: str) -> None:
    """Unpack an archive, whole or not at all; nothing is written outside ``target`` and ``target``.part.

    Every name is judged before anything is written. The unpacked size is the one that the archive declares:
    a member that holds more than it declares is damaged, and is not read beyond.

    Args:
        archive: a zip file.
        target: the folder to make.
        below: a folder to put everything into, if no member is in a folder of that name.

    Raises:
        BadRowError: the archive is damaged, or holds a path that leaves it, a link or a bomb.
        OSError: the disk is full.
    """
    # Beside the target and renamed, so that a killed run leaves no half of it under that name.
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            _judge(archive, members)
            nested = any(f"/{below}/" in f"/{member.filename}" for member in members)
            file.extractall(part if nested else part / below)
    except (zipfile.BadZipFile, zipfile.zlib.error, EOFError, NotImplementedError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BadRowError(f"{archive} is damaged ({error}): fetch it again") from error
    os.replace(part, target)


def _judge(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        name = member.orig_filename.replace("\\", "/")
        fault = None
        if name.startswith("/") or name[1:2] == ":":
            fault = "is an absolute path"
        elif ".." in name.split("/"):
            fault = "leads out of the archive by '..'"
        elif "\0" in name:
            fault = "holds a NUL character"
        elif stat.S_ISLNK(member.external_attr >> 16):
            fault = "is a symbolic link"
        elif member.flag_bits & 1:
            fault = "is encrypted"
        if fault:
            raise BadRowError(
                f"{archive}: member {member.orig_filename!r} {fault}; nothing was unpacked: fetch the "
                "archive again from where it is published"
            )
    size, packed = sum(member.file_size for member in members), archive.stat().st_size
    if size > RATIO_LIMIT * packed:
        raise BadRowError(
            f"{archive} has {packed:,} bytes and would unpack to {size:,}, over {RATIO_LIMIT} times as many; "
            "nothing was unpacked: this is no archive of images, fetch it again"
        )
