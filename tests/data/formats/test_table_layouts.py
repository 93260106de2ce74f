"""Tables of others, without code: VQA-RAD in its authors' JSON, row filters, maps, open questions."""

import json
import logging

import pandas
import pytest
from command import run_here

from medvlm_r1.data.formats.columns import Columns
from medvlm_r1.data.formats.mcq_json import McqJson
from medvlm_r1.data.formats.row_filter import RowFilter
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.formats.table import Table, table
from medvlm_r1.data.sample import BadRowError

UNCHECKED = RowPolicy(check_images=False)
ORGANS = {"column": "image_organ", "map": {"HEAD": "mri", "CHEST": "xray", "ABD": "ct"}}
VQA_RAD = {"image": "image_name", "question": "question", "answer": "answer", "modality": ORGANS, "id": "qid"}
YES_NO = {"value": ["yes", "no"]}
CLOSED_ANSWERS = ("Yes", "yes", " YES.", "No", "no", "no ")


def vqa_rad_row(i, phrase="freeform", answer=None, answer_type=None):
    """One row as in the authors' file: spellings of answers and of their types differ."""
    closed = i % 3 < 2
    return {
        "qid": i,
        "phrase_type": phrase,
        "qid_linked_id": f"{i:02}f10ba6",
        "image_case_url": f"https://medpix.nlm.nih.gov/case?id={i}",
        "image_name": f"images/{i % 7 if i < 24 else 7 + i % 3}.png",
        "image_organ": ("HEAD", "CHEST", "ABD", "CHEST ")[i % 4],
        "evaluation": "not evaluated",
        "question": f"Is finding {i} seen?" if closed else f"What is finding {i}?",
        "question_rephrase": "NULL",
        "question_relation": "NULL",
        "question_frame": "NULL",
        "question_type": "PRES" if closed else "ATTRIB, SIZE",
        "answer": answer or (CLOSED_ANSWERS[i % 6] if closed else f"{i} cm"),
        "answer_type": answer_type or (("CLOSED", "CLOSED ")[i % 2] if closed else "OPEN"),
    }


@pytest.fixture
def vqa_rad(pictures):
    rows = [vqa_rad_row(i) for i in range(24)] + [vqa_rad_row(i, "test_freeform") for i in range(24, 36)]
    (pictures / "VQA_RAD.json").write_text(json.dumps(rows))
    return str(pictures / "VQA_RAD.json"), rows


def both(path, columns, **options):
    """One file with both parts, which a column tells apart."""
    return table(
        path,
        {"vqa_rad": path},
        columns,
        train_where={"phrase_type": ["freeform", "para"]},
        test_where={"phrase_type": "TEST_freeform"},
        n_validation=2,
        **options,
    )


def test_the_closed_questions_of_vqa_rad(vqa_rad):
    path, rows = vqa_rad
    parts = both(path, Columns(**VQA_RAD, options=YES_NO), where={"answer_type": "closed"}, rows=UNCHECKED)
    samples = [*parts.train, *parts.validation, *parts.test["vqa_rad"]]
    assert parts.skipped == ()
    assert {s.options for s in samples} == {("yes", "no")}
    closed = {f"train-{r['qid']}": r for r in rows if r["answer_type"].strip() == "CLOSED"}
    modality = {"HEAD": "mri", "CHEST": "xray", "CHEST ": "xray", "ABD": "ct"}
    for sample in parts.train:
        row = closed[sample.id]
        assert sample.answer_text == row["answer"].strip(" .").lower()
        assert sample.modality == modality[row["image_organ"]]
        assert sample.question == row["question"]
    assert [s.id for s in parts.test["vqa_rad"]] == [f"vqa_rad-{i}" for i in range(24, 36) if i % 3 < 2]


def test_open_and_mixed_questions_of_vqa_rad(vqa_rad):
    path, _ = vqa_rad
    opened = both(path, Columns(**VQA_RAD, options=None), where={"answer_type": ["OPEN"]}, rows=UNCHECKED)
    assert [(s.answer, s.options) for s in opened.test["vqa_rad"]] == [
        (f"{i} cm", ()) for i in range(26, 36, 3)
    ]
    by_type = {"column": "answer_type", "map": {"CLOSED": ["yes", "no"], "OPEN": None}}
    mixed = both(path, Columns(**VQA_RAD, options=by_type), rows=UNCHECKED)
    assert {name: len(test) for name, test in mixed.test.items()} == {"vqa_rad": 8, "vqa_rad_open": 4}
    assert {s.is_open for s in mixed.train} == {True, False}
    for questions, sizes in {"closed": {"vqa_rad": 8}, "open": {"vqa_rad": 4}}.items():
        parts = both(path, Columns(**VQA_RAD, options=by_type), questions=questions, rows=UNCHECKED)
        assert {name: len(test) for name, test in parts.test.items()} == sizes
        assert {s.is_open for s in parts.train} == {questions == "open"}


