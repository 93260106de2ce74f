"""The image cache: bit-identical images, decoded once, and never from a damaged entry."""

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import stat
import subprocess
import sys
import time
import zipfile

import dicom_files
import huggingface_hub.constants
import nibabel
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from medvlm_r1.data.formats.hf_load import load_parquet
from medvlm_r1.data.formats.mcq_json import McqJson
from medvlm_r1.data.images import content_key, digest_cache
from medvlm_r1.data.images.arrow import ArrowRows
from medvlm_r1.data.images.cache import ImageCache
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.dicom import DicomImage
from medvlm_r1.data.images.digest_cache import DigestCache
from medvlm_r1.data.images.embedded import ZipImage
from medvlm_r1.data.images.nifti import NiftiImage
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.phantom import PhantomSource

SIZE = ("test", 56)
ANONYMOUS = {"PatientIdentityRemoved": "YES"}


def noise(width, height, depth=3, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, depth), dtype=np.uint8)
    return Image.fromarray(values if depth > 1 else values[..., 0])


def png(picture):
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(150, 90).save(path, exif=exif)
    return ImageFile(path)


def saved(picture, path):
    picture.save(path)
    return ImageFile(path)


def packed(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.png", png(noise(120, 90)))
    return ZipImage(path, "a/b.png")


def embedded(path):
    data = png(noise(90, 120))
    table = pyarrow.table({"image": [{"bytes": data, "path": "x.png"}]})
    pyarrow.parquet.write_table(table, path)
    (_, row), *_ = ArrowRows().read(load_parquet(path), path.as_posix(), {"image": False})
    return row["image"]


def volume(path):
    values = np.random.default_rng(0).normal(size=(60, 70, 9)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 2, 3, 1])), path)
    return path


def scan(path, **header):
    values = np.random.default_rng(0).integers(0, 4000, (90, 70), dtype=np.uint16)
    return dicom_files.write(path, values, **{**dicom_files.CT, **ANONYMOUS, **header})


def series(folder):
    folder.mkdir()
    for k in range(3):
        values = np.random.default_rng(k).integers(0, 4000, (64, 80), dtype=np.uint16)
        header = {**dicom_files.CT, **ANONYMOUS, "InstanceNumber": k, "SeriesInstanceUID": "1.2"}
        dicom_files.write(folder / f"{k}.dcm", values, **header)
    return folder


