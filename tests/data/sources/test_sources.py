"""Published sets: read in their real layouts, split as documented, answered and scored."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import published
import pytest
from command import run_here
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import OmegaConf
from training import PROMPT, RECIPE, REWARDS, ROOT, module_of

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.data.datamodule import VQADataModule
from medvlm_r1.data.images.arrow import ArrowImage
from medvlm_r1.data.images.embedded import ImageStore, ZipImage
from medvlm_r1.data.perturbation import Perturbation
from medvlm_r1.data.sample import BadRowError, VQASample
from medvlm_r1.data.sources.med_r1 import TASKS, med_r1, read_file
from medvlm_r1.data.splits import Questions, split_by_image
from medvlm_r1.evaluate.predictions import Prediction, summarise
from medvlm_r1.policy.loading.load import load_policy

with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
    _open = compose("config", overrides=["prompt=open", "reward=open"])
OPEN, REWARD = instantiate(_open.prompt), instantiate(_open.reward)


def option(name: str, **keys) -> Questions:
    """Load the questions of an option of ``conf/data``."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = compose("config", overrides=[f"data={name}"]).data
    try:
        return instantiate(OmegaConf.merge(node, keys))
    except InstantiationException as error:
        raise error.__cause__ from None


@pytest.fixture(scope="module")
def policy():
    return load_policy("embedded", RECIPE)


@pytest.fixture
def walk(policy, tmp_path):
    """Encode every test question in a worker, answer it with the embedded model, and score it."""

    def judged(questions: Questions, workers: int = 0, prompt=PROMPT, rewards=REWARDS):
        encode = functools.partial(policy.encoder.encode, prompt=prompt)
        module = module_of(VLMModule, policy, rewards=rewards)
        module.prompt = prompt
        data = VQADataModule(questions, encode, 2, 4, seed=0, workers=workers)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path / "run", **quiet)
        trainer.test(module, data, verbose=False)
        asked = [(name, s.id, s.answer) for name, source in questions.test.items() for s in source]
        assert [(p.test_set, p.sample_id, p.gold) for p in module.predictions] == asked
        assert len(next(iter(data.train_dataloader()))) == 2
        return module.predictions

    return judged


def groups(part) -> set[str]:
    return {sample.image_group for sample in part}


def all_samples(questions: Questions) -> list:
    return [s for p in (questions.train, questions.validation, *questions.test.values()) for s in p]


# --- Med-R1 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("archive", [False, True])
def test_med_r1_by_modality(tmp_path, walk, archive):
    published.med_r1(tmp_path)
    images = tmp_path / ("OmniMedVQA.zip" if archive else "OmniMedVQA")
    keys = {"root": str(tmp_path), "images": str(images), "domain": "xray", "n_validation": 3}
    with pytest.warns(UserWarning, match="1 of 3 questions of test set 'xray' show an image of training"):
        questions = option("med_r1_modality", **keys)
    assert (len(questions.train), len(questions.validation)) == (9, 3)
    assert list(questions.test) == ["oct", "xray"]
    first = questions.test["xray"][1]
    assert (first.question, first.modality, first.answer) == ("What is shown in 20?", "xray", "C")
    assert first.options == ("Liver, left lobe", "MRI, or CT", "None (yet)")
    assert isinstance(first.images[0], ZipImage) == archive
    assert first.image_group == "Images/X-R/20.png"
    walk(questions)


def test_med_r1_by_task(tmp_path, walk):
    published.med_r1(tmp_path)
    questions = option(
        "med_r1_task",
        root=str(tmp_path / "Splits"),
        images=str(tmp_path / "OmniMedVQA"),
        domain="disease_diagnosis",
        tests=["lesion_grading"],
        n_validation=3,
    )
    assert list(questions.test) == ["lesion_grading"]
    assert {s.question_type for s in questions.train} == {"disease_diagnosis"}
    walk(questions)


