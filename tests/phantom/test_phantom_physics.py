"""The five modalities beyond radiology: truth measured on the scene, and physics seen in the picture."""

import itertools
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import label

from medvlm_r1.phantom import FINDINGS, MODALITIES, QUESTION_TYPES, PhantomImage
from medvlm_r1.phantom.physics import oct, ultrasound
from medvlm_r1.phantom.physics.paint import blobs, cloud, strokes
from medvlm_r1.phantom.scenes import histology, retina, skin, torso
from medvlm_r1.phantom.scenes.outline import draw_outline
from medvlm_r1.phantom.spec import COUNTS, GRADES, SceneSpec

ANATOMY, DISEASE, _, ACQUISITION, _ = QUESTION_TYPES
NEW = ("ultrasound", "dermoscopy", "fundus", "oct", "microscopy")
X, Y = np.meshgrid(np.arange(112) - 55.5, np.arange(112) - 55.5)


def picture(modality, acquisition, site, disease, grade="moderate", attribute="one", key=5):
    """``[112, 112, 3]``, 0 to 1."""
    spec = SceneSpec((key,), site, disease, grade, attribute)
    return np.asarray(PhantomImage(modality, acquisition, spec, 112, "one").load()) / 255.0


def retinas(number, **asked):
    for key in range(number):
        site = retina.SITES[key % 4]
        given = {"site": site, "disease": retina.DISEASES[key % 5], "grade": GRADES[key % 4], **asked}
        yield retina.draw_retina(SceneSpec((key,), given.pop("site"), **given))


# All ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", NEW)
def test_every_disease_looks_different_in_every_acquisition(modality):
    """The same patient with another disease, compared where the lesion is."""
    classes = FINDINGS[modality]
    attribute = classes[QUESTION_TYPES[-1]][0]
    for acquisition in classes[ACQUISITION]:
        for site in classes[ANATOMY]:
            seen = [picture(modality, acquisition, site, d, "mild", attribute) for d in classes[DISEASE]]
            for i, one in enumerate(seen):
                for other in seen[:i]:
                    assert (np.abs(one - other).max(-1) > 0.12).sum() > 12, (acquisition, site)


@pytest.mark.parametrize("modality", NEW)
def test_acquisitions_look_different(modality):
    classes = FINDINGS[modality]
    attribute = classes[QUESTION_TYPES[-1]][0]
    site, disease = classes[ANATOMY][0], classes[DISEASE][0]
    seen = [picture(modality, name, site, disease, attribute=attribute) for name in classes[ACQUISITION]]
    for i, one in enumerate(seen):
        assert all(np.abs(one - other).mean() > 0.03 for other in seen[:i])


@pytest.mark.parametrize("modality", NEW)
def test_a_picture_takes_milliseconds(modality):
    classes, took = FINDINGS[modality], []
    attribute = classes[QUESTION_TYPES[-1]][0]
    for site in classes[ANATOMY] * 3:
        started = time.process_time()
        picture(modality, classes[ACQUISITION][0], site, classes[DISEASE][0], "mild", attribute)
        took.append(time.process_time() - started)
    assert np.median(took) < 0.060  # about 10 ms on a core of its own


@pytest.mark.parametrize("radii", [torso.RADII, skin.RADII, retina.RADII, histology.RADII])
def test_grades_leave_gaps(radii):
    assert tuple(radii) == GRADES
    steps = list(radii.values())
    assert all(0.96 * b > 1.2 * 1.04 * a for a, b in itertools.pairwise(steps))


def test_an_outline_has_the_area_that_its_waves_give_it():
    outline = draw_outline((3.0, -4.0), 24.0, 0.2, np.random.default_rng(0))
    area = math.pi * 24.0**2 * (1 + 0.5 * sum(a * a for _, a, _ in outline.waves))
    assert (outline.inside(X, Y) > 0).sum() == pytest.approx(area, rel=0.02)


