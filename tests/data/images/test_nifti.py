"""NIfTI: orientation, range of values, and malicious files."""

import gzip
import json
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medvlm_r1.data.formats.mcq_json import McqJson
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.images.nifti import NiftiImage
from medvlm_r1.data.images.notes import BLANK, VOLUMES, notes_of
from medvlm_r1.data.images.volume import Volumes
from medvlm_r1.data.sample import BadRowError

RAS = np.eye(4)
# x, y and z each on its own decimal: the value at (x, y, z) is 100 x + 10 y + z
CUBE = (100 * np.arange(3)[:, None, None] + 10 * np.arange(4)[:, None] + np.arange(5)).astype(np.int16)


def write(path, values, affine=RAS, **header):
    image = nibabel.Nifti1Image(values, affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def shown(path, **settings):
    picture = NiftiImage(path, **settings).load()
    assert picture.mode == "RGB"
    return np.asarray(picture)[..., 0].tolist()


@pytest.fixture
def here(tmp_path):
    return tmp_path / "a.nii.gz"


# Slice 1 of each plane, as seen: the patient's right on the left and the front on top; the head on top; and
# the front on the left.
AXIAL = [[231, 131, 31], [221, 121, 21], [211, 111, 11], [201, 101, 1]]
CORONAL = [[214, 114, 14], [213, 113, 13], [212, 112, 12], [211, 111, 11], [210, 110, 10]]
SAGITTAL = [[134, 124, 114, 104], [133, 123, 113, 103], [132, 122, 112, 102], [131, 121, 111, 101]]
SAGITTAL += [[130, 120, 110, 100]]


class TestOrientation:
    """With range 0 to 255 the values up to 255 are the grey values."""

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "SAL"])
    def test_of_every_order_of_voxels(self, codes, suffix, tmp_path):
        image = nibabel.Nifti1Image(CUBE, RAS)
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(RAS), nibabel.orientations.axcodes2ornt(codes)
        )
        path = tmp_path / f"a{suffix}"
        nibabel.save(image.as_reoriented(turn), path)
        assert "".join(nibabel.aff2axcodes(nibabel.load(path).affine)) == codes
        assert shown(path, pick=1, range=(0, 255)) == AXIAL
        assert shown(path, pick=1, range=(0, 255), plane="coronal") == CORONAL
        assert shown(path, pick=1, range=(0, 255), plane="sagittal") == SAGITTAL

    def test_voxels_that_are_no_cubes_are_stretched(self, here):
        write(here, CUBE, np.diag([1, 1, 3, 1]))
        assert NiftiImage(here).load().size == (3, 4)
        assert NiftiImage(here, plane="coronal").load().size == (3, 15)
        assert NiftiImage(here, plane="sagittal").load().size == (4, 15)


class TestValues:
    LINE = np.array([0, 25, 50, 75, 100], np.float32).reshape(5, 1, 1)

    def test_from_smallest_to_largest(self, here):
        write(here, self.LINE)
        assert shown(here) == [[255, 191, 128, 64, 0]]

    def test_range(self, here):
        write(here, self.LINE)
        assert shown(here, range=(25, 75)) == [[255, 255, 128, 0, 0]]

    def test_percentiles(self, here):
        """25 % of five values lies on the second, 75 % on the fourth."""
        write(here, self.LINE)
        assert shown(here, percentiles=(25, 75)) == [[255, 255, 128, 0, 0]]

    def test_of_the_volume_not_of_the_slice(self, here):
        write(here, np.array([[[0, 50, 100]]], np.int16))
        assert [shown(here, pick=k) for k in range(3)] == [[[0]], [[128]], [[255]]]

    def test_what_is_no_number_is_black(self, here):
        line = self.LINE.copy()
        line[1], line[2] = np.nan, np.inf
        write(here, line)
        assert shown(here) == [[255, 191, 255, 0, 0]]
        write(here, np.full((2, 2, 2), np.nan, np.float32))
        assert shown(here) == [[0, 0], [0, 0]]

    def test_slope_and_intercept(self, here):
        image = nibabel.Nifti1Image(np.array([[[0]], [[10]], [[20]]], np.int16), RAS)
        image.header.set_slope_inter(5, -100)
        nibabel.save(image, here)
        stored = np.asarray(nibabel.load(here).dataobj).ravel()
        assert shown(here, range=(0, 100))[0] == (stored.clip(0, 100) * 2.55).round()[::-1].tolist()

    def test_fourth_dimension(self, here):
        write(here, np.stack([CUBE * 0, CUBE], axis=3))
        assert shown(here, pick=1, volume=1, range=(0, 255)) == AXIAL
        assert not np.any(shown(here, range=(0, 255)))
        with pytest.raises(BadRowError, match=r"a\.nii\.gz has volumes 0 to 1, not 2"):
            shown(here, volume=2)

    def test_montage(self, here):
        write(here, CUBE)
        sheet = np.array(shown(here, pick="montage", range=(0, 255)))
        assert sheet.shape == (8, 9)
        assert sheet[0, ::3].tolist() == [230, 231, 232]