def test_med_r1_without_the_images_of_tests(tmp_path, recwarn):
    published.med_r1(tmp_path)
    keys = {"root": str(tmp_path), "images": str(tmp_path / "OmniMedVQA"), "domain": "xray"}
    questions = option("med_r1_modality", **keys, drop_test_images=True, n_validation=3, n_train=5, n_test=2)
    assert [len(p) for p in (questions.train, questions.validation, questions.test["oct"])] == [5, 3, 2]
    assert not groups(questions.train) & groups(questions.test["xray"])
    assert not [w for w in recwarn if "show an image" in str(w.message)]


def test_med_r1_mistakes(tmp_path):
    published.med_r1(tmp_path)
    keys = {"by": "modality", "root": str(tmp_path), "images": str(tmp_path / "OmniMedVQA")}
    with pytest.raises(ValueError, match="train has no domain 'ct': it has oct, xray"):
        med_r1(**keys, domain="ct")
    with pytest.raises(ValueError, match="test has no domain 'mri'"):
        med_r1(**keys, domain="xray", tests=["mri"])
    with pytest.raises(FileNotFoundError, match="clone https://github"):
        med_r1(**keys | {"root": str(tmp_path / "none")}, domain="xray")
    with pytest.raises(FileNotFoundError, match="give a folder or a"):
        med_r1(**keys | {"images": str(tmp_path / "none")}, domain="xray")
    with pytest.raises(BadRowError, match=r"X-Ray_train\.json row 0: .* does not exist.*check data\.root"):
        med_r1(**keys | {"images": str(tmp_path)}, domain="xray", tests=["oct"], n_validation=1)


RELEASED = [
    *(
        ("modality", d)
        for d in ("ct", "dermoscopy", "fundus", "mri", "microscopy", "oct", "xray", "ultrasound")
    ),
    *(("question_type", task) for task in TASKS),
]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    root = tmp_path_factory.mktemp("Med-R1")
    published.med_r1_as_released(root)
    published.litter(root)
    return root


@pytest.mark.parametrize(("by", "domain"), RELEASED, ids=lambda value: value)
def test_med_r1_as_released(released, caplog, by, domain):
    """All domains load from the authors' files; rows with the same option twice are left out and counted."""
    name = {"modality": "med_r1_modality", "question_type": "med_r1_task"}[by]
    keys = {
        "root": str(released),
        "images": str(released / "OmniMedVQA"),
        "domain": domain,
        "n_validation": 3,
    }
    questions = option(name, **keys)
    assert len(questions.train) == 9
    assert set(questions.test) == {name for kind, name in RELEASED if kind == by}
    assert {len(test) for test in questions.test.values()} == {3}
    twice = {"ct": 3, "ultrasound": 5, "modality_recognition": 2}.get(domain, 0)
    in_tests = 3 if by == "question_type" else 0
    assert len(questions.skipped) == twice + in_tests
    assert all("contain a duplicate" in line for line in questions.skipped)
    counted = [r.message for r in caplog.records if "rows skipped" in r.message]
    assert [line.partition(" (")[0] for line in counted] == [
        *([f"data, train: {twice} rows skipped"] if twice else []),
        *(["data, modality_recognition: 3 rows skipped"] if in_tests else []),
    ]
    assert all("x options ... contain a duplicate" in line for line in counted)
    assert {part for part, _, _ in questions.refused} == {
        *(["train"] if twice else []),
        *(["modality_recognition"] if in_tests else []),
    }


def test_med_r1_as_released_in_strict_mode(released):
    keys = {"root": str(released), "images": str(released / "OmniMedVQA"), "domain": "ct"}
    with pytest.raises(BadRowError, match=r"CT.*_train\.json row 0: options .* a duplicate.*on_bad_row=skip"):
        option("med_r1_modality", **keys, rows={"on_bad_row": "fail"})