def test_a_run_on_vqa_rad(pictures, vqa_rad):
    run_here(
        pictures,
        *("+experiment=sft_600", "model=tiny", "data=table", "data.train=VQA_RAD.json"),
        *("data.test={vqa_rad: VQA_RAD.json}", "data.train_where={phrase_type: freeform}"),
        *("data.test_where={phrase_type: test_freeform}", "data.where={answer_type: CLOSED}"),
        *("data.columns.image=image_name", "data.columns.options={value: [yes, no]}", "data.columns.id=qid"),
        "data.columns.modality={column: image_organ, map: {HEAD: mri, CHEST: xray, ABD: ct}}",
        *("data.n_validation=2", "data.n_train=8", "trainer.max_steps=1", "workers=0"),
    )
    (folder,) = (pictures / "outputs/runs").iterdir()
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {r["modality"] for r in rows if r["control"] == "image"} == {"mri", "ct", "xray"}
    assert len({r["sample_id"] for r in rows if r["control"] == "image"}) == 8


def test_a_run_on_open_questions(pictures, vqa_rad):
    run_here(
        pictures,
        *("+experiment=sft_600", "model=tiny", "data=table", "data.train=VQA_RAD.json", "prompt=open"),
        *("reward=open", "data.test={vqa_rad: VQA_RAD.json}", "data.train_where={phrase_type: freeform}"),
        *("data.test_where={phrase_type: test_freeform}", "data.columns.image=image_name"),
        "data.columns.options={column: answer_type, map: {CLOSED: [yes, no], OPEN: null}}",
        *("data.columns.modality={value: xray}", "data.n_validation=2", "data.n_train=8"),
        *("trainer.max_steps=1", "workers=0"),
    )
    (folder,) = (pictures / "outputs/runs").iterdir()
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {r["test_set"] for r in rows} == {"vqa_rad", "vqa_rad_open"}


# --- row filters -----------------------------------------------------------------------------------

ROW = {"image": "images/0.png", "question": "q", "options": "a|b", "answer": "a", "modality": "ct"}


@pytest.fixture
def folds(tmp_path):
    """Rows of two folds and of none; CSV spells the fold 0.0."""
    rows = [
        {**ROW, "fold": fold, "used": used}
        for fold, used in [(0, True), (1, False), (0, False), (None, True)]
    ]
    pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    pandas.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    pandas.DataFrame(rows).to_json(tmp_path / "a.json", orient="records")
    return tmp_path


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.json"])
@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ({"fold": 0}, [0, 2]),
        ({"fold": "0"}, [0, 2]),
        ({"fold": [0, 1]}, [0, 1, 2]),
        ({"fold": None}, [3]),
        ({"fold": [None, 1]}, [1, 3]),
        ({"used": True}, [0, 3]),
        ({"used": "TRUE ", "fold": 0.0}, [0]),
        ({}, [0, 1, 2, 3]),
        (None, [0, 1, 2, 3]),
    ],
)
def test_rows_of_one_value(folds, name, where, numbers):
    source = Table(folds / name, Columns(), where=RowFilter(where), rows=UNCHECKED)
    assert [s.id for s in source] == [f"a-{number}" for number in numbers]
    assert source.skipped == []


def test_rows_that_are_left_out_are_counted(folds, caplog):
    with caplog.at_level(logging.INFO):
        Table(folds / "a.csv", Columns(), where=RowFilter({"fold": 1}), rows=UNCHECKED)
    assert f"{folds / 'a.csv'}: 3 rows left out by data.where" in caplog.text


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.json"])
def test_a_filter_that_cannot_be(folds, name):
    for where, message in [
        (
            {"Fold": 0},
            r"has no column 'Fold' \(data\.where\): did you mean 'fold'\? Its columns are image, question",
        ),
        (
            {"fold": 7},
            r"no row is chosen by data\.where: fold is 0(\.0)? \(2\), 1(\.0)? \(1\), None \(1\)|fold is '0",
        ),
    ]:
        with pytest.raises(BadRowError, match=message):
            Table(folds / name, Columns(), where=RowFilter(where), rows=UNCHECKED)


