"""The check of images before training: its remarks are counted, and survive to later runs."""

import json

import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image

from medvlm_r1.data.formats.mcq_json import McqJson
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.images import validate
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.notes import BLANK, FRAMES, Note, counted
from medvlm_r1.data.images.volume import Volumes
from medvlm_r1.data.sample import BadRowError

ROW = {"question": "What is shown?", "options": ["Cyst", "Mass"], "answer": "Cyst", "subset": "CT"}


def rows(folder, *images):
    (folder / "rows.json").write_text(json.dumps([ROW | {"image": image} for image in images]))
    return folder / "rows.json"


def noise(k):
    return Image.fromarray(np.random.default_rng(k).integers(0, 255, (8, 8), dtype=np.uint8))


def test_remarks_of_images_that_are_known_are_made_again(tmp_path, monkeypatch, caplog):
    """Three blank files, two of them with equal bytes, among as many as are kept between runs."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    for k in range(validate.WORTH_KEEPING):
        (noise(k) if k > 2 else Image.new("L", (8, 8), 9 + k // 2)).save(tmp_path / f"{k}.png")
    path = rows(tmp_path, *(f"{k}.png" for k in range(validate.WORTH_KEEPING)))
    decoded, load = [], ImageFile.load
    monkeypatch.setattr(ImageFile, "load", lambda handle: decoded.append(handle.name) or load(handle))
    for _ in range(2):
        caplog.clear()
        McqJson(path)
        messages = [record.getMessage() for record in caplog.records]
        assert messages == [f"3 images {BLANK}; the first: {tmp_path}/0.png"]
    assert len(decoded) <= validate.WORTH_KEEPING  # equal bytes may be decoded once


class TestFrame:
    @pytest.fixture
    def stack(self, tmp_path):
        noise(0).save(tmp_path / "a.tif", save_all=True, append_images=[noise(1), noise(2)])
        return tmp_path

    def test_of_the_row_and_of_the_run(self, stack, caplog):
        (first,) = McqJson(rows(stack, "a.tif"))
        (message,) = (record.getMessage() for record in caplog.records)
        assert message == f"1 images {FRAMES}; the first: {stack}/a.tif: frame 0 of 3, from 0"
        (second,) = McqJson(rows(stack, {"path": "a.tif", "frame": 1}))
        run = RowPolicy(volumes=Volumes(frame=2))
        (third,) = McqJson(rows(stack, "a.tif"), rows=run)
        for k, sample in enumerate((first, second, third)):
            assert np.array_equal(np.asarray(sample.images[0].load())[..., 0], np.asarray(noise(k)))

    @pytest.mark.parametrize("frame", [3, -1])
    def test_that_is_not_there(self, frame, stack):
        message = "has the frames 0 to 2, not 3: set frame" if frame == 3 else "give an index from 0"
        with pytest.raises(BadRowError, match=rf"rows\.json row 0: image .*a\.tif.*{message}"):
            McqJson(rows(stack, {"path": "a.tif", "frame": frame}))


def test_a_file_counts_once_whatever_its_name():
    """Slices of one file share its remarks; a sign that a file name may hold separates no slice."""
    names = ["a/scan#1.dcm", "a/scan#2.dcm", "ct#slice=1", "ct#slice=2&window=lung", "ct#montage", "mr"]
    assert counted({name: [Note(FRAMES, "")] for name in names})[FRAMES]["n"] == 4