def test_med_r1_as_released_runs(released, tmp_path):
    """The README's command ends with a result, and says how many rows were left out and why."""
    keys = [f"data.root={released}", f"data.images={released / 'OmniMedVQA'}", "data.domain=ultrasound"]
    keys += [
        "data.n_validation=4",
        "data.tests=[oct]",
        "model=tiny",
        "trainer.max_steps=1",
        "controls=[image]",
    ]
    done = run_here(tmp_path, "+experiment=med_r1_modality", *keys)
    said = " ".join((done.stdout + done.stderr).split())
    assert "data, train: 5 rows skipped (5 x options ... contain a duplicate" in said
    (listed,) = tmp_path.glob("outputs/runs/*/skipped.txt")
    assert len(listed.read_text().splitlines()) == 5


def test_two_files_of_one_domain_are_told_apart(tmp_path):
    published.med_r1(tmp_path)
    folder = tmp_path / "Splits/modality/train"
    shutil.copy(folder / "X-Ray_train.json", folder / "xray_train.json")
    keys = {"root": str(tmp_path), "images": str(tmp_path / "OmniMedVQA"), "drop_test_images": True}
    keys |= {"n_validation": 3}
    with pytest.raises(ValueError, match=r"X-Ray_train\.json and xray_train\.json are both 'xray'"):
        option("med_r1_modality", **keys, domain="xray")
    assert option("med_r1_modality", **keys, domain="oct").train


@pytest.mark.parametrize("domain", ["xray", "dermoscopy"])
def test_real_med_r1(domain, tmp_path):
    """Every released row is read, with the option text behind the gold letter as it was written."""
    if not os.environ.get("MEDVLM_R1_REAL_QUESTIONS"):
        pytest.skip("MEDVLM_R1_REAL_QUESTIONS is not set: no real data to read")
    folder = Path(os.environ["MEDVLM_R1_REAL_QUESTIONS"])
    (tmp_path / "Images").mkdir()
    for part in ("train", "test"):
        path = folder / f"med_r1_{domain}_{part}.json"
        rows = json.loads(path.read_text())
        table = read_file(path, domain, "modality", ImageStore(tmp_path), part)
        assert len(table.samples) == len(rows)
        for sample, row in zip(table.samples, rows, strict=True):
            written = [f"{a}){text}" for a, text in zip(sample.letters, sample.options, strict=True)]
            assert f"{sample.question} {', '.join(written)}" == row["problem"]
            assert f"{row['solution'][9]}){sample.answer_text}" in row["problem"]


# --- OmniMedVQA ------------------------------------------------------------------------------------


@pytest.mark.parametrize("archive", [False, True])
def test_omnimedvqa(tmp_path, walk, archive):
    published.omnimedvqa(tmp_path)
    if archive:
        shutil.make_archive(str(tmp_path / "OmniMedVQA"), "zip", tmp_path, "OmniMedVQA")
        shutil.rmtree(tmp_path / "OmniMedVQA")
    keys = {"root": str(tmp_path), "n_validation": 4, "n_test": 3}
    questions = option("omnimedvqa", **keys, domain="ct", n_train=10)
    assert {name: len(source) for name, source in questions.test.items()} == {"ct": 3, "mri": 3}
    assert {s.modality for s in questions.train} == {"ct"}
    assert len(questions.train) == 10
    assert not (groups(questions.train) | groups(questions.validation)) & groups(
        s for source in questions.test.values() for s in source
    )
    assert {len(s.options) for s in questions.train} == {2, 4}
    assert {s.answer_text for s in questions.train} == {"Heart", "Yes"}
    walk(questions)