def test_brushes_paint_what_they_are_asked_for():
    spots = np.array([[10.0, -20.0], [-30.0, 5.0], [200.0, 0.0]])
    seen = blobs(
        spots, np.array([6.0, 4.0, 5.0]), 112, np.array([1.0, 2.0, 1.0]), 0.6, np.array([1.0, 0.5, 1.0])
    )
    assert (seen > 0.75).sum() == pytest.approx(math.pi * 36, rel=0.05)
    assert ((seen > 0.25) & (seen <= 0.5) & (X < 0)).sum() == pytest.approx(math.pi * 16, rel=0.1)
    line = strokes([(np.array([[-40.0, 0.0], [40.0, 0.0]]), 3.0)], 112)
    assert line.sum() == pytest.approx(240, rel=0.1)
    noise = cloud(np.random.default_rng(0), 6.0, 112)
    assert noise.shape == (112, 112)
    assert abs(noise.mean()) < 0.1
    assert 0.8 < noise.std() < 1.2


# Ultrasound --------------------------------------------------------------------------------------------


def flat(level=0.0, loss=0.6):
    shape = (ultrasound._BEAMS, ultrasound._SAMPLES)
    return np.full(shape, level, np.float32), np.full(shape, loss, np.float32)


def test_sound_is_lost_with_depth_as_the_tissue_and_the_gain_say():
    probe = ultrasound.PROBES["linear"]
    step = probe.depth / ultrasound._SAMPLES * ultrasound._CM / ultrasound._ZOOM
    for loss, slope in ((0.6, 0.0), (0.9, -2 * 3.5 * 0.3), (0.4, 2 * 3.5 * 0.2)):  # dB/cm
        seen = np.mean(
            [ultrasound.echoes(*flat(20.0, loss), probe, np.random.default_rng(i)) for i in range(4)],
            axis=(0, 1),
        )
        reach = slice(10, 70)
        measured = np.polyfit(np.arange(160)[reach] * step, seen[reach], 1)[0]
        assert measured == pytest.approx(slope, abs=0.25)


def test_a_cyst_enhances_and_calcium_shadows():
    probe, behind = ultrasound.PROBES["linear"], (slice(50, 62), slice(80, 110))
    for tissue, sign in (("cyst", 1), ("calcium", -1), ("lung", -1)):
        echo, loss = flat()
        echo[46:66, 40:70], loss[46:66, 40:70] = ultrasound.TISSUES[tissue]
        seen = ultrasound.echoes(echo, loss, probe, np.random.default_rng(0))
        difference = seen[behind].mean() - seen[10:30, 80:110].mean()
        assert sign * difference > 5, tissue


def test_speckle_is_rayleigh():
    """Of the logarithm of a Rayleigh variable, the standard deviation is 5.57 dB; smoothing takes some."""
    seen = ultrasound.echoes(*flat(20.0), ultrasound.PROBES["linear"], np.random.default_rng(0))
    assert 2.0 < seen[:, 10:60].std() < 5.6


@pytest.mark.parametrize("name", ultrasound.PROBES)
def test_fields_are_those_of_their_probes(name):
    to_beams, to_picture, inside = ultrasound._grid(ultrasound.PROBES[name], 112)
    assert 0.2 < inside.mean() < 0.9
    assert abs(inside - inside[:, ::-1]).sum() <= 8  # symmetric
    widths = [inside[row].sum() for row in (8, 30, 50)]
    assert widths[0] == widths[2] if name == "linear" else widths[0] < widths[1] <= widths[2]
    # from the grid of beams to the picture and back
    row, column = to_beams[:, 60, 90]
    there = to_picture[:, round(float(row)), round(float(column))]
    assert there == pytest.approx([60, 90], abs=1.5)
    grey = picture("ultrasound", name, "liver", "cyst")[..., 0]
    assert grey[inside == 0].max() < 0.02


