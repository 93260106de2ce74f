"""Broken and malicious data files: one clear error each, no access outside their folder."""

import hashlib
import json
import os
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pandas
import pytest
from PIL import Image

from medvlm_r1.data.formats.columns import Columns
from medvlm_r1.data.formats.image_folder import ImageFolder
from medvlm_r1.data.formats.mcq_json import McqJson
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.formats.table import Table
from medvlm_r1.data.images import validate
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.digest_cache import DigestCache
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.data.sources.huatuo_bundle import bundle_images
from medvlm_r1.data.sources.unzip import unzip

ROW = {"question": "q", "options": ["a", "b"], "answer": "a", "subset": "MR", "modality": "MR"}


def read(folder: Path, image: str, reader=McqJson, **options):
    """One question about ``image``, from a file in ``folder``."""
    (folder / "rows.json").write_text(json.dumps([{**ROW, "image": image}]))
    more = {"columns": Columns()} if reader is Table else {}
    return reader(folder / "rows.json", **more, **options)


# --- archives --------------------------------------------------------------------------------------


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("../out.png", "leaves the archive by '..'"),
        ("images/../../out.png", "leaves the archive by '..'"),
        ("..\\out.png", "leaves the archive by '..'"),
        ("/tmp/out.png", "is an absolute path"),
        ("C:\\out.png", "is an absolute path"),
        ("images/out\0.png", "contains a NUL character"),
        (link("images/out.png"), "is a symbolic link"),
    ],
    ids=["parent", "nested", "backslash", "absolute", "drive", "nul", "link"],
)
def test_a_member_that_leaves_its_archive(tmp_path, member, message):
    root = tmp_path / "bundle"
    root.mkdir()
    if isinstance(member, str):
        info = zipfile.ZipInfo("placeholder")
        info.filename = info.orig_filename = member  # past what the writer would correct
        member = info
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        archive.writestr("images/good.png", b"good")
        archive.writestr(member, b"/etc/passwd")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadRowError, match="nothing was unpacked") as failure:
        bundle_images(root, tmp_path / "cache")
    assert message in str(failure.value)
    assert [p.name for p in sorted(tmp_path.rglob("*")) if p not in before] in (
        ["cache"],
        ["cache", next((p.name for p in (tmp_path / "cache").iterdir()), "")],
    )
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"]


def test_a_zip_bomb_is_refused_by_its_declared_size(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/a.png", bytes(20_000_000))
    with pytest.raises(BadRowError, match=r"would unpack to 20,000,000, over 50 times as many"):
        unzip(tmp_path / "bomb.zip", tmp_path / "target", below="images")
    assert [p.name for p in tmp_path.iterdir()] == ["bomb.zip"]


def test_a_zip_that_declares_too_little_is_read_no_further(tmp_path):
    """20 MB behind a declared size of 100 bytes, in both headers."""
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/a.png", bytes(20_000_000))
    data = path.read_bytes().replace(struct.pack("<I", 20_000_000), struct.pack("<I", 100))
    path.write_bytes(data)
    with pytest.raises(BadRowError, match=r"is damaged .*fetch it again"):
        unzip(path, tmp_path / "target", below="images")
    assert [p.name for p in tmp_path.iterdir()] == ["liar.zip"]


def test_an_archive_of_images_with_odd_names_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        for name in ("ä b.png", "..b.png", "脑.png"):
            archive.writestr(f"images/{name}", os.urandom(1000))
    unzip(tmp_path / "good.zip", tmp_path / "target", below="images")
    assert sorted(p.name for p in (tmp_path / "target/images").iterdir()) == ["..b.png", "ä b.png", "脑.png"]


# --- pictures --------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A grey PNG whose header tells any size, with next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_not_decoded(pictures):
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # Pillow's own limit, nowhere lifted
    (pictures / "bomb.png").write_bytes(png(50_000, 50_000))
    message = r"row 0: image .*bomb\.png has more pixels than the decoder's limit .*2500000000 pixels"
    with pytest.raises(BadRowError, match=message):
        read(pictures, "bomb.png")
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1)])
def test_an_image_of_one_pixel_s_width(pictures, size):
    Image.new("L", size).save(pictures / "line.png")
    with pytest.raises(BadRowError, match=f"is {size[0]} x {size[1]} pixels, too narrow for the model: crop"):
        read(pictures, "line.png")


