"""Paths of images in rows: what is no path, and what is spelt otherwise than the file."""

import base64
import os
import unicodedata
import zipfile

import pytest

from medvlm_r1.data.images.embedded import ImageStore
from medvlm_r1.data.images.paths import entry_path, missing_image
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.sample import BadRowError

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(600_000)).decode()


@pytest.mark.parametrize(
    "text",
    [PNG, JPEG, f"data:image/png;base64,{PNG}", "data:,", base64.encodebytes(os.urandom(10**6)).decode()],
    ids=["png", "jpeg", "prefix", "empty", "lines"],
)
def test_a_picture_in_base64(tmp_path, text):
    for entry in (text, {"path": text}):
        for read in (entry_path, ImageRoot(tmp_path).images, ImageRoot(tmp_path).identity):
            with pytest.raises(
                BadRowError, match=r"^image is a picture in base64 \([\d,]+ characters\): write"
            ) as failure:
                read(entry)
            assert len(str(failure.value)) < 150


@pytest.mark.parametrize("url", ["https://a.org/b.png?c=d", "s3://bucket/1.png", "file:///data/1.png"])
def test_a_url(tmp_path, url):
    with pytest.raises(BadRowError, match=r"is a URL: download the pictures, and give their paths"):
        ImageRoot(tmp_path, follow_links=True).images(url)


@pytest.mark.parametrize(
    "path", ["a" * 256 + ".png", "é" * 128, "ab.c/" * 900, "x" * 10**6 + ".png", "\ud800" * 100]
)
def test_more_than_a_path_can_hold(tmp_path, path):
    with pytest.raises(BadRowError, match="is longer than a path can be: give the path of a file") as failure:
        ImageRoot(tmp_path).images(path)
    assert len(str(failure.value)) < 200


@pytest.mark.parametrize(
    "path", ["a" * 251 + ".png", "iVBORw0KGgo.png", "9j/" + "a" * 100, "data", "C:/x.png"]
)
def test_what_is_a_path(path):
    assert entry_path(path) == path


@pytest.mark.parametrize("entry", [None, 7, "", [], {}, {"path": ""}, {"bytes": b"x" * 10**6}, ["x" * 10**6]])
def test_what_is_neither(entry):
    with pytest.raises(
        BadRowError, match=r"^image is .*: give a path, or an object with one as 'path'$"
    ) as failure:
        entry_path(entry)
    assert len(str(failure.value)) < 200


@pytest.fixture
def scans(tmp_path):
    for name in ("images/Brain 1.png", "images/ct/2.JPG", "images/plain.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("images\\Brain 1.png", "images/Brain 1.png"),
        ("images\\CT\\2.jpg", "images/ct/2.JPG"),
        ("images/brain 1.PNG", "images/Brain 1.png"),
        ("Images/Brain 1.png", "images/Brain 1.png"),
        ("images/plain.png ", "images/plain.png"),
        ("images/plain.jpeg", "images/plain.png"),
        ("images/ct/2.png", "images/ct/2.JPG"),
        ("images/images/plain.png", "images/plain.png"),
        ("scans/images/plain.png", "images/plain.png"),
    ],
)
def test_the_file_that_is_meant_is_named(scans, path, near):
    message = missing_image(scans / path)
    assert message == f"image {scans / path} does not exist (there is '{scans / near}')"


@pytest.mark.parametrize(
    "path", ["images/other.png", "none/1.png", "images/ct", "images/1", "images/ct/2.JPG/x"]
)
def test_nothing_like_it(scans, path):
    assert missing_image(scans / path).endswith("does not exist")


def test_a_file_that_appears_later_is_found(scans):
    assert missing_image(scans / "images/New.png").endswith("does not exist")
    (scans / "images/new.png").write_bytes(b"")
    os.utime(scans / "images", ns=(1, 1))  # coarse clocks give both listings one time
    assert "new.png" in missing_image(scans / "images/New.png")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_in_either_form(tmp_path, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    file = unicodedata.normalize(form, "Schädel é.png")
    (tmp_path / file).write_bytes(b"")
    root, given = ImageRoot(tmp_path), unicodedata.normalize(other, file)
    for entry in (given, {"path": given}):
        (handle,) = root.images(entry)
        assert handle.path == tmp_path / file
    assert root.identity(given) == root.identity(file)
    assert root.images(unicodedata.normalize(other, "fehlt ä.png"))[0].name.endswith(
        unicodedata.normalize(other, "ä.png")
    )


def test_accents_in_an_archive(tmp_path):
    file = unicodedata.normalize("NFD", "Schädel.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(file, b"")
    (handle,) = ImageRoot(tmp_path / "a.zip").images(unicodedata.normalize("NFC", file))
    assert handle.exists()
    with pytest.raises(BadRowError, match="picture in base64"):
        ImageStore(tmp_path / "a.zip").handle(PNG)
