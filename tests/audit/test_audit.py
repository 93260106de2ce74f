"""The audit finds planted leaks with their kind and no others; shortcut rules score as computed by hand."""

import dataclasses
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import dicom_files
import numpy as np
import pytest
from command import run_here
from PIL import Image, ImageFilter

from medvlm_r1.audit import Audit, PreRunAudit, audit
from medvlm_r1.audit.compare_pair import COPIES, NEIGHBOUR, Turn, classify_pair, view
from medvlm_r1.audit.fingerprints import Fingerprint, candidates, fingerprint, fingerprints
from medvlm_r1.audit.leaks import repeated_questions
from medvlm_r1.audit.question_files import read_files
from medvlm_r1.audit.shortcuts import shortcuts
from medvlm_r1.cli.audit import main
from medvlm_r1.data.formats.mcq_json import McqJson
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.dicom import DicomImage
from medvlm_r1.data.sample import VQASample
from medvlm_r1.data.splits import Questions
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.report.page.audit import LEAK


def jpeg(picture, quality=60):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(picture):
    x, y = (max(1, round(0.02 * side)) for side in picture.size)
    return picture.crop((x, y, picture.width - x, picture.height - y))


ALTERED = {
    "same pixels": lambda p: p,
    "re-encoded": jpeg,
    "resized": lambda p: p.resize((p.width // 2, p.height // 2), Image.Resampling.BICUBIC),
    "cropped": cropped,
    "sharpened": lambda p: p.filter(ImageFilter.UnsharpMask(2, 150, 0)),
    "mirrored": lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "rotated": lambda p: p.transpose(Image.Transpose.ROTATE_90),
}


def sharpened_and_cropped(picture):
    return cropped(picture.filter(ImageFilter.UnsharpMask(2, 150, 0)))


TURNED = {"mirrored": Turn(mirrored=True), "rotated": Turn(quarters=3)}  # as a copy is turned back


def ask(path, number=0, **changes):
    sample = VQASample(
        id=f"{path.parent.name}-{path.stem}-{number}",
        images=(ImageFile(path),),
        question="What is shown?",
        options=("Cyst", "Mass"),
        answer="AB"[number % 2],
        modality="mri",
        question_type="unknown",
        source="made",
        image_group=path.as_posix(),
    )
    return dataclasses.replace(sample, **changes)


def real(variable, name):
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set: no real data to audit")
    return Path(os.environ[variable]) / name


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Train: forty phantoms. Test: altered copies of ten of them, and ten other bodies."""
    folder = tmp_path_factory.mktemp("planted")
    for name in ("train", "test"):
        (folder / name).mkdir()
    train, test = [], []
    for i, sample in enumerate(PhantomSource("mri", 40, "train")):
        path = folder / "train" / f"{i}.png"
        sample.images[0].load().save(path)
        train.append(ask(path, i))
        if i < 10:
            for kind, alter in ALTERED.items():
                copy = folder / "test" / f"{kind.replace(' ', '-')}-{i}.png"
                alter(Image.open(path).convert("RGB")).save(copy, compress_level=1)
                test.append(ask(copy, i))
    for i, sample in enumerate(PhantomSource("mri", 10, "test")):
        path = folder / "test" / f"new-{i}.png"
        sample.images[0].load().save(path)
        test.append(ask(path, i))
    return train, test


@pytest.fixture(scope="module")
def result(planted):
    return audit(planted[0], {"mri": planted[1]})


def test_planted_copies_are_found_each_with_its_kind(result, planted):
    (leak,) = result.leaks
    nearest = {}
    for pair in leak.pairs:
        nearest.setdefault(Path(pair.second).stem, pair)
    for kind in ALTERED:
        for i in range(10):
            pair = nearest[f"{kind.replace(' ', '-')}-{i}"]
            assert (pair.kind, Path(pair.first).stem) == (kind, str(i))
            assert 0 <= pair.distance < 0.08
    assert leak.questions == 70
    assert leak.kinds == dict.fromkeys(ALTERED, 10)
    assert set(leak.sources) == {f"train-{i}-{i}" for i in range(10)}


@pytest.mark.parametrize("modality", ["mri", "ct", "xray"])
def test_copies_that_are_sharpened_and_cropped(modality):
    """The rate in the docstring of ``compare_pair.py``; the others count as different images."""
    result = Counter()
    for sample in PhantomSource(modality, 30):
        picture = sample.images[0].load()
        result[classify_pair(view(picture), view(sharpened_and_cropped(picture)))[0]] += 1
    assert result["sharpened and cropped"] >= 27, result
    assert sum(n for kind, n in result.items() if kind in COPIES) >= 29, result


@pytest.mark.parametrize("turn", list(Image.Transpose), ids=lambda turn: turn.name)
def test_pictures_turned_in_any_way_are_found_and_named(turn):
    """A mirror image stays one however it is turned; sides may be unequal."""
    picture = PhantomSource("ct", 1)[0].images[0].load().resize((120, 90))
    turned = jpeg(picture.transpose(turn))
    one, other = (
        Fingerprint("", "", np.asarray(p.convert("L").resize((32, 32), Image.Resampling.BOX)))
        for p in (picture, turned)
    )
    mirror = turn.name.startswith(("FLIP", "TRANS"))
    kinds = {classify_pair(view(picture), view(turned), c.turn)[0] for c in candidates([one], [other])}
    assert kinds == {"mirrored" if mirror else "rotated"}


def test_other_bodies_are_no_copies(result):
    assert not [p for leak in result.leaks for p in leak.pairs if "new-" in p.second]


def test_findings_survive_json(result):
    assert Audit.from_dict(json.loads(json.dumps(result.as_dict()))) == result
    short = json.loads(json.dumps(result.as_dict(pairs=3)))
    assert len(short["leaks"][0]["pairs"]) == 3
    assert short["leaks"][0]["pairs_in_all"] == len(result.leaks[0].pairs)
    assert "70 of 80 mri questions (87.5 %) show a copy of a training image" in short["verdict"]


def test_same_path_and_same_bytes(planted, tmp_path):
    train, _ = planted
    copy = tmp_path / "other-name.png"
    copy.write_bytes(train[0].images[0].path.read_bytes())
    (leak,) = audit(train, {"mri": [ask(copy), ask(train[1].images[0].path)]}).leaks
    assert leak.kinds == {"same file": 1, "same bytes": 1}


def test_without_images_paths_are_compared_and_pixels_said_not_to_be(tmp_path):
    train = [ask(tmp_path / "a" / f"{i}.png", i) for i in range(4)]
    test = [ask(tmp_path / "a" / "0.png"), ask(tmp_path / "b" / "1.png"), ask(tmp_path / "b" / "9.png")]
    result = audit(train, {"mri": test})
    assert result.leaks[0].kinds == {"same file": 1, "same file name": 1}
    assert result.leaks[0].questions == 1  # a file name alone is a suspicion
    assert result.images_checked == 0
    assert "pixels were not checked" in result.verdict


def test_distinct_phantoms_raise_no_false_alarm():
    """Bodies of one anatomy under one physics: as alike as distinct pictures get."""
    first, second = (
        fingerprints([s.images[0] for s in PhantomSource("mri", 150, k)]) for k in ("train", "test")
    )
    pairs = candidates(first, second)
    kinds = Counter(classify_pair(first[c.first].view, second[c.second].view, c.turn)[0] for c in pairs)
    assert len(pairs) > 50  # the sieves alone would raise an alarm for many
    assert not [kind for kind in kinds if kind in COPIES]
    assert kinds[NEIGHBOUR] <= 1  # of 22,500 pairs


def test_flat_pictures_are_compared_with_nothing(tmp_path):
    for name, grey in (("a", 10), ("b", 11)):
        Image.new("RGB", (40, 40), (grey, grey, grey)).save(tmp_path / f"{name}.png")
    prints = [fingerprint(ImageFile(tmp_path / f"{name}.png")) for name in "ab"]
    assert prints[0].is_flat
    assert candidates(prints[:1], prints[1:]) == []


def test_repeated_questions(planted, tmp_path):
    first = planted[0][0]
    path = tmp_path / "renamed.png"
    path.write_bytes(first.images[0].path.read_bytes())
    again = ask(path, 1, options=("Mass", "Cyst"))
    other = dataclasses.replace(again, id="other", question="Where is it?")
    prints = {s.images[0].name: fingerprint(s.images[0]) for s in (first, again, other)}
    assert repeated_questions([first, other, again], prints) == [(first.id, again.id)]


def test_shortcuts_on_paper(tmp_path):
    """Cyst was gold in 2 of the 3 questions that showed it, Mass in 1 of 3, Bone never."""
    path = tmp_path / "x.png"
    train = [
        ask(path, options=("Cyst", "Mass"), answer="A"),
        ask(path, options=("Mass", "Cyst"), answer="B"),
        ask(path, options=("Mass", "Cyst", "Bone"), answer="A"),
    ]
    test = [
        ask(path, options=("Mass", "cyst."), answer="B"),  # the prior ignores case and the full stop
        ask(path, options=("Bone", "Unseen"), answer="A"),  # a tie: half a hit
        ask(path, question="New?", options=("A longer one", "Cyst"), answer="A"),
    ]
    result = shortcuts(train, test)
    assert result["option text"].accuracy == pytest.approx(1.5 / 3)
    assert result["option text as spelt"].accuracy == pytest.approx(0.5 / 3, abs=1e-6)
    assert result["question"].accuracy == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert result["majority letter"].accuracy == pytest.approx(2 / 3)
    assert result["longest option"].accuracy == pytest.approx((1 + 0 + 1) / 3)
    assert {(s.chance, s.n) for s in result.values()} == {(0.5, 3)}


def questions_of(planted):
    train, test = planted
    return Questions(train[5:], PhantomSource("mri", 4, "validation"), {"mri": test})


def test_on_leak(planted, tmp_path):
    questions = questions_of(planted)
    same, result = PreRunAudit("warn", tmp_path)(questions)
    assert same is questions
    assert len(result.leaking) == 5
    with pytest.raises(ValueError, match=r"35 of 80 mri questions .* audit.on_leak=drop"):
        PreRunAudit("fail", tmp_path)(questions)
    clean, dropped = PreRunAudit("drop", tmp_path)(questions)
    assert (len(clean.train), dropped.dropped) == (30, 5)
    assert clean.test == questions.test
    assert "5 training questions dropped for it" in dropped.verdict
    assert not PreRunAudit("warn")(clean)[1].leaking
    with pytest.raises(ValueError, match="'warn', 'drop' or 'fail'"):
        PreRunAudit("skip")


def test_a_run_drops_or_fails(planted, tmp_path):
    """Two of 20 training questions show a picture that is tested, one of them sharpened and cropped."""
    train = [sample.images[0].path for sample in planted[0]]
    sharpened_and_cropped(Image.open(train[1]).convert("RGB")).save(tmp_path / "copy.png")
    new = [s.images[0].path for s in planted[1] if "new-" in s.images[0].name]
    rows = [ROW | {"image": str(path), "answer": ROW["options"][i % 2]} for i, path in enumerate(train[:24])]
    test = [ROW | {"image": str(path)} for path in (train[0], tmp_path / "copy.png", *new)]
    parts = {"train": rows[:20], "validation": rows[20:], "test": test}
    for name, part in parts.items():
        write_rows(tmp_path / f"{name}.json", part)
    command = ["+experiment=sft_600", "model=tiny", "data=mcq_json", "workers=0"]
    command += ["data.rows.follow_links=true"]
    command += ["data.train=train.json", "data.validation=validation.json", "data.test={mri:test.json}"]
    command += ["data.n_validation=4", "trainer.max_steps=1", "data.rows.check_images=false"]
    run = run_here(tmp_path, *command, "audit.on_leak=fail", code=2)
    leak = "2 of 12 mri questions (16.7 %) show"
    assert f"error: audit: {leak} a copy of a training image" in run.stderr
    assert "Use audit.on_leak=drop to remove 2 training questions" in run.stderr
    assert not list(tmp_path.glob("outputs/runs/*/checkpoints"))
    run = run_here(tmp_path, *command, "audit.on_leak=drop")
    assert "2 training questions dropped for it" in run.stdout + run.stderr
    assert "18 training questions" in run.stdout + run.stderr
    (path,) = tmp_path.glob("outputs/runs/*/metrics.json")
    result = json.loads(path.read_text())["audit"]
    assert (result["dropped"], result["leaks"][1]["kinds"]) == (
        2,
        {"same file": 1, "sharpened and cropped": 1},
    )
    page = path.with_name("report.html").read_text()
    assert "<li>2 training questions dropped for it.</li>" in page
    assert LEAK not in page  # nothing that leaks was trained on
    run_here(tmp_path, *command, "controls=[image,blank,prior]")
    (warned,) = set(tmp_path.glob("outputs/runs/*/metrics.json")) - {path}
    result = json.loads(warned.read_text())["controls"]["mri"]
    assert "16.7 % of the questions show a copy of a training image" in result["labels"]
    assert result["rates"]["blank"]["n"] == result["rates"]["prior"]["n"] == 12


def test_findings_are_kept_by_content(planted, tmp_path):
    questions = questions_of(planted)
    first = PreRunAudit(cache=tmp_path)(questions)[1]
    (path,) = tmp_path.glob("*.json")
    stamp = path.stat().st_mtime_ns
    assert PreRunAudit(cache=tmp_path)(questions)[1] == first
    assert path.stat().st_mtime_ns == stamp
    fewer = dataclasses.replace(questions, train=questions.train[1:])
    PreRunAudit(cache=tmp_path)(fewer)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_findings_of_a_volume_follow_its_bytes(tmp_path):
    """A slice goes by the name of its file, whose content may change."""
    path = tmp_path / "a.dcm"

    def key(value):
        dicom_files.write(path, np.full((3, 30, 30), value, np.uint16))
        slices = [dataclasses.replace(ask(path, k), images=(DicomImage(path, k),)) for k in range(3)]
        parts = [[dataclasses.replace(sample, image_group=sample.id)] for sample in slices]
        _, findings = PreRunAudit()(Questions(parts[0], parts[1], {"ct": parts[2]}))
        return findings.data_sha256["train"]

    assert key(1) != key(2)


def write_rows(path, rows):
    path.write_text(json.dumps(rows))
    return path


ROW = {
    "image": ["a.png"],
    "question": "What is shown?",
    "options": ["Cyst", "Mass"],
    "answer": "Cyst",
    "subset": "MR (Mag-netic Resonance Imaging)",
}


def test_every_fault_names_file_and_row(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    rows = [
        ROW,
        ROW | {"answer": "Bone"},
        ROW | {"options": ["Cyst", "Cyst"]},
        ROW | {"options": ["Cyst"]},
        ROW | {"question": " "},
        ROW | {"subset": "Palmistry"},
        ROW | {"image": ["missing.png"]},
    ]
    samples, faults, refused = read_files([write_rows(tmp_path / "rows.json", rows)])
    assert [len(images) for images in refused] == [1, 1, 1, 1]
    assert [s.id for s in samples] == ["rows-0", "rows-5", "rows-6"]
    assert samples[1].modality == "unknown"
    faulty = ("not among the options", "duplicate", "1 options", "question is empty", "no known modality")
    for number, words in enumerate((*faulty, "missing.png does not exist"), 1):
        assert any(f"rows.json row {number}:" in line and words in line for line in faults), words
    assert len(faults) == 6


def test_command_line(tmp_path, capsys):
    train = write_rows(tmp_path / "train.json", [ROW, ROW | {"image": "b.png"}])
    test = write_rows(tmp_path / "mri.json", [ROW, ROW | {"image": "c.png", "answer": "Mass"}])
    options = ["--train", str(train), "--test", str(test)]
    assert main([*options, "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 mri questions (50.0 %) show a copy of a training image" in " ".join(out.split())
    assert Audit.from_dict(json.loads((tmp_path / "out.json").read_text())).leaks[0].kinds == {"same file": 1}
    assert main([*options, "--fail-on-leak"]) == 1
    assert main(["--train", str(tmp_path / "none.json"), "--test", str(test)]) == 2
    assert main([*options, "--images", str(tmp_path / "none")]) == 2
    helped = subprocess.run(
        [sys.executable, "-m", "medvlm_r1.cli.audit", "--help"], capture_output=True, text=True, check=True
    )
    assert "--train train.json --test mri.json ct.json" in helped.stdout


@pytest.mark.parametrize(
    ("name", "shared", "n", "prior"), [("xray", 526, 1615, 94.7), ("dermoscopy", 241, 1306, 95.3)]
)
def test_known_truths_of_med_r1(name, shared, n, prior):
    train, test = (
        McqJson(
            real("MEDVLM_R1_REAL_QUESTIONS", f"med_r1_{name}_{part}.json"),
            modality=name,
            rows=RowPolicy(check_images=False),
        )
        for part in ("train", "test")
    )
    result = audit(train, {name: test})
    assert (result.leaks[0].kinds["same file"], result.leaks[0].questions, result.leaks[0].n) == (
        shared,
        shared,
        n,
    )
    assert 100 * result.shortcuts[name]["option text"].accuracy == pytest.approx(prior, abs=0.1)


def test_balance_of_medvlm_r1s_own_test_file():
    samples, faults, _ = read_files([real("MEDVLM_R1_REAL_QUESTIONS", "medvlm_r1_test_900.json")])
    made_of = audit(samples[:10], {"all": samples}).sets["all"]
    assert not faults
    assert made_of.modalities == {"mri": 300, "ct": 300, "xray": 300}
    assert made_of.options == {"4": 825, "2": 75}


def test_planted_copies_of_real_scans():
    """Sixty scans of two kinds and sizes, each altered in six ways, and cropped and sharpened at once."""
    rows = read_files([real("MEDVLM_R1_REAL_DATA", "train_mri.json")])[0]
    chosen = random.Random(0).sample(rows, 60)
    counts = Counter()
    for sample in chosen:
        picture = sample.images[0].load()
        for kind, alter in ALTERED.items():
            if kind != "same pixels":
                other = alter(picture)
                result, _ = classify_pair(view(picture), view(other), TURNED.get(kind, Turn()))
                counts[kind, result] += 1
        result, _ = classify_pair(view(picture), view(sharpened_and_cropped(picture)))
        counts["both", result] += 1
    assert sum(n for (k, f), n in counts.items() if k == "both" and f in COPIES) >= 57, counts
    for kind in ALTERED:
        if kind != "same pixels":
            assert sum(n for (k, f), n in counts.items() if k == kind and f in COPIES) >= 58, counts
            assert counts[kind, kind] >= 54, counts


def test_false_alarms_among_real_scans():
    """MRI against CT and X-ray: no pair is a copy, and none may be classified as one."""
    names = ("train_mri", "test_ct", "test_xray")
    mri, ct, xray = (read_files([real("MEDVLM_R1_REAL_DATA", f"{name}.json")])[0] for name in names)
    result = audit(mri, {"ct": ct, "xray": xray})
    assert result.images_checked == result.images
    assert [leak.questions for leak in result.leaks] == [0, 0]


def test_memory_and_time_do_not_grow_with_likeness():
    """Of five hundred pictures that all look alike, each has a few candidates."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (32, 32))
    first = fingerprint(PhantomSource("mri", 1)[0].images[0])
    prints = [
        dataclasses.replace(
            first, thumbnail=np.clip(base + rng.normal(0, 12, (32, 32)), 0, 255).astype(np.uint8)
        )
        for _ in range(500)
    ]
    pairs = candidates(prints[:250], prints[250:])
    assert max(Counter(c.second for c in pairs if c.explained < 0.98).values()) <= 3