def test_fluid_is_black():
    spec = SceneSpec((5,), "liver", "cyst", "moderate")
    grey = picture("ultrasound", "curvilinear", "liver", "cyst")[..., 0]
    assert len(torso.draw_scene(spec).lesions) == 1
    assert grey[55:61, 53:59].mean() < 0.15  # the view is centred on the lesion
    assert grey[30:40, 50:62].mean() > 0.3


# Dermoscopy --------------------------------------------------------------------------------------------


def test_skin_is_darker_and_yellower_with_more_melanin():
    light = [picture("dermoscopy", "polarized", "trunk", "nevus", "minimal", tone) for tone in skin.TONES]
    ring = (np.hypot(X, Y) > 28) & (np.hypot(X, Y) < 45)
    means = np.array([one[ring].mean(0) for one in light])
    assert (np.diff(means, axis=0) < 0).all()
    absorbed = np.log(means[0] / means[-1])  # melanin absorbs like wavelength^-3.3
    assert absorbed[2] > absorbed[1] > absorbed[0]
    assert absorbed[2] / absorbed[0] == pytest.approx((620 / 460) ** 3.33, rel=0.25)


def test_lesions_have_their_colours():
    inside = np.hypot(X, Y) < 12
    middle = {
        disease: picture("dermoscopy", "polarized", "trunk", disease, "severe", "fair")[inside].mean(0)
        for disease in skin.DISEASES
    }
    redness = {disease: colour[0] - colour[1] for disease, colour in middle.items()}
    assert max(redness, key=redness.get) == "hemangioma"
    brightness = {disease: colour.mean() for disease, colour in middle.items()}
    assert min(brightness, key=brightness.get) == "melanoma"


def test_only_a_melanoma_is_notched():
    def roughness(disease):
        outlines = [skin.draw_skin(SceneSpec((k,), "lip", disease, "mild", "fair")).lesion for k in range(20)]
        return np.mean([sum(a * a for _, a, _ in one.waves) for one in outlines])

    assert roughness("melanoma") > 3 * max(roughness(d) for d in skin.DISEASES if d != "melanoma")


# Retina ------------------------------------------------------------------------------------------------


def test_vessels_are_a_tree_that_leaves_the_disc():
    for scene in retinas(30):
        for index, vessel in enumerate(scene.vessels):
            if vessel.parent is None:
                assert np.allclose(vessel.points[0], scene.disc)
                continue
            parent = scene.vessels[vessel.parent]
            assert vessel.parent < index
            assert np.hypot(*(parent.points - vessel.points[0]).T).min() < 1e-9
            assert vessel.width < parent.width
            assert vessel.artery == parent.artery
        widths = {kind: max(v.width for v in scene.vessels if v.artery == kind) for kind in (True, False)}
        assert widths[False] > widths[True]  # veins are wider
        every = np.concatenate([v.points for v in scene.vessels])
        assert np.hypot(*(every - scene.fovea).T).min() > 4  # the fovea has none


def test_painted_vessels_hang_together():
    scene = retina.draw_retina(SceneSpec((3,), "fovea", "drusen", "mild"))
    drawn = strokes([(v.points, v.width) for v in scene.vessels], 112) > 0
    parts, number = label(drawn, np.ones((3, 3)))
    assert np.bincount(parts.ravel())[1:].max() > 0.97 * drawn.sum(), number


def test_lesions_lie_where_the_truth_says():
    for scene in retinas(200):
        (lesion,), (site,) = scene.lesions, scene.sites
        from_disc = math.dist(lesion.centre, scene.disc)
        large = np.concatenate([v.points for v in scene.vessels if v.width > 1.2])
        measured = {
            "fovea": math.dist(lesion.centre, scene.fovea) <= 2.01,
            "disc": from_disc <= 7.01,
            "arcade": np.hypot(*(large - lesion.centre).T).min() < 4.5 and from_disc > 14,
            "periphery": math.hypot(*lesion.centre) > 45,
        }
        assert [name for name, true in measured.items() if true] == [site]
    for scene in retinas(40, grade="mild", attribute="four"):
        along = sorted(lesion.centre[0] for lesion in scene.lesions)
        assert len(along) == 4
        assert min(np.diff(along)) > 6.5  # a section shows all of them


