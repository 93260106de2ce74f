"""The embedded data: balanced, deterministic, disjoint, and physically sane."""

import itertools
import math
import pickle
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.stats import binom

from medvlm_r1.phantom import (
    FINDINGS,
    MODALITIES,
    QUESTION_TYPES,
    PhantomImage,
    PhantomSource,
    phantom_domains,
)
from medvlm_r1.phantom.physics.radiology import ct, line_integral, mri_signal
from medvlm_r1.phantom.physics.tissues import CT_WINDOWS, MRI_ACQUISITIONS, MRI_TISSUES, XRAY_PHOTONS
from medvlm_r1.phantom.scenes.geometry import VIEWS, Ellipsoid, chords, coverage, to_view
from medvlm_r1.phantom.scenes.torso import DISEASES, ORGANS, RADII, draw_scene
from medvlm_r1.phantom.spec import COUNTS, GRADES, SceneSpec

ANATOMY, _, _, ACQUISITION, ATTRIBUTE = QUESTION_TYPES
TORSO = ("mri", "ct", "xray")
STAINS = {"HE", "PAS", "IHC", "Giemsa"}


@cache
def questions(modality, n, split):
    return list(PhantomSource(modality, n, split))


def picture(modality, acquisition, key=7, organ="liver", disease="cyst", grade="moderate", count="one"):
    spec = SceneSpec((key,), organ, disease, grade, count)
    image = PhantomImage(modality, acquisition, spec, 112, "one")
    return np.asarray(image.load())[..., 0].astype(float)


def at(grey, point, radius=2):
    """Mean grey value around a world point of a coronal slice."""
    row, column = round(point[1] + 56), round(point[0] + 56)
    return grey[row - radius : row + radius, column - radius : column + radius].mean()


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_picture_is_a_function_of_its_handle(modality):
    one, again = PhantomSource(modality, 10)[7], PhantomSource(modality, 400)[7]
    assert one == again
    image = one.images[0]
    assert image.load().tobytes() == pickle.loads(pickle.dumps(image)).load().tobytes()
    assert image.load().size == (112, 112)
    assert image.load().mode == "RGB"
    assert replace(image, size=56).load().size == (56, 56)
    assert one.id == f"{modality}-train-0-00007"
    assert image.name == one.image_group == f"phantom/{modality}/train-0-00007"


def test_pictures_differ_between_seeds_modalities_and_splits():
    bytes_seen = {
        PhantomSource(modality, 1, split, seed)[0].images[0].load().tobytes()
        for modality in MODALITIES
        for split in ("train", "validation", "test", "base")
        for seed in (0, 1)
    }
    assert len(bytes_seen) == len(MODALITIES) * 4 * 2


def test_streams_of_splits_seeds_and_modalities_are_disjoint():
    keys = [
        sample.images[0].spec.key
        for modality in MODALITIES
        for split in ("train", "validation", "test", "base")
        for seed in (0, 1)
        for sample in PhantomSource(modality, 50, split, seed)
    ]
    assert len(set(keys)) == len(keys)


def test_fewer_question_types_serve_the_same_questions():
    everything = {sample.id: sample for sample in PhantomSource("ct", 500)}
    some = PhantomSource("ct", 100, question_types=[ATTRIBUTE, ANATOMY])
    assert all(everything[sample.id] == sample for sample in some)
    assert Counter(sample.question_type for sample in some) == {ANATOMY: 50, ATTRIBUTE: 50}


@pytest.mark.parametrize("modality", MODALITIES)
def test_classes_and_letters_are_balanced(modality):
    samples = questions(modality, 600, "train")
    assert set(Counter(sample.question_type for sample in samples).values()) == {120}
    for question_type in QUESTION_TYPES:
        asked = [sample for sample in samples if sample.question_type == question_type]
        names = FINDINGS[modality][question_type]
        pairs = Counter((sample.answer_text, sample.answer) for sample in asked)
        assert len(pairs) == 4 * len(names)
        assert max(pairs.values()) - min(pairs.values()) <= 1
        for marginal in (Counter(s.answer_text for s in asked), Counter(s.answer for s in asked)):
            assert max(marginal.values()) - min(marginal.values()) <= 2
        assert {name for sample in asked for name in sample.options} == set(names)


