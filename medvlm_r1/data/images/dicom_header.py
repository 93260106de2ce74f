"""DICOM headers: privacy, size limits and slice order, before any pixel is read.

No message contains a header value: any of them may identify a patient, even by mistake.
"""

import logging
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from medvlm_r1.data.images.volume import check_size
from medvlm_r1.data.sample import BadRowError

if TYPE_CHECKING:
    from pydicom import Dataset

MAGIC = b"DICM"  # after a preamble of 128 bytes (PS3.10 section 7.1)
MAX_INFLATED = 2**28  # bytes of a deflated file's content
_META = 144  # bytes of preamble, magic and group length, which the group length excludes (PS3.10 section 7.1)

# Those of the attributes removed by PS3.15 table E.1-1 that identify a person.
IDENTIFYING = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientBirthName",
    "PatientMotherBirthName",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "OtherPatientIDs",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "MedicalRecordLocator",
    "MilitaryRank",
    "InsurancePlanIdentification",
    "ResponsiblePerson",
    "AccessionNumber",
    "AdmissionID",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "RequestingPhysician",
    "OperatorsName",
)
_PRIVACY = (*IDENTIFYING, "PatientIdentityRemoved", "BurnedInAnnotation")
_ORDER = ("SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient")
_SIZE = ("Rows", "Columns", "NumberOfFrames")
_SAME_DIRECTION = 1e-3  # largest difference of direction cosines within one stack


class Slice(NamedTuple):
    path: Path
    frame: int  # index in the file, from 0


def pydicom() -> ModuleType:
    """Import the library, and silence its log and its warnings, which quote header values."""
    import pydicom
    import pydicom.config
    import pydicom.encaps
    import pydicom.pixels

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    return pydicom


def is_dicom(path: Path) -> bool:
    """Whether a file starts with the preamble and magic of PS3.10, whatever its name."""
    with path.open("rb") as file:
        return file.read(132)[128:] == MAGIC


def slices_of(path: Path, allow_identifying: bool) -> list[Slice]:
    """Return the slices of a file in file order, or of a folder with one series in spatial order.

    Files of a folder are sorted by the position of their image along the normal of the slices (PS3.3
    C.7.6.2.1.1), from negative to positive, or by InstanceNumber if a position is missing. Files without an
    image, or of another format, are skipped. Also raises OSError and pydicom's errors.
    """
    if not path.is_dir():
        header = read_header(path, (*_PRIVACY, *_SIZE))
        check_privacy(header, allow_identifying)
        if "Rows" not in header:
            raise BadRowError("holds no image: give a file with pixels")
        return _sized(path, header)
    images = []
    for file in sorted(path.iterdir()):
        if file.is_symlink() and not file.exists():
            raise BadRowError(f"cannot be decoded ({file.name} is a broken or circular link)")
        if file.is_file() and is_dicom(file):
            header = read_header(file, (*_PRIVACY, *_SIZE, *_ORDER))
            if "Rows" in header:
                check_privacy(header, allow_identifying, f" in {file.name}")
                images.append((file, header))
    if not images:
        raise BadRowError("cannot be decoded (a folder without DICOM images)")
    slices = [_sized(file, header) for file, header in images]
    if len(images) == 1:
        return slices[0]
    if any(len(frames) > 1 for frames in slices):
        raise BadRowError("is a folder with a multi-frame file and other files: give the path of that file")
    if (count := len({header.get("SeriesInstanceUID") for _, header in images})) > 1:
        raise BadRowError(f"is a folder with {count} series: give each a folder of its own")
    check_size(max(h.Rows for _, h in images), max(h.Columns for _, h in images), len(images))
    order = _order([header for _, header in images])
    return [slices[i][0] for i in order]


def read_header(path: Path, tags: Sequence[str] | None = None) -> "Dataset":
    """Read the header without pixels; with ``tags``, only these."""
    library = pydicom()
    try:
        _check_inflated(path)
        return library.dcmread(path, stop_before_pixels=True, specific_tags=list(tags) if tags else None)
    except library.errors.InvalidDicomError:
        raise BadRowError("cannot be decoded (no DICM at byte 128, so it is no DICOM file)") from None