def test_the_eye_looks_as_its_camera_shows_it():
    scene = retina.draw_retina(SceneSpec((5,), "periphery", "drusen", "minimal"))
    disc = np.hypot(X - scene.disc[0], Y - scene.disc[1]) < 4
    fovea = np.hypot(X - scene.fovea[0], Y - scene.fovea[1]) < 4
    vessel = strokes([(v.points, v.width) for v in scene.vessels if v.parent is None], 112) > 0.9
    field = np.hypot(X, Y) < 45
    vessel &= field & ~(np.hypot(X - scene.disc[0], Y - scene.disc[1]) < 10)
    shown = {
        m: picture("fundus", m, "periphery", "drusen", "minimal") for m in FINDINGS["fundus"][ACQUISITION]
    }
    grey = {mode: one.mean(-1) for mode, one in shown.items()}
    assert grey["color"][disc].mean() > 1.5 * grey["color"][field].mean()
    assert grey["color"][fovea].mean() < grey["color"][field].mean()
    assert shown["color"][field].mean(0)[0] > 2 * shown["color"][field].mean(0)[2]  # orange
    for mode, brighter in (("redfree", False), ("angiography", True), ("autofluorescence", False)):
        assert (grey[mode][vessel].mean() > grey[mode][field].mean()) == brighter, mode
        assert np.ptp(shown[mode], axis=-1).max() == 0  # grey
    assert grey["autofluorescence"][disc].mean() < 0.3 * grey["autofluorescence"][field].mean()
    assert grey["color"][:8, :8].max() < 0.1  # outside the field


def test_layers_never_cross_and_add_up():
    for scene in retinas(60):
        cut = oct._cut(scene, np.random.default_rng(0), 112)
        oct._LESIONS[scene.disease](cut)
        tops = oct.boundaries(cut.thick, cut.depth)
        assert len(tops) == len(oct.LAYERS)
        assert (np.diff(np.stack(tops), axis=0) >= -1e-4).all()
        inner = sum(t for name, t in cut.thick.items() if name != "choroid")
        assert np.allclose(tops[-2] - tops[1], inner, atol=1e-4)


def test_the_fovea_is_a_pit_and_the_disc_a_gap():
    scene = retina.draw_retina(SceneSpec((5,), "fovea", "exudate", "minimal"))
    thick = oct._cut(scene, np.random.default_rng(0), 112).thick
    total = sum(t for name, t in thick.items() if name != "choroid")
    fovea, disc = (round(place[0] + 55.5) for place in (scene.fovea, scene.disc))
    side = round(0.5 * (fovea + disc))
    assert total[fovea] < 0.65 * total[side]
    assert thick["pigment"][fovea] > 2
    if abs(scene.disc[1] - scene.lesions[0].centre[1]) < 5:
        assert thick["pigment"][disc] < 0.5


def test_light_is_lost_twice_over():
    reflectivity, loss = np.ones((112, 3)), np.full((112, 3), 0.02)
    seen = oct.backscattered(reflectivity, loss)
    assert seen[-1, 0] == pytest.approx(math.exp(-2 * 0.02 * 112))


