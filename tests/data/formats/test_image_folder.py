"""Folders of labelled images: templates, balanced options, splits by patient."""

import json
import shutil
from collections import Counter
from pathlib import Path

import dicom_files
import nibabel
import numpy as np
import pytest
from command import run_here
from PIL import Image

from medvlm_r1.data.formats.image_folder import ImageFolder, image_folder
from medvlm_r1.data.formats.question_template import QuestionTemplate
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.images.volume import Volumes
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


def test_files_that_are_no_images_are_counted(subfolders, caplog):
    (subfolders / "tumour/scan.png.part").write_text("no image")
    ImageFolder(subfolders, "oct")
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    reason = "no image by suffix, and no DICOM"
    assert line == f"{subfolders}: 2 files left out ({reason}); the first: normal/notes.txt"


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
    template = QuestionTemplate(n_options=3, seed=5)
    before = {s.images[0].path.name: s for s in ImageFolder(subfolders, "ct", template=template)}
    save(subfolders / "cyst/another.png", 99)
    after = {s.images[0].path.name: s for s in ImageFolder(subfolders, "ct", template=template)}
    for name, sample in before.items():
        assert (after[name].options, after[name].answer) == (sample.options, sample.answer)
        assert len(sample.options) == 3
        assert sample.answer_text == sample.images[0].path.parent.name
    (subfolders / "cyst/another.png").unlink()
    other = ImageFolder(subfolders, "ct", template=QuestionTemplate(n_options=3, seed=6))
    assert [s.options for s in other][:8] != [before[s.images[0].path.name].options for s in other][:8]


def test_the_gold_option_stands_everywhere_and_all_others_come():
    """4,000 draws for each label: each of 3 places 1333 +- 5 x 30, each wrong label as often."""
    template = QuestionTemplate(n_options=3)
    for gold in LABELS:
        drawn = [template.options(f"{i}.png", gold, LABELS) for i in range(4000)]
        for count in Counter(letter for _, letter in drawn).values():
            assert abs(count - 4000 / 3) < 150
        wrong = Counter(option for options, _ in drawn for option in options if option != gold)
        assert len(wrong) == 3
        for count in wrong.values():
            assert abs(count - 8000 / 3) < 150


def test_names_of_labels(subfolders):
    template = QuestionTemplate("{modality}: what?", names={"cyst": "a cyst", "tumour": "a tumour"})
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
        ({"names": {"cyst": "normal"}}, "gives two labels the same name"),
    ],
)
def test_a_template_that_cannot_be(subfolders, template, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(subfolders, "ct", template=QuestionTemplate(**template))


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
        ("file,label,split", "0.png,cyst,", r"labels\.csv row 2: has no split, but other rows have one"),
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
    dicom_files.write(subfolders / "cyst/p0-32", np.arange(3 * 1600, dtype=np.uint16).reshape(3, 40, 40))
    run_here(
        subfolders.parent,
        "+experiment=zero_shot",
        "model=tiny",
        "data=image_folder",
        "data.folder=my scans",
        "data.modality=oct",
        "data.template.n_options=3",
        'data.group="p([0-9])-"',
        "data.rows.volumes.slices=[2]",
        "data.n_validation=8",
        "data.n_test=8",
        "workers=0",
    )
    (folder,) = (subfolders.parent / "outputs/runs").iterdir()
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len([r for r in rows if r["control"] == "image"]) == 8
    assert {r["modality"] for r in rows} == {"oct"}


class TestVolumes:
    FRAMES = np.array([[[1024] * 2] * 2, [[1104] * 2] * 2], np.uint16)  # 0 and 80 HU

    @pytest.fixture
    def scans(self, tmp_path):
        """Under each label a file without suffix, a NIfTI, and below it a series of three files."""
        folder = tmp_path / "scans"
        for label in ("cyst", "mass"):
            (folder / label / "p1/series").mkdir(parents=True)
            dicom_files.write(folder / label / "p1-IM0001", self.FRAMES, **dicom_files.CT)
            voxels = np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3)
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / label / "p2.nii.gz")
            for k in range(3):
                where = {"SeriesInstanceUID": "1.2", "InstanceNumber": k + 1}
                file = folder / label / "p1/series" / f"{k}.dcm"
                dicom_files.write(file, self.FRAMES[0] + 40 * k, **where, **dicom_files.CT)
            (folder / label / "p1/series/notes.txt").write_text("no image")
        return folder

    def test_a_file_is_an_image_and_so_is_a_folder_with_a_series(self, scans):
        source = ImageFolder(scans, "ct", group="p([0-9])", rows=RowPolicy(volumes=Volumes(plane="coronal")))
        shown = [(s.images[0].path.relative_to(scans).as_posix(), s.image_group) for s in source[:3]]
        assert shown == [("cyst/p1-IM0001", "1"), ("cyst/p2.nii.gz", "2"), ("cyst/p1/series", "1")]
        assert len(source) == 6
        assert source[1].images[0].load().size == (5, 3)
        assert source[2].images[0].load().size == (2, 2)

    def test_a_labels_file_says_slice_and_window(self, scans):
        lines = ["file,label,patient,slice,window"]
        lines += [f"cyst/p1/series,{'mass' if k == 2 else 'cyst'},p1,{k},brain" for k in range(3)]
        lines += ['cyst/p1-IM0001,mass,p1,1,"[80, 161]"', "cyst/p2.nii.gz,cyst,p2,,"]
        (scans / "labels.csv").write_text("\n".join(lines))
        source = ImageFolder(scans, "ct", "labels.csv")
        # brain ends at 80 HU; 80 HU in a window from 0 to 160 HU is 127.5 of 255
        assert [s.images[0].load().getpixel((0, 0))[0] for s in source[:4]] == [0, 129, 255, 128]
        assert [s.answer_text for s in source] == ["cyst", "cyst", "mass", "mass", "cyst"]

    def test_slices_of_one_file_have_orders_of_their_own(self, scans):
        rows = [f"cyst/p1/series,{'cyst' if k else 'mass'},{k}" for k in range(60)]
        (scans / "labels.csv").write_text("\n".join(["file,label,slice", *rows]))
        letters = Counter(
            s.answer for s in ImageFolder(scans, "ct", "labels.csv", rows=RowPolicy(check_images=False))
        )
        assert set(letters) == {"A", "B"}
        assert min(letters.values()) >= 15  # 30 +- 4 x 3.9

    def test_a_folder_with_two_series_is_named(self, scans):
        other = {"SeriesInstanceUID": "1.3", "InstanceNumber": 1}
        dicom_files.write(scans / "mass/p1/series/other.dcm", self.FRAMES[0], **other, **dicom_files.CT)
        with pytest.raises(BadRowError, match="mass/p1/series is a folder with 2 series: give each a folder"):
            ImageFolder(scans, "ct")

    def test_settings_reach_every_part_of_the_option(self, scans):
        shown = Volumes(slices=2)
        other = shutil.copytree(scans, scans.parent / "other")
        parts = image_folder(
            str(scans),
            "ct",
            test={"mri": str(other)},
            n_validation=2,
            n_test=2,
            rows=RowPolicy(volumes=shown),
        )
        for part in (parts.train, parts.validation, *parts.test.values()):
            assert {len(s.images) for s in part} == {2}
