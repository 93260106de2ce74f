"""What to do with unusable rows, and which images the rows may use: the config node ``data.rows``."""

from dataclasses import dataclass, field
from typing import Literal

from medvlm_r1.data.images.volume import Volumes


@dataclass(frozen=True)
class RowPolicy:
    """How the rows of a data file are checked, and how their images are read.

    Attributes:
        on_bad_row: ``fail`` raises at the first unusable row; ``skip`` skips unusable rows and lists them.
        check_images: decode every image before training; ``False`` does not even check that they exist.
        follow_links: accept images outside their folder, reached by ``..``, an absolute path or a symbolic
            link. A data file may come from a stranger: by default it cannot name other files of this machine.
        volumes: how DICOM and NIfTI files are shown where a row does not set it.

    Raises:
        ValueError: ``on_bad_row`` has another value.
    """

    on_bad_row: Literal["fail", "skip"] = "fail"
    check_images: bool = True
    follow_links: bool = False
    volumes: Volumes = field(default_factory=Volumes)

    def __post_init__(self) -> None:
        if self.on_bad_row not in ("fail", "skip"):
            raise ValueError(f"data.rows.on_bad_row is {self.on_bad_row!r}: use 'fail' or 'skip'")


STRICT = RowPolicy()
