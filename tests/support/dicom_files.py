"""Write DICOM files for tests, and decode them."""

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medvlm_r1.data.images.dicom import DicomImage

CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


def write(path, values, syntax=ExplicitVRLittleEndian, **header):
    """Write a DICOM file with these stored values: rows x columns, with frames before or colours after."""
    values = np.asarray(values)
    colour = header.get("PhotometricInterpretation", "MONOCHROME2") in ("RGB", "YBR_FULL")
    depth = values.shape[0] if values.ndim - colour == 3 else 1
    ds = FileDataset(path, {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.Rows, ds.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    ds.BitsAllocated = ds.BitsStored = 8 * values.itemsize
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(values.dtype.kind == "i")
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    if depth > 1:
        ds.NumberOfFrames = depth
    for key, value in header.items():
        setattr(ds, key, value)
    ds.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    ds["PixelData"].VR = "OW" if values.itemsize > 1 else "OB"
    ds.save_as(path, enforce_file_format=True)
    return path


def shown(path, **settings):
    picture = DicomImage(path, **settings).load()
    assert picture.mode == "RGB"
    return np.asarray(picture)[..., 0].tolist()