def test_omnimedvqa_filters_share_the_split(tmp_path):
    published.omnimedvqa(tmp_path)
    keys = {"root": str(tmp_path), "n_validation": 2}
    whole = option("omnimedvqa", **keys)
    some = option("omnimedvqa", **keys, domain=["ct"], tests=["ct"], question_types=["disease_diagnosis"])
    assert {s.question_type for s in all_samples(some)} == {"disease_diagnosis"}
    of_whole = {s.id for s in whole.test["ct"] if s.question_type == "disease_diagnosis"}
    assert {s.id for s in some.test["ct"]} == of_whole
    tasks = option("omnimedvqa", **keys, by="question_type", n_train=4, access=["open", "restricted"])
    assert list(tasks.test) == ["anatomy_identification", "disease_diagnosis", "lesion_grading"]
    assert len(tasks.train) == 12
    assert len({s.id for s in all_samples(tasks)}) == len(all_samples(tasks))


def test_omnimedvqa_mistakes(tmp_path):
    published.omnimedvqa(tmp_path)
    root = {"root": str(tmp_path)}
    with pytest.raises(ValueError, match="no question of modality 'oct': there are ct, mri"):
        option("omnimedvqa", **root, domain="oct")
    with pytest.raises(ValueError, match="no question of question_type 'grading'"):
        option("omnimedvqa", **root, question_types=["grading"])
    with pytest.raises(ValueError, match="use open or restricted"):
        option("omnimedvqa", **root, access=["closed"])
    with pytest.raises(ValueError, match="use 'modality' or"):
        option("omnimedvqa", **root, by="source")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="QA_information/ and Images/"):
        option("omnimedvqa", root=str(tmp_path / "empty"))
    path = tmp_path / "OmniMedVQA/QA_information/Open-access/MRI.json"
    rows = json.loads(path.read_text())
    rows[3]["gt_answer"] = "Spleen"
    del rows[5]["question"]
    path.write_text(json.dumps(rows))
    with pytest.raises(BadRowError, match=r"MRI\.json row 3: answer 'Spleen' is not among the options"):
        option("omnimedvqa", **root, rows={"on_bad_row": "fail"})
    skipped = option("omnimedvqa", **root, n_validation=2).skipped
    assert ["row 3" in skipped[0], "row 5: column 'question' is missing" in skipped[1]] == [True, True]


# --- sets of parquet with embedded pictures --------------------------------------------------------


def test_vqa_rad_is_split_by_image(tmp_path, walk):
    published.vqa_rad(tmp_path)
    questions = option("vqa_rad", root=str(tmp_path), n_validation=3)
    parts = [questions.train, questions.validation, questions.test["vqa_rad"]]
    assert [len(groups(a) & groups(b)) for a, b in zip(parts, parts[1:] + parts[:1], strict=True)] == [0] * 3
    assert len({s.id for s in all_samples(questions)}) == len(all_samples(questions)) > 30
    assert {s.options for s in all_samples(questions)} == {("yes", "no")}
    assert {s.answer for s in all_samples(questions)} == {"A", "B"}
    assert isinstance(questions.train[0].images[0], ArrowImage)
    walk(questions, workers=1)


def test_vqa_rads_official_split_warns(tmp_path):
    published.vqa_rad(tmp_path)
    with pytest.warns(UserWarning, match="show an image of training"):
        questions = option("vqa_rad", root=str(tmp_path), split="official", n_validation=2)
    assert len(questions.test["vqa_rad"]) == 8
    with pytest.raises(ValueError, match="use 'by_image' or 'official'"):
        option("vqa_rad", root=str(tmp_path), split="random")


def test_path_vqa(tmp_path, walk, recwarn):
    published.path_vqa(tmp_path)
    questions = option("path_vqa", root=str(tmp_path), n_validation=3)
    assert [len(p) for p in (questions.train, questions.validation, questions.test["path_vqa"])] == [11, 3, 5]
    assert "path_vqa-train-1-0" in {s.id for s in questions.train}
    assert not [w for w in recwarn if "show an image" in str(w.message)]
    walk(questions)
    with pytest.warns(UserWarning, match="1 of 5 questions"):
        kept = option("path_vqa", root=str(tmp_path), n_validation=3, drop_test_images=False)
    assert len(kept.train) == 12


