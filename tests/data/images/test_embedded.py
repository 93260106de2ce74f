"""Images in Parquet files and archives: handles that a worker pickles and decodes."""

import dataclasses
import functools
import json
import pickle

import published
import pyarrow.parquet
import pytest

from medvlm_r1.audit.question_files import read_files
from medvlm_r1.audit.run_audit import audit
from medvlm_r1.data.formats.columns import Columns
from medvlm_r1.data.formats.hf_load import load_parquet
from medvlm_r1.data.formats.mcq_json import McqJson
from medvlm_r1.data.formats.table import Table
from medvlm_r1.data.images.arrow import ArrowRows
from medvlm_r1.data.images.embedded import ImageStore
from medvlm_r1.data.sample import BadRowError


@pytest.mark.parametrize("marked", [True, False], ids=["datasets", "pandas"])
def test_embedded_pictures_travel_as_places(tmp_path, marked):
    """What a worker gets is small, and shows what was written in that row, by whatever library."""
    path = tmp_path / "b.parquet"
    published.write_parquet(tmp_path / "a.parquet", [{"image": i, "n": str(i)} for i in range(600)])
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    table = table if marked else table.replace_schema_metadata(None)
    pyarrow.parquet.write_table(table, path, row_group_size=33)
    rows = list(ArrowRows().read(load_parquet(path), str(path), {"image": False, "n": False}))
    assert [(number, row["n"]) for number, row in rows] == [(i, str(i)) for i in range(600)]
    for number in (0, 32, 33, 255, 256, 599):
        handle = rows[number][1]["image"]
        assert handle.name == f"{path}/{number}/image"
        assert len(pickle.dumps(handle)) < 1000
        assert handle.load().tobytes() == published.picture(number).convert("RGB").tobytes()
    with pytest.raises(BadRowError, match=r"b\.parquet/0/image cannot be read from"):
        dataclasses.replace(rows[0][1]["image"], row=600).load()


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


ROW = {"question": "Which?", "options": ["lung", "liver"], "answer": "lung", "subset": "CT", "modality": "CT"}


@pytest.mark.parametrize("inside", ["images/", "", "study/images/"])
@pytest.mark.parametrize(
    "reader", [McqJson, functools.partial(Table, columns=Columns())], ids=["json", "table"]
)
def test_own_questions_with_their_images_in_an_archive(tmp_path, reader, inside):
    """``data.images=x.zip`` reads what the unpacked folder holds; two spellings of a member are one image."""
    published.write_zip(tmp_path / "x.zip", [f"{inside}{i}.png" for i in range(3)])
    paths = ["images/0.png", "images/1.png", f"{inside}2.png", f"{inside}1.png"]
    (tmp_path / "rows.json").write_text(json.dumps([ROW | {"image": path} for path in paths]))
    samples = reader(tmp_path / "rows.json", images=str(tmp_path / "x.zip"))
    shown = [sample.images[0].load().tobytes() for sample in samples]
    assert shown == [published.picture(i).convert("RGB").tobytes() for i in (0, 1, 2, 1)]
    assert len({sample.image_group for sample in samples}) == 3
    assert len(pickle.dumps(samples[0].images)) < 1000


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("images/9.png", r"row 0: image .*x\.zip/images/9\.png does not exist; .*data\.images"),
        ("../0.png", r"row 0: image '\.\./0\.png' lies outside .*x\.zip"),
        ("/0.png", r"row 0: image '/0\.png' lies outside .*x\.zip"),
        ("scan.dcm", r"row 0: image 'scan\.dcm' is a DICOM or NIfTI file in an archive.*: unpack .*x\.zip"),
        ({"path": "images/0.png", "slice": 3}, r"row 0: image .* has settings in an archive"),
        ("im\0age.png", "NUL"),
    ],
    ids=["missing", "parent", "absolute", "dicom", "settings", "nul"],
)
def test_what_an_archive_of_own_images_does_not_give(tmp_path, image, message):
    published.write_zip(tmp_path / "x.zip", ["images/0.png", "scan.dcm"])
    (tmp_path / "rows.json").write_text(json.dumps([ROW | {"image": image}]))
    with pytest.raises(BadRowError, match=message):
        McqJson(tmp_path / "rows.json", images=str(tmp_path / "x.zip"))


def test_a_file_that_is_no_archive_of_own_images(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"no archive")
    (tmp_path / "rows.json").write_text(json.dumps([ROW | {"image": "0.png"}]))
    with pytest.raises(BadRowError, match=r"x\.zip is damaged .*give a folder or a zip"):
        McqJson(tmp_path / "rows.json", images=str(tmp_path / "x.zip"))


def test_the_audit_reads_an_archive_of_own_images(tmp_path):
    published.write_zip(tmp_path / "x.zip", ["a.png", "b.png"])
    for name, image in (("train", "a.png"), ("test", "a.png"), ("other", "c.png")):
        rows = [ROW | {"image": path} for path in (image, "b.png")]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    parts = {name: read_files([tmp_path / f"{name}.json"], tmp_path / "x.zip") for name in ("train", "test")}
    assert [rows.faults for rows in parts.values()] == [[], []]
    assert len(audit(parts["train"][0], {"test": parts["test"][0]}).leaking) == 2
    (fault,) = read_files([tmp_path / "other.json"], tmp_path / "x.zip").faults
    assert fault.endswith("c.png does not exist")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/secret.png", "images/../../secret.png"])
def test_a_path_that_leaves_the_folder_is_refused(path, tmp_path):
    with pytest.raises(BadRowError, match="lies outside"):
        ImageStore(tmp_path).handle(path)
