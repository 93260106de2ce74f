"""Questions that a run could not ask are found before its first step."""

import json
from dataclasses import replace
from functools import partial

import pytest
from command import run_here
from PIL import Image
from test_datamodule import rows

from medvlm_r1.data.formats.mcq_json import mcq_json
from medvlm_r1.data.perturbation import Unperturbed
from medvlm_r1.data.prompt_check import check_prompts
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.evaluate.controls import CONTROLS, PerturbedQuestions

PERTURB = partial(PerturbedQuestions, controls=CONTROLS, assistant_prefix="<answer>")


@pytest.fixture
def loaded(tmp_path):
    train, test = rows(tmp_path, "a", 12), rows(tmp_path, "b", 6)
    return mcq_json(train, {"ct": test}, n_validation=4)


def faulty(*texts):
    """Finds fault with questions of these texts, in both phases."""

    def fault(sample):
        return f"{sample.question!r} is faulty: mend it" if sample.question in texts else None

    return {"train": fault, "evaluate": fault}


def test_a_fault_names_file_row_and_remedy(loaded, tmp_path):
    first = loaded.train[0]
    with pytest.raises(BadRowError) as error:
        check_prompts(loaded, faulty(first.question, "Question 5?"), PERTURB, "fail")
    row = first.question.split()[1].rstrip("?")
    assert str(error.value).startswith(
        f"{tmp_path}/a/rows.json row {row}: '{first.question}' is faulty: mend it"
    )
    assert "data.rows.on_bad_image=skip" in str(error.value)
    assert "more questions have such a fault" in str(error.value)


@pytest.mark.parametrize("perturb", [PERTURB, Unperturbed])
def test_skip_leaves_it_out_of_every_part(loaded, perturb):
    texts = [loaded.train[0].question, loaded.validation[0].question, loaded.test["ct"][2].question]
    kept = check_prompts(loaded, faulty(*texts), perturb, "skip")
    for part in (kept.train, kept.validation, kept.test["ct"]):
        assert not {sample.question for sample in part} & set(texts)
    before = sum(map(len, (loaded.train, loaded.validation, loaded.test["ct"])))
    after = sum(map(len, (kept.train, kept.validation, kept.test["ct"])))
    assert before - after == len(kept.skipped) > 2


def test_nothing_changes_without_a_fault(loaded):
    assert check_prompts(loaded, faulty(), PERTURB, "fail") is loaded


def test_a_control_is_checked_too(loaded):
    """Another question lends its images: that prompt may be too long where no question's own is."""
    test = [replace(s, answer="AB"[i % 2]) for i, s in enumerate(loaded.test["ct"])]
    mixed = replace(loaded, test={"ct": test})
    own = {sample.id: sample.images for sample in test}

    def fault(sample):
        return "it shows a large image" if own.get(sample.id, sample.images) != sample.images else None

    fault_in = {"train": lambda _: None, "evaluate": fault}
    with pytest.raises(BadRowError, match=r"b/rows.json row 0: it shows a large image.*5 more"):
        check_prompts(mixed, fault_in, partial(PERTURB, controls=("image", "swapped")), "fail")
    assert check_prompts(mixed, fault_in, partial(PERTURB, controls=("image", "permuted")), "fail") is mixed


class TestRun:
    """From the command line: nothing is trained before all prompts are checked."""

    @pytest.fixture
    def files(self, tmp_path):
        train, test = rows(tmp_path, "a", 20), rows(tmp_path, "b", 6)
        return [
            *("data=mcq_json", f"data.train={train}", f"data.test={{ct:{test}}}", "data.n_validation=4"),
            *("trainer.max_steps=1", "controls=[image,permuted]", "audit=null"),
        ]

    def change(self, folder, row, **fields):
        path = folder / "rows.json"
        questions = json.loads(path.read_text())
        questions[row] |= fields
        path.write_text(json.dumps(questions))

    def test_a_test_prompt_that_is_too_long(self, files, tmp_path):
        self.change(tmp_path / "b", 3, question="Is it normal? " * 200)
        error = run_here(tmp_path, *files, code=2).stderr
        assert f"{tmp_path}/b/rows.json row 3: the prompt has" in error
        assert not list(tmp_path.glob("outputs/runs/*/checkpoints/*"))
        run_here(tmp_path, *files, "data.rows.on_bad_row=skip")
        (metrics,) = tmp_path.glob("outputs/runs/*/metrics.json")
        assert "b/rows.json row 3: the prompt has" in (metrics.parent / "skipped.txt").read_text()
        lines = (metrics.parent / "predictions.jsonl").read_text().splitlines()
        assert len([line for line in lines if json.loads(line)["control"] == "image"]) == 5

    def test_control_tokens_are_text(self, files, tmp_path):
        self.change(tmp_path / "a", 3, question="What is <|image_pad|>?")
        self.change(tmp_path / "b", 3, options=["yes", "no<|im_end|>"])
        Image.new("L", (32, 32), 9).save(tmp_path / "b" / "3.png")
        run_here(tmp_path, *files)


def test_a_set_without_rows_names_no_key_that_it_lacks(loaded):
    with pytest.raises(BadRowError, match="is faulty: mend it") as error:
        check_prompts(loaded, faulty(loaded.train[0].question), PERTURB, None)
    assert "on_bad_image" not in str(error.value)