def test_every_option_is_one_short_word():
    words = {word for types in FINDINGS.values() for names in types.values() for word in names}
    assert all(word.isalnum() and (word.islower() or word in {*MRI_ACQUISITIONS, *STAINS}) for word in words)
    for types in FINDINGS.values():
        assert sum(map(len, types.values())) == len({word for names in types.values() for word in names})


def shares(samples, reading):
    """How often each thing that ``reading`` sees in an option was gold, relative to its appearances."""
    gold, shown = defaultdict(int), defaultdict(int)
    for sample in samples:
        for letter, option in zip(sample.letters, sample.options, strict=True):
            shown[reading(sample, letter, option)] += 1
            gold[reading(sample, letter, option)] += letter == sample.answer
    return {what: gold[what] / shown[what] for what in shown}


READINGS = {
    "option": lambda sample, letter, option: (sample.question_type, option),
    "letter": lambda sample, letter, option: (sample.question_type, letter),
    "wording-letter": lambda sample, letter, option: (sample.question, letter),
    "wording-option": lambda sample, letter, option: (sample.question, option),
    "bare-option": lambda sample, letter, option: option,
    "bare-letter": lambda sample, letter, option: letter,
}


@cache
def prior_of(modality, reading):
    return shares(questions(modality, 600, "train"), READINGS[reading])


def right_of(asked, prior, reading):
    """How many questions a prior answers rightly that takes the option worth most to it."""
    right = 0
    for sample in asked:
        worth = [
            prior.get(READINGS[reading](sample, letter, option), 0.25)
            for letter, option in zip(sample.letters, sample.options, strict=True)
        ]
        right += sample.letters[int(np.argmax(worth))] == sample.answer
    return right


@pytest.mark.parametrize("test_modality", MODALITIES)
@pytest.mark.parametrize("reading", READINGS)
def test_a_prior_without_the_picture_scores_at_chance(reading, test_modality):
    tests = questions(test_modality, 1000, "test")
    for modality in MODALITIES:
        for question_type in QUESTION_TYPES:
            asked = [sample for sample in tests if sample.question_type == question_type]
            right = right_of(asked, prior_of(modality, reading), reading)
            # 99.9 % for one look; the bound is shared out among all of them.
            looks = len(MODALITIES) ** 2 * len(QUESTION_TYPES) * len(READINGS)
            low, high = binom.interval(1 - 0.001 / looks, len(asked), 0.25)
            assert low <= right <= high, (modality, question_type, right / len(asked))


@cache
def asked_of_all(question_type, n, split):
    return list(PhantomSource(tuple(MODALITIES), n, split, question_types=[question_type]))


@pytest.mark.parametrize("reading", READINGS)
def test_a_prior_of_one_question_type_scores_at_chance_on_all(reading):
    for trained in QUESTION_TYPES:
        prior = shares(asked_of_all(trained, 600, "train"), READINGS[reading])
        for tested in QUESTION_TYPES:
            asked = asked_of_all(tested, 800, "test")
            low, high = binom.interval(1 - 0.001 / 150, len(asked), 0.25)
            assert low <= right_of(asked, prior, reading) <= high, (trained, tested)


def test_several_modalities_take_turns_and_serve_their_own_questions():
    mixed = PhantomSource(("xray", "mri"), 20, "test", 3, [ANATOMY])
    assert [sample.modality for sample in mixed] == ["mri", "xray"] * 10
    for name in ("mri", "xray"):
        own = list(PhantomSource(name, 10, "test", 3, [ANATOMY]))
        assert [sample for sample in mixed if sample.modality == name] == own
    fewer = list(PhantomSource(("xray", "mri"), 7, "test", 3, [ANATOMY]))
    assert list(mixed)[:7] == fewer


def test_domains_are_one_row_of_a_matrix():
    made = phantom_domains("modality", "oct", n_train=30, n_validation=10, n_test=8)
    assert tuple(made.test) == tuple(MODALITIES)
    assert {s.modality for s in made.train} == {s.modality for s in made.validation} == {"oct"}
    assert all({s.modality for s in source} == {name} for name, source in made.test.items())
    made = phantom_domains("question_type", "lesion_grading", ["disease_diagnosis"], 30, 10, 16)
    assert {s.question_type for s in made.train} == {"Lesion Grading"}
    assert Counter(s.modality for s in made.test["disease_diagnosis"]) == dict.fromkeys(MODALITIES, 2)
    with pytest.raises(ValueError, match="no domain 'pet' by modality: use one of mri, ct"):
        phantom_domains("modality", "pet")
    with pytest.raises(ValueError, match="'mri' by question_type: use one of anatomy_identification"):
        phantom_domains("question_type", "lesion_grading", ["mri"])