def test_a_missing_shard_is_noticed(tmp_path):
    published.path_vqa(tmp_path)
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="holds no complete data/train"):
        option("path_vqa", root=str(tmp_path))


def test_damaged_parquet_and_bad_rows_are_named(tmp_path):
    path = tmp_path / "data/test-00000-of-00001.parquet"
    published.path_vqa(tmp_path)
    published.write_parquet(
        path,
        [
            {"image": 50, "question": "Is it?", "answer": "yes"},
            {"image": 51, "question": " ", "answer": "no"},
        ],
    )
    with pytest.raises(BadRowError, match=rf"{path.name} row 1: question is ' ': give text"):
        option("path_vqa", root=str(tmp_path), n_validation=2, rows={"on_bad_row": "fail"})
    skipped = option("path_vqa", root=str(tmp_path), n_validation=2).skipped
    assert len(skipped) == 1
    published.write_parquet(path, [{"picture": 50, "question": "Is it?", "answer": "yes"}], ["picture"])
    with pytest.raises(BadRowError, match="has no column 'image': it has picture, question"):
        option("path_vqa", root=str(tmp_path))
    path.write_bytes(b"PAR1 cut short")
    with pytest.raises(BadRowError, match="is no readable Parquet"):
        option("path_vqa", root=str(tmp_path))


def test_mmmu_med(tmp_path, walk):
    published.mmmu_med(tmp_path)
    questions = option("mmmu_med", root=str(tmp_path))
    assert [len(p) for p in (questions.train, questions.validation, questions.test["mmmu_med"])] == [
        15,
        5,
        20,
    ]
    second = questions.test["mmmu_med"][1]
    assert len(second.images) == 2
    assert second.options[:2] == ("it's one", 'the "two"')
    assert (second.answer, second.question_type) == ("B", "Basic_Medical_Science")
    walk(questions)
    few = option("mmmu_med", root=str(tmp_path), subjects=["Pharmacy"], n_validation=1)
    assert {s.question_type for s in all_samples(few)} == {"Pharmacy"}


# --- sets of files and archives --------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_slake(tmp_path, walk, zipped):
    published.slake(tmp_path, zipped)
    questions = option("slake", root=str(tmp_path), n_validation=3)
    assert [len(p) for p in (questions.train, questions.validation, questions.test["slake"])] == [9, 3, 5]
    assert {s.modality for s in questions.train} == {"xray", "ct", "mri"}
    assert not groups(questions.train) & groups(questions.test["slake"])
    walk(questions, workers=1)


@pytest.mark.parametrize("version", [1, 2])
def test_pmc_vqa(tmp_path, walk, version):
    published.pmc_vqa(tmp_path, version)
    questions = option("pmc_vqa", root=str(tmp_path), version=version, n_validation=3)
    assert [len(p) for p in (questions.train, questions.validation, questions.test["pmc_vqa"])] == [8, 3, 5]
    for sample in all_samples(questions):
        number = int(sample.image_group[3:-4])
        assert sample.options == (f"organ {number}", "B cells, or none", "lung", "heart\nmuscle")
        assert sample.answer == "ABCD"[number % 4]
    walk(questions)


def test_medxpertqa_mm(tmp_path, walk):
    published.medxpertqa_mm(tmp_path)
    questions = option("medxpertqa_mm", root=str(tmp_path))
    assert [len(p) for p in (questions.train, questions.validation)] == [4, 1]
    second = questions.test["medxpertqa_mm"][1]
    assert (second.question, second.answer, len(second.images)) == ("A patient of 1. What next?", "B", 2)
    walk(questions)


# --- copies as people have them, and rows as authors ship them -------------------------------------

