"""Images in Parquet files and archives: handles that a worker pickles and decodes."""

import pickle

import published
import pyarrow.parquet
import pytest

from medvlm_r1.data.images.embedded import ImageStore, ParquetImage
from medvlm_r1.data.sample import BadRowError


def test_embedded_pictures_travel_as_places(tmp_path):
    """What a worker gets is small, and shows what was written in that row, in whatever row group."""
    published.write_parquet(tmp_path / "a.parquet", [{"image": i, "n": str(i)} for i in range(70)])
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet", row_group_size=33)
    for row in (0, 31, 32, 33, 69):
        handle = ParquetImage(tmp_path / "b.parquet", "image", row, "")
        assert len(pickle.dumps(handle)) < 1000
        assert handle.load().tobytes() == published.picture(row).convert("RGB").tobytes()
    with pytest.raises(BadRowError, match="it has 70 rows"):
        ParquetImage(tmp_path / "b.parquet", "image", 70, "").load()
    with pytest.raises(BadRowError, match="cannot be read"):
        ParquetImage(tmp_path / "c.parquet", "image", 0, "").load()


@pytest.mark.parametrize("inside", ["images/", "", "set/images/"])
def test_paths_inside_an_archive(tmp_path, inside):
    published.write_zip(tmp_path / "images.zip", [f"{inside}{i}.png" for i in range(3)])
    handle = ImageStore(tmp_path / "images.zip").handle("images/2.png")
    assert handle.load().tobytes() == published.picture(2).convert("RGB").tobytes()
    with pytest.raises(BadRowError, match=r"images/7\.png does not exist"):
        ImageStore(tmp_path / "images.zip").handle("images/7.png").load()


def test_a_damaged_archive_is_named(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK cut short")
    with pytest.raises(BadRowError, match=r"is damaged .*fetch it again"):
        ImageStore(tmp_path / "images.zip")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/secret.png", "images/../../secret.png"])
def test_a_path_that_leaves_the_folder_is_refused(path, tmp_path):
    with pytest.raises(BadRowError, match="lies outside"):
        ImageStore(tmp_path).handle(path)