def _check_inflated(path: Path) -> None:
    """Check the inflated size of a deflated file (PS3.5 section A.5), before pydicom inflates it."""
    library = pydicom()
    meta = library.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != library.uid.DeflatedExplicitVRLittleEndian:
        return
    with path.open("rb") as file:
        file.seek(_META + meta.FileMetaInformationGroupLength)
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        stream.decompress(file.read(), MAX_INFLATED)
    if stream.unconsumed_tail:
        raise BadRowError(f"inflates to more than the limit of {MAX_INFLATED} bytes: store it uncompressed")


def check_privacy(header: "Dataset", allow_identifying: bool, where: str = "") -> None:
    """Refuse files that may identify a patient.

    These are files with BurnedInAnnotation YES (PS3.3 C.7.6.1), and files with a value in one of
    ``IDENTIFYING`` and without PatientIdentityRemoved YES (PS3.3 C.7.1.1). The message names the attributes,
    never their values.
    """
    if allow_identifying:
        return
    remedy = "or set data.rows.volumes.allow_identifying=true"
    if _is_yes(header, "BurnedInAnnotation"):
        raise BadRowError(f"has BurnedInAnnotation YES{where}: remove the text from its pixels, {remedy}")
    named = [tag for tag in IDENTIFYING if str(header.get(tag) or "").strip(" ^[]")]
    if named and not _is_yes(header, "PatientIdentityRemoved"):
        raise BadRowError(
            f"identifies a patient by {', '.join(named)}{where}: de-identify it and mark it "
            f"PatientIdentityRemoved YES, {remedy}"
        )


def frame_header(place: Slice) -> "Dataset":
    """Read the header of one slice, and move the functional groups of an enhanced image to the top level.

    Rescale, window and spacing may be in the groups of all frames or of the frame itself (PS3.3 C.7.6.16).
    """
    header = read_header(place.path)
    shared = header.get("SharedFunctionalGroupsSequence") or []
    each = header.get("PerFrameFunctionalGroupsSequence") or []
    for groups in [*shared[:1], *each[place.frame : place.frame + 1]]:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence"):
            for item in (groups.get(name) or [])[:1]:
                header.update(item)
    return header


def in_hounsfield_units(header: "Dataset") -> bool:
    """Whether this is CT with a rescale of type HU or without a type (PS3.3 C.8.2.1 and C.11.1.1.2)."""
    rescaled = header.get("RescaleSlope") is not None and header.get("RescaleIntercept") is not None
    return rescaled and header.get("Modality") == "CT" and (header.get("RescaleType") or "HU") == "HU"


def spacing(header: "Dataset") -> tuple[float, float]:
    """Return the distance between the centres of rows, and of columns, in mm or any common unit."""
    for tag in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        if len(pair := header.get(tag) or ()) == 2:
            return float(pair[0]), float(pair[1])
    return 1.0, 1.0


def _sized(path: Path, header: "Dataset") -> list[Slice]:
    frames = int(header.get("NumberOfFrames") or 1)
    check_size(int(header.get("Rows") or 0), int(header.get("Columns") or 0), frames)
    return [Slice(path, frame) for frame in range(frames)]


def _is_yes(header: "Dataset", tag: str) -> bool:
    return str(header.get(tag) or "").strip().upper() == "YES"


def _order(headers: Sequence["Dataset"]) -> list[int]:
    numbers = [header.get("InstanceNumber") for header in headers]
    ties = [(number is not None, int(number or 0)) for number in numbers]
    axes = [header.get("ImageOrientationPatient") or () for header in headers]
    places = [header.get("ImagePositionPatient") or () for header in headers]
    if all(len(a) == 6 for a in axes) and all(len(p) == 3 for p in places):
        directions = np.array(axes, dtype=float)
        if np.ptp(directions, axis=0).max() < _SAME_DIRECTION:
            normal = np.cross(directions[0, :3], directions[0, 3:])
            along = (np.array(places, dtype=float) @ normal).round(4)
            return sorted(range(len(headers)), key=lambda i: (along[i], ties[i]))
    if None in numbers:
        raise BadRowError("is a folder whose files have neither one orientation nor an InstanceNumber each")
    return sorted(range(len(headers)), key=lambda i: ties[i])