@pytest.mark.usefixtures("unchecked")
def test_a_filter_of_another_form():
    for where, message in [
        ("fold", r"data\.where is 'fold': give {COLUMN: VALUE}"),
        ({"fold": []}, r"data\.where\.fold is \[\]: give at least one value"),
    ]:
        with pytest.raises(ValueError, match=message):
            RowFilter(where)


def test_both_filters_hold(tmp_path):
    rows = [
        {**ROW, "image": f"{i}.png", "kind": "ab"[i % 2], "split": "train" if i < 8 else "test"}
        for i in range(12)
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    path = str(tmp_path / "a.json")
    splits = {"train_where": {"split": "train", "kind": ["a", "b"]}, "test_where": {"split": "test"}}
    parts = table(path, {"t": path}, Columns(), where={"kind": "a"}, **splits, n_validation=1, rows=UNCHECKED)
    assert sorted(s.id for s in (*parts.train, *parts.validation)) == [
        "train-0",
        "train-2",
        "train-4",
        "train-6",
    ]
    assert [s.id for s in parts.test["t"]] == ["t-8", "t-10"]
    for splits, message in [
        (
            {"train_where": {"Split": "train"}},
            r"has no column 'Split' \(data\.train_where\): did you mean 'split'",
        ),
        (
            {"test_where": {"split": "tets"}},
            r"no row is chosen by data\.where and data\.test_where: kind is 'a' \(6\)",
        ),
    ]:
        with pytest.raises(BadRowError, match=message):
            table(path, {"t": path}, Columns(), where={"kind": "a"}, **splits, rows=UNCHECKED)


# --- maps of columns -------------------------------------------------------------------------------


def mapped(tmp_path, row, **columns):
    (tmp_path / "a.json").write_text(json.dumps([{**ROW, **row}]))
    (sample,) = Table(tmp_path / "a.json", Columns(**columns), rows=UNCHECKED)
    return sample


def test_a_map_for_any_part(tmp_path):
    answers = {"column": "malignant", "map": {1: "a", 0: "b"}}
    for value, letter in [(1, "A"), (0.0, "B"), ("1 ", "A"), ("0.0", "B")]:
        assert mapped(tmp_path, {"malignant": value}, answer=answers).answer == letter
    yes = {"column": "flag", "map": {True: "a", False: "b"}}
    for value, letter in [(True, "A"), ("false", "B")]:
        assert mapped(tmp_path, {"flag": value}, answer=yes).answer == letter
    kinds = {"column": "kind", "map": {"d": "Disease Diagnosis"}}
    assert mapped(tmp_path, {"kind": " D "}, question_type=kinds).question_type == "Disease Diagnosis"
    assert mapped(tmp_path, {"kind": None}, question_type=kinds).question_type == "unknown"


@pytest.mark.parametrize(
    ("organ", "message"),
    [
        (
            "PELVIS",
            r"row 0: image_organ is 'PELVIS', which data\.columns\.modality\.map lacks: add it; the map",
        ),
        (None, r"row 0: has no modality \(column image_organ\): fill it in"),
    ],
)
def test_a_value_that_the_map_lacks(tmp_path, organ, message):
    with pytest.raises(BadRowError, match=message):
        mapped(tmp_path, {"image_organ": organ}, modality=ORGANS)


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        (
            {"column": "c", "map": {}},
            r"data\.columns\.modality is .*: give {column: C, map: {SPELLING: V}}, where C",
        ),
        ({"column": ["c"], "map": {"a": "ct"}}, "where C is one column's name"),
        ({"column": "c", "map": {"a": "ct", " A": "mri"}}, "has a spelling twice, up to case and space"),
        ({"column": "c", "maps": {"a": "ct"}}, "or {column: C, map: {SPELLING: V}} for a value by spelling"),
    ],
)
def test_a_map_that_cannot_be(modality, message):
    with pytest.raises(ValueError, match=message):
        Columns(modality=modality)


def test_the_remedy_for_an_unknown_modality_works(tmp_path):
    with pytest.raises(
        BadRowError, match=r"modality \(column organ\) 'HEAD' is no known modality: .*{column: C, map"
    ):
        mapped(tmp_path, {"organ": "HEAD"}, modality="organ")
    by_map = {"column": "organ", "map": {"HEAD": "ct"}}
    for remedy in (by_map, {"value": "ct"}):
        assert mapped(tmp_path, {"organ": "HEAD"}, modality=remedy).modality == "ct"


