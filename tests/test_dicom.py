"""DICOM: windows against arithmetic on paper, order in space, privacy, and files that mean harm."""

import io
import json
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

from medvlm_r1.data.checks import image_digest
from medvlm_r1.data.dicom import DicomImage, windowed
from medvlm_r1.data.mcq_json import McqJson
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.data.volume import CT_WINDOWS, Volumes, indices, picks

ROOT = Path(__file__).parents[1]
CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


def write(path, values, syntax=ExplicitVRLittleEndian, **header):
    """A DICOM file with these stored values: rows x columns, or frames x rows x columns, or with colours."""
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


@pytest.fixture
def here(tmp_path):
    return tmp_path / "a.dcm"


class TestWindows:
    STORED = np.array([[0, 1000, 1024, 1064, 1104, 4095]], np.uint16)  # -1024, -24, 0, 40, 80, 3071 HU

    def test_brain(self, here):
        """C.11.2.1.2.1: ((x - 39.5) / 79 + 0.5) * 255; 0 HU gives 0, 40 HU 129.11, 80 HU (above 79) 255."""
        write(here, self.STORED, **CT)
        assert shown(here, window="brain") == [[0, 0, 0, 129, 255, 255]]

    @pytest.mark.parametrize("name", CT_WINDOWS)
    def test_named_windows_end_where_they_say(self, name, here):
        centre, width = CT_WINDOWS[name]
        low, high = centre - width // 2, centre + width // 2
        write(
            here,
            np.array([[low - 1, low, int(centre), high - 1, high]], np.int16),
            **CT | {"RescaleIntercept": 0},
        )
        assert shown(here, window=name)[0] == pytest.approx([0, 0, 128, 255, 255], abs=2)

    def test_of_the_header_the_first(self, here):
        """Centre 50, width 101: ((x - 49.5) / 100 + 0.5) * 255 = (x + 0.5) / 100 * 255; 24 gives 62.475."""
        write(here, np.array([[0, 24, 74, 99, 200]], np.int16), WindowCenter=[50, 9], WindowWidth=[101, 2])
        assert shown(here) == [[1, 62, 190, 254, 255]]
        assert shown(here, window=(100, 201)) == [[1, 31, 95, 127, 255]]  # (x + 0.5) / 200 * 255

    def test_linear_exact(self, here):
        """C.11.2.1.3.2: ((x - 50) / 100 + 0.5) * 255 = x / 100 * 255."""
        header = {"WindowCenter": 50, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}
        write(here, np.array([[-5, 0, 25, 50, 100, 101]], np.int16), **header)
        assert shown(here) == [[0, 0, 64, 128, 255, 255]]

    def test_sigmoid(self, here):
        """C.11.2.1.3.1: 255 / (1 + exp(-4 (x - 50) / 100)): exp(-1) gives 186.4, exp(1) gives 68.6."""
        header = {"WindowCenter": 50, "WindowWidth": 100, "VOILUTFunction": "SIGMOID"}
        write(here, np.array([[-30000, 25, 50, 75, 30000]], np.int16), **header)
        assert shown(here) == [[0, 69, 128, 186, 255]]

    def test_without_any_the_full_range(self, here):
        write(here, np.array([[-1000, 0, 1000]], np.int16))
        assert shown(here) == [[0, 128, 255]]
        write(here, np.full((2, 2), 7, np.uint16))
        assert shown(here) == [[0, 0], [0, 0]]

    def test_padding_does_not_count_and_is_black(self, here):
        write(here, np.array([[-2000, 0, 50, 100]], np.int16), PixelPaddingValue=-2000)
        assert shown(here) == [[0, 0, 128, 255]]
        inverted = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingRangeLimit": -1000}
        write(here, np.array([[-2000, -1500, 0, 50, 100]], np.int16), PixelPaddingValue=-2000, **inverted)
        assert shown(here) == [[0, 0, 255, 127, 0]]

    def test_monochrome1_is_inverted(self, here):
        values = np.array([[0, 51, 255]], np.uint8)
        write(here, values, PhotometricInterpretation="MONOCHROME1")
        assert shown(here) == [[255, 204, 0]]
        write(here, self.STORED, PhotometricInterpretation="MONOCHROME1", **CT)
        assert shown(here, window="brain") == [[255, 255, 255, 126, 0, 0]]

    def test_a_falling_slope_keeps_dark_dark(self, here):
        """Values 0, -50, -100: with centre -50 and width 101, (x + 50.5) / 100 + 0.5 of 255."""
        header = {"RescaleSlope": -1, "RescaleIntercept": 0, "WindowCenter": -50, "WindowWidth": 101}
        write(here, np.array([[0, 50, 100]], np.int16), **header)
        assert shown(here) == [[255, 129, 1]]

    def test_modality_table(self, here):
        item = Dataset()
        item.LUTDescriptor, item.ModalityLUTType = [4, 10, 16], "US"
        item.add_new("LUTData", "US", [0, 500, 1000, 100])
        write(here, np.array([[5, 10, 11, 12, 13, 99]], np.uint16), ModalityLUTSequence=Sequence([item]))
        assert shown(here) == [[0, 0, 128, 255, 26, 26]]

    @pytest.mark.parametrize("bits", [8, 12])
    def test_voi_table(self, bits, here):
        """600 entries from -100 on, the k-th of value 255 k // 599 (times 16 in 12 bits, of 4095)."""
        item, data = Dataset(), [255 * k // 599 * (16 if bits == 12 else 1) for k in range(600)]
        item.add_new("LUTDescriptor", "SS", [600, -100, bits])
        item.add_new("LUTData", "US", data)
        values = np.array([[824, 924, 1224, 1523, 4000]], np.uint16)  # -200, -100, 200, 499, 2976
        write(here, values, VOILUTSequence=Sequence([item]), WindowCenter=0, WindowWidth=2, **CT)
        top = {8: [127, 255], 12: [round(127 * 16 / 4095 * 255), round(255 * 16 / 4095 * 255)]}[bits]
        assert shown(here) == [[0, 0, *top, top[1]]]

    def test_of_an_enhanced_frame(self, here):
        def groups(centre, slope):
            item, window, rescale = Dataset(), Dataset(), Dataset()
            window.WindowCenter, window.WindowWidth = centre, 101
            rescale.RescaleSlope, rescale.RescaleIntercept = slope, 0
            item.FrameVOILUTSequence = Sequence([window])
            item.PixelValueTransformationSequence = Sequence([rescale])
            return item

        each = Sequence([groups(50, 1), groups(150, 2)])
        frames = np.array([[[24, 99]], [[62, 99]]], np.int16)
        write(here, frames, PerFrameFunctionalGroupsSequence=each)
        assert shown(here, pick=0) == [[62, 254]]
        assert shown(here, pick=1) == [[62, 251]]  # 2 x - 100 = 24 and 98: 98.5 / 100 * 255 = 251.2

    @pytest.mark.parametrize(
        "header", [{}, CT | {"Modality": "MR"}, {"Modality": "CT"}, CT | {"RescaleType": "US"}]
    )
    def test_of_ct_need_hounsfield_units(self, header, here):
        write(here, self.STORED, **header)
        with pytest.raises(
            BadRowError, match=r"a\.dcm is no CT in Hounsfield units, which window=lung needs: "
        ):
            shown(here, window="lung")

    def test_that_are_impossible_are_refused(self, here):
        write(here, self.STORED, WindowCenter=1, WindowWidth=0)
        with pytest.raises(BadRowError, match=r"a\.dcm has a window of width 0: set window"):
            shown(here)
        with pytest.raises(BadRowError, match="VOILUTFunction"):
            windowed(self.STORED, 1, 2, "CUBIC")


class TestColour:
    RGB = np.array([[[255, 0, 0], [0, 255, 0], [10, 20, 30]]], np.uint8)

    def test_rgb(self, here):
        write(here, self.RGB, PhotometricInterpretation="RGB")
        assert np.asarray(DicomImage(here).load()).tolist() == self.RGB.tolist()
        write(here, self.RGB.astype(np.uint16) * 257, PhotometricInterpretation="RGB")
        assert np.asarray(DicomImage(here).load()).tolist() == self.RGB.tolist()
        with pytest.raises(BadRowError, match="is a colour picture"):
            shown(here, window=(1, 2))

    def test_ybr(self, here):
        """C.7.6.3.1.2: red = 76.2, 85.0, 255.5 in YBR_FULL."""
        write(here, np.array([[[76, 85, 255]]], np.uint8), PhotometricInterpretation="YBR_FULL")
        assert np.asarray(DicomImage(here).load())[0, 0] == pytest.approx([254, 0, 0], abs=1)

    def test_palette(self, here):
        tables = {}
        for k, name in enumerate(("Red", "Green", "Blue")):
            tables[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
            entries = np.array([0, 257 * (k + 1)], np.uint16)
            tables[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
        write(here, np.array([[0, 1]], np.uint8), PhotometricInterpretation="PALETTE COLOR", **tables)
        assert np.asarray(DicomImage(here).load()).tolist() == [[[0, 0, 0], [1, 2, 3]]]


class TestSlices:
    @pytest.fixture
    def series(self, tmp_path):
        """Slices of value 10 k at z = 2 k mm; names and numbers have other orders."""
        folder, series = tmp_path / "series", generate_uid()
        folder.mkdir()
        for k, name in enumerate("dbeac"):
            place = {"ImagePositionPatient": [0, 0, 2 * k], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
            path = folder / name
            write(
                path,
                np.full((2, 3), 10 * k, np.int16),
                InstanceNumber=5 - k,
                SeriesInstanceUID=series,
                **place,
            )
        (folder / "notes.txt").write_text("no picture")
        return folder

    def values(self, path, slices):
        """Grey is value + 0.5 of 255, for centre 128 and width 256."""
        return [shown(path, pick=pick, window=(128, 256))[0][0] for pick in picks(slices)]

    def test_lie_in_the_order_of_space(self, series):
        assert self.values(series, [0, 1, 2, 3, 4]) == [0, 10, 20, 30, 40]
        assert self.values(series, "middle") == [20]
        assert self.values(series, 2) == [10, 30]

    def test_without_positions_in_the_order_of_numbers(self, series):
        for path in series.glob("?"):
            ds = pydicom.dcmread(path)
            del ds.ImagePositionPatient
            ds.save_as(path)
        assert self.values(series, [0, 4]) == [40, 0]
        for path in series.glob("?"):
            ds = pydicom.dcmread(path)
            del ds.InstanceNumber
            ds.save_as(path)
        with pytest.raises(BadRowError, match=f"image {series} is a folder whose files have neither"):
            DicomImage(series).load()

    def test_of_two_series_are_not_mixed(self, series):
        write(series / "other", np.zeros((2, 3), np.int16), SeriesInstanceUID=generate_uid())
        with pytest.raises(BadRowError, match=f"image {series} is a folder with 2 series"):
            DicomImage(series).load()

    def test_make_a_montage(self, series):
        sheet = np.array(shown(series, pick="montage", window=(128, 256)))
        assert sheet.shape == (4, 9)  # five slices of 2 x 3 in two rows of three
        assert sheet[::2, ::3].tolist() == [[0, 10, 20], [30, 40, 0]]
        assert indices("montage", 90) == [5, 15, 25, 35, 45, 55, 65, 75, 85]

    def test_of_a_multi_frame_file(self, here):
        write(here, np.arange(4, dtype=np.uint8).reshape(4, 1, 1) * 50 * np.ones((1, 2, 2), np.uint8))
        assert self.values(here, [3, 0]) == [150, 0]
        with pytest.raises(BadRowError, match=r"a\.dcm has slices 0 to 3, but 4 is asked for"):
            shown(here, pick=4)
        with pytest.raises(BadRowError, match=r"a\.dcm has 4 slices, but 5 are asked for"):
            shown(here, pick=(0, 5))

    def test_pixels_that_are_not_square_are_stretched(self, here):
        write(here, np.zeros((4, 6), np.uint8), PixelSpacing=[3, 1.5])
        assert DicomImage(here).load().size == (6, 8)

    def test_names_tell_pictures_apart(self, here):
        names = [DicomImage(Path("x.dcm"), pick).name for pick in (12, (1, 4), "montage", (0, 1))]
        assert names == ["x.dcm#slice=12", "x.dcm#slice=2of4", "x.dcm#montage", "x.dcm"]
        assert DicomImage(Path("x.dcm"), window=(40, 80)).name == "x.dcm#window=[40, 80]"
        handle = DicomImage(Path("x.dcm"), 3, "lung")
        assert pickle.loads(pickle.dumps(handle)) == handle
        assert len(pickle.dumps(handle)) < 400


class TestLibraryFiles:
    @pytest.mark.parametrize(
        "name", ["RLE", "bigendian", "implicit", "expb", "jp2klossless", "jpeg_ls_lossless", "padded"]
    )
    def test_one_picture_in_every_lossless_syntax(self, name):
        plain, other = (
            get_testdata_file(n, download=False) for n in ("MR_small.dcm", f"MR_small_{name}.dcm")
        )
        assert shown(Path(other), allow_identifying=True) == shown(Path(plain), allow_identifying=True)

    def test_ct(self):
        path = Path(get_testdata_file("CT_small.dcm", download=False))
        units = pydicom.dcmread(path).pixel_array.astype(int) - 1024
        expected = (((units - 49.5) / 399 + 0.5).clip(0, 1) * 255).round()  # abdomen: centre 50, width 400
        assert shown(path, window="abdomen", allow_identifying=True) == expected.tolist()

    @pytest.mark.parametrize(
        "name", ["SC_rgb_rle_16bit", "SC_ybr_full_422_uncompressed", "SC_rgb_jpeg_dcmtk"]
    )
    def test_colours_agree_with_the_plain_file(self, name):
        plain, other = (
            np.asarray(
                DicomImage(Path(get_testdata_file(f"{n}.dcm", download=False)), allow_identifying=True).load()
            )
            for n in ("SC_rgb_rle", name)
        )
        assert np.abs(plain.astype(int) - other).mean() < 3

    def test_deflated(self):
        assert DicomImage(
            Path(get_testdata_file("image_dfl.dcm", download=False)), allow_identifying=True
        ).load()


class TestPrivacy:
    def test_identifying_headers_are_refused_without_their_values(self, here):
        values = np.zeros((2, 2), np.uint8)
        write(here, values, PatientName="Zyx^Distinct", PatientID="7", AccessionNumber="")
        with pytest.raises(BadRowError) as refused:
            DicomImage(here).load()
        message = str(refused.value)
        assert message.startswith(f"image {here} identifies a patient by PatientName, PatientID: ")
        assert "allow_identifying=true" in message
        assert "Zyx" not in message
        assert DicomImage(here, allow_identifying=True).load()
        write(here, values, PatientName="Zyx^Distinct", PatientIdentityRemoved="YES")
        assert DicomImage(here).load()

    def test_burned_in_text_is_refused(self, here):
        write(here, np.zeros((2, 2), np.uint8), BurnedInAnnotation="YES", PatientIdentityRemoved="YES")
        with pytest.raises(BadRowError, match=r"a\.dcm has BurnedInAnnotation YES: remove"):
            DicomImage(here).load()
        assert DicomImage(here, allow_identifying=True).load()

    def test_of_a_series_the_file_is_named(self, here):
        write(here, np.zeros((2, 2), np.uint8), PatientID="Zyx")
        with pytest.raises(BadRowError, match=r"identifies a patient by PatientID in a\.dcm: "):
            DicomImage(here.parent).load()

    def test_damage_does_not_quote_the_header(self, here, caplog, recwarn):
        write(here, np.zeros((2, 2), np.uint8), NumberOfFrames=3, PatientBirthDate="19990101")
        data = here.read_bytes()
        here.write_bytes(data.replace(b"IS\x02\x003 ", b"IS\x02\x00Zy").replace(b"19990101", b"Zyx Zyx "))
        with pytest.raises(BadRowError, match=r"a\.dcm cannot be decoded \(damaged: \w+\)$") as refused:
            DicomImage(here, allow_identifying=True).load()
        assert refused.value.__cause__ is None
        assert "Zy" not in caplog.text + "".join(str(w.message) for w in recwarn)

    def test_nothing_of_a_patient_enters_a_run(self, tmp_path):
        rows = []
        for k in range(12):
            values = np.random.default_rng(k).integers(0, 2000, (56, 56)).astype(np.int16)
            named = {
                "PatientName": "Zyxwell^Distinctive",
                "PatientID": "ID-Zyxwell",
                "InstitutionName": "Zyxwell",
            }
            write(tmp_path / f"{k}.dcm", values, **named, **CT)
            row = {"image": {"path": f"{k}.dcm", "window": "brain"}, "question": f"What is shown in {k}?"}
            rows.append(row | {"options": ["liver", "brain"], "answer": "brain", "subset": "CT"})
        (tmp_path / "train.json").write_text(json.dumps(rows[:10]))
        (tmp_path / "test.json").write_text(json.dumps(rows[10:]))
        start = [sys.executable, ROOT / "run.py", "+experiment=grpo_600", "model=tiny", "data=mcq_json"]
        start += ["data.train=train.json", "data.test={ct:test.json}"]
        start += ["data.n_validation=2", "trainer.max_steps=1", "workers=1"]
        done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert "identifies a patient by PatientName, PatientID" in done.stderr
        assert "Zyxwell" not in done.stderr + done.stdout
        start.append("data.volumes.allow_identifying=true")
        done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "Zyxwell" not in done.stderr + done.stdout
        files = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
        assert {"report.html", "predictions.jsonl", "last.ckpt"} <= {path.name for path in files}
        assert any(path.suffix == ".png" for path in files)
        assert not [path for path in files if b"Zyxwell" in path.read_bytes()]


class TestHostileFiles:
    def test_truncated(self, here):
        write(here, np.zeros((64, 64), np.uint16))
        data = here.read_bytes()
        for length in (100, 140, 300, len(data) - 100):
            here.write_bytes(data[:length])
            with pytest.raises(BadRowError, match=r"image .*a\.dcm (cannot be decoded|holds no image)"):
                DicomImage(here).load()

    def test_without_the_magic(self, here):
        here.write_bytes(b"\0" * 400)
        with pytest.raises(BadRowError, match="no DICM at byte 128"):
            DicomImage(here).load()

    @pytest.mark.parametrize("size", [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 2**31 - 1}])
    def test_huge(self, size, here):
        write(here, np.zeros((64, 64), np.uint8))
        ds = pydicom.dcmread(here)
        for key, value in size.items():
            setattr(ds, key, value)
        ds.save_as(here)
        with pytest.raises(
            BadRowError, match=r"a\.dcm declares .* above the limit of 67108864 pixels a slice"
        ):
            DicomImage(here).load()

    def test_inflating_far(self, here):
        write(here, np.zeros((64, 64), np.uint8), syntax=DeflatedExplicitVRLittleEndian)
        assert DicomImage(here).load()
        meta = 144 + pydicom.dcmread(here).file_meta.FileMetaInformationGroupLength
        stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        bomb = b"".join(stream.compress(bytes(2**24)) for _ in range(17)) + stream.flush()
        here.write_bytes(here.read_bytes()[:meta] + bomb)
        with pytest.raises(BadRowError, match=r"a\.dcm inflates to more than the limit of 268435456 bytes"):
            DicomImage(here).load()

    def test_huge_inside(self, here):
        """The header says 64 x 64, the JPEG stream in it 65000 x 65000."""
        stream = io.BytesIO()
        Image.new("L", (64, 64)).save(stream, "JPEG")
        data = stream.getvalue()
        assert data.count(b"\0\x40\0\x40") == 1
        write(here, np.zeros((64, 64), np.uint8))
        for size, fails in ((b"\0\x40\0\x40", False), (b"\xfd\xe8\xfd\xe8", True)):
            ds = pydicom.dcmread(here)
            ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
            ds.PixelData = pydicom.encaps.encapsulate([data.replace(b"\0\x40\0\x40", size)])
            ds["PixelData"].is_undefined_length = True
            ds.save_as(here)
            if fails:
                with pytest.raises(BadRowError, match=r"a\.dcm holds a compressed picture above the limit"):
                    DicomImage(here).load()
            else:
                assert DicomImage(here).load().size == (64, 64)

    def test_an_unknown_syntax_is_named(self, here):
        write(here, np.zeros((2, 2), np.uint8))
        ds = pydicom.dcmread(here)
        ds.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
        ds.PixelData = pydicom.encaps.encapsulate([b"film"])
        ds["PixelData"].is_undefined_length = True
        ds.save_as(here)
        with pytest.raises(BadRowError, match=r"is compressed as MPEG2 .*which cannot be read: convert it"):
            DicomImage(here).load()

    def test_missing_links_and_empty_folders(self, tmp_path):
        loop = tmp_path / "loop"
        loop.symlink_to(loop)
        with pytest.raises(BadRowError, match="is a link to nowhere or to itself"):
            DicomImage(tmp_path).load()
        with pytest.raises(BadRowError, match=r"loop cannot be decoded .*Too many levels"):
            DicomImage(loop).load()
        with pytest.raises(BadRowError, match=r"none\.dcm does not exist"):
            DicomImage(tmp_path / "none.dcm").load()
        (tmp_path / "empty").mkdir()
        with pytest.raises(BadRowError, match="a folder without DICOM images"):
            DicomImage(tmp_path / "empty").load()


class TestRows:
    def source(self, folder, image, **settings):
        row = {"image": image, "question": "What?", "options": ["a", "b"], "answer": "a", "subset": "CT"}
        (folder / "rows.json").write_text(json.dumps([row]))
        return McqJson(folder / "rows.json", **settings)

    def test_paths_and_objects(self, tmp_path):
        frames = np.zeros((4, 2, 2), np.int16)
        for name in ("a.dcm", "b.DICOM", "IM0001", "1.2.840"):
            write(tmp_path / name, frames, **CT)
        entry = {"path": "a.dcm", "window": "lung", "slice": 2}
        (sample,) = self.source(tmp_path, ["b.DICOM", entry, "IM0001", "1.2.840"], volumes=Volumes(slices=2))
        names = [handle.name.removeprefix(f"{tmp_path}/") for handle in sample.images]
        assert names == [
            *("b.DICOM#slice=1of2", "b.DICOM#slice=2of2", "a.dcm#slice=2&window=lung"),
            *("IM0001#slice=1of2", "IM0001#slice=2of2", "1.2.840#slice=1of2", "1.2.840#slice=2of2"),
        ]
        assert image_digest(sample.images[0]) == image_digest(sample.images[1])

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            ({"path": "a.dcm", "window": "lungs"}, "window is 'lungs': use lung, bone"),
            ({"path": "a.dcm", "window": [40, 0]}, "width above 0"),
            ({"path": "a.dcm", "slices": 0}, "slices is 0: use middle"),
            ({"path": "a.dcm", "slice": -1}, "slices is"),
            ({"path": "a.dcm", "slice": 0, "slices": 1}, "give one"),
            ({"path": "a.dcm", "windows": "lung"}, "rename it to 'window'"),
            ({"path": "a.dcm", "plane": "axial"}, "'plane', which a DICOM file does not take"),
            ({"path": "a.dcm", "allow_identifying": True}, "it takes slice, slices, window"),
            ({"path": "a.png", "window": "lung"}, "which a picture file does not take"),
            ({"window": "lung"}, "give a path"),
            ([], "give a list"),
        ],
    )
    def test_settings_that_cannot_be(self, image, message, tmp_path):
        with pytest.raises(BadRowError, match=message):
            self.source(tmp_path, image, check_images=False)

    def test_a_link_to_itself(self, tmp_path):
        (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
        with pytest.raises(
            BadRowError, match=r"row 0: image .*loop\.png is a link that leads back to itself"
        ):
            self.source(tmp_path, "loop.png")

    @pytest.mark.parametrize(
        ("name", "package", "extra"), [("a.dcm", "pydicom", "dicom"), ("a.nii", "nibabel", "nifti")]
    )
    def test_a_missing_package_is_named(self, name, package, extra):
        """Imported anew in a process in which the package cannot be found."""
        code = f"""import sys; sys.modules["{package}"] = None
from pathlib import Path
from medvlm_r1.data.image_entry import image_handles
from medvlm_r1.data.volume import Volumes
list(image_handles("{name}", Path("."), Volumes()))"""
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert f"pip install 'medvlm_r1[{extra}]'" in done.stderr.splitlines()[-1]
        assert "BadRowError" not in done.stderr
