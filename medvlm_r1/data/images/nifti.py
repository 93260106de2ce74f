"""NIfTI pictures in radiological convention, whatever the order in which the file stores its voxels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from medvlm_r1.data.images.volume import (
    MIDDLE,
    PLANES,
    Pick,
    check_size,
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
    """One picture of a NIfTI file.

    The volume is brought to nibabel's canonical orientation (RAS+) and shown as radiologists look at it:
    axial and coronal slices with the patient's right on the left of the picture, axial ones with the front
    and the others with the head on top, sagittal ones with the front on the left. Slices count from 0
    along the canonical axis: from the feet up, from the back to the front, from the patient's left to the
    right. A file without a stated orientation (sform and qform 0) is taken as nibabel takes it.

    Attributes:
        path: a ``.nii`` or ``.nii.gz`` file.
        pick: the slice that is shown, or several as a montage.
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
        """The path as given, and what differs from the default."""
        said = {
            "plane": None if self.plane == PLANES[0] else self.plane,
            "volume": self.volume or None,
            "range": self.range and list(self.range),
            "percentiles": self.percentiles and list(self.percentiles),
        }
        settings = [f"{key}={value}" for key, value in said.items() if value is not None]
        return label(self.path.as_posix(), self.pick, *settings)

    def load(self) -> Image.Image:
        """Decode as RGB.

        Values are scaled by the file's own slope and intercept, then linear from black to white; what is
        no number is black. Voxels that are not cubes are stretched to the finer spacing (mm).

        Raises:
            BadRowError: the file is missing, damaged, too large, in colour, or lacks the volume or slice.
        """
        import nibabel

        try:
            return self._shown(nibabel)
        except BadRowError as error:
            raise BadRowError(f"image {self.path} {error}") from None
        except FileNotFoundError:
            raise BadRowError(f"image {self.path} does not exist") from None
        except Exception as error:  # damage shows as errors of any type, whose text may quote the header
            raise BadRowError(
                f"image {self.path} cannot be decoded (damaged: {type(error).__name__})"
            ) from None

    def _shown(self, nibabel) -> Image.Image:
        image = nibabel.load(self.path)
        if not isinstance(image, nibabel.Nifti1Pair):
            raise BadRowError("cannot be decoded (no NIfTI file)")
        if image.get_data_dtype().kind not in "iuf":
            raise BadRowError("has voxels that are no plain numbers: convert it to grey values")
        shape = [*image.shape, *[1] * (3 - image.ndim)]
        check_size(max(shape[:3]), sorted(shape[:3])[1], min(shape[:3]))
        volumes = int(np.prod(shape[3:], dtype=object))
        if self.volume >= volumes:
            raise BadRowError(f"has volumes 0 to {volumes - 1}, but {self.volume} is asked for: set volume")
        if image.ndim > 4 or image.ndim < 3:
            raise BadRowError(f"has {image.ndim} dimensions: give a file with 3 or 4")
        if image.ndim == 4:
            # the file reads the one volume only
            image = nibabel.Nifti1Image(np.asanyarray(image.dataobj[..., self.volume]), image.affine)
        image = nibabel.as_closest_canonical(image)
        values, axis = image.get_fdata(dtype=np.float32), _ACROSS[self.plane]
        low, high = self._limits(values)
        # columns and rows of the picture, as distances between voxels
        column, row = (size for i, size in enumerate(nibabel.affines.voxel_sizes(image.affine)) if i != axis)
        pictures = [
            in_proportion(grey(_facing(values.take(k, axis)), low, high), row, column).convert("RGB")
            for k in indices(self.pick, values.shape[axis])
        ]
        return montage(pictures) if self.pick == "montage" else pictures[0]

    def _limits(self, values: Float[np.ndarray, "x y z"]) -> tuple[float, float]:
        if self.range is not None:
            return self.range
        known = values[np.isfinite(values)]
        if not known.size:
            return 0.0, 0.0
        low, high = np.percentile(known, self.percentiles or (0, 100))
        return float(low), float(high)


def _facing(values: Float[np.ndarray, "across up"]) -> Float[np.ndarray, "height width"]:
    """A canonical slice as rows from the top: its second axis runs up, its first to the viewer's left.

    The first axis is x, towards the patient's right, or in a sagittal slice y, towards the front.
    """
    return values[::-1, ::-1].T