SETS = {
    "med_r1_modality": (published.med_r1_as_released, {"domain": "xray", "images": "OmniMedVQA"}),
    "med_r1_task": (published.med_r1_as_released, {"domain": "lesion_grading", "images": "OmniMedVQA"}),
    "omnimedvqa": (published.omnimedvqa, {}),
    "vqa_rad": (published.vqa_rad, {}),
    "slake": (published.slake, {}),
    "path_vqa": (published.path_vqa, {}),
    "pmc_vqa": (functools.partial(published.pmc_vqa, version=2), {}),
    "mmmu_med": (published.mmmu_med, {}),
    "medxpertqa_mm": (published.medxpertqa_mm, {}),
}


@pytest.mark.parametrize("name", SETS)
def test_files_that_nobody_asked_for_are_passed_over(tmp_path, name):
    write, keys = SETS[name]
    write(tmp_path)
    keys = {k: str(tmp_path / v) if k == "images" else v for k, v in keys.items()}
    keys |= {"root": str(tmp_path), "n_validation": 1}
    clean = option(name, **keys)
    published.litter(tmp_path)
    if name.startswith("med_r1"):
        for part in ("train", "test"):
            published.write_json(tmp_path / f"Splits/modality/{part}/unknown_{part}.json", [{"any": 1}])
            published.write_json(tmp_path / f"Splits/question_type/{part}/notes.json", [{"any": 1}])
    littered = option(name, **keys)
    assert all_samples(littered) == all_samples(clean)
    assert littered.skipped == clean.skipped


@pytest.mark.parametrize("missing", [None, "", "  ", float("nan")])
def test_a_missing_option_is_not_offered(tmp_path, missing):
    """OmniMedVQA as pandas writes it again: the options of two-option rows are empty or NaN."""
    published.omnimedvqa(tmp_path)
    path = tmp_path / "OmniMedVQA/QA_information/Open-access/MRI.json"
    rows = json.loads(path.read_text())
    for row in rows[:19]:
        row |= {"option_B": missing, "gt_answer": "heart."}
    rows[19] |= {"option_B": missing, "option_C": missing, "option_D": missing, "gt_answer": missing}
    path.write_text(json.dumps(rows))
    questions = option("omnimedvqa", root=str(tmp_path), n_validation=2, modalities=["mri"])
    assert {s.options for s in all_samples(questions)} == {("Brain", "Lung, left", "Heart")}
    assert {s.answer for s in all_samples(questions)} == {"C"}
    assert len(questions.skipped) == 1
    assert "row 19: gt_answer is" in questions.skipped[0]


def test_an_empty_inline_option_is_not_offered(tmp_path):
    """Med-R1's inline options: an empty one at the end is missing; an earlier or gold one spoils the row."""
    published.med_r1(tmp_path)
    path = tmp_path / "Splits/modality/train/X-Ray_train.json"
    rows = json.loads(path.read_text())
    problems = {0: "Q? A)lung, B)liver, C)", 1: "Q? A)lung, B), C)liver", 2: "Q? A)lung, B)liver, C)"}
    for i, problem in problems.items():
        rows[i] |= {"problem": problem, "solution": f"<answer> {'AAC'[i]} </answer>"}
    path.write_text(json.dumps(rows))
    keys = {"root": str(tmp_path), "images": str(tmp_path / "OmniMedVQA"), "domain": "xray"}
    questions = option("med_r1_modality", **keys, drop_test_images=False, n_validation=1, tests=["oct"])
    shown = [s for s in all_samples(questions) if s.question == "Q?"]
    assert [(s.id, s.options) for s in shown] == [("xray-train-0", ("lung", "liver"))]
    assert ["row 1: options is" in questions.skipped[0], "row 2: answer 'C'" in questions.skipped[1]] == [
        1,
        1,
    ]


