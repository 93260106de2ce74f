"""Plain images: depth, photometric interpretation, transparency and frames, each against arithmetic."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from raw_pictures import png, tiff

from medvlm_r1.data.images.decode import ImageFile, decode
from medvlm_r1.data.images.notes import BLANK, FRAMES, is_blank, notes_of
from medvlm_r1.data.sample import BadRowError

# 12-bit values and their grey: 255 (x - 0) / 4000
SHOWN = [[[0, 80, 160], [255, 0, 80]]]  # of TestColoursOf16Bits
RAMP, GREY = [0, 1000, 2000, 4000], [0, 64, 128, 255]


def shown(data):
    image = decode(io.BytesIO(data), "a")
    assert image.mode == "RGB"
    return np.asarray(image)


def grey_of(data):
    values = shown(data)
    assert (values == values[..., :1]).all()
    return values[..., 0].tolist()


def saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


class TestGreyTiff:
    """Of 4 samples in every depth, order of bytes and interpretation."""

    @pytest.mark.parametrize("deflate", [False, True])
    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize(
        ("kind", "bits"),
        [("u2", 12), ("u2", 16), ("i2", 16), ("u4", 32), ("i4", 32), ("f4", 32), ("f8", 64)],
    )
    def test_is_windowed_and_white_is_zero_inverts(self, kind, bits, order, deflate):
        values = np.array([RAMP], kind)
        if kind == "u4":
            values *= 1_000_000  # above 2^31
        if kind[0] in "if" or kind == "i2":
            values -= 2000  # half of them negative
        data = {photometric: tiff(values, photometric, order, bits, 1, deflate) for photometric in (0, 1)}
        assert grey_of(data[1]) == [GREY]
        assert grey_of(data[0]) == [[255, 191, 128, 0]]

    def test_eight_bits_stay_as_they_are(self):
        values = np.array([[10, 100, 250]], np.uint8)
        assert grey_of(tiff(values, 1)) == [[10, 100, 250]]
        assert grey_of(tiff(values, 0)) == [[245, 155, 5]]

    @pytest.mark.parametrize("order", "<>")
    def test_signed_bytes_are_scaled(self, order):
        values = np.array([[-128, -64, 0, 127]], np.int8)
        assert grey_of(tiff(values, 1, order)) == [[0, 64, 128, 255]]
        assert grey_of(tiff(values, 0, order)) == [[255, 191, 127, 0]]

    def test_what_is_no_number_is_dark(self):
        values = np.array([[np.nan, -5, 0, 5]], np.float32)
        assert grey_of(tiff(values, 1)) == [[0, 0, 128, 255]]
        assert grey_of(tiff(values, 0)) == [[0, 255, 128, 0]]
        assert is_blank(decode(io.BytesIO(tiff(np.full((2, 2), np.nan, np.float32), 1)), "a"))

    def test_orientation(self):
        """Tag 274 value 6: the first row is the right side."""
        values = np.array([RAMP], np.uint16)
        assert grey_of(tiff(values, 1, tags={274: [6]})) == [[v] for v in GREY]
        assert grey_of(tiff(values, 1, tags={274: [3]})) == [GREY[::-1]]

    @pytest.mark.parametrize("order", "<>")
    def test_with_alpha(self, order):
        values = np.array([[[0, 65535], [1000, 65535], [4000, 65535], [60000, 0]]], np.uint16)
        assert grey_of(tiff(values, 1, order, tags={338: [2]})) == [[0, 64, 255, 255]]


class TestColoursOf16Bits:
    """The window goes from the darkest to the brightest sample of all channels, as that of grey does."""

    VALUES = np.array([[[0, 80 * 16, 160 * 16], [255 * 16, 0, 80 * 16]]])

    def test_png(self):
        assert shown(png(self.VALUES, 2)).tolist() == SHOWN
        opaque = np.concatenate([self.VALUES, [[[65535], [65535]]]], -1)
        assert shown(png(opaque, 6)).tolist() == SHOWN

    def test_png_of_grey_and_alpha(self):
        values = np.array([[[0, 65535], [80 * 16, 65535], [160 * 16, 65535], [255 * 16, 65535]]])
        assert grey_of(png(values, 4)) == [[0, 80, 160, 255]]

    def test_transparent_pixels_are_white_and_outside_the_window(self):
        values = np.array([[[0, 65535], [4000, 65535], [2000, 32768], [65535, 0]]])
        # half of 127.5 over white: 0.5 * 127.5 + 0.5 * 255 = 191.2
        assert grey_of(png(values, 4)) == [[0, 255, 191, 255]]

    def test_alpha_of_12_bits_is_opaque_too(self):
        values = np.array([[[0, 4095], [80 * 16, 4095], [255 * 16, 4095]]])
        assert grey_of(png(values, 4)) == [[0, 80, 255]]

    def test_a_transparent_colour(self):
        colour = np.array([[[0, 0, 0], [4000, 2000, 0], [65535, 65535, 65535]]])
        data = png(colour, 2, (b"tRNS", struct.pack(">HHH", 65535, 65535, 65535)))
        assert shown(data).tolist() == [[[0, 0, 0], [255, 128, 0], [255, 255, 255]]]
        grey = np.array([[[0], [2000], [4000], [65535]]])
        assert grey_of(png(grey, 0, (b"tRNS", struct.pack(">H", 65535)))) == [[0, 128, 255, 255]]

    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize(("planar", "deflate"), [(1, False), (1, True), (2, False)])
    def test_tiff(self, planar, deflate, order):
        assert shown(tiff(self.VALUES.astype("u2"), 2, order, None, planar, deflate)).tolist() == SHOWN

    def test_ppm(self):
        data = self.VALUES.astype(">u2").tobytes()
        assert shown(b"P6 2 1 65535\n" + data).tolist() == SHOWN
        assert shown(b"P6 2 1 255\n" + bytes([0, 80, 160, 255, 0, 80])).tolist() == SHOWN

    def test_interlaced_png(self):
        """Adam7: the second pixel of a row is in the sixth pass, the first in the first."""
        rows = [b"\0" + self.VALUES[:, k].astype(">u2").tobytes() for k in (0, 1)]
        data = bytearray(png(self.VALUES, 2))
        data[28] = 1
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        start = data.index(b"IDAT")
        pixels = zlib.compress(b"".join(rows))
        chunk = b"IDAT" + pixels
        tail = struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IEND\xaeB`\x82"
        assert (
            shown(bytes(data[: start - 4]) + struct.pack(">I", len(pixels)) + chunk + tail).tolist() == SHOWN
        )

    def test_tiff_in_compressed_planes_is_refused(self):
        data = tiff(self.VALUES.astype("u2"), 2, planar=2, deflate=True)
        with pytest.raises(BadRowError, match=r"16-bit colours in compressed planes: save it with Planar"):
            shown(data)

    def test_orientation(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 3
        data = png(self.VALUES, 2, (b"eXIf", exif.tobytes()[6:]))
        assert shown(data).tolist() == [SHOWN[0][::-1]]


class TestColours:
    @pytest.mark.parametrize("form", ["TIFF", "JPEG"])
    def test_cmyk(self, form):
        """Full cyan on the left, nothing (white) on the right."""
        image = Image.new("CMYK", (16, 8), (255, 0, 0, 0))
        image.paste((0, 0, 0, 0), (8, 0, 16, 8))
        values = shown(saved(image, form))
        assert np.abs(values[4, 2].astype(int) - [0, 255, 255]).max() < 4
        assert np.abs(values[4, 13].astype(int) - 255).max() < 4

    def test_lab(self):
        """Black, sRGB red (L* 53.2, a* 80, b* 67), white; L* 100 is stored as 255."""
        values = np.array([[[0, 0, 0], [136, 80, 67], [255, 0, 0]]], np.uint8)
        black, red, white = shown(tiff(values, 8))[0].astype(int)
        assert black.max() < 3
        assert white.min() > 252
        assert red[0] > 240
        assert red[1:].max() < 40

    @pytest.mark.parametrize("form", ["PNG", "GIF"])
    def test_a_palette_with_transparency(self, form):
        image = Image.new("P", (3, 1))
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        image.putdata([0, 1, 2])
        assert shown(saved(image, form, transparency=1)).tolist() == [[[255, 0, 0], [255] * 3, [0, 0, 255]]]

    def test_a_palette_with_alpha(self):
        image = Image.new("P", (3, 1))
        image.putpalette([255, 0, 0, 0, 0, 0, 0, 0, 255])
        image.putdata([0, 1, 2])
        values = shown(saved(image, "PNG", transparency=bytes([255, 51, 0])))
        assert values.tolist() == [[[255, 0, 0], [204, 204, 204], [255, 255, 255]]]

    @pytest.mark.parametrize("top", [255, 65535])
    def test_a_palette_of_a_tiff(self, top):
        """Three entries, red, green and blue after each other; some write 8 bits where 16 belong."""
        colours = np.zeros((3, 256), int)
        colours[0, 1] = colours[2, 2] = top
        data = tiff(np.array([[0, 1, 2]], np.uint8), 3, tags={320: colours.ravel().tolist()})
        assert shown(data).tolist() == [[[0, 0, 0], [255, 0, 0], [0, 0, 255]]]

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_one_bit(self, form):
        image = Image.new("1", (2, 1))
        image.putpixel((1, 0), 1)
        assert grey_of(saved(image, form)) == [[0, 255]]

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
    def test_orientation(self, form):
        exif = Image.Exif()
        exif[0x0112] = 3
        image = Image.fromarray(np.array([[0] * 8 + [255] * 8] * 8, np.uint8)).convert("RGB")
        options = {"lossless": True} if form == "WEBP" else {}
        assert grey_of(saved(image, form, exif=exif, **options))[0] == [255] * 8 + [0] * 8


class TestBlank:
    @pytest.mark.parametrize("kind", ["transparent", "grey", "black", "deep"])
    def test_is_noted(self, kind, tmp_path):
        transparent = np.random.default_rng(0).integers(0, 255, (9, 9, 4)).astype(np.uint8)
        transparent[..., 3] = 0
        values = {
            "transparent": transparent,
            "grey": np.full((9, 9, 3), 7, np.uint8),
            "black": np.zeros((9, 9), np.uint8),
            "deep": np.full((9, 9), 700, np.uint16),
        }
        Image.fromarray(values[kind]).save(tmp_path / "a.png")
        loaded = ImageFile(tmp_path / "a.png").load()
        assert is_blank(loaded)
        assert notes_of(loaded) == ((BLANK, ""),)

    def test_is_not_what_has_one_other_pixel(self):
        image = Image.new("RGB", (9, 9))
        image.putpixel((3, 3), (0, 0, 1))
        assert not is_blank(image)


class TestFrames:
    @pytest.mark.parametrize("form", ["TIFF", "GIF", "WEBP", "PNG"])
    def test_one_is_chosen(self, form, tmp_path):
        frames = [
            Image.fromarray(np.array([[v, 255 - v] * 8] * 16, np.uint8)).convert("RGB") for v in (0, 80, 200)
        ]
        path = tmp_path / f"a.{form.lower()}"
        options = {"lossless": True} if form == "WEBP" else {}
        frames[0].save(path, form, save_all=True, append_images=frames[1:], **options)
        for k, value in enumerate((0, 80, 200)):
            image = ImageFile(path, k).load()
            assert np.abs(int(np.asarray(image)[0, 0, 0]) - value) <= 2
            assert notes_of(image) == ((FRAMES, f"frame {k} of 3, from 0"),)
        with pytest.raises(BadRowError, match=r"has the frames 0 to 2, not 3: set frame to one of these$"):
            ImageFile(path, 3).load()
        assert ImageFile(path, 2).name == f"{path}#frame=2"
        assert ImageFile(path).name == str(path)

    def test_each_has_a_depth_of_its_own(self, tmp_path):
        deep = Image.fromarray(np.array([RAMP], np.uint16))
        Image.new("L", (4, 1), 9).save(tmp_path / "a.tiff", save_all=True, append_images=[deep])
        assert np.asarray(ImageFile(tmp_path / "a.tiff", 1).load())[..., 0].tolist() == [GREY]

    def test_of_one(self, tmp_path):
        Image.new("L", (4, 4)).save(tmp_path / "a.png")
        with pytest.raises(BadRowError, match=r"a\.png has one frame, 0, not 1: set frame"):
            ImageFile(tmp_path / "a.png", 1).load()
