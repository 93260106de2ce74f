"""Decode NIfTI images in radiological convention, whatever the order in which the file stores its voxels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from medvlm_r1.data.images.notes import VOLUMES, Note, with_notes
from medvlm_r1.data.images.volume import (
    MIDDLE,
    PLANES,
    Pick,
    check_size,
    errors_named,
    grey,
    in_proportion,
    indices,
    label,
    montage,
)
from medvlm_r1.data.sample import BadRowError

SUFFIXES = (".nii", ".nii.gz")
_ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}  # the axis that a plane is cut across


@dataclass(frozen=True)
class NiftiImage:
    """One image of a NIfTI file.

    The volume is reoriented to nibabel's canonical orientation (RAS+) and shown in radiological convention:
    axial and coronal slices with the patient's right on the left of the image, axial ones with the front and
    the others with the head on top, sagittal ones with the front on the left. Slices are numbered from 0
    along the canonical axis: from the feet up, from the back to the front, from the patient's left to the
    right. A file without an orientation (sform and qform 0) gets nibabel's default orientation.

    Attributes:
        path: a ``.nii`` or ``.nii.gz`` file.
        pick: the slice, or a montage of several.
        plane, volume, range, percentiles: see :class:`~medvlm_r1.data.images.volume.Volumes`.
    """

    path: Path
    pick: Pick = MIDDLE
    plane: str = "axial"
    volume: int = 0
    range: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """The path, and the settings that differ from the default."""
        changed = {
            "plane": None if self.plane == PLANES[0] else self.plane,
            "volume": self.volume or None,
            "range": self.range and list(self.range),
            "percentiles": self.percentiles and list(self.percentiles),
        }
        settings = [f"{key}={value}" for key, value in changed.items() if value is not None]
        return label(self.path.as_posix(), self.pick, *settings)

    def load(self) -> Image.Image:
        """Decode as RGB.

        Applies the file's slope and intercept, then scales linearly from black to white; NaN is black.
        Resamples anisotropic voxels to the finer in-plane spacing (mm).

        Raises:
            BadRowError: the file is missing, damaged, too large or in colour, or lacks the volume or slice.
        """
        import nibabel

        with errors_named(self.path):
            return self._shown(nibabel)

    def _shown(self, nibabel) -> Image.Image:
        image = nibabel.load(self.path)
        if not isinstance(image, nibabel.Nifti1Pair):
            raise BadRowError("cannot be decoded (no NIfTI file)")
        if image.get_data_dtype().kind not in "iuf":
            raise BadRowError("has voxels that are not plain numbers: convert it to grey values")
        shape = [*image.shape, *[1] * (3 - image.ndim)]
        check_size(max(shape[:3]), sorted(shape[:3])[1], min(shape[:3]))
        volumes = int(np.prod(shape[3:], dtype=object))
        if self.volume >= volumes:
            raise BadRowError(f"has volumes 0 to {volumes - 1}, not {self.volume}: set volume")
        if image.ndim > 4 or image.ndim < 3:
            raise BadRowError(f"has {image.ndim} dimensions: give a file with 3 or 4")
        if image.ndim == 4:
            # reads only this volume from the file
            image = nibabel.Nifti1Image(np.asanyarray(image.dataobj[..., self.volume]), image.affine)
        image = nibabel.as_closest_canonical(image)
        values, axis = image.get_fdata(dtype=np.float32), _ACROSS[self.plane]
        low, high = self._limits(values)
        # distances between the columns, and between the rows, of the image
        column, row = (size for i, size in enumerate(nibabel.affines.voxel_sizes(image.affine)) if i != axis)
        images = [
            in_proportion(grey(_facing(values.take(k, axis)), low, high), row, column).convert("RGB")
            for k in indices(self.pick, values.shape[axis])
        ]
        notes = [Note(VOLUMES, f"volume {self.volume} of {volumes}, from 0")] if volumes > 1 else []
        return with_notes(montage(images) if self.pick == "montage" else images[0], notes)

    def facts(self) -> dict[str, Any]:
        """Return the distances between voxels, as :meth:`DicomImage.facts` does.

        Raises:
            BadRowError: the file is missing or damaged.
        """
        import nibabel

        with errors_named(self.path):
            image = nibabel.as_closest_canonical(nibabel.load(self.path))
            sizes = nibabel.affines.voxel_sizes(image.affine).tolist()
            to_mm = {"meter": 1000.0, "micron": 0.001}.get(image.header.get_xyzt_units()[0], 1.0)
        across = _ACROSS[self.plane]
        column, row = (size * to_mm for axis, size in enumerate(sizes) if axis != across)
        return {"pixel_spacing_mm": (row, column), "slice_distance_mm": sizes[across] * to_mm}

    def _limits(self, values: Float[np.ndarray, "x y z"]) -> tuple[float, float]:
        if self.range is not None:
            return self.range
        finite = values[np.isfinite(values)]
        if not finite.size:
            return 0.0, 0.0
        low, high = np.percentile(finite, self.percentiles or (0, 100))
        return float(low), float(high)


def _facing(values: Float[np.ndarray, "across up"]) -> Float[np.ndarray, "height width"]:
    """Convert a canonical slice to image rows from the top.

    The second axis of the slice points up, the first to the left of the image: x, to the patient's right, or
    in a sagittal slice y, to the front.
    """
    return values[::-1, ::-1].T
