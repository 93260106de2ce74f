"""DICOM series: which files belong, in which order, and what is told about the others."""

from pathlib import Path
from time import process_time

import numpy as np
import pydicom
import pytest
from dicom_files import CT, shown, write
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from medvlm_r1.data.images.dicom import DicomImage
from medvlm_r1.data.images.notes import BLANK, GAP, LEFT_OUT, NUMBERED, VOLUMES, notes_of
from medvlm_r1.data.images.resolve import is_dicom_file
from medvlm_r1.data.images.series import read_series
from medvlm_r1.data.sample import BadRowError

UID = generate_uid()
AXIAL = [1, 0, 0, 0, 1, 0]


def place(folder, name, value, z, *, axes=AXIAL, position=None, shape=(2, 3), **header):
    """A slice of one value at z mm along the normal of axial slices."""
    header = {"SeriesInstanceUID": UID, "ImageOrientationPatient": list(axes)} | header
    header["ImagePositionPatient"] = position or [0, 0, z]
    return write(folder / name, np.full(shape, value, np.int16), **header)


def values(folder, n, **settings):
    """The value of each slice: grey is value + 0.5 of 255, for centre 128 and width 256."""
    return [shown(folder, pick=k, window=(128, 256), **settings)[0][0] for k in range(n)]


def groups(z, time):
    """Functional groups of one frame."""
    item, position, axes, content = Dataset(), Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient, axes.ImageOrientationPatient = [0, 0, z], AXIAL
    content.TemporalPositionIndex = time + 1
    item.PlanePositionSequence, item.PlaneOrientationSequence = Sequence([position]), Sequence([axes])
    item.FrameContentSequence = Sequence([content])
    return item


def notes(folder, **settings):
    """Of a slice, which has one value here and so is blank too."""
    found = notes_of(DicomImage(folder, **settings).load())
    return {note.kind: note.detail for note in found if note.kind != BLANK}


def without_preamble(path, meta=True):
    """Cut the preamble, and the file's meta information."""
    data = path.read_bytes()[132:]
    if not meta:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        data = data[12 + header.file_meta.FileMetaInformationGroupLength :]
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path):
    """Slices 0, 10 ... 40 at 0, 2 ... 8 mm."""
    folder = tmp_path / "series"
    folder.mkdir()
    for k, name in enumerate("dbeac"):
        place(folder, name, 10 * k, 2 * k, InstanceNumber=5 - k)
    return folder


class TestFilesOfTheFolder:
    @pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, ExplicitVRBigEndian])
    @pytest.mark.parametrize("meta", [True, False])
    def test_one_without_preamble_is_read(self, meta, syntax, folder):
        path = folder / "e"
        if syntax:
            header = pydicom.dcmread(path)
            header.decode()
            if syntax == ExplicitVRBigEndian:
                header.PixelData = header.pixel_array.astype(">i2").tobytes()
            header.file_meta.TransferSyntaxUID = syntax
            kind = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
            pydicom.dcmwrite(path, header, **kind)
        without_preamble(path, meta)
        assert is_dicom_file(path)
        assert values(folder, 5) == [0, 10, 20, 30, 40]
        assert notes(folder) == {}
        assert shown(path, window=(128, 256))[0][0] == 20

    def test_others_are_counted_with_their_reason(self, folder):
        for name in ("b.txt", "c.txt", "d.txt", "e.txt"):
            (folder / name).write_text("no picture" * 20)
        (folder / "zero").touch()
        (folder / "more").mkdir()
        report = pydicom.dcmread(folder / "a")
        del report.PixelData
        report.SOPInstanceUID = generate_uid()
        report.save_as(folder / "report")
        assert values(folder, 5) == [0, 10, 20, 30, 40]
        assert notes(folder)[LEFT_OUT] == (
            "7 left out: 5 no DICOM file ('b.txt', 'c.txt', 'd.txt', ...), 1 a folder ('more'), "
            "1 without pixels ('report')"
        )

    def test_a_headless_file_without_pixels_is_named(self, folder):
        report = pydicom.dcmread(folder / "a")
        del report.PixelData
        report.save_as(folder / "report")
        without_preamble(folder / "report", meta=False)
        assert notes(folder)[LEFT_OUT] == "1 left out: 1 without pixels ('report')"

    def test_a_duplicate_counts_once(self, folder):
        (folder / "copy of e").write_bytes((folder / "e").read_bytes())
        assert values(folder, 5) == [0, 10, 20, 30, 40]
        reason = "1 left out: 1 with the SOPInstanceUID of an earlier file ('e')"
        assert notes(folder)[LEFT_OUT] == reason

    def test_damage_names_the_file(self, folder):
        place(folder, "e", 20, 4, syntax=DeflatedExplicitVRLittleEndian)
        data = (folder / "e").read_bytes()
        (folder / "e").write_bytes(data[:-20])
        with pytest.raises(BadRowError, match=r"series cannot be decoded \(e is damaged: \w+\)"):
            values(folder, 5)

    def test_without_images_says_what_is_there(self, tmp_path):
        (tmp_path / "a.txt").write_text("nothing")
        with pytest.raises(
            BadRowError, match=r"\(a folder without DICOM images: 1 left out: 1 no DICOM file"
        ):
            DicomImage(tmp_path).load()


