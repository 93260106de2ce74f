"""DICOM: windows against arithmetic on paper, colours, and slices in spatial order."""

import pickle
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import CT, shown, write
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from medvlm_r1.data.images.dicom import DicomImage, windowed
from medvlm_r1.data.images.volume import CT_WINDOWS, indices, picks
from medvlm_r1.data.sample import BadRowError


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

    def test_padding_is_black_under_every_window_and_table(self, here):
        """As unsigned 63536 some write the signed -2000."""
        window = {"WindowCenter": 50, "WindowWidth": 101, "PhotometricInterpretation": "MONOCHROME1"}
        write(here, np.array([[-2000, 0, 99]], np.int16), PixelPaddingValue=-2000, **window)
        assert shown(here) == [[0, 254, 1]]
        ds = pydicom.dcmread(here)
        del ds.PixelPaddingValue
        ds.add_new("PixelPaddingValue", "US", 63536)
        ds.save_as(here)
        assert shown(here) == [[0, 254, 1]]
        item = Dataset()
        item.add_new("LUTDescriptor", "SS", [100, 0, 8])
        item.add_new("LUTData", "US", list(range(100)))
        write(
            here,
            np.array([[-2000, 0, 99]], np.int16),
            PixelPaddingValue=-2000,
            **window | {"VOILUTSequence": Sequence([item])},
        )
        assert shown(here) == [[0, 255, 156]]

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


class TestAttributesThatMeanNothing:
    VALUES = np.array([[0, 50, 100]], np.int16)

    @pytest.mark.parametrize(
        "header",
        [
            {"RescaleSlope": None, "RescaleIntercept": None},
            {"RescaleSlope": "", "RescaleIntercept": None, "RescaleType": ""},
            {"WindowCenter": None, "WindowWidth": None},
            {"WindowCenter": [], "WindowWidth": 3},
            {"VOILUTSequence": Sequence([Dataset()]), "ModalityLUTSequence": Sequence([Dataset()])},
            {"VOILUTSequence": Sequence([]), "ModalityLUTSequence": Sequence([]), "VOILUTFunction": ""},
            {"PixelPaddingValue": None, "PixelSpacing": None, "NumberOfFrames": None},
            {"PixelSpacing": ["", ""], "PixelAspectRatio": None},
        ],
    )
    def test_because_they_are_empty_are_absent(self, header, here):
        write(here, self.VALUES, **header)
        assert shown(here) == [[0, 128, 255]]

    def test_the_first_table_with_entries_counts(self, here):
        item = Dataset()
        item.add_new("LUTDescriptor", "SS", [101, 0, 8])
        item.add_new("LUTData", "US", [100 - k for k in range(101)])
        write(here, self.VALUES, VOILUTSequence=Sequence([Dataset(), item]))
        assert shown(here) == [[100, 50, 0]]

    def test_a_table_without_entries_leaves_the_window(self, here):
        item = Dataset()
        item.add_new("LUTDescriptor", "SS", [4, 0, 8])
        header = {"VOILUTSequence": Sequence([item]), "WindowCenter": 50, "WindowWidth": 101}
        write(here, self.VALUES, **header)
        assert shown(here) == [[1, 129, 255]]  # (x + 0.5) / 100 * 255, at most 255

    def test_a_slope_without_intercept(self, here):
        write(here, self.VALUES, RescaleSlope=2, RescaleIntercept=None, WindowCenter=100, WindowWidth=201)
        assert shown(here) == [[1, 128, 255]]  # (2 x + 0.5) / 200 * 255

    @pytest.mark.parametrize(
        ("header", "fault"),
        [
            ({"RescaleSlope": 0, "RescaleIntercept": 5}, "a RescaleSlope of 0, so all pixels have one value"),
            ({"RescaleSlope": "NaN", "RescaleIntercept": 0}, "a RescaleSlope that is no finite number"),
            ({"RescaleSlope": 1, "RescaleIntercept": "inf"}, "a RescaleIntercept that is no finite number"),
        ],
    )
    def test_a_rescale_that_cannot_be_meant_is_refused(self, header, fault, here):
        write(here, self.VALUES, **header)
        with pytest.raises(BadRowError, match=rf"a\.dcm has {fault}: correct it, or delete RescaleSlope and"):
            shown(here)
        ds = pydicom.dcmread(here)
        del ds.RescaleSlope, ds.RescaleIntercept
        ds.save_as(here)
        assert shown(here) == [[0, 128, 255]]


class TestColour:
    RGB = np.array([[[255, 0, 0], [0, 255, 0], [10, 20, 30]]], np.uint8)

    def test_rgb(self, here):
        write(here, self.RGB, PhotometricInterpretation="RGB")
        assert np.asarray(DicomImage(here).load()).tolist() == self.RGB.tolist()
        write(here, self.RGB.astype(np.uint16) * 257, PhotometricInterpretation="RGB")
        assert np.asarray(DicomImage(here).load()).tolist() == self.RGB.tolist()
        with pytest.raises(BadRowError, match="is a colour image"):
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
        with pytest.raises(BadRowError, match=r"a\.dcm has slices 0 to 3, not 4"):
            shown(here, pick=4)
        with pytest.raises(BadRowError, match=r"a\.dcm has 4 slices, fewer than 5"):
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
