"""DICOM headers: what a file is, privacy, and the attributes that the pixels need, before any pixel is read.

No message contains a header value: any of them may identify a patient, even by mistake.
"""

import logging
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from medvlm_r1.data.sample import BadRowError

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

MAGIC = b"DICM"  # after a preamble of 128 bytes (PS3.10 section 7.1)
MAX_INFLATED = 2**28  # bytes of a deflated file's content
_FIRST_VRS = (b"UL", b"OB", b"UI", b"CS", b"SH", b"DA", b"TM")  # of groups 2 and 8
_MAX_FIRST = 128  # bytes of the first element of an implicit data set: a length, a character set or a UID
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
PRIVACY = (*IDENTIFYING, "PatientIdentityRemoved", "BurnedInAnnotation")
# The remedies of a run and of a row; the commands, which have no such key, replace the first by their flag.
ALLOW_IN_RUN = "set data.rows.volumes.allow_identifying=true"
ALLOW_IN_ROW = ', or "allow_identifying": true in the image of the row'
# Attributes that the package reads and that count as absent where they are empty.
_OPTIONAL = (
    "NumberOfFrames",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "PixelAspectRatio",
)
_UNITS = ("HU", "OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT")  # of PS3.3 C.11.1.1.2; US: unspecified
# Functional groups of an enhanced image (PS3.3 C.7.6.16) whose attributes the package reads.
_GROUPS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "FrameContentSequence",
    "MRDiffusionSequence",
    "MREchoSequence",
    "FrameAnatomySequence",
)


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


def has_preamble(path: Path) -> bool:
    """Whether a file has the magic behind a preamble of 128 bytes (PS3.10 section 7.1)."""
    with path.open("rb") as file:
        return file.read(132)[128:] == MAGIC


