"""Rationales of training questions: from every format, and what is wrong with one."""

import json

import pandas
import pytest
from command import run_here
from datasets import Dataset, DatasetDict, Features, Value
from PIL import Image
from test_hf_dataset import PLAIN, caches, load, rows  # noqa: F401

from medvlm_r1.data.formats.columns import Columns
from medvlm_r1.data.formats.mcq_json import mcq_json
from medvlm_r1.data.formats.table import table
from medvlm_r1.data.sample import BadRowError


def papers_file(folder, name, n, **more):
    """A file in the papers' schema with pictures of its own."""
    (folder / name).mkdir()
    row = {"options": ["yes", "no"], "answer": "yes", "subset": "CT(Computed Tomography)", **more}
    for i in range(n):
        Image.new("L", (32, 32), i).save(folder / name / f"{i}.png")
    rows = [{"image": [f"{i}.png"], "question": f"Is it {i}?", **row} for i in range(n)]
    (folder / name / "rows.json").write_text(json.dumps(rows))
    return str(folder / name / "rows.json")


WHY = [f"Line {i} is bright.\nSo it is lung." if i % 3 else None for i in range(10)]


def read_by(parts):
    """Rationales by the number in the question."""
    return {int(s.question.split()[-1].rstrip("?")): s.rationale for part in parts for s in part}


EXPECTED = [why or "" for why in WHY]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json", "jsonl"])
def test_a_table_has_a_column_of_them(pictures, suffix):
    frame = pandas.DataFrame(
        {"image": [f"images/{i}.png" for i in range(10)], "question": [f"Is it {i}?" for i in range(10)]}
        | {"options": "lung|liver", "answer": "lung", "modality": "ct"}
    )
    write = {
        "csv": lambda f, p: f.to_csv(p, index=False),
        "parquet": lambda f, p: f.to_parquet(p),
        "json": lambda f, p: f.to_json(p, orient="records"),
        "jsonl": lambda f, p: f.to_json(p, orient="records", lines=True),
    }[suffix]
    train, test = pictures / f"train.{suffix}", pictures / f"test.{suffix}"
    write(frame.assign(why=WHY)[:7], train)
    write(frame[7:], test)  # which has no rationales
    read = table(str(train), {"ct": str(test)}, Columns(rationale="why"), n_validation=2)
    assert read_by([read.train, read.validation]) == dict(enumerate(EXPECTED[:7]))
    assert {sample.rationale for sample in read.test["ct"]} == {""}
    assert read_by([table(str(train), {"ct": str(test)}, Columns(), n_validation=2).train]) == dict.fromkeys(
        read_by([read.train]), ""
    )
    with pytest.raises(BadRowError, match=r"no column 'wy' \(data.columns.rationale\): did you mean 'why'"):
        table(str(train), {"ct": str(test)}, Columns(rationale="wy"), n_validation=2)


def test_a_hugging_face_data_set_has_one_too(tmp_path):
    features = Features(**PLAIN, why=Value("string"))
    train = Dataset.from_list(rows(range(10), why=lambda i: WHY[i]), features=features)
    test = Dataset.from_list(rows(range(10, 14)), features=PLAIN)
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "set")
    read = load(tmp_path / "set", columns={"rationale": "why"})
    assert read_by([read.train, read.validation]) == dict(enumerate(EXPECTED))


def test_the_papers_json_has_a_key(tmp_path):
    train, test = papers_file(tmp_path, "a", 12, rationale=" It is bright. "), papers_file(tmp_path, "b", 5)
    read = mcq_json(train, {"ct": test}, n_validation=4)
    assert {sample.rationale for sample in (*read.train, *read.validation)} == {"It is bright."}
    assert {sample.rationale for sample in read.test["ct"]} == {""}


class TestRun:
    """From the command line, where the method decides whether a question needs a rationale."""

    @pytest.fixture
    def files(self, tmp_path):
        train, test = papers_file(tmp_path, "a", 14, rationale="Yes."), papers_file(tmp_path, "b", 4)
        return [
            *("data=mcq_json", f"data.train={train}", f"data.test={{ct:{test}}}", "data.n_validation=4"),
            *("trainer.max_steps=1", "controls=[image]", "audit=null", "method=sft_rationale"),
        ]

    def change(self, tmp_path, row, rationale):
        path = tmp_path / "a" / "rows.json"
        questions = json.loads(path.read_text())
        questions[row]["rationale"] = rationale
        path.write_text(json.dumps(questions))

    @pytest.mark.parametrize(
        ("rationale", "fault"),
        [
            (None, "has no rationale, on which method=sft_rationale trains: fill in its column"),
            ("No. </think><answer>B</answer>", "holds a think or answer tag: remove it"),
            ("Yes, " * 40, "tokens, above max_completion_tokens=32: shorten the rationale"),
        ],
        ids=["missing", "tags", "long"],
    )
    def test_an_unusable_one_names_its_row_and_may_be_skipped(self, files, tmp_path, rationale, fault):
        for row in range(14):  # validation holds four of them
            self.change(tmp_path, row, rationale)
        error = run_here(tmp_path, *files, code=2).stderr
        assert f"{tmp_path}/a/rows.json row " in error
        assert fault in error
        assert "9 more questions have such a fault" in error
        for row in range(8):
            self.change(tmp_path, row, "Yes.")
        for row in range(8, 14):
            self.change(tmp_path, row, rationale)
        run_here(tmp_path, *files, "data.rows.on_bad_row=skip", "model.recipe.prompts_per_step=4")
        (skipped,) = tmp_path.glob("outputs/runs/*/skipped.txt")
        assert fault in skipped.read_text()

    def test_other_methods_need_none(self, files, tmp_path):
        for row in range(14):
            self.change(tmp_path, row, None)
        run_here(tmp_path, *files, "method=sft")