HANDLES = {
    "colour": lambda f: saved(noise(300, 220), f / "a.png"),
    "grey": lambda f: saved(noise(300, 220, 1), f / "a.png"),
    "jpeg, turned": lambda f: turned(f / "a.jpg"),
    "16 bits": lambda f: saved(
        Image.fromarray(np.random.default_rng(0).integers(0, 4000, (90, 120), dtype=np.uint16)), f / "a.png"
    ),
    "alpha": lambda f: saved(noise(90, 120, 4), f / "a.png"),
    "in a zip": lambda f: packed(f / "a.zip"),
    "in parquet": lambda f: embedded(f / "a.parquet"),
    "nifti": lambda f: NiftiImage(volume(f / "a.nii.gz"), pick=3, plane="coronal"),
    "nifti montage": lambda f: NiftiImage(volume(f / "a.nii"), pick="montage", percentiles=(1, 99)),
    "dicom": lambda f: DicomImage(scan(f / "a.dcm"), window="lung"),
    "dicom series": lambda f: DicomImage(series(f / "ct"), pick=1),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home/medvlm_r1"


@pytest.fixture
def cache(home):
    return ImageCache()


@pytest.fixture
def scans(tmp_path):
    (tmp_path / "scans").mkdir()
    return tmp_path / "scans"


def entries(cache):
    return sorted(p for p in cache.folder.glob("??/*") if not p.name.startswith("."))


def never():
    raise AssertionError("made again")


def kept(cache, handle, size=SIZE):
    """What the cache gives; fails where the picture would have to be made."""
    return cache.get(handle, size, never)


class TestPixels:
    """Kept or not, the model sees the same: bit for bit what the stock processor makes of the picture."""

    @pytest.mark.parametrize("image_size", [None, 100])
    @pytest.mark.parametrize("name", HANDLES)
    def test_are_the_same_bit_for_bit(
        self, name, image_size, encoder, questions, short_style, scans, cache, monkeypatch
    ):
        handle = HANDLES[name](scans)
        encoder = dataclasses.replace(encoder, image_size=image_size)
        sample = dataclasses.replace(questions["square"], images=(handle,))
        plain = encoder.encode(sample, "train", short_style)
        first = encoder.encode(sample, "train", short_style, cache)
        picture = handle.load()
        assert len(entries(cache)) == 1
        monkeypatch.setattr(type(handle), "load", never)
        again = encoder.encode(sample, "train", short_style, ImageCache())
        if image_size:
            picture = picture.resize((image_size, image_size), Image.Resampling.BICUBIC)
        stock = encoder.image_processor([picture], return_tensors="pt")
        for ours in (plain, first, again):
            assert torch.equal(encoder.pixel_values(ours.pixels), stock["pixel_values"])
            assert torch.equal(ours.grid, stock["image_grid_thw"])
            assert torch.equal(ours.ids, plain.ids)

    def test_are_resized_once_where_the_limits_leave_no_size(
        self, encoder, questions, short_style, scans, cache
    ):
        """112 x 112 pixels at least and at most: 100 x 130 becomes 84 x 112, of which a second fit would make
        112 x 140."""
        processor = Qwen2VLImageProcessorPil(min_pixels=12544, max_pixels=12544)
        narrow = dataclasses.replace(encoder, image_processor=processor)
        picture = noise(130, 100)
        sample = dataclasses.replace(questions["square"], images=(saved(picture, scans / "a.png"),))
        stock = processor([picture], return_tensors="pt")
        assert stock["image_grid_thw"].tolist() == [[1, 6, 8]]
        for _ in range(2):
            ours = narrow.encode(sample, "train", short_style, cache)
            assert torch.equal(ours.grid, stock["image_grid_thw"])
            assert torch.equal(encoder.pixel_values(ours.pixels), stock["pixel_values"])


class TestKeys:
    def test_of_other_sizes_are_other_pictures(self, encoder, questions, short_style, scans, cache):
        sample = dataclasses.replace(questions["square"], images=(saved(noise(300, 220), scans / "a.png"),))
        processor = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 84)
        for other in (
            encoder,
            dataclasses.replace(encoder, image_size=56),
            dataclasses.replace(encoder, image_processor=processor),
        ):
            with_cache, without = (other.encode(sample, "train", short_style, c) for c in (cache, None))
            assert torch.equal(with_cache.pixels, without.pixels)
        assert len(entries(cache)) == 3

    def test_of_other_slices_and_windows_are_other_pictures(self, scans):
        path, ct = volume(scans / "a.nii"), scan(scans / "a.dcm")
        handles = [NiftiImage(path), NiftiImage(path, 1), NiftiImage(path, plane="sagittal")]
        handles += [NiftiImage(path, range=(0, 1)), NiftiImage(path, percentiles=(0, 50))]
        handles += [DicomImage(ct), DicomImage(ct, window="lung"), DicomImage(ct, window=(0, 90.0))]
        handles += [DicomImage(ct, allow_identifying=True), ImageFile(ct)]
        with DigestCache() as known:
            assert len({content_key.image_key(handle, known) for handle in handles}) == len(handles)

    def test_go_by_content(self, scans, cache):
        first, other = saved(noise(90, 90), scans / "a.png"), saved(noise(90, 90), scans / "b.png")
        picture = cache.get(first, SIZE, first.load)
        assert kept(cache, other).tobytes() == picture.tobytes()
        changed = noise(90, 90, seed=1)
        changed.save(first.path)
        assert cache.get(first, SIZE, first.load).tobytes() == changed.tobytes()

    def test_are_others_for_other_code(self, scans, cache, monkeypatch):
        handle = saved(noise(90, 90), scans / "a.png")
        cache.get(handle, SIZE, handle.load)
        monkeypatch.setattr(content_key.metadata, "version", lambda package: "another")
        content_key._versions.cache_clear()
        with pytest.raises(AssertionError, match="made again"):
            kept(cache, handle)
        content_key._versions.cache_clear()

    def test_a_file_that_changes_while_it_is_decoded_is_not_kept(self, scans, cache):
        handle = saved(noise(90, 90), scans / "a.png")

        def meanwhile():
            noise(90, 90, seed=1).save(handle.path)
            return handle.load()

        cache.get(handle, SIZE, meanwhile)
        assert entries(cache) == []

    def test_a_rendered_picture_and_a_tiny_file_cost_nothing(self, scans, cache):
        phantom = PhantomSource("mri", 1, "train")[0].images[0]
        tiny = saved(noise(20, 20), scans / "a.png")
        for handle in (phantom, tiny):
            cache.get(handle, SIZE, handle.load)
        assert entries(cache) == []