@pytest.mark.parametrize("modality", MODALITIES)
def test_findings_agree_with_gold_and_with_the_scene(modality):
    for sample in PhantomSource(modality, 300, "base"):
        spec, found = sample.images[0].spec, sample.images[0].findings()
        assert found[sample.question_type] == sample.answer_text
        assert all(found[name] in FINDINGS[modality][name] for name in found)
        assert (ANATOMY in found) == (spec.count == 1)
        assert spec.count == 1 or sample.question_type == ATTRIBUTE
        if FINDINGS[modality][ATTRIBUTE] == COUNTS:
            assert COUNTS.index(found[ATTRIBUTE]) + 1 == spec.count


@pytest.mark.parametrize("modality", [*TORSO, "ultrasound"])
def test_torsos_hold_what_was_asked_for(modality):
    for sample in PhantomSource(modality, 100, "base"):
        spec = sample.images[0].spec
        lesions = MODALITIES[modality].anatomy.draw(spec).lesions
        assert len(lesions) == spec.count
        assert lesions[0].organ == spec.site
        assert all(abs(lesion.radius / RADII[spec.grade] - 1) <= 0.04 for lesion in lesions)
        assert {lesion.organ for lesion in lesions} <= set(FINDINGS[modality][ANATOMY])


def test_lesions_of_one_scene_keep_apart_in_every_view():
    for key in range(60):
        lesions = draw_scene(SceneSpec((key,), "lung", "cyst", "mild", "four")).lesions
        for view in VIEWS.values():
            spots = [to_view(lesion.centre, view)[:2] for lesion in lesions]
            gaps = [math.dist(a, b) for i, a in enumerate(spots) for b in spots[:i]]
            assert min(gaps) > 2 * RADII["mild"]


def test_grades_leave_gaps():
    radii = list(RADII.values())
    assert tuple(RADII) == GRADES
    assert all(0.96 * b > 1.2 * 1.04 * a for a, b in itertools.pairwise(radii))


@pytest.mark.parametrize("view", VIEWS)
def test_a_ball_looks_like_a_ball_in_every_view(view):
    solid = Ellipsoid((3.0, -5.0, 4.0), (10.0, 10.0, 10.0), 0.7)
    _, share = coverage(solid, VIEWS[view], 112)
    _, length = chords(solid, VIEWS[view], 112)
    assert share.sum() == pytest.approx(math.pi * 100, rel=0.01)  # area of the silhouette
    assert length.sum() == pytest.approx(4 / 3 * math.pi * 1000, rel=0.01)  # volume
    assert length.max() == pytest.approx(20, rel=0.01)  # diameter


@pytest.mark.parametrize("view", VIEWS)
def test_chords_add_up_to_the_volume_of_a_tilted_ellipsoid(view):
    _, length = chords(Ellipsoid((3.0, -5.0, 4.0), (14.0, 6.0, 9.0), 0.5), VIEWS[view], 112)
    assert length.sum() == pytest.approx(4 / 3 * math.pi * 14 * 6 * 9, rel=0.01)


def test_fluid_is_bright_in_t2_and_dark_in_t1():
    for fluid in ("cyst", "bladder"):
        assert mri_signal(fluid, "T2") > 1.5 * mri_signal("liver", "T2")
        assert mri_signal(fluid, "T1") < 0.7 * mri_signal("liver", "T1")
    scene = draw_scene(SceneSpec((7,), "heart", "cyst", "moderate"))
    cyst, kidney = scene.lesions[0].centre, next(p for p in scene.organs if p.tissue == "kidney").solid.centre
    t2, t1 = (picture("mri", weighting, organ="heart") for weighting in ("T2", "T1"))
    assert at(t2, cyst) > at(t2, kidney)
    assert at(t1, cyst) < at(t1, kidney)


def test_mri_signal_by_hand():
    density, t1, t2 = MRI_TISSUES["liver"]
    assert mri_signal("liver", "T1") == pytest.approx(
        density * (1 - math.exp(-500 / t1)) * math.exp(-12 / t2)
    )
    flair = density * (1 - 2 * math.exp(-2500 / t1) + math.exp(-9000 / t1)) * math.exp(-80 / t2)
    assert mri_signal("liver", "FLAIR") == pytest.approx(flair)
    assert mri_signal("bladder", "FLAIR") < 0.1 * mri_signal("fat", "FLAIR")  # free fluid is nulled
    assert mri_signal("air", "T2") == 0