def test_bands_have_their_order_of_brightness_and_blood_casts_a_shadow():
    healthy = SceneSpec((8,), "fovea", "exudate", "minimal")
    scene = retina.draw_retina(healthy)
    own = np.random.default_rng(np.random.SeedSequence(scene.key))
    cut = oct._cut(scene, own, 112)
    tops = dict(zip(oct.LAYERS, oct.boundaries(cut.thick, cut.depth), strict=True))
    grey = picture("oct", "spectral", "fovea", "exudate", "minimal", key=8)[..., 0]
    column = round(scene.fovea[0] + 55.5) + (12 if scene.disc[0] < scene.fovea[0] else -12)

    def band(name, columns=slice(column - 3, column + 4)):
        at = [(round(tops[name][c] + cut.thick[name][c] / 2 + 55.5), c) for c in range(112)[columns]]
        return np.mean([grey[row, c] for row, c in at])

    assert band("pigment") > band("outer nuclear") + 0.2
    assert band("nerve fibre") > band("inner nuclear")
    assert band("ellipsoid") > band("outer nuclear") + 0.2
    assert grey[:20].mean() < 0.2  # vitreous
    bleeding = picture("oct", "spectral", "arcade", "hemorrhage", "severe", key=8)[..., 0]
    scene = retina.draw_retina(SceneSpec((8,), "arcade", "hemorrhage", "severe"))
    middle = round(scene.lesions[0].centre[0] + 55.5)
    beside = [c for c in range(10, 102) if 20 < abs(c - middle) < 30]
    assert bleeding[66:90, middle - 5 : middle + 5].mean() < 0.8 * bleeding[66:90, beside].mean()


# Microscopy --------------------------------------------------------------------------------------------


def test_sections_hold_what_was_asked_for():
    for key in range(40):
        count, grade = COUNTS[key % 4], GRADES[key % 2]
        scene = histology.draw_section(SceneSpec((key,), "lung", "necrosis", grade, count))
        inside = np.max([lesion.inside(X, Y) for lesion in scene.lesions], axis=0)
        assert label(inside > 0)[1] == key % 4 + 1
        assert all(abs(o.radius / histology.RADII[grade] - 1) <= 0.04 for o in scene.lesions)


def test_stains_absorb_as_their_dyes_do():
    """Air passes all light; nuclei are blue in haematoxylin, cytoplasm pink in eosin, brown in DAB."""
    lung = picture("microscopy", "HE", "lung", "inflammation", "severe")
    scene = histology.draw_section(SceneSpec((5,), "lung", "inflammation", "severe"))
    inside = scene.lesions[0].inside(X, Y)
    assert np.quantile(lung[inside < -3], 0.9) > 0.9  # air
    cells = lung[inside > 3].mean(0)
    assert cells.mean() < 0.5
    assert cells[2] > cells[1]  # haematoxylin passes blue, least green
    pink = picture("microscopy", "HE", "lung", "necrosis", "severe")[inside > 5].mean(0)
    assert pink[0] > pink[2] > pink[1]
    brown = picture("microscopy", "IHC", "lung", "necrosis", "severe")[inside > 5].mean(0)
    assert brown[0] > brown[1] > brown[2]


def test_cancer_has_larger_nuclei_than_inflammation():
    def nuclei(disease):
        grey = picture("microscopy", "HE", "lung", disease, "severe")[..., 0]
        inside = histology.draw_section(SceneSpec((5,), "lung", disease, "severe")).lesions[0].inside(X, Y)
        parts, number = label((grey < 0.42) & (inside > 2))
        return np.median(np.bincount(parts.ravel())[1:]) if number else 0.0

    assert nuclei("necrosis") < nuclei("inflammation")
    assert nuclei("inflammation") < nuclei("carcinoma")


def test_a_section_under_another_stain_is_the_same_section():
    spec = SceneSpec((5,), "colon", "fibrosis", "mild", "two")
    scene = MODALITIES["microscopy"].anatomy.draw(spec)
    assert scene == histology.draw_section(replace(spec))
    fundus, section = (MODALITIES[name].anatomy.draw for name in ("fundus", "oct"))
    spec = SceneSpec((5,), "disc", "edema", "mild")
    assert [o.centre for o in fundus(spec).lesions] == [o.centre for o in section(spec).lesions]
