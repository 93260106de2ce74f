"""Folders of labelled images: templates, balanced options, splits by patient."""

import json
from collections import Counter
from pathlib import Path

import pytest
from command import run_here
from PIL import Image

from medvlm_r1.data.image_folder import ImageFolder, Template
from medvlm_r1.data.options import image_folder
from medvlm_r1.data.sample import BadRowError

LABELS = ["cyst", "fracture", "normal", "tumour"]


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (56, 56), value % 256).save(path)


@pytest.fixture
def subfolders(tmp_path):
    """Four labels with eight images each, of four patients."""
    folder = tmp_path / "my scans"
    for i in range(32):
        save(folder / LABELS[i % 4] / f"p{i // 8}-{i} ü.png", i)
    (folder / "normal/.DS_Store").write_text("no image")
    (folder / "normal/notes.txt").write_text("no image")
    return folder


@pytest.fixture
def labelled(tmp_path):
    """The same with a file of labels."""

    def write(rows: list[str], header: str = "file,label,split,patient") -> Path:
        for i in range(32):
            save(tmp_path / "flat" / f"{i}.png", i)
        (tmp_path / "flat/labels.csv").write_text("\n".join([header, *rows]))
        return tmp_path / "flat"

    return write


def test_subfolders_are_labels(subfolders):
    source = ImageFolder(subfolders, "oct", group=r"p(\d)-")
    assert len(source) == 32
    assert source[0].id == "my_scans-0"
    assert source[0].question == "Which disease is seen in this OCT image?"
    assert source[0].answer_text == "cyst"
    assert sorted(source[0].options) == LABELS
    assert (source[0].modality, source[0].question_type) == ("oct", "Disease Diagnosis")
    assert Counter(s.image_group for s in source) == dict.fromkeys("0123", 8)


def test_a_question_follows_from_seed_and_file_alone(subfolders):
    template = Template(n_options=3, seed=5)
    before = {s.images[0].path.name: s for s in ImageFolder(subfolders, "ct", template=template)}
    save(subfolders / "cyst/another.png", 99)
    after = {s.images[0].path.name: s for s in ImageFolder(subfolders, "ct", template=template)}
    for name, sample in before.items():
        assert (after[name].options, after[name].answer) == (sample.options, sample.answer)
        assert len(sample.options) == 3
        assert sample.answer_text == sample.images[0].path.parent.name
    (subfolders / "cyst/another.png").unlink()
    other = ImageFolder(subfolders, "ct", template=Template(n_options=3, seed=6))
    assert [s.options for s in other][:8] != [before[s.images[0].path.name].options for s in other][:8]


def test_the_gold_option_stands_everywhere_and_all_others_come():
    """4,000 draws for each label: each of 3 places 1333 +- 5 x 30, each wrong label as often."""
    template = Template(n_options=3)
    for gold in LABELS:
        drawn = [template.options(f"{i}.png", gold, LABELS) for i in range(4000)]
        for count in Counter(letter for _, letter in drawn).values():
            assert abs(count - 4000 / 3) < 150
        wrong = Counter(option for options, _ in drawn for option in options if option != gold)
        assert len(wrong) == 3
        for count in wrong.values():
            assert abs(count - 8000 / 3) < 150