def is_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM, whatever its name.

    That is with the preamble and magic of PS3.10, or without them, as old archives hold it, with an element
    of group 2 or 8 (PS3.5 section 7.1): its VR, or a length that its file can hold.
    """
    if has_preamble(path):
        return True
    with path.open("rb") as file:
        start = file.read(64)
    if start[:2] not in (b"\2\0", b"\x08\0", b"\0\x08") or len(start) < 64:
        return False
    implicit = start[0] and start[3] == 0 and int.from_bytes(start[4:8], "little") <= _MAX_FIRST
    return bool(implicit) or start[4:6] in _FIRST_VRS


def read_header(path: Path, tags: Sequence[str] | None = None) -> "Dataset":
    """Read the header without pixels; with ``tags``, only these. If no pixels follow, it has no ``Rows``.

    Raises:
        BadRowError: the file is no DICOM file, or inflates too far.
    """
    if not is_dicom(path):
        raise BadRowError("cannot be decoded (no DICM at byte 128 and no data set, so it is no DICOM file)")
    _check_inflated(path)
    with path.open("rb") as file:
        header = pydicom().dcmread(
            file, stop_before_pixels=True, specific_tags=list(tags) if tags else None, force=True
        )
        is_deflated = with_syntax(header).file_meta.TransferSyntaxUID.is_deflated
        if "Rows" in header and not is_deflated and not file.read(1):
            del header.Rows
    return header


def with_syntax(dataset: "Dataset") -> "Dataset":
    """Give a data set without a transfer syntax the one that it was read by (PS3.5 section 10.1)."""
    uid = pydicom().uid
    if "TransferSyntaxUID" not in dataset.file_meta:
        is_implicit, is_little = dataset.original_encoding
        plain = uid.ImplicitVRLittleEndian if is_implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain if is_little else uid.ExplicitVRBigEndian
    return dataset


def _check_inflated(path: Path) -> None:
    """Check the inflated size of a deflated file (PS3.5 section A.5), before pydicom inflates it."""
    library = pydicom()
    if not has_preamble(path):
        return
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
    remedy = f"or {ALLOW_IN_RUN}{ALLOW_IN_ROW}"
    if _is_yes(header, "BurnedInAnnotation"):
        raise BadRowError(f"has BurnedInAnnotation YES{where}: remove the text from its pixels, {remedy}")
    named = [tag for tag in IDENTIFYING if str(header.get(tag) or "").strip(" ^[]")]
    if named and not _is_yes(header, "PatientIdentityRemoved"):
        raise BadRowError(
            f"identifies a patient by {', '.join(named)}{where}: de-identify it and mark it "
            f"PatientIdentityRemoved YES, {remedy}"
        )


def frame_header(place: Slice) -> "Dataset":
    """Read the header of one slice, in which an empty attribute is absent (PS3.5 section 7.4.5).

    Raises:
        BadRowError: the rescale cannot be meant: a slope of 0, or a slope or intercept that is not finite.
    """
    header = of_frame(read_header(place.path), place.frame)
    for name in _OPTIONAL:
        if name in header and header[name].VR == "SQ":
            tables = [item for item in header[name].value or [] if item.get("LUTData")]
            header[name].value = [item for item in tables if item.get("LUTDescriptor")]
        if name in header and _is_empty(header[name]):
            del header[name]
    _check_rescale(header)
    return header


def of_frame(header: "Dataset", frame: int) -> "Dataset":
    """Move the functional groups of an enhanced image to the top level of its header.

    They may be in the groups of all frames or of the frame itself (PS3.3 C.7.6.16).
    """
    shared = header.get("SharedFunctionalGroupsSequence") or []
    each = header.get("PerFrameFunctionalGroupsSequence") or []
    for groups in [*shared[:1], *each[frame : frame + 1]]:
        merge_groups(header, groups)
    return header


def merge_groups(header: "Dataset", groups: "Dataset") -> None:
    """Copy the attributes of functional groups to the top level of a header."""
    for name in _GROUPS:
        for item in (groups.get(name) or [])[:1]:
            header.update(item)


def _is_empty(element: "DataElement") -> bool:
    """Whether an attribute has no value, or no first one."""
    values = element.value if isinstance(element.value, list | tuple) or element.VM > 1 else [element.value]
    return element.is_empty or any(value is None or str(value).strip() == "" for value in list(values)[:1])


def _check_rescale(header: "Dataset") -> None:
    names = ("RescaleSlope", "RescaleIntercept")
    if "ModalityLUTSequence" in header or not any(name in header for name in names):
        return
    for name, default in zip(names, (1, 0), strict=True):
        value = float(header.get(name, default))
        if not np.isfinite(value) or (name == "RescaleSlope" and value == 0):
            fault = "of 0, so all pixels have one value" if np.isfinite(value) else "that is no finite number"
            raise BadRowError(
                f"has a {name} {fault}: correct it, or delete RescaleSlope and RescaleIntercept from the "
                "file to show its stored values"
            )
        setattr(header, name, value)


def in_hounsfield_units(header: "Dataset") -> bool:
    """Whether this is CT with a rescale of type HU or without a type (PS3.3 C.8.2.1 and C.11.1.1.2)."""
    rescaled = header.get("RescaleSlope") is not None and header.get("RescaleIntercept") is not None
    return rescaled and header.get("Modality") == "CT" and (header.get("RescaleType") or "HU") == "HU"


def measurements(header: "Dataset") -> dict[str, Any]:
    """Return what of a header describes the image and identifies nobody.

    Returns:
        Those that the header has, of ``pixel_spacing_mm`` (between rows, and between columns, as stored: the
        image may be resampled to square pixels), ``slice_thickness_mm``, ``laterality`` (L, R, B for both, or
        U for unpaired) and ``unit`` of the rescaled values (HU, or a defined term of PS3.3 C.11.1.1.2).
    """
    facts: dict[str, Any] = {}
    if len(pair := header.get("PixelSpacing") or ()) == 2:
        facts["pixel_spacing_mm"] = float(pair[0]), float(pair[1])
    if header.get("SliceThickness"):
        facts["slice_thickness_mm"] = float(header.SliceThickness)
    for name in ("ImageLaterality", "FrameLaterality", "Laterality"):
        if str(header.get(name) or "") in ("L", "R", "B", "U"):
            facts.setdefault("laterality", str(header.get(name)))
    unit = "HU" if in_hounsfield_units(header) else str(header.get("RescaleType") or "")
    return facts | ({"unit": unit} if unit in _UNITS else {})


def spacing(header: "Dataset") -> tuple[float, float]:
    """Return the distance between the centres of rows, and of columns, in mm or any common unit."""
    for tag in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        if len(pair := header.get(tag) or ()) == 2:
            return float(pair[0]), float(pair[1])
    return 1.0, 1.0


def _is_yes(header: "Dataset", tag: str) -> bool:
    return str(header.get(tag) or "").strip().upper() == "YES"
