"""Prompts that are too long are found without encoding them."""

import dataclasses
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Noise
from PIL import Image
from training import PROMPT
from transformers import Qwen2VLImageProcessorPil

from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.embedded import ZipImage
from medvlm_r1.data.perturbation import BlankImage
from medvlm_r1.data.sample import VQASample
from medvlm_r1.policy.prompt_length import PromptLength, image_size

SIDES = st.integers(8, 400)


def sample_of(question="What?", options=("yes", "no"), images=()):
    return VQASample("q", tuple(images), question, tuple(options), "A", "mri", "unknown", "test", "q")


def lengths(encoder, sample, **limits):
    """Whether the question fits, and the length of its encoded prompt."""
    if limits:
        processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2, **limits)
        encoder = dataclasses.replace(encoder, image_processor=processor)
    ids = dataclasses.replace(encoder, max_prompt_tokens=10**9).encode(sample, "train", PROMPT).ids
    for limit in (len(ids) - 1, len(ids), len(ids) + 1):
        tight = dataclasses.replace(encoder, max_prompt_tokens=limit)
        yield PromptLength(tight, PROMPT, "train").fault(sample), limit >= len(ids), len(ids)


@settings(max_examples=60, deadline=None)
@given(
    question=st.text(min_size=1, max_size=300).filter(lambda t: t.strip() and t.isprintable()),
    sides=st.lists(st.tuples(SIDES, SIDES), max_size=2),
    limits=st.sampled_from([(3136, 3136), (3136, 12544), (12544, 50176)]),
    square=st.sampled_from([None, None, 56]),
)
def test_the_fault_is_that_of_the_encoded_prompt(encoder, question, sides, limits, square):
    images = [Noise(k, *side) for k, side in enumerate(sides)]
    encoder = dataclasses.replace(encoder, image_size=square)
    sample = sample_of(question, images=images)
    for fault, fits, length in lengths(encoder, sample, min_pixels=limits[0], max_pixels=limits[1]):
        assert (fault is None) == fits
        assert fits or f"has {length} tokens" in fault


def test_the_longest_picture_has_more_tokens_than_its_pixels(encoder):
    """One row of tokens stays, however few pixels ``max_pixels`` leaves it."""
    sample = sample_of(images=[Noise(1, 1990, 10)])
    for fault, fits, _ in lengths(encoder, sample, min_pixels=3136, max_pixels=3136):
        assert (fault is None) == fits


def test_a_picture_that_is_turned(encoder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    image = ImageFile(tmp_path / "turned.jpg")
    assert image.load().size == (20, 40)
    assert set(image_size(image)) == set(image_size(BlankImage(image))) == {20, 40}
    for fault, fits, _ in lengths(encoder, sample_of(images=[image]), min_pixels=3136, max_pixels=12544):
        assert (fault is None) == fits


def test_a_picture_without_a_size_is_a_fault(encoder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    tight = dataclasses.replace(encoder, max_prompt_tokens=100)
    fault = PromptLength(tight, PROMPT, "train").fault(sample_of(images=[ImageFile(tmp_path / "broken.png")]))
    assert "size of an image is unknown" in fault


def test_short_questions_are_not_tokenised(encoder, monkeypatch):
    """A hundred thousand questions are checked in a second."""
    check = PromptLength(dataclasses.replace(encoder, max_prompt_tokens=1024), PROMPT, "train")
    assert check.fault(sample_of()) is None
    monkeypatch.setattr(type(encoder), "chat_tokens", lambda *_: pytest.fail("tokenised"))
    assert check.fault(sample_of("Which organ does this image show, and is it normal?")) is None


def test_only_the_header_of_a_picture_is_read(tmp_path):
    """All images of a set with several images a question are measured before the first step."""
    Image.effect_noise((200, 100), 90).save(tmp_path / "noise.png")
    data = (tmp_path / "noise.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("cut.png", data[: len(data) // 2])
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for image in (ImageFile(tmp_path / "cut.png"), ZipImage(tmp_path / "all.zip", "cut.png")):
        assert image_size(image) == (200, 100)