def test_mri_background_is_rayleigh():
    corner = np.concatenate([picture("mri", "T2", key)[60:110, :8].ravel() for key in range(8)])
    assert corner.mean() > 2
    # Rayleigh: mean over standard deviation is sqrt(pi / (4 - pi)) = 1.91; grey levels are rounded.
    assert corner.mean() / corner.std() == pytest.approx(1.91, rel=0.08)


def test_bone_is_brightest_in_the_bone_window():
    scene = draw_scene(SceneSpec((7,), "heart", "cyst", "mild"))
    centres = {
        part.tissue: part.solid.centre for part in reversed(scene.organs) if part.solid.centre[1] > -40
    }
    grey = picture("ct", "bone", organ="heart", grade="mild")
    for organ in ("liver", "lung", "spleen", "kidney"):
        assert at(grey, centres["bone"]) > at(grey, centres[organ]) + 40
    assert at(picture("ct", "pulmonary", organ="heart"), centres["lung"]) > at(grey, centres["lung"]) + 20


def test_ct_noise_has_a_ramp_spectrum():
    scene = draw_scene(SceneSpec((3,), "lung", "cyst", "minimal"))
    one, other = (ct(scene, "bone", np.random.default_rng(seed), 112) for seed in (0, 1))
    power = np.abs(np.fft.fft2(one - other)) ** 2  # two noises of one patient: the difference is noise alone
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(112), np.fft.fftfreq(112)))
    rings = [power[abs(frequency - f) < 0.01].mean() for f in (0.05, 0.1, 0.2)]
    assert rings[1] / rings[0] == pytest.approx(2, rel=0.2)  # twice the frequency, twice the power
    assert rings[2] / rings[0] == pytest.approx(4, rel=0.25)
    low, high = CT_WINDOWS["bone"]
    assert 3 < (one - other).std() / math.sqrt(2) * (high - low) < 20  # HU


def test_a_thicker_body_is_brighter_in_xray():
    scene = draw_scene(SceneSpec((3,), "liver", "cyst", "mild"))
    thick = replace(
        scene,
        body=tuple(Ellipsoid(s.centre, (*s.radii[:2], 1.3 * s.radii[2])) for s in scene.body),
    )
    for view in VIEWS:
        if view != "lateral":
            thin_line, thick_line = line_integral(scene, view, 112), line_integral(thick, view, 112)
            assert (thick_line >= thin_line - 1e-3).all()
    frontal = line_integral(scene, "frontal", 112)
    assert frontal[0, 0] == 0
    assert frontal.max() < math.log(XRAY_PHOTONS) / 0.05  # no starved pixel
    lung = next(p for p in scene.organs if p.tissue == "lung").solid.centre
    assert at(frontal, lung) < at(frontal, (0, lung[1], 0))  # lungs are lucent beside the spine


@pytest.mark.parametrize("organ", ORGANS)
@pytest.mark.parametrize("disease", DISEASES)
def test_every_lesion_can_be_seen_in_every_acquisition(organ, disease):
    for modality in TORSO:
        for acquisition in FINDINGS[modality][ACQUISITION]:
            sick = picture(modality, acquisition, 11, organ, disease, "minimal")
            big = picture(modality, acquisition, 11, organ, disease, "severe")
            assert np.abs(sick - big).max() > 20, (modality, acquisition)


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({"modality": "pet"}, "mri, ct, xray"),
        ({"modality": ["mri", "pet"]}, "pet"),
        ({"modality": []}, "0 modalities"),
        ({"split": "dev"}, "train, validation, test, base"),
        ({"question_types": ["Colour"]}, "Anatomy Identification, Disease Diagnosis"),
    ],
)
def test_what_is_unknown_is_named_with_what_is_valid(change, valid):
    with pytest.raises(ValueError, match=valid):
        PhantomSource(**{"modality": "mri", "n": 4, **change})


def test_lengths_and_indices():
    source = PhantomSource("mri", 3)
    assert [sample.id for sample in source][-1] == source[-1].id
    assert len(source) == 3
    with pytest.raises(IndexError, match="3"):
        source[3]
    with pytest.raises(ValueError, match="n=-1"):
        PhantomSource("mri", -1)
