"""Tables of any layout: formats, mappings, forms of answers, and the same checks as the papers' rows."""

import csv
import json

import dicom_files
import nibabel
import numpy as np
import pandas
import pytest
from command import run_here
from PIL import Image

from medvlm_r1.data.formats.columns import Columns
from medvlm_r1.data.formats.mcq_json import McqJson
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.formats.table import Table, table
from medvlm_r1.data.images.volume import Volumes
from medvlm_r1.data.sample import BadRowError

OPTIONS = ["brain", "liver, left lobe", "kidney", "spine"]
COLUMNS = Columns(
    image="file",
    question="q",
    options=["a", "b", "c", "d"],
    answer="label",
    answer_is="letter",
    modality={"value": "ct"},
    question_type="kind",
    group="patient",
    id="key",
)


def row(i, **changes):
    options = dict(zip("abcd", OPTIONS, strict=True))
    plain = {"file": f"images/{i}.png", "q": f'What is "{i}"?', **options, "label": "ABCD"[i % 4]}
    return {**plain, "kind": "Anatomy", "patient": f"p{i // 2}", "key": f"k{i}", "unused": "x", **changes}


def write(folder, rows, name):
    path = folder / name
    frame = pandas.DataFrame(rows)
    if name.endswith((".parquet", ".pq")):
        frame.to_parquet(path)
    elif name.endswith((".csv", ".tsv")):
        frame.to_csv(path, index=False, sep="\t" if name.endswith(".tsv") else ",")
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(json.dumps(r) for r in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("name", ["my rows.csv", "a.tsv", "a.json", "a.jsonl", "ä.parquet", "a.pq"])
def test_every_format_gives_the_same_questions(pictures, name):
    source = Table(write(pictures, [row(i) for i in range(10)], name), COLUMNS, name="t")
    assert [s.id for s in source] == [f"t-k{i}" for i in range(10)]
    assert [s.answer_text for s in source] == [OPTIONS[i % 4] for i in range(10)]
    assert source[3].question == 'What is "3"?'
    assert source[3].options == tuple(OPTIONS)
    assert (source[3].modality, source[3].question_type, source[3].image_group) == ("ct", "Anatomy", "p1")
    assert source[3].images[0].path == pictures / "images/3.png"


@pytest.mark.parametrize(
    ("answer_is", "answer", "gold"),
    [
        ("letter", " b ", "B"),
        ("text", "kidney", "C"),
        ("index", 0, "A"),
        ("index", "3", "D"),
        ("index", 2.0, "C"),
        ("number", 1, "A"),
    ],
)
def test_what_an_answer_may_be(pictures, answer_is, answer, gold):
    columns = Columns("file", "q", ["a", "b", "c", "d"], "label", answer_is, {"value": "mri"})
    assert Table(write(pictures, [row(0, label=answer)], "a.json"), columns)[0].answer == gold


@pytest.mark.parametrize(
    ("answer_is", "answer", "message"),
    [
        ("letter", "E", "label is 'E': give one of the letters A, B, C, D"),
        ("letter", "brain", "label is 'brain': give one of the letters"),
        ("letter", 1, "label is 1: give one of the letters"),
        ("index", 4, "label is 4: give a number from 0 to 3"),
        ("index", -1, "label is -1: give a number"),
        ("index", 0.5, "label is 0.5: give a number"),
        ("index", True, "label is True: give a number"),
        ("number", 0, "label is 0: give a number from 1 to 4"),
        ("text", "Brian", "'Brian' is not among .*the closest is 'brain'"),
        ("text", None, r"has no answer \(column label\): fill it in"),
    ],
)
def test_a_wrong_answer_is_named(pictures, answer_is, answer, message):
    columns = Columns("file", "q", ["a", "b", "c", "d"], "label", answer_is, {"value": "mri"})
    path = write(pictures, [row(0, label=answer)], "a.json")
    with pytest.raises(BadRowError, match=rf"a\.json row 0: .*{message}"):
        Table(path, columns)


@pytest.mark.parametrize(
    "options", [["yes", "no"], "yes|no", " yes | no", '["yes", "no"]'], ids=["list", "text", "spaces", "json"]
)
def test_options_in_one_column_and_several_images(pictures, options):
    rows = [{"image": ["images/0.png", "images/1.png"], "options": options}]
    rows.append({"image": "images/2.png|images/3.png", "options": options})
    rows = [{**r, "question": "q", "answer": "no", "modality": "CT(Computed Tomography)"} for r in rows]
    first, second = Table(write(pictures, rows, "a.jsonl"), Columns())
    assert first.options == second.options == ("yes", "no")
    assert [h.path.name for h in second.images] == ["2.png", "3.png"]
    assert (first.modality, first.answer) == ("ct", "B")


def test_questions_may_have_fewer_options_than_columns(pictures):
    path = write(pictures, [row(0, c=None, d=None), row(1, c=None, label="A")], "a.csv")
    kept = Table(path, COLUMNS, rows=RowPolicy(on_bad_row="skip"))
    assert kept[0].options == ("brain", "liver, left lobe")
    assert "row 1: options is ['brain', 'liver, left lobe', None, 'spine']" in kept.skipped[0]


def test_numbers_count_as_options(pictures):
    path = write(pictures, [row(0, a=1, b=2, c=3, d=4)], "a.parquet")
    assert Table(path, COLUMNS)[0].options == ("1", "2", "3", "4")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_misspelt_column_is_named_with_those_that_there_are(pictures, name):
    path = write(pictures, [row(0)], name)
    wrong = Columns("file", "q", ["a", "b", "c", "d"], "lable", "letter", {"value": "ct"})
    with pytest.raises(BadRowError) as failure:
        Table(path, wrong, rows=RowPolicy(on_bad_row="skip"))
    assert f"{path} has no column 'lable' (data.columns.answer): did you mean 'label'?" in str(failure.value)
    assert "Its columns are file, q, a, b, c, d, label, kind, patient, key, unused" in str(failure.value)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"answer_is": "word"}, "answer_is is 'word'"),
        ({"modality": {"values": "ct"}}, "columns.modality is .*give a column's name, or {value: V}"),
        ({"question": ["a", "b"]}, "columns.question is"),
        ({"image": None}, "columns.image is None"),
        ({"options": []}, r"columns.options is \[\]"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_mapping_that_cannot_be(mapping, message):
    with pytest.raises(ValueError, match=message):
        Columns(**mapping)


def test_rows_are_judged_as_those_of_the_papers(pictures):
    """The same fault gives the same words, whichever reader meets it."""
    plain = {"question": "q", "options": ["a", "b"], "answer": "a"}
    faults = [
        {"image": "images/0.png", **plain, "options": ["a", "a"]},
        {"image": "images/0.png", **plain, "options": ["a"]},
        {"image": "images/0.png", **plain, "options": ["a", "A "]},
        {"image": "images/0.png", **plain, "answer": "c"},
        {"image": "images/none.png", **plain},
    ]
    modality = "CT(Computed Tomography)"
    good = {"image": "images/1.png", **plain}
    tables = [{**r, "modality": modality} for r in [good, *faults]]
    papers = [{**r, "subset": modality} for r in [good, *faults]]
    skipped = Table(write(pictures, tables, "a.json"), Columns(), rows=RowPolicy(on_bad_row="skip")).skipped
    assert skipped == McqJson(write(pictures, papers, "a.json"), rows=RowPolicy(on_bad_row="skip")).skipped
    assert len(skipped) == 5


def test_ids_must_differ(pictures):
    path = write(pictures, [row(0), row(1, key="k0")], "a.csv")
    with pytest.raises(BadRowError, match=r"row 1: id 'a-k0' is already used by .*a\.csv row 0: make"):
        Table(path, COLUMNS)


def test_other_delimiters_and_encodings(pictures):
    path = pictures / "a.csv"
    with path.open("w", encoding="cp1252", newline="") as file:
        writer = csv.DictWriter(file, row(0), delimiter=";")
        writer.writeheader()
        writer.writerow(row(0, q="Größe?\nNew line; quoted"))
    assert Table(path, COLUMNS, delimiter=";", encoding="cp1252")[0].question == "Größe?\nNew line; quoted"
    with pytest.raises(BadRowError, match=r"is not in utf-8-sig .*set data\.encoding, e\.g\. to cp1252"):
        Table(path, COLUMNS, delimiter=";")
    with pytest.raises(ValueError, match=r"data\.encoding is 'cp12'"):
        Table(path, COLUMNS, encoding="cp12")
    with pytest.raises(ValueError, match=r"data\.delimiter is ';;'"):
        Table(path, COLUMNS, delimiter=";;")


def test_a_test_set_called_by_a_modality_has_it(pictures):
    train, mri, other = (
        str(write(pictures, [row(i) for i in part], f"{part[0]}.csv"))
        for part in ([0, 1, 2, 3], [4, 5], [6, 7])
    )
    parts = table(train, {"mri": mri, "other": other}, COLUMNS, n_validation=2)
    assert {s.modality for s in (*parts.train, *parts.validation)} == {"ct"}
    assert {name: source[0].modality for name, source in parts.test.items()} == {"mri": "mri", "other": "ct"}


def test_a_run_on_a_table(pictures):
    shown = [{"file": f"images/{i % 8}.png", "patient": f"p{i % 8}"} for i in range(16)]
    train = [row(i, **shown[i], label="A", key=i, at=None) for i in range(16)]
    write(pictures, train, "train.csv")
    dicom_files.write(pictures / "8.dcm", np.arange(2 * 40 * 40, dtype=np.uint16).reshape(2, 40, 40))
    write(pictures, [row(8, file="8.dcm", at=1), row(9, at=None)], "test.parquet")
    mapping = ["image=file", "question=q", "options=[a,b,c,d]", "answer=label", "answer_is=letter"]
    mapping += ["modality={value: ct}", "question_type=kind", "group=patient", "slice=at"]
    run_here(
        pictures,
        "+experiment=sft_600",
        "model=tiny",
        "data=table",
        "data.train=train.csv",
        "data.test={xray: test.parquet}",
        *(f"data.columns.{entry}" for entry in mapping),
        "data.n_validation=2",
        "data.n_train=8",
        "trainer.max_steps=1",
        "workers=0",
    )
    (folder,) = (pictures / "outputs/runs").iterdir()
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [r["modality"] for r in rows if r["control"] == "image"] == ["xray", "xray"]


@pytest.fixture
def volumes(tmp_path):
    """CT files of two slices, 0 and 80 HU; a NIfTI of which slice k is k; a picture."""
    frames = np.array([[[1024] * 2] * 2, [[1104] * 2] * 2], np.uint16)
    for i in range(6):
        dicom_files.write(tmp_path / f"{i}.dcm", frames, **dicom_files.CT)
    voxels = np.broadcast_to(np.arange(9, dtype=np.int16), (4, 5, 9))
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(voxels), np.eye(4)), tmp_path / "t1.nii.gz")
    Image.new("L", (4, 4), 7).save(tmp_path / "0.png")
    return tmp_path