def test_names_of_labels(subfolders):
    template = Template("{modality}: what?", names={"cyst": "a cyst", "tumour": "a tumour"})
    source = ImageFolder(subfolders, "mri", template=template)
    assert source[0].question == "MRI: what?"
    assert (source[0].answer_text, sorted(source[0].options)) == (
        "a cyst",
        ["a cyst", "a tumour", "fracture", "normal"],
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"question": "What is in {image}?"}, r"only \{modality\} can be filled in"),
        ({"question": "What is {?"}, "data.template.question"),
        ({"n_options": 1}, "n_options is 1: a question needs 2 to 10"),
        ({"n_options": 5}, "5 options need as many labels, but there are only cyst, fracture"),
        ({"names": {"tumor": "x"}}, "there is no label 'tumor': did you mean 'tumour'"),
        ({"names": {"cyst": "normal"}}, "calls two labels the same"),
    ],
)
def test_a_template_that_cannot_be(subfolders, template, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(subfolders, "ct", template=Template(**template))


def test_held_out_by_patient(subfolders):
    parts = image_folder(str(subfolders), "oct", group=r"p(\d)-", n_validation=8, n_test=8)
    groups = [{s.image_group for s in part} for part in (parts.train, parts.validation, parts.test["oct"])]
    assert [len(group) for group in groups] == [2, 1, 1]
    assert len(set.union(*groups)) == 4


def test_splits_and_patients_of_a_labels_file(labelled):
    part = {0: "train", 1: "train", 2: "val", 3: "test"}
    folder = labelled([f"{i}.png,{LABELS[i % 4]},{part[i // 8]},p{i // 4}" for i in range(32)])
    parts = image_folder(str(folder), "xray", "labels.csv")
    assert [len(p) for p in (parts.train, parts.validation, parts.test["xray"])] == [16, 8, 8]
    assert parts.train[5].image_group == "p1"
    assert parts.train[5].question == "Which disease is seen in this X-ray image?"


def test_further_folders_test_other_modalities(subfolders, labelled):
    labelled([])
    (subfolders / "labels.csv").write_text("file,label\ncyst/p0-0 ü.png,a\nnormal/p0-2 ü.png,b\n")
    flat = labelled([f"{i}.png,{LABELS[i % 4]}" for i in range(32)], "file,label")
    parts = image_folder(
        str(flat), "mri", "labels.csv", test={"ct": str(subfolders)}, n_validation=4, n_test=6
    )
    assert {name: len(source) for name, source in parts.test.items()} == {"mri": 6, "ct": 2}
    assert parts.test["ct"][0].modality == "ct"
    assert len({s.id for p in (parts.train, parts.validation, *parts.test.values()) for s in p}) == 34


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("file,lable", "0.png,cyst", "has no column 'label': rename 'lable'; it has file, lable"),
        ("file,label,pateint", "0.png,cyst,p", "unknown column 'pateint': rename it to 'patient'"),
        ("file,label", "0.png,", r"labels\.csv row 2: has no label: fill it in"),
        ("file,label", "none.png,cyst", r"labels\.csv row 2: image .*none\.png does not exist"),
        ("file,label,split", "0.png,cyst,dev", r"labels\.csv row 2: split is 'dev': use train"),
        ("file,label,split", "0.png,cyst,", r"labels\.csv row 2: has no split where other rows have one"),
    ],
)
def test_bad_labels_are_named(labelled, header, line, message):
    more = [",train", ",p"][header.endswith("t") and "pate" in header] if header.count(",") == 2 else ""
    folder = labelled([f"1.png,cyst{more}", f"2.png,normal{more}", line], header)
    with pytest.raises(BadRowError, match=message):
        image_folder(str(folder), "mri", "labels.csv")


def test_folders_without_labels(tmp_path, subfolders):
    with pytest.raises(BadRowError, match=r"is no folder: check data\.folder"):
        ImageFolder(tmp_path / "none", "mri")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRowError, match=r"no subfolders with images: .*or set data\.labels"):
        ImageFolder(tmp_path / "empty", "mri")
    with pytest.raises(BadRowError, match=r"does not match data\.group 'q"):
        ImageFolder(subfolders, "mri", group=r"q\d")
    with pytest.raises(ValueError, match=r"data\.group '\(' is no regular expression"):
        ImageFolder(subfolders, "mri", group="(")


def test_a_run_on_a_folder(subfolders):
    run_here(
        subfolders.parent,
        "+experiment=zero_shot",
        "model=tiny",
        "data=image_folder",
        "data.folder=my scans",
        "data.modality=oct",
        "data.template.n_options=3",
        'data.group="p([0-9])-"',
        "data.n_validation=8",
        "data.n_test=8",
        "workers=0",
    )
    (folder,) = (subfolders.parent / "outputs/runs").iterdir()
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert {r["modality"] for r in rows} == {"oct"}