def test_letters_follow_the_options_that_are_there(tmp_path):
    """Of A to E, B is missing: the row's C is the second option; a missing gold option leaves the row out."""
    published.medxpertqa_mm(tmp_path)
    path = tmp_path / "MM/test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["options"]["B"] = None
    path.write_text("\n".join(map(json.dumps, rows)))
    questions = option("medxpertqa_mm", root=str(tmp_path))
    kept = questions.test["medxpertqa_mm"]
    assert {s.options for s in kept} == {("rest", "drug", "wait", "operate")}
    assert [s.answer for s in kept] == ["A", "B", "C", "D", "A"]
    reasons = [line.partition("row ")[2] for line in questions.skipped]
    assert reasons == ["1: label is 'B': give the letter of an option, A, C, D, E"]

    (tmp_path / "pmc").mkdir()
    published.pmc_vqa(tmp_path / "pmc", 2)
    for part in ("train", "test"):
        path = tmp_path / f"pmc/{part}_2.csv"
        path.write_text(path.read_text().replace("C: lung", "C: "))
    pmc = option("pmc_vqa", root=str(tmp_path / "pmc"), n_validation=1)
    assert {len(s.options) for s in all_samples(pmc)} == {3}
    numbers = {s: int(s.image_group[3:-4]) for s in all_samples(pmc)}
    texts = {0: lambda i: f"organ {i}", 1: lambda i: "B cells, or none", 3: lambda i: "heart\nmuscle"}
    assert all(s.answer_text == texts[i % 4](i) for s, i in numbers.items())
    assert {i % 4 for i in numbers.values()} == {0, 1, 3}


def test_no_usable_row_is_told_with_its_reasons(tmp_path):
    published.slake(tmp_path)
    path = tmp_path / "test.json"
    path.write_text(json.dumps([row | {"question": None} for row in json.loads(path.read_text())]))
    with pytest.raises(BadRowError, match=r"no row can be used \(5 x question is None: give text"):
        option("slake", root=str(tmp_path))
    published.slake(tmp_path)
    (tmp_path / "imgs.zip").unlink()
    (tmp_path / "imgs").mkdir()
    with pytest.raises(
        BadRowError, match=r"does not exist; check data\.root .*on_bad_image=skip leaves"
    ) as error:
        option("slake", root=str(tmp_path), n_validation=1)
    assert "14 more rows" in str(error.value)
    reasons = r"train: no row can be used \(9 x image \.\.\. does not exist; check"
    with pytest.raises(BadRowError, match=reasons):
        option("slake", root=str(tmp_path), n_validation=1, rows={"on_bad_image": "skip"})


# --- open questions --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vqa_rad", "path_vqa", "slake"])
def test_open_questions_are_sets_of_their_own(tmp_path, walk, name):
    getattr(published, name)(tmp_path)
    questions = option(name, root=str(tmp_path), questions="all", n_validation=3)
    assert list(questions.test) == [name, f"{name}_open"]
    assert not any(s.is_open for s in questions.test[name])
    texts = {"vqa_rad": "left lung", "path_vqa": "in the wall", "slake": "Left lung"}
    assert {s.answer for s in questions.test[f"{name}_open"]} == {texts[name]}
    assert any(s.is_open for s in questions.train)
    rows = walk(questions, prompt=OPEN, rewards=REWARD)
    sections = summarise(rows)
    assert set(sections["open"]) == {f"{name}_open"}
    assert set(sections["accuracy"]) == set(questions.test)
    only = option(name, root=str(tmp_path), questions="open", n_validation=1)
    assert list(only.test) == [f"{name}_open"]


def test_a_prompt_or_reward_that_needs_a_letter_is_refused(tmp_path):
    published.vqa_rad(tmp_path / "rad")
    shared = ["+experiment=zero_shot", "model=tiny", "data=vqa_rad", f"data.root={tmp_path / 'rad'}"]
    shared += ["data.questions=all", "data.n_validation=2"]
    for more, message in (([], "take prompt=open"), (["prompt=open"], "take reward=open")):
        said = run_here(tmp_path, *shared, *more, code=2).stderr
        assert message in said
        assert "Traceback" not in said


