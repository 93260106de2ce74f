"""Multiple-choice JSON files: both papers' schemas, every kind of unusable row, the first n questions."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlm_r1.data.formats.mcq_json import McqJson
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.images.content_key import image_digest
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.validate import check_images
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.prompts import PromptStyle

LINES = PromptStyle("lines", "{Question}", "{Question}", layout="lines")
INLINE = PromptStyle("inline", "{Question}", "{Question}", layout="inline")


def real(variable: str, name: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set: no real data to read")
    return Path(os.environ[variable]) / name


def row(i: int, **changes) -> dict:
    plain = {
        "image": [f"images/{i}.png"],
        "question": f"What is shown in image {i}?",
        "options": ["brain", "liver, left lobe", "kidney", "spine"],
        "answer": ["brain", "liver, left lobe", "kidney", "spine"][i % 4],
        "dataset": "made",
        "subset": "MR (Mag-netic Resonance Imaging)",
        "qtype": "Anatomy Identification",
    }
    return {key: value for key, value in (plain | changes).items() if value is not None}


@pytest.fixture
def folder(tmp_path):
    """Ten different pictures, ``images/0.png`` to ``images/9.png``."""
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(noise.integers(0, 255, (24, 20), dtype=np.uint8)).save(tmp_path / f"images/{i}.png")
    return tmp_path


def write(folder: Path, rows, name="mine.json") -> Path:
    path = folder / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path


def test_reads_the_layout_of_medvlm_r1(folder):
    rows = [row(0), row(1, solution="B", group="patient 7", image="images/1.png"), row(2, qtype=None)]
    source = McqJson(write(folder, rows, "my set.json"))
    assert [s.id for s in source] == ["my_set-0", "my_set-1", "my_set-2"]
    assert [s.answer for s in source] == ["A", "B", "C"]
    groups = [s.image_group for s in source]
    assert groups[1] == "patient 7"
    assert groups[0].startswith("0.png-")
    assert groups[2].startswith("2.png-")
    assert [s.question_type for s in source] == ["Anatomy Identification"] * 2 + ["unknown"]
    assert source[0].modality == "mri"
    assert source[0].source == "made"
    assert source[0].images[0].load().size == (20, 24)
    assert source.skipped == []


def test_reads_the_inline_layout_of_med_r1(folder):
    rows = [
        {
            "image": "images/0.png",
            "problem": "Low vitamin A) or B)? A)Liver, left lobe, B) Kidney , C)Type (A), D)None.",
            "solution": "<answer> C </answer>",
        },
        {"image": "images/1.png", "problem": "Normal?\nA) Yes\nB) No", "solution": "B"},
    ]
    source = McqJson(write(folder, rows), modality="oct")
    assert source[0].question == "Low vitamin A) or B)?"
    assert source[0].options == ("Liver, left lobe", "Kidney", "Type (A)", "None.")
    assert (source[0].answer_text, source[0].modality, source[0].source) == ("Type (A)", "oct", "mine")
    assert (source[1].options, source[1].answer) == (("Yes", "No"), "B")


def test_reads_lines_of_json_and_several_images(folder):
    lines = [json.dumps(row(0, image=["images/0.png", "images/1.png"])), "", json.dumps(row(3)) + "\n"]
    source = McqJson(write(folder, "\n".join(lines), "mine.jsonl"))
    assert [len(s.images) for s in source] == [2, 1]
    assert [part[:6] for part in source[0].image_group.split("+")] == ["0.png-", "1.png-"]
    assert source[1].id == "mine-1"


def test_images_folder_can_be_elsewhere(folder, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("elsewhere"), [row(4)])
    assert McqJson(path, images=folder)[0].images[0].path == folder / "images/4.png"


@pytest.mark.parametrize(
    ("subset", "modality"),
    [
        ("MR (Mag-netic Resonance Imaging)", "mri"),
        ("CT(Computed Tomography)", "ct"),
        ("X-Ray", "xray"),
        ("ultrasound", "ultrasound"),
        ("Dermoscopy", "dermoscopy"),
        ("Fundus Photography", "fundus"),
        ("OCT (Optical Coherence Tomography", "oct"),
        ("Microscopy Images", "microscopy"),
    ],
)
def test_modality_of_subset(folder, subset, modality):
    assert McqJson(write(folder, [row(0, subset=subset)]))[0].modality == modality


BAD_ROWS = {
    "missing image": (row(1, image=["images/none.png"]), "images/none.png does not exist", "set data.images"),
    "truncated image": (row(1, image=["images/cut.png"]), "images/cut.png cannot be decoded", "replace"),
    "no image": (row(1, image=["images/text.png"]), "images/text.png cannot be decoded", "replace"),
    "folder as image": (row(1, image=["images"]), "/images cannot be decoded", "replace"),
    "image of no type": (row(1, image=7), "image is 7", "give a list"),
    "answer not an option": (row(1, answer="Brian"), "'Brian' is not among", "closest is 'brain'"),
    "answer as a letter": (
        row(1, answer="B"),
        "'B' is not among",
        "an option's text, or a letter as solution",
    ),
    "answer left out": (row(1, answer=float("nan")), "'answer' is missing or empty", "add it"),
    "options of other case": (
        row(1, options=["Brain", "brain "], answer="Brain"),
        "'Brain' and 'brain'",
        "differ only in case",
    ),
    "options by other keys": (
        row(1, options={"1": "a", "2": "b"}),
        "the keys '1', '2'",
        "give A, B and so on",
    ),
    "picture in base64": (
        row(1, image="data:image/png;base64,iVBORw0KGgo"),
        "in base64",
        "write the pictures",
    ),
    "duplicate options": (row(1, options=["brain"] * 2, answer="brain"), "['brain', 'brain']", "different"),
    "one option": (row(1, options=["brain"], answer="brain"), "1 options", "needs 2 to"),
    "options of no type": (row(1, options="brain, liver"), "options is 'brain, liver'", "give a list"),
    "empty question": (row(1, question="  "), "question is empty", "needs one"),
    "misspelt column": (row(1, answer=None, anwser="brain"), "'anwser'", "'answer'"),
    "misspelt optional column": (row(1, groups="p1"), "'groups'", "'group'"),
    "missing column": (row(1, options=None, choice=["a", "b"]), "'options' is missing", "image, question"),
    "answer and solution disagree": (row(1, solution="C"), "'C' disagrees", "option B"),
    "solution of no letter": (row(1, solution="liver"), "solution is 'liver'", "one letter"),
    "unknown modality": (row(1, subset="PET"), "'PET'", "set data.modality"),
    "no modality": (row(1, subset=None), "no subset", "set data.modality"),
    "options not in order": (
        {"image": "images/1.png", "problem": "What? A)x, C)y", "solution": "A"},
        "'What? A)x, C)y'",
        "in order",
    ),
    "no object": ("brain", "'brain', not an object", "give keys"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_is_named_or_skipped(folder, case):
    bad, value, remedy = BAD_ROWS[case]
    whole = (folder / "images/0.png").read_bytes()
    (folder / "images/cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images/text.png").write_text("not a picture")
    path = write(folder, [row(0), bad, row(2)])
    with pytest.raises(BadRowError) as failure:
        McqJson(path)
    for part in (f"{path} row 1:", value, remedy):
        assert part in str(failure.value)
    kept = McqJson(path, rows=RowPolicy(on_bad_row="skip"))
    assert [s.id for s in kept] == ["mine-0", "mine-2"]
    assert len(kept.skipped) == 1
    assert f"{path} row 1:" in kept.skipped[0]
    assert value in kept.skipped[0]


def test_harmless_columns_are_ignored(folder):
    extra = {"licence": "CC0", "question_id": "q7", "question_type": "Lesion Grading", "answers": ["brain"]}
    assert McqJson(write(folder, [row(0, qtype=None, **extra)]))[0].question_type == "Lesion Grading"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "", "is empty"),
        ("a.json", "[]", "holds no rows"),
        ("a.json", '{"image": 1}', "JSON dict, not an array"),
        ("a.json", '[\n  {"image": 1},\n  {"image" 2}\n]', "line 3 column 12"),
        ("a.jsonl", '{"image": 1}\n{"image": 2', "line 2 column 12"),
    ],
)
def test_bad_file_is_named(tmp_path, name, text, message):
    path = write(tmp_path, text, name)
    with pytest.raises(BadRowError) as failure:
        McqJson(path)
    assert str(path) in str(failure.value)
    assert message in str(failure.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(BadRowError, match=r"none\.json does not exist"):
        McqJson(tmp_path / "none.json")
    with pytest.raises(BadRowError, match=f"{tmp_path} cannot be read"):
        McqJson(tmp_path)
    latin = tmp_path / "latin.json"
    latin.write_bytes('["Zähne"]'.encode("latin-1"))
    with pytest.raises(BadRowError, match=r"latin\.json cannot be read .*UTF-8"):
        McqJson(latin)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_without_permission_is_named(folder):
    path = write(folder, [row(0)])
    path.chmod(0)
    with pytest.raises(BadRowError, match=r"mine\.json cannot be read .*Permission denied"):
        McqJson(path)


def test_every_row_bad_is_an_error_even_when_skipping(folder):
    path = write(folder, [row(0, answer="x"), row(1, image=["images/none.png"]), row(2, answer="y")])
    with pytest.raises(BadRowError) as failure:
        McqJson(path, rows=RowPolicy(on_bad_row="skip"))
    reasons = str(failure.value).split("; ")
    assert reasons[0].startswith(
        f"{path}: no row can be used (2 x answer ... is not among the options ...: give"
    )
    assert reasons[1] == "1 x image ... does not exist"
    assert reasons[-1].startswith(f"the first: {path} row 0: answer 'x' is not among")


def test_a_refused_row_keeps_its_images(folder):
    """Those that were read before the fault: not of a row that is refused for its images."""
    bad = [
        row(0, options=["brain"] * 2),
        row(1, answer="x"),
        row(2, subset="PET"),
        row(3, image=["images/none.png"]),
    ]
    source = McqJson(write(folder, [*bad, row(4)]), rows=RowPolicy(on_bad_row="skip"))
    assert [(line, handles[0].path.name) for line, handles in source.refused_images] == [
        (line, f"{i}.png") for i, line in enumerate(source.skipped[:3])
    ]


def test_failure_counts_further_unreadable_images(folder):
    path = write(folder, [row(0), row(11), row(12), row(13)])
    with pytest.raises(BadRowError, match=r"row 1: image .*11\.png does not exist.*\(2 more rows"):
        McqJson(path)
    assert len(McqJson(path, rows=RowPolicy(check_images=False))) == 4


def test_the_first_n_questions(folder):
    path = write(folder, [row(i) for i in range(10)])
    assert [s.id for s in McqJson(path, n=3)] == ["mine-0", "mine-1", "mine-2"]
    for n in (0, 11):
        with pytest.raises(ValueError, match=f"{n} questions requested, but 10 can be used"):
            McqJson(path, n=n)


def test_skipped_rows_do_not_count(folder):
    path = write(folder, [row(0, answer="x"), row(1), row(2, image=["images/none.png"]), row(3), row(4)])
    source = McqJson(path, n=2, rows=RowPolicy(on_bad_row="skip"))
    assert [s.id for s in source] == ["mine-1", "mine-3"]
    assert len(source.skipped) == 2
    with pytest.raises(ValueError, match=r"4 questions .*but 3 can be used \(2 skipped\)"):
        McqJson(path, n=4, rows=RowPolicy(on_bad_row="skip"))


def test_unknown_policy_for_bad_rows(folder):
    with pytest.raises(ValueError, match="on_bad_row is 'ignore': use 'fail' or 'skip'"):
        McqJson(write(folder, [row(0)]), rows=RowPolicy(on_bad_row="ignore"))


def test_image_checks(folder):
    samples = McqJson(write(folder, [row(0), row(0), row(1)]))
    assert check_images(samples) == []
    (folder / "images/0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert [(s.id, "0.png cannot be decoded" in why) for s, why in check_images(samples)] == [
        ("mine-0", True),
        ("mine-1", True),
    ]
    assert image_digest(samples[2].images[0]) == image_digest(ImageFile(folder / "images/1.png"))
    assert image_digest(samples[2].images[0]) != image_digest(samples[0].images[0])
    assert image_digest(ImageFile(folder / "none.png")) is None


@pytest.mark.parametrize(
    ("name", "n"),
    [("train_mri", 1900), ("test_mri", 300), ("test_ct", 120), ("test_xray", 220), ("vqa_rad_yes_no", 856)],
)
def test_real_radiology(name, n):
    path = real("MEDVLM_R1_REAL_DATA", f"{name}.json")
    rows = json.loads(path.read_text())
    source = McqJson(path)
    assert len(source) == len(rows) == n
    assert [LINES.problem(s) for s in source] == [r["problem"] for r in rows]
    assert [s.answer for s in source] == [r["solution"] for r in rows]


@pytest.mark.parametrize(
    ("name", "n"),
    [("xray_train", 6301), ("xray_test", 1615), ("dermoscopy_train", 5373), ("dermoscopy_test", 1306)],
)
def test_real_questions_of_med_r1(name, n):
    path = real("MEDVLM_R1_REAL_QUESTIONS", f"med_r1_{name}.json")
    rows = json.loads(path.read_text())
    source = McqJson(path, modality=name.partition("_")[0], rows=RowPolicy(check_images=False))
    assert len(source) == len(rows) == n
    assert [INLINE.problem(s) for s in source] == [r["problem"] for r in rows]
    assert [f"<answer> {s.answer} </answer>" for s in source] == [r["solution"] for r in rows]


def test_a_file_of_one_line_is_one_row(folder):
    path = folder / "one.json"
    path.write_text(json.dumps(row(0) | {"image": [{"path": row(0)["image"][0]}]}))
    assert len(McqJson(path)) == 1