class TestPrivacy:
    def test_what_was_allowed_once_is_not_allowed_always(self, encoder, questions, short_style, scans, cache):
        """The same file, kept under allow_identifying=true, is refused where it is false."""
        path = scan(scans / "a.dcm", PatientName="Doe^Jane", PatientIdentityRemoved="NO")

        def encoded(allow):
            image = DicomImage(path, allow_identifying=allow)
            sample = dataclasses.replace(questions["square"], images=(image,))
            return encoder.encode(sample, "train", short_style, cache)

        encoded(True)
        assert len(entries(cache)) == 1
        with pytest.raises(BadRowError, match="identifies a patient by PatientName"):
            encoded(False)
        assert len(entries(cache)) == 1

    def test_only_its_user_may_look(self, scans, cache, tmp_path):
        handle = saved(noise(90, 90), scans / "a.png")
        cache.get(handle, SIZE, handle.load)
        (entry,) = entries(cache)
        assert [stat.S_IMODE(p.stat().st_mode) for p in (cache.folder, entry)] == [0o700, 0o600]
        (tmp_path / "shared/pictures").mkdir(parents=True, mode=0o755)
        elsewhere = ImageCache(tmp_path / "shared")
        assert stat.S_IMODE(elsewhere.folder.stat().st_mode) == 0o700