class TestLocalizers:
    @pytest.mark.parametrize("uid", [UID, generate_uid()], ids=["of the series", "of its own"])
    def test_by_image_type(self, uid, folder):
        image_type = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        place(folder, "0", 99, -50, ImageType=image_type, shape=(5, 5), SeriesInstanceUID=uid)
        assert values(folder, 5) == [0, 10, 20, 30, 40]
        assert notes(folder)[LEFT_OUT] == "1 left out: 1 a localizer by its ImageType ('0')"

    def test_at_right_angles(self, folder):
        place(folder, "0", 99, 0, axes=[0, 1, 0, 0, 0, -1], shape=(5, 5))
        assert values(folder, 5) == [0, 10, 20, 30, 40]
        assert notes(folder)[LEFT_OUT] == (
            "1 left out: 1 at right angles to the others, like a localizer ('0')"
        )

    def test_alone_are_a_series(self, tmp_path):
        for k in range(2):
            place(tmp_path, str(k), 10 * k, k, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        assert values(tmp_path, 2) == [0, 10]

    def test_another_orientation_is_refused(self, folder):
        place(folder, "0", 99, 0, axes=[1, 0, 0, 0, 0.8, 0.6])
        with pytest.raises(
            BadRowError, match="is a folder with slices of 2 orientations: give each a folder"
        ):
            values(folder, 5)

    def test_as_many_are_refused(self, tmp_path):
        place(tmp_path, "a", 0, 0)
        place(tmp_path, "b", 0, 0, axes=[0, 1, 0, 0, 0, -1])
        with pytest.raises(BadRowError, match="slices of 2 orientations"):
            values(tmp_path, 2)


class TestSpace:
    def test_another_size_is_refused(self, folder):
        place(folder, "0", 99, 10, shape=(4, 4))
        message = r"is a folder with slices of 2 sizes, 2 x 3 \(5 files\) and 4 x 4 \(1 files\): give each"
        with pytest.raises(BadRowError, match=message):
            values(folder, 5)

    def test_oblique_slices_are_sorted_along_their_normal(self, tmp_path):
        """The normal (0, -0.6, 0.8); y falls and z rises along it, and x is another for every slice."""
        for k, name in enumerate("cadb"):
            position = [7 - 5 * k % 3, -0.6 * 3 * k, 0.8 * 3 * k]
            place(tmp_path, name, 10 * k, 0, axes=[1, 0, 0, 0, 0.8, 0.6], position=position)
        assert values(tmp_path, 4) == [0, 10, 20, 30]
        assert notes(tmp_path) == {}

    def test_a_gap_is_noted(self, folder):
        (folder / "e").unlink()
        assert values(folder, 4) == [0, 10, 30, 40]
        assert notes(folder) == {GAP: "4 mm between slices 1 and 2, elsewhere 2 mm"}

    def test_numbers_count_only_without_positions(self, folder):
        header = pydicom.dcmread(folder / "d")
        del header.ImagePositionPatient
        header.save_as(folder / "d")
        assert values(folder, 5) == [40, 30, 20, 10, 0]
        assert notes(folder) == {NUMBERED: "1 of 5 have no position"}
        with pytest.raises(
            BadRowError, match="has one volume, 0, not 1, since not every image has a position"
        ):
            values(folder, 5, volume=1)


class TestVolumes:
    @pytest.mark.parametrize(
        "key", ["TemporalPositionIdentifier", "DiffusionBValue", "EchoTime", "InstanceNumber"]
    )
    def test_one_is_chosen(self, key, tmp_path):
        """15 positions x 10 times (3 x 4 for other keys), files in no order; value = 10 time + position."""
        positions, times = (15, 10) if key == "TemporalPositionIdentifier" else (3, 4)
        order = np.random.default_rng(0).permutation(positions * times)
        for k, name in enumerate(order):
            z, time = divmod(k, times)
            place(tmp_path, f"{name:03}", 10 * time + z, 2.5 * z, **{key: time})
        for time in (0, times - 1):
            names = [slice.path.name for slice in read_series(tmp_path, True, time).slices]
            assert names == [f"{order[times * z + time]:03}" for z in range(positions)]
        assert values(tmp_path, 2, volume=3) == [30, 31]
        assert notes(tmp_path, volume=3) == {VOLUMES: f"volume 3 of {times}, from 0"}
        assert DicomImage(tmp_path, volume=3).name == f"{tmp_path}#volume=3"
        with pytest.raises(BadRowError, match=f"has volumes 0 to {times - 1}, not {times}: set volume"):
            values(tmp_path, 1, volume=times)
        with pytest.raises(BadRowError, match=f"has slices 0 to {positions - 1}, not {positions}"):
            shown(tmp_path, pick=positions)

    def test_a_position_that_lacks_one_is_told(self, tmp_path):
        for z in range(4):
            for time in range(3):
                if (z, time) != (1, 1):
                    place(tmp_path, f"{z}{time}", 10 * time + z, z, TemporalPositionIdentifier=time + 1)
        assert values(tmp_path, 3, volume=1) == [10, 12, 13]
        assert values(tmp_path, 4, volume=2) == [20, 21, 22, 23]
        assert notes(tmp_path, volume=1) == {
            VOLUMES: "volume 1 of 3, from 0, which 1 of 4 positions lack",
            GAP: "2 mm between slices 0 and 1, elsewhere 1 mm",
        }
        assert notes(tmp_path, volume=0) == {VOLUMES: "volume 0 of 3, from 0"}

    def test_what_nothing_tells_apart_is_refused(self, folder):
        place(folder, "again", 99, 4)
        with pytest.raises(
            BadRowError, match="2 slices at some positions and fewer at others, and no attribute"
        ):
            values(folder, 5)

    def test_of_an_enhanced_file(self, tmp_path):
        """Two times at three positions, stored from the last position to the first."""

        frames = [(z, time) for z in (2, 1, 0) for time in (0, 1)]
        stored = np.array([np.full((2, 2), 10 * time + z) for z, time in frames], np.int16)
        each = Sequence([groups(*frame) for frame in frames])
        write(tmp_path / "a.dcm", stored, PerFrameFunctionalGroupsSequence=each)
        for path in (tmp_path / "a.dcm", tmp_path):
            assert values(path, 3) == [0, 1, 2]
            assert values(path, 3, volume=1) == [10, 11, 12]
            assert notes(path)[VOLUMES] == "volume 0 of 2, from 0"

    def test_of_an_enhanced_file_take_linear_time(self, tmp_path):
        seconds = []
        for count in (200, 800):
            each = Sequence([groups(z, 0) for z in range(count)])
            path, stored = tmp_path / f"{count}.dcm", np.zeros((count, 2, 2), np.int16)
            write(path, stored, PerFrameFunctionalGroupsSequence=each)
            start = process_time()
            assert len(read_series(path, allow_identifying=False).slices) == count
            seconds.append(process_time() - start)
        assert seconds[1] < 8 * seconds[0]


class TestFacts:
    def test_of_a_slice(self, folder):
        for path in folder.iterdir():
            header = pydicom.dcmread(path)
            header.PixelSpacing, header.SliceThickness, header.ImageLaterality = [0.5, 0.7], 3, "R"
            header.PatientName, header.PatientIdentityRemoved = "Zyx^Distinct", "YES"
            for key, value in CT.items():
                setattr(header, key, value)
            header.save_as(path)
        assert DicomImage(folder).facts() == {
            "pixel_spacing_mm": (0.5, 0.7),
            "slice_thickness_mm": 3.0,
            "slice_distance_mm": 2.0,
            "laterality": "R",
            "unit": "HU",
        }

    def test_hold_no_free_text(self, tmp_path):
        header = {"Laterality": "Zyx", "RescaleType": "Zyx", "RescaleSlope": 1, "RescaleIntercept": 0}
        write(tmp_path / "a.dcm", np.zeros((2, 2), np.int16), **header)
        assert DicomImage(Path(tmp_path / "a.dcm")).facts() == {}