class TestHostileFiles:
    def test_truncated(self, tmp_path):
        for name in ("a.nii", "b.nii.gz"):
            path = write(
                tmp_path / name, np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.int16)
            )
            data = path.read_bytes()
            for length in (0, 50, 360, len(data) - 60):
                path.write_bytes(data[:length])
                with pytest.raises(BadRowError, match=rf"image {path} cannot be decoded \(damaged: \w+\)$"):
                    NiftiImage(path).load()

    def test_wrong_magic(self, tmp_path):
        (tmp_path / "a.nii").write_bytes(b"\1" * 400)
        with pytest.raises(BadRowError, match=r"a\.nii cannot be decoded \(damaged: ImageFileError\)$"):
            NiftiImage(tmp_path / "a.nii").load()

    def test_huge(self, here):
        write(here, CUBE)
        data = bytearray(gzip.decompress(here.read_bytes()))
        data[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()  # dim[1] to dim[3] (nifti1.h)
        here.write_bytes(gzip.compress(data))
        with pytest.raises(
            BadRowError, match=r"declares 30000 x 30000 pixels and 30000 slices, above the limit"
        ):
            NiftiImage(here).load()
        data[42:48] = np.array([0, 4, 5], "<i2").tobytes()
        here.write_bytes(gzip.compress(data))
        with pytest.raises(BadRowError, match=r"a\.nii\.gz (has|cannot)"):
            NiftiImage(here).load()

    def test_colours_and_other_dimensions(self, here):
        write(here, np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
        with pytest.raises(BadRowError, match="not plain numbers"):
            NiftiImage(here).load()
        write(here, np.zeros((2, 2, 2, 1, 2), np.int16))
        with pytest.raises(BadRowError, match="has 5 dimensions"):
            NiftiImage(here).load()

    def test_missing_and_links(self, tmp_path):
        with pytest.raises(BadRowError, match=r"none\.nii does not exist"):
            NiftiImage(tmp_path / "none.nii").load()
        (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
        with pytest.raises(BadRowError, match=r"loop\.nii (cannot be decoded|does not exist)"):
            NiftiImage(tmp_path / "loop.nii").load()

    def test_the_header_is_not_quoted(self, here):
        write(here, CUBE, descrip=b"Zyxwell")
        assert not NiftiImage(here).load().info


def test_rows(tmp_path):
    write(tmp_path / "a.nii", CUBE)
    rows = {"question": "What?", "options": ["a", "b"], "answer": "a", "subset": "MRI"}
    rows["image"] = ["a.nii", {"path": "a.nii", "plane": "coronal", "percentiles": [1, 99], "slices": 2}]
    (tmp_path / "rows.json").write_text(json.dumps([rows]))
    (sample,) = McqJson(
        tmp_path / "rows.json", rows=RowPolicy(volumes=Volumes(range=[0, 255], window="lung"))
    )
    names = [handle.name.removeprefix(f"{tmp_path}/") for handle in sample.images]
    assert names[:2] == ["a.nii#range=[0, 255]", "a.nii#slice=1of2&plane=coronal&percentiles=[1, 99]"]
    assert pickle.loads(pickle.dumps(sample.images)) == sample.images
    rows["image"] = {"path": "a.nii", "window": "lung"}
    (tmp_path / "rows.json").write_text(json.dumps([rows]))
    with pytest.raises(BadRowError, match="'window', which a NIfTI file does not take"):
        McqJson(tmp_path / "rows.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plane": "oblique"}, "use axial, coronal, sagittal"),
        ({"volume": -1}, "index from 0"),
        ({"range": [5, 5]}, "low, high"),
        ({"percentiles": [-1, 50]}, "between 0 and 100"),
        ({"range": [0, 1], "percentiles": [0, 1]}, "set one of them"),
        ({"allow_identifying": "no"}, "true or false"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Volumes(**settings)


def test_names_hold_the_path_as_given():
    assert NiftiImage(Path("x/a.nii")).name == "x/a.nii"
    assert NiftiImage(Path("a.nii"), "montage", "sagittal", 3).name == "a.nii#montage&plane=sagittal&volume=3"


class TestMeaning:
    @pytest.mark.parametrize(("slope", "intercept"), [(0, 0), (0, 5), (np.nan, np.nan), (np.inf, 0)])
    def test_a_slope_that_scales_nothing_is_no_scaling(self, slope, intercept, here):
        """NIfTI-1, scl_slope: 0 means unscaled."""
        values = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
        plain = shown(write(here, values))
        image = nibabel.load(write(here, values))
        data = bytearray(gzip.decompress(here.read_bytes()))
        data[112:120] = np.array([slope, intercept], image.header.structarr["scl_slope"].dtype).tobytes()
        here.write_bytes(gzip.compress(bytes(data)))
        assert shown(here) == plain
        assert len(np.unique(plain)) > 1

    def test_colours_are_refused(self, here):
        values = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
        write(here, values)
        with pytest.raises(BadRowError, match="has voxels that are not plain numbers: convert it to grey"):
            NiftiImage(here).load()

    def test_several_volumes_are_noted(self, here):
        values = np.random.default_rng(0).integers(0, 99, (4, 4, 2, 10)).astype(np.int16)
        loaded = NiftiImage(write(here, values), volume=3).load()
        assert notes_of(loaded) == ((VOLUMES, "volume 3 of 10, from 0"),)

    def test_one_value_is_blank(self, here):
        loaded = NiftiImage(write(here, np.full((4, 4, 4), 7, np.int16))).load()
        assert notes_of(loaded) == ((BLANK, ""),)

    def test_distances(self, here):
        write(here, CUBE, np.diag([2.0, 3.0, 5.0, 1.0]))
        assert NiftiImage(here).facts() == {"pixel_spacing_mm": (3.0, 2.0), "slice_distance_mm": 5.0}
        assert NiftiImage(here, plane="sagittal").facts() == {
            "pixel_spacing_mm": (5.0, 3.0),
            "slice_distance_mm": 2.0,
        }