def test_a_folder_and_a_pipe_are_no_pictures(pictures):
    os.mkfifo(pictures / "pipe.png")  # reading it would wait for ever
    for name, why in (
        ("images", "a folder without DICOM images: .*"),
        ("pipe.png", "it is a folder or a device, no file"),
    ):
        with pytest.raises(BadRowError, match=rf"cannot be decoded \({why}"):
            read(pictures, name)


# --- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [McqJson, Table])
@pytest.mark.parametrize("kind", ["parent", "absolute", "link", "folder link"])
def test_an_image_outside_its_folder(pictures, reader, kind):
    inside, secret = pictures / "inside", pictures / "images/0.png"
    inside.mkdir()
    if kind == "link":
        (inside / "link.png").symlink_to(secret)
    elif kind == "folder link":
        (inside / "linked").symlink_to(secret.parent)
    image = {"parent": "../images/0.png", "absolute": str(secret), "link": "link.png"}.get(
        kind, "linked/0.png"
    )
    remedy = "symbolic link out of" if "link" in kind else "lies outside"
    for check in (True, False):
        with pytest.raises(
            BadRowError, match=rf"row 0: image .*{remedy}.*data\.images.*data\.rows\.follow_links"
        ):
            read(inside, image, reader, rows=RowPolicy(check_images=check))
    assert len(read(inside, image, reader, rows=RowPolicy(follow_links=True))) == 1


def test_paths_that_stay_inside_are_taken(pictures):
    (pictures / "images/a b ü 脑.png").write_bytes((pictures / "images/0.png").read_bytes())
    (pictures / "images/near.png").symlink_to("1.png")
    absolute = str(pictures / "images/2.png")
    for image in ("images/a b ü 脑.png", "images/near.png", absolute, "images/../images/3.png"):
        assert len(read(pictures, image)) == 1
    (pictures / "tables").mkdir()
    assert len(read(pictures / "tables", "images/0.png", images=pictures)) == 1


@pytest.mark.parametrize("reader", [McqJson, Table])
@pytest.mark.parametrize(
    ("name", "message"),
    [("a\0.png", "holds a NUL character"), ("a\ud800.png", "holds an unpaired surrogate")],
)
def test_names_that_no_file_can_have(pictures, reader, name, message):
    with pytest.raises(BadRowError, match=f"row 0: image .*{message}"):
        read(pictures, name, reader, rows=RowPolicy(check_images=False))


def test_a_labels_file_cannot_leave_its_folder(pictures):
    (pictures / "images/labels.csv").write_text("file,label\n0.png,a\n../rows.json,b\n")
    with pytest.raises(BadRowError, match=r"labels\.csv row 1: image '\.\./rows\.json' lies outside"):
        ImageFolder(pictures / "images", "mri", "labels.csv")


def test_a_label_folder_s_links_stay_inside(pictures):
    for label in "ab":
        (pictures / "set" / label).mkdir(parents=True)
        (pictures / "set" / label / "1.png").write_bytes((pictures / "images/0.png").read_bytes())
    (pictures / "set/a/out.png").symlink_to(pictures / "images/1.png")
    with pytest.raises(BadRowError, match=r"row 1: image 'a/out\.png' is a symbolic link out of"):
        ImageFolder(pictures / "set", "mri")


# --- tables ----------------------------------------------------------------------------------------

