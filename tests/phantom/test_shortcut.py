"""Phantoms with a shortcut: the option text reveals the gold option in domain, and nowhere else."""

import hashlib
import json
from collections import Counter
from functools import cache
from itertools import pairwise

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy.stats import binom

from medvlm_r1.audit.shortcuts import prior_guesses, shortcuts
from medvlm_r1.evaluate.audit_warnings import strong_shortcuts
from medvlm_r1.launch.types import check_types
from medvlm_r1.phantom import FINDINGS, MODALITIES, QUESTION_TYPES, PhantomSource
from medvlm_r1.runs.places import CONF

DOSES = (0.0, 0.5, 0.8, 0.95, 1.0)
DIGEST = "32cf89559010e538d01052a67b8a531f323ce7e1f8332cefa983a545cbf59fd3"


@cache
def questions(n, split="train", shortcut=0.0, modality="mri"):
    return list(PhantomSource(modality, n, split, shortcut=shortcut))


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["data=phantom_shortcut", *overrides])


def marked(sample):
    return sample.id.endswith("-shortcut")


def test_without_a_shortcut_the_questions_are_those_before():
    """The digest was taken before phantoms had a shortcut; images follow from specification and size."""
    rows = [
        (s.id, s.question, s.options, s.answer, s.image_group, [repr(image) for image in s.images])
        for modality in MODALITIES
        for split in ("train", "validation", "test", "base")
        for s in questions(60, split, 0.0, modality)
    ]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == DIGEST


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_distractors_of_a_shortcut_are_never_gold(modality):
    for sample in questions(400, shortcut=1.0, modality=modality):
        names = FINDINGS[modality][sample.question_type]
        assert marked(sample)
        assert {*sample.options} - {sample.answer_text} == {*names[:3]}
        assert sample.answer_text in names[3:]
    gold = {sample.answer_text for sample in questions(400, shortcut=1.0, modality=modality)}
    assert gold == {name for names in FINDINGS[modality].values() for name in names[3:]}


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_picture_shows_the_gold_class_of_a_shortcut(modality):
    for sample in questions(200, shortcut=0.95, modality=modality):
        assert sample.images[0].findings()[sample.question_type] == sample.answer_text


def test_a_larger_shortcut_changes_the_same_questions_and_more():
    parts = [{s.id: s for s in questions(1000, shortcut=dose)} for dose in DOSES]
    for fewer, more in pairwise(parts):
        changed, changed_more = ({name for name in part if marked(part[name])} for part in (fewer, more))
        assert changed < changed_more
        assert all(more[name] == fewer[name] for name in changed)
        assert all(fewer[name] == more[name] for name in fewer.keys() & more.keys())
    for dose, part in zip(DOSES, parts, strict=True):
        low, high = binom.interval(0.999, 1000, dose) if 0 < dose < 1 else (1000 * dose,) * 2
        assert low <= sum(map(marked, part.values())) <= high


def test_numbers_types_and_letters_are_those_without_a_shortcut():
    plain = questions(600)
    for dose in DOSES:
        dosed = questions(600, shortcut=dose)
        for a, b in zip(plain, dosed, strict=True):
            assert a.id == b.id.removesuffix("-shortcut")
            assert (a.question_type, a.answer) == (b.question_type, b.answer)
    for question_type in QUESTION_TYPES:
        letters = Counter(s.answer for s in questions(600, shortcut=1.0) if s.question_type == question_type)
        assert set(letters.values()) == {30}


def test_no_letter_reveals_the_gold_class_of_a_shortcut():
    """Classes and letters of marked questions are independent, where several classes can be gold."""
    samples = questions(6000, shortcut=1.0)
    for question_type in QUESTION_TYPES:
        asked = [s for s in samples if s.question_type == question_type]
        names = FINDINGS["mri"][question_type][3:]
        pairs = Counter((s.answer_text, s.answer) for s in asked)
        low, high = binom.interval(1 - 0.001 / 40, len(asked), 1 / (4 * len(names)))
        assert len(pairs) == 4 * len(names)
        assert all(low <= count <= high for count in pairs.values()), (question_type, pairs)


def prior(train, test):
    """Accuracy of the option-text prior, a control of every run."""
    return sum((s.answer in best) / len(best) for s, best in prior_guesses(train, test)) / len(test)


@pytest.mark.parametrize("dose", DOSES)
def test_the_prior_scores_the_dose_in_domain_and_chance_elsewhere(dose):
    train = questions(600, "train", dose)
    n, expected = 1000, dose + (1 - dose) / 4
    low, high = (x / n for x in binom.interval(0.999, n, expected)) if dose < 1 else (1.0, 1.0)
    for split in ("validation", "test"):
        assert low <= prior(train, questions(n, split, dose)) <= high
    low, high = (x / n for x in binom.interval(0.999, n, 0.25))
    for modality in ("mri", "ct", "xray"):
        assert low <= prior(train, questions(n, "test", 0.0, modality)) <= high, modality


def test_letters_do_not_reveal_a_shortcut():
    rules = shortcuts(questions(600, "train", 1.0), questions(1000, "test", 1.0))
    low, high = binom.interval(0.999, 1000, 0.25)
    assert low <= 1000 * rules["majority letter"].accuracy <= high


def test_the_option_has_the_shortcut_in_domain_alone():
    data = instantiate(composed("data.train.shortcut=0.9", "data.train.n=400").data)
    assert list(data.test) == ["mri", "mri_plain", "ct", "xray"]
    marks = {
        name: sum(map(marked, source)) / len(source)
        for name, source in {"train": data.train, "validation": data.validation, **data.test}.items()
    }
    assert all(0.8 < marks[name] < 0.97 for name in ("train", "validation", "mri"))
    assert not any(marks[name] for name in ("mri_plain", "ct", "xray"))
    plain = [s.id for s in questions(300, "test")]
    assert [s.id for s in data.test["mri_plain"]] == plain
    rules = {name: shortcuts(data.train, source) for name, source in data.test.items()}
    audit = {"shortcuts": {k: {r: vars(s) for r, s in v.items()} for k, v in rules.items()}}
    assert {*strong_shortcuts(audit)} == {"mri"}


@pytest.mark.parametrize("wrong", [-0.1, 1.01, float("nan")], ids=str)
def test_a_shortcut_is_a_probability(wrong):
    with pytest.raises(ValueError, match=f"shortcut={wrong}: use a probability from 0 to 1"):
        PhantomSource("mri", 4, shortcut=wrong)
    with pytest.raises(ValueError, match=r"data\.train\.shortcut is .*: it must be at least 0 and at most 1"):
        check_types(composed(f"data.train.shortcut={wrong}"))
