"""What to do with unusable rows, and which images the rows may use: the config node ``data.rows``."""

from dataclasses import dataclass, field
from typing import Literal

from medvlm_r1.data.images.volume import Volumes


@dataclass(frozen=True)
class RowPolicy:
    """How the rows of a data file are checked, and how their images are read.

    Attributes:
        on_bad_row: ``fail`` raises at the first unusable row; ``skip`` skips unusable rows and lists them.
        on_bad_image: the same for images that are missing or cannot be decoded, and for prompts above
            ``max_prompt_tokens``: these may be faults of this machine or of a setting, not of the data.
            Default: as ``on_bad_row``.
        check_images: decode every image before training; ``False`` does not even check that they exist.
        follow_links: accept images outside their folder, reached by ``..``, an absolute path or a symbolic
            link. A data file may come from a stranger: by default it cannot name other files of this machine.
        volumes: how DICOM and NIfTI files are shown where a row does not set it.

    Raises:
        ValueError: one of the two has another value.
    """

    on_bad_row: Literal["fail", "skip"] = "fail"
    on_bad_image: Literal["fail", "skip"] | None = None
    check_images: bool = True
    follow_links: bool = False
    volumes: Volumes = field(default_factory=Volumes)

    def __post_init__(self) -> None:
        if self.on_bad_image is None:
            object.__setattr__(self, "on_bad_image", self.on_bad_row)
        for key in ("on_bad_row", "on_bad_image"):
            if getattr(self, key) not in ("fail", "skip"):
                raise ValueError(f"data.rows.{key} is {getattr(self, key)!r}: use 'fail' or 'skip'")


STRICT = RowPolicy()