GOOD = "image,question,options,answer,modality\nimages/0.png,q,a|b,a,MR\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/1.png,one, two,a|b,a,MR", r"row 1: has 6 fields where the header has 5 \(line 3: "),
        ("images/1.png,q,a|b", r"row 1: has 3 fields where the header has 5 \(line 3: "),
        ('images/1.png,"q,a|b,a,MR', r"is invalid in the row that starts at line 3 .*close its quotes"),
        ('images/1.png,"q"uote,a|b,a,MR', r"is invalid in the row that starts at line 3 .*double a quote"),
        (
            f'images/1.png,"{"q" * 200_000}',
            r"is invalid in the row that starts at line 3 \(unexpected end of data",
        ),
    ],
    ids=["long", "short", "open quote", "quote inside", "runaway"],
)
def test_csv_with_ragged_rows_or_wrong_quotes(pictures, line, message):
    (pictures / "a.csv").write_text(f"{GOOD}{line}\nimages/2.png,q,a|b,b,MR\n")
    with pytest.raises(BadRowError, match=rf"a\.csv {message}"):
        Table(pictures / "a.csv", Columns())


def test_ragged_rows_can_be_skipped(pictures):
    (pictures / "a.csv").write_text(f"{GOOD}\nimages/1.png,q\nimages/2.png,q,a|b,b,MR\n")
    source = Table(pictures / "a.csv", Columns(), rows=RowPolicy(on_bad_row="skip"))
    assert [s.id for s in source] == ["a-0", "a-2"]
    assert "row 1: has 2 fields" in source.skipped[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "holds no rows"),
        ("a.csv", b"image,image\n1,2\n", "column 'image' 2 times in its header"),
        ("a.csv", b"image,\n1,2\n", "no column 'question' .*Its columns are image$"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\xff\xfe", "is not in utf-8-sig"),
        ("a.parquet", b"PAR1 cut short", "is no readable Parquet file"),
        ("a.xlsx", b"PK", r"has the suffix '\.xlsx': give a \.json, \.jsonl, \.csv"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b"[" + b"9" * 5000 + b"]", r"cannot be read at line 1 or below \(Exceeds the limit"),
    ],
)
def test_a_file_that_is_something_else(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadRowError, match=message):
        Table(tmp_path / name, Columns())


def test_pictures_inside_a_parquet_file_are_not_paths(tmp_path):
    pandas.DataFrame([{**ROW, "image": {"bytes": b"x", "path": "a.png"}}]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadRowError, match=r"column 'image' holds bytes .*save the images as files"):
        Table(tmp_path / "a.parquet", Columns())


def test_half_a_character_in_a_text(pictures):
    for part in ({"question": "a\ud800"}, {"options": ["a", "\udfff"]}):
        (pictures / "a.json").write_text(json.dumps([{**ROW, "image": "images/0.png", **part}]))
        with pytest.raises(BadRowError, match=r"row 0: .*holds an unpaired surrogate"):
            McqJson(pictures / "a.json")


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.parquet"])
def test_a_folder_or_nothing_in_the_place_of_a_table(tmp_path, name):
    with pytest.raises(BadRowError, match="does not exist: check the path of the data file"):
        Table(tmp_path / name, Columns())
    (tmp_path / name).mkdir()
    with pytest.raises(BadRowError, match=r"cannot be read|no readable Parquet"):
        Table(tmp_path / name, Columns())


@pytest.mark.parametrize("reader", [McqJson, Table])
def test_a_huge_json_is_refused_by_its_size(tmp_path, reader):
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2 << 30)  # sparse: takes no room
    more = {"columns": Columns()} if reader is Table else {}
    message = r"has 2\.1 GB, and a JSON array of more than 1 GiB is not read: write it as \.jsonl .*\.parquet"
    with pytest.raises(BadRowError, match=message):
        reader(tmp_path / "huge.json", **more)