def test_open_answers_are_summed_up_beside_closed_ones():
    """Of three texts one is right (F1 1), one shares one word of two and two (F1 1/2), one is missing."""
    where = VQASample("q", (), "Where?", (), "left lung", "mri", "open", "made", "g")
    closed = VQASample("c", (), "Is it?", ("yes", "no"), "A", "mri", "closed", "made", "g")
    said = [(where, "The left lung."), (where, "right lung"), (where, None), (closed, "A")]
    texts = [(sample, f"<answer>{text}</answer>" if text else "lung") for sample, text in said]
    rows = [
        Prediction.from_answer(
            Perturbation("image", s), OPEN.parse(t, s), 5, False, "run", 0, "s_open" if s.is_open else "s"
        )
        for s, t in texts
    ]
    sections = summarise(rows)
    assert sections["open"].keys() == {"s_open"}
    assert sections["open"]["s_open"]["token_f1"] == pytest.approx(1.5 / 3)
    assert sections["open"]["s_open"]["exact_match"]["value"] == pytest.approx(1 / 3)
    assert sections["accuracy"]["s_open"] == sections["open"]["s_open"]["exact_match"]
    assert sections["accuracy"]["s"]["value"] == 1.0
    assert "open" not in summarise(rows[3:])


def test_what_kinds_there_are(tmp_path):
    published.vqa_rad(tmp_path)
    with pytest.raises(ValueError, match="use 'closed', 'open' or 'all'"):
        option("vqa_rad", root=str(tmp_path), questions="both")


# --- splits, the hub ---------------------------------------------------------------------


def test_splits_follow_from_the_seed_and_need_two_sides(tmp_path):
    published.vqa_rad(tmp_path)
    first, again, other = (
        option("vqa_rad", root=str(tmp_path), n_validation=3, split_seed=s) for s in (0, 0, 1)
    )
    ids = [[s.id for s in all_samples(questions)] for questions in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    with pytest.raises(ValueError, match=r"test_share=0\.0 of \d+ images leaves nothing"):
        split_by_image(first.train, 0.0, 0)
    with pytest.raises(ValueError, match="train: 99 questions requested, but there are"):
        option("vqa_rad", root=str(tmp_path), n_validation=3, n_train=99)


def in_a_process(code: str, home: Path) -> str:
    """Run code in a new interpreter, since the hub client reads its environment at import; port 9 refuses."""
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | hub, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


READ = """
from medvlm_r1.data.sources.{name} import {name}
try:
    questions = {name}(n_validation=3)
    print(len(questions.train), len(questions.test["{name}"]), questions.train[0].images[0].load().size)
except FileNotFoundError as error:
    print(error)"""


@pytest.mark.parametrize(
    ("name", "repo", "printed"),
    [("slake", "BoKelvin--SLAKE", "9 5"), ("vqa_rad", "flaviagiammarino--vqa-rad", None)],
)
def test_the_hubs_cache_is_read_without_a_network(tmp_path, name, repo, printed):
    commit = "0" * 40
    cache = tmp_path / "hub" / f"datasets--{repo}"
    (cache / "snapshots" / commit).mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(commit)
    getattr(published, name)(cache / "snapshots" / commit)
    said = in_a_process(READ.format(name=name), tmp_path)
    assert said.endswith("(60, 48)")
    assert printed is None or said.startswith(printed)


def test_an_incomplete_cache_without_a_network_is_one_message(tmp_path):
    snapshot = tmp_path / "hub/datasets--flaviagiammarino--path-vqa/snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0" * 40)
    published.path_vqa(snapshot)
    (snapshot / "data/train-00000-of-00002.parquet").unlink()
    said = in_a_process(READ.format(name="path_vqa"), tmp_path)
    assert "flaviagiammarino/path-vqa (revision main) is not in the cache and cannot be fetched" in said
    assert "data.root=DIR" in said
    assert "data=phantom" in said
