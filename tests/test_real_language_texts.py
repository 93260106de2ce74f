"""Pictures, questions and completions of the base model of experiments/real_language."""

import base_pictures
import base_texts
import numpy as np
import pytest
import smollm2
import torch
from base_pictures import Picture
from PIL import Image

from medvlm_r1.data.sample import VQASample
from medvlm_r1.policy.prompt_record import record_from_config
from medvlm_r1.prompts import is_correct, mentioned_options


def row(kind, answer, *options, source="brain-tumor-mri", question="What is it?"):
    letter = "ABCD"[options.index(answer)]
    return VQASample("q", (), question, options, letter, "mri", kind, source, "g")


POOL = base_texts.QuestionPool.of(
    [
        row("Modality Recognition", "MRI", "MRI", "CT", "X-ray", "Ultrasound"),
        row("Anatomy Identification", "Brain", "Brain", "Breast", "Chest", "Hand"),
        row("Disease Diagnosis", "Glioma", *base_pictures.TUMOURS),
        row("Disease Diagnosis", "Yes", "Yes", "No"),
    ]
)
PICTURES = (
    Picture("a", "MRI", "Brain", "Glioma"),
    Picture("b", "MRI", "Brain", "No"),
    Picture("c", "X-ray", "Chest", None),
    Picture("d", "CT", None, None),
)


@pytest.fixture(scope="module")
def style():
    return record_from_config("outputs/smollm2_vl", "medvlm_r1")[0].prompt


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: f"{p.modality}-{p.region}-{p.finding}")
def test_completions_of_a_question_are_read_as_intended(picture, style):
    rng = np.random.default_rng(0)
    for _ in range(20):
        sample = POOL.ask(picture, None, rng)
        assert sample.answer_text in picture.facts.values() or sample.answer_text == picture.finding
        texts = {name: base_texts.completion(name, sample, picture, rng) for name in base_texts.STYLES}
        answers = {name: style.parse(text, sample) for name, text in texts.items()}
        assert is_correct(answers["reasoned"], sample)
        assert is_correct(answers["direct"], sample)
        assert answers["reasoned"].well_formed
        assert answers["direct"].answer_only
        assert not answers["loose"].answered
        named = [sample.options[i] for i in mentioned_options(answers["reasoned"].reasoning, sample.options)]
        assert named == [sample.answer_text] or {"Yes", "No"} & {*sample.options}


def test_facts_of_a_picture_follow_from_its_questions():
    one = base_pictures._picture("a", [row("Disease Diagnosis", "No tumor", *base_pictures.TUMOURS)])
    assert one.facts == {"modality": "MRI", "region": "Brain", "abnormal": "No", "tumour": "No tumor"}
    assert (
        base_pictures._picture("b", [row("Disease Diagnosis", "Yes", "Yes", "No")]).facts["abnormal"] == "Yes"
    )
    words = [
        row("ABN", "Yes", "Yes", "No", source="VQA-RAD", question=q) for q in ("Is the lung clear?", "Size?")
    ]
    assert base_pictures._picture("c", words).region == "Chest"
    assert base_pictures._picture("d", words[1:]).region is None


def test_patches_are_those_of_the_image_processor():
    grey = torch.randint(0, 256, (2, smollm2.SIDE, smollm2.SIDE), dtype=torch.uint8)
    images = [Image.fromarray(picture.numpy()).convert("RGB") for picture in grey]
    raw = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    encoded = smollm2.image_processor()(images, return_tensors="pt", temporal_patch_size=1, **raw)
    assert encoded["image_grid_thw"].tolist() == [[1, 8, 8]] * 2
    assert torch.equal(base_pictures.patches(grey), encoded["pixel_values"].to(torch.uint8))


def test_augmented_pictures_are_alike_but_not_equal():
    y, x = torch.meshgrid(torch.arange(112), torch.arange(112), indexing="ij")
    grey = (200 * torch.exp(-((x - 56) ** 2 + (y - 56) ** 2) / 800)).to(torch.uint8)[None].repeat(8, 1, 1)
    moved = base_pictures.augment(grey, np.random.default_rng(0))
    assert moved.shape == grey.shape
    assert moved.dtype == torch.uint8
    assert len({picture.numpy().tobytes() for picture in moved}) == 8
    assert all(np.corrcoef(a.flatten(), b.flatten())[0, 1] > 0.7 for a, b in zip(grey, moved, strict=True))