# --- what was checked before -----------------------------------------------------------------------


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Enough images for their checks to be kept, and a cache of their own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    noise = np.random.default_rng(0)
    for i in range(validate.WORTH_KEEPING):
        Image.fromarray(noise.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    rows = [{**ROW, "image": f"{i}.png"} for i in range(validate.WORTH_KEEPING)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.fixture
def decodings(monkeypatch):
    """Names of the pictures that were decoded."""
    seen, load = [], ImageFile.load
    monkeypatch.setattr(ImageFile, "load", lambda handle: seen.append(handle.name) or load(handle))
    return seen


def test_an_image_that_changed_is_checked_again(many, decodings):
    McqJson(many / "rows.json")
    decodings.clear()
    (many / "7.png").write_bytes(b"no picture")
    with pytest.raises(BadRowError, match=r"row 7: image .*7\.png cannot be decoded"):
        McqJson(many / "rows.json")
    assert decodings == [f"{many}/7.png"]


def test_an_image_found_good_before_is_not_decoded_again(many, decodings):
    McqJson(many / "rows.json")
    assert len(decodings) == validate.WORTH_KEEPING
    decodings.clear()
    assert len(McqJson(many / "rows.json")) == validate.WORTH_KEEPING
    assert decodings == []
    (many / "home/medvlm_r1/images.sqlite").unlink()
    McqJson(many / "rows.json")
    assert len(decodings) == validate.WORTH_KEEPING


def test_a_change_that_hides_is_seen(many):
    """Of the same size, and with its time of change set back, as copying tools do."""
    McqJson(many / "rows.json")
    broken, status = many / "7.png", (many / "7.png").stat()
    broken.write_bytes(b"x" * status.st_size)
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BadRowError, match="row 7"):
        McqJson(many / "rows.json")


def test_a_copy_is_known_by_its_content(many, decodings):
    """Moved or copied elsewhere, files are read, and no picture is decoded."""
    McqJson(many / "rows.json")
    decodings.clear()
    shutil.copytree(many, many / "moved", ignore=shutil.ignore_patterns("home"))
    McqJson(many / "moved/rows.json")
    assert decodings == []


@pytest.mark.parametrize("damage", [b"", b"no database", b"\xff\xff", "cut", "flipped"])
def test_a_damaged_database_is_as_good_as_none(many, decodings, damage):
    McqJson(many / "rows.json")
    kept = many / "home/medvlm_r1/images.sqlite"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    whole = kept.read_bytes()
    if damage == "flipped":  # in the page that lists the tables, and in all that follow
        damage = whole[:100] + bytes(byte ^ 0xFF for byte in whole[100:])
    kept.write_bytes(whole[: len(whole) // 2] if damage == "cut" else damage)
    decodings.clear()
    for _ in range(2):
        assert len(McqJson(many / "rows.json")) == validate.WORTH_KEEPING
    assert len(decodings) <= validate.WORTH_KEEPING
    decodings.clear()
    McqJson(many / "rows.json")
    assert decodings == []


def test_a_killed_run_keeps_what_it_found(tmp_path):
    """Killed while it writes one batch after the other: the file is whole, and holds those before."""
    (tmp_path / "a").write_bytes(b"a")
    code = """
import sys
from pathlib import Path
from medvlm_r1.data.images.digest_cache import DigestCache
known = DigestCache(Path(sys.argv[1]) / "k.sqlite", batch=1)
known.digest(Path(sys.argv[1]) / "a")
print("begun", flush=True)
number = 0
while True:
    known.add_good(str(number := number + 1))
"""
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        time.sleep(0.3)
        writer.kill()
    with sqlite3.connect(tmp_path / "k.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count(*) FROM decoded").fetchone()[0] > 10
        ((digest,),) = database.execute("SELECT digest FROM digests")
    assert digest == hashlib.sha256(b"a").hexdigest()


def test_runs_beside_each_other_keep_both_findings(tmp_path):
    path = tmp_path / "k.sqlite"
    with DigestCache(path) as first, DigestCache(path) as second:
        first.add_good("one")
        second.add_good("two")
        first.write()
        assert second.notes("one") is not None
    with DigestCache(path) as again:
        assert again.notes("one") is not None
        assert again.notes("two") is not None
        assert again.notes("three") is None


def test_a_cache_that_cannot_be_written_stops_nothing(many):
    (many / "home").write_text("a file where the folder should be")
    assert len(McqJson(many / "rows.json")) == validate.WORTH_KEEPING


def test_pictures_without_a_file_are_named_too(tmp_path):
    with pytest.raises(BadRowError, match="does not exist"):
        ImageFile(tmp_path / "none.png").load()