# --- open questions --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.parquet"])
def test_rows_without_options_are_open(tmp_path, name):
    rows = [
        {**ROW, "options": options, "answer": f" {answer} "}
        for options, answer in [("a|b", "b"), (None, "3 cm")]
    ]
    frame = pandas.DataFrame([*rows, {**rows[1], "options": " "}])
    write = {"csv": frame.to_csv, "parquet": frame.to_parquet}.get(name.rpartition(".")[2])
    write(tmp_path / name) if write else frame.to_json(
        tmp_path / name, orient="records", lines=name.endswith("l")
    )
    closed, *opened = Table(tmp_path / name, Columns(), rows=UNCHECKED)
    assert (closed.options, closed.answer) == (("a", "b"), "B")
    assert [(s.options, s.answer) for s in opened] == [((), "3 cm")] * 2


def test_open_questions_that_cannot_be(tmp_path):
    for row, columns, message in [
        ({"answer": None, "options": None}, {}, r"has no answer \(column answer\): fill it in"),
        (
            {"options": None},
            {"answer_is": "letter"},
            r"has no options \(column options\), but data\.columns\.answer_is=letter",
        ),
    ]:
        with pytest.raises(BadRowError, match=message):
            mapped(tmp_path, row, **columns)


def test_a_file_without_the_column_of_options(tmp_path):
    rows = [{key: value for key, value in ROW.items() if key != "options"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(
        BadRowError, match=r"no column 'options' .*open, set data\.columns\.options=null\. Its columns"
    ):
        Table(tmp_path / "a.json", Columns(), rows=UNCHECKED)
    for columns, questions in [(Columns(options=None), None), (Columns(), "open"), (Columns(), "all")]:
        (sample,) = Table(tmp_path / "a.json", columns, questions=questions, rows=UNCHECKED)
        assert sample.is_open


def test_settings_that_leave_nothing_are_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{**ROW, "options": None}] * 3))
    with pytest.raises(BadRowError, match=r"no row can be used \(3 left out by data\.questions=closed\)"):
        Table(tmp_path / "a.json", Columns(), questions="closed", rows=UNCHECKED)
    with pytest.raises(ValueError, match=r"data\.questions is 'opened': use 'closed', 'open' or 'all'"):
        Table(tmp_path / "a.json", Columns(), questions="opened", rows=UNCHECKED)


def test_the_papers_schema_with_open_questions(tmp_path):
    paper = {"image": "0.png", "question": "q", "subset": "CT"}
    rows = [
        {**paper, "options": ["a", "b"], "answer": "a"},
        {**paper, "answer": "3 cm"},
        {**paper, "answer": 7, "options": []},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    read = {
        name: McqJson(tmp_path / "a.json", questions=name, rows=UNCHECKED)
        for name in ("all", "open", "closed")
    }
    assert [(s.options, s.answer) for s in read["all"]] == [(("a", "b"), "A"), ((), "3 cm"), ((), "7")]
    assert [len(read[name]) for name in ("open", "closed")] == [2, 1]
    with pytest.raises(BadRowError, match="row 1: column 'options' is missing or empty"):
        McqJson(tmp_path / "a.json", rows=UNCHECKED)


def test_names_of_open_test_sets(tmp_path):
    rows = [{**ROW, "image": f"{i}.png", "options": "a|b" if i % 2 else None} for i in range(8)]
    for name, part in {"train": rows[:4], "mixed": rows[4:], "open": rows[4::2]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    path = {name: str(tmp_path / f"{name}.json") for name in ("train", "mixed", "open")}
    parts = table(
        path["train"], {"a": path["mixed"], "b": path["open"]}, Columns(), n_validation=1, rows=UNCHECKED
    )
    assert {name: len(test) for name, test in parts.test.items()} == {"a": 2, "a_open": 2, "b": 2}
    with pytest.raises(ValueError, match="names a_open, which the open questions of a become: rename it"):
        table(
            path["train"],
            {"a": path["mixed"], "a_open": path["open"]},
            Columns(),
            n_validation=1,
            rows=UNCHECKED,
        )


def test_the_remedies_for_an_answer_that_is_no_text_work(tmp_path):
    for answer, key in [("C", "letter"), ("1", "index or number")]:
        with pytest.raises(
            BadRowError, match=rf"give an option's text, or set data\.columns\.answer_is(=| to ){key}"
        ):
            mapped(tmp_path, {"options": "x|y|z", "answer": answer})
    for answer, forms in {"b)": ["letter"], "1.0": ["index"], 2.0: ["number"], "2": ["number"]}.items():
        assert [mapped(tmp_path, {"answer": answer}, answer_is=form).answer for form in forms] == ["B"]