VOLUME = {"question": "q", "options": "yes|no", "answer": "no", "modality": "CT"}


def grey(sample, k=0):
    return sample.images[k].load().getpixel((0, 0))[0]


class TestVolumes:
    COLUMNS = Columns(slice="at", window="hu")

    @pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
    def test_each_row_shows_its_slice_in_its_window(self, volumes, name):
        """Brain is 0 to 80 HU; centre 80 and width 161 are 0 to 160 HU, so 80 HU is 127.5 of 255."""
        rows = [
            {"image": "0.dcm", "at": 0, "hu": "brain"},
            {"image": "0.dcm", "at": 1, "hu": "brain"},
            {"image": "0.dcm", "at": 1, "hu": "[80, 161]"},
            {"image": "0.png", "at": None, "hu": None},
            {"image": "t1.nii.gz", "at": 8, "hu": None},
        ]
        path = write(volumes, [{**VOLUME, **r} for r in rows], name)
        source = Table(path, self.COLUMNS, rows=RowPolicy(volumes=Volumes(range=(0, 8))))
        assert [grey(s) for s in source] == [0, 255, 128, 7, 255]
        assert len({s.image_group for s in source[:3]}) == 1  # slices of one file stay together

    def test_more_than_one_slice_or_image(self, volumes):
        rows = [
            {"image": "0.dcm|1.dcm", "at": "[1, 0]", "hu": "brain"},
            {"image": "t1.nii.gz", "at": "montage"},
        ]
        first, second = Table(write(volumes, [{**VOLUME, **r} for r in rows], "a.csv"), self.COLUMNS)
        assert [grey(first, k) for k in range(4)] == [255, 0, 255, 0]
        assert second.images[0].load().size == (3 * 4, 3 * 5)

    def test_centre_and_width_in_columns_of_their_own(self, volumes):
        rows = [
            {**VOLUME, "image": "0.dcm", "c": c, "w": w} for c, w in [(80, 161), (0.5, 1.5), (None, None)]
        ]
        columns, shown = Columns(window=["c", "w"]), Volumes(slices=[1], window="brain")
        for name in ("a.csv", "a.parquet"):
            source = Table(write(volumes, rows, name), columns, rows=RowPolicy(volumes=shown))
            assert [s.images[0].window for s in source] == [(80, 161), (0.5, 1.5), "brain"]

    def test_an_object_in_the_place_of_a_path(self, volumes):
        """What an image itself sets comes before the row's columns."""
        own = {"path": "t1.nii.gz", "slice": 4, "range": [0, 8]}
        rows = [{**VOLUME, "image": form, "at": 8, "hu": ""} for form in (json.dumps(own), json.dumps([own]))]
        for source in (
            Table(write(volumes, rows, "a.csv"), self.COLUMNS),
            Table(write(volumes, [{**rows[0], "image": own}], "a.jsonl"), self.COLUMNS),
        ):
            assert {grey(s) for s in source} == {128}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"at": "two"}, r"0\.dcm: slices is 'two': use middle, montage"),
            ({"at": 1.5}, r"0\.dcm: slices is 1\.5: use middle"),
            ({"at": -1}, r"0\.dcm: slices is \(-1,\): use middle"),
            ({"at": 2}, r"0\.dcm has slices 0 to 1, not 2"),
            ({"hu": "lungs"}, r"0\.dcm: window is 'lungs': use lung, "),
            ({"image": "t1.nii.gz", "hu": "lung"}, r"'window', which a NIfTI file does not take"),
            (
                {"image": "0.png", "at": 1},
                r"0\.png has the setting 'slice', which a plain image file does not take",
            ),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_a_wrong_setting_is_named(self, volumes, changes, message):
        path = write(volumes, [{**VOLUME, "image": "0.dcm", "at": None, "hu": None, **changes}], "a.jsonl")
        with pytest.raises(BadRowError, match=rf"a\.jsonl row 0: .*{message}"):
            Table(path, self.COLUMNS)

    def test_settings_reach_every_part_of_the_option(self, volumes):
        rows = [{**VOLUME, "image": f"{i}.dcm", "at": i % 2} for i in range(6)]
        train, test = (str(write(volumes, part, f"{len(part)}.csv")) for part in (rows[:4], rows[4:]))
        columns, shown = Columns(slice="at"), Volumes(window="brain")
        parts = table(train, {"ct": test}, columns, n_validation=2, rows=RowPolicy(volumes=shown))
        for part in (parts.train, parts.validation, parts.test["ct"]):
            assert [grey(s) for s in part] == [255 * (s.images[0].pick == 1) for s in part]