class TestDamage:
    @pytest.fixture
    def entry(self, scans, cache):
        self.handle = saved(noise(90, 90), scans / "a.png")
        self.picture = cache.get(self.handle, SIZE, self.handle.load)
        return entries(cache)[0]

    def mended(self, cache, entry, data):
        entry.write_bytes(data)
        made = []
        picture = cache.get(self.handle, SIZE, lambda: made.append(1) or self.handle.load())
        assert made == [1]
        assert picture.tobytes() == self.picture.tobytes() == kept(cache, self.handle).tobytes()

    def test_of_any_byte_is_found(self, entry, cache):
        data = entry.read_bytes()
        for place in [*range(60), *range(60, len(data), len(data) // 20), len(data) - 1]:
            self.mended(cache, entry, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])

    @pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
    def test_by_truncation_is_found(self, share, entry, cache):
        data = entry.read_bytes()
        self.mended(cache, entry, data[: int(share * len(data))])

    def test_an_entry_in_anothers_place_is_not_used(self, entry, scans, cache):
        other = saved(noise(90, 90, seed=1), scans / "b.png")
        cache.get(other, SIZE, other.load)
        (data,) = (p.read_bytes() for p in entries(cache) if p != entry)
        self.mended(cache, entry, data)

    def test_a_folder_that_cannot_be_written_stops_nothing(self, scans, tmp_path):
        (tmp_path / "file").write_text("a file where the folder should be")
        handle = saved(noise(90, 90), scans / "a.png")
        cache = ImageCache(tmp_path / "file")
        assert cache.get(handle, SIZE, handle.load).size == (90, 90)

    def test_a_folder_that_goes_away_stops_nothing(self, entry, cache):
        for path in sorted(cache.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        cache.folder.rmdir()
        assert cache.get(self.handle, SIZE, self.handle.load).tobytes() == self.picture.tobytes()


KILLED = """
import os, signal, sys
from pathlib import Path
import huggingface_hub.constants
huggingface_hub.constants.HF_HOME = sys.argv[1]
from medvlm_r1.data.images.cache import ImageCache
from medvlm_r1.data.images.decode import ImageFile
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[3], kill)
handle = ImageFile(Path(sys.argv[2]))
ImageCache().get(handle, ("test", 56), handle.load)
"""


class TestProcesses:
    @pytest.mark.parametrize("instant", ["fdopen", "replace"])
    def test_a_killed_one_leaves_nothing_to_be_used(self, instant, scans, cache, home):
        """Before the first byte of the new file, and between its last byte and its name."""
        handle = saved(noise(90, 90), scans / "a.png")
        command = [sys.executable, "-c", KILLED, home.parent, handle.path, instant]
        assert subprocess.run(command, check=False).returncode == -9
        assert entries(cache) == []
        (left,) = cache.folder.glob("??/.*")
        picture = cache.get(handle, SIZE, handle.load)
        assert kept(cache, handle).tobytes() == picture.tobytes()
        os.utime(left, (0, 0))
        cache._sweep()
        assert not left.exists()
        assert len(entries(cache)) == 1

    def test_share_the_folder(self, scans, cache):
        """Four at once over the same pictures; every answer is right, and every picture is kept once.

        Spawned: a fork of a process in which other tests left threads may wait for ever.
        """
        handles = [saved(noise(80, 80, seed=k), scans / f"{k}.png") for k in range(24)]
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            answers = pool.starmap(shown, [(cache, handles, k) for k in range(4)])
        expected = [hashlib.sha256(handle.load().tobytes()).hexdigest() for handle in handles]
        for answer in answers:
            assert answer == expected
        assert len(entries(cache)) == len(handles)
        for handle in handles:
            kept(cache, handle)


def shown(cache, handles, seed):
    order = np.random.default_rng(seed).permutation(len(handles))
    found = {k: cache.get(handles[k], SIZE, handles[k].load) for k in order}
    return [hashlib.sha256(found[k].tobytes()).hexdigest() for k in range(len(handles))]


class TestLimit:
    """Noise of 64 x 64 pixels does not shrink: three units of 4096 bytes, and one begun, each."""

    def fill(self, cache, scans, numbers):
        handles = [saved(noise(64, 64, seed=k), scans / f"{k}.png") for k in numbers]
        for handle in handles:
            cache.get(handle, SIZE, handle.load)
        return handles

    def test_the_oldest_used_goes(self, scans):
        cache = ImageCache(limit=10 * 4 * 4096 / 1e9)
        handles = self.fill(cache, scans, range(10))
        assert len(entries(cache)) == 10
        for path in entries(cache):
            os.utime(path, (time.time() - 3 * 86400,) * 2)
        kept(cache, handles[4])  # used just now
        self.fill(cache, scans, [10])
        assert len(entries(cache)) == 10
        kept(cache, handles[4])
        kept(cache, ImageFile(scans / "10.png"))

    def test_what_is_in_use_stays_and_nothing_new_is_kept(self, scans):
        cache = ImageCache(limit=10 * 4 * 4096 / 1e9)
        handles = self.fill(cache, scans, range(15))
        assert len(entries(cache)) == 10
        for handle in handles[:10]:
            kept(cache, handle)

    def test_holds_over_processes(self, scans):
        for k in range(15):  # each with a cache of its own
            self.fill(ImageCache(limit=10 * 4 * 4096 / 1e9), scans, [k])
        assert len(entries(ImageCache())) == 10

    def test_is_positive(self):
        with pytest.raises(ValueError, match=r"image_cache\.limit is 0"):
            ImageCache(limit=0)


def test_the_second_time_nothing_is_decoded_resized_or_hashed(
    encoder, questions, short_style, scans, monkeypatch
):
    """Growth instead of a clock: what a second run does over again for each picture is nothing."""
    rows = []
    for k in range(200):
        noise(64, 64, seed=k).save(scans / f"{k}.png")
        row = {"image": f"{k}.png", "question": "q", "options": ["a", "b"], "answer": "a", "subset": "MR"}
        rows.append(row)
    (scans / "rows.json").write_text(json.dumps(rows))
    counts = {"decoded": 0, "resized": 0, "hashed": 0}

    def counted(place, attribute, name):
        real = getattr(place, attribute)

        def wrapper(*args, **kwargs):
            counts[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(place, attribute, wrapper)

    counted(ImageFile, "load", "decoded")
    counted(Image.Image, "resize", "resized")
    counted(digest_cache, "file_digest", "hashed")

    def run():
        cache = ImageCache()
        for sample in McqJson(scans / "rows.json"):
            encoder.encode(sample, "train", short_style, cache)
        done = dict(counts)
        counts.update(dict.fromkeys(counts, 0))
        return done

    assert run() == {"decoded": 400, "resized": 200, "hashed": 200}
    assert run() == {"decoded": 0, "resized": 0, "hashed": 0}


def test_travels_to_workers(cache, scans):
    handle = saved(noise(90, 90), scans / "a.png")
    picture = cache.get(handle, SIZE, handle.load)
    there = pickle.loads(pickle.dumps(cache))
    assert kept(there, handle).tobytes() == picture.tobytes()
    assert len(pickle.dumps(cache)) < 1000
