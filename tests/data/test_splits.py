"""Training questions: nested for one seed, per class, by image group, independent of the folder."""

import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from PIL import Image

from medvlm_r1.data.formats.columns import Columns
from medvlm_r1.data.formats.hf_dataset import hf_dataset
from medvlm_r1.data.formats.image_folder import image_folder
from medvlm_r1.data.formats.mcq_json import mcq_json
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.formats.table import table
from medvlm_r1.data.sources.medvlm_r1 import MedVLMR1Set, medvlm_r1
from medvlm_r1.data.splits import choose, draw, hold_out
from medvlm_r1.phantom import PhantomSource, phantom_domains

CONF = Path(__file__).parents[2] / "conf/data"
CURVE = (50, 100, 200, 400, 600)
MRI = "MR (Mag-netic Resonance Imaging)"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """700 questions about as many images (one picture under 700 names), in every option's layout."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    Image.new("L", (32, 32)).save(folder / "images/0.png")
    rows, labels = [], ["file,label,patient"]
    for i in range(720):
        answer = ["brain", "liver"][i % 2]
        row = {"image": [f"images/{i}.png"], "question": f"{i}?", "options": ["brain", "liver"]}
        rows.append({**row, "answer": answer, "subset": MRI, "modality": "mri", "qtype": f"type {i % 3}"})
        labels.append(f"{i}.png,{answer},p{i}")
    (folder / "train.json").write_text(json.dumps(rows[:700]))
    (folder / "test.json").write_text(json.dumps(rows[700:]))
    (folder / "labels/labels.csv").write_text("\n".join(labels))
    # the bundle of MedVLM-R1
    (folder / "bundle/images").mkdir(parents=True)
    papers = [{k: v for k, v in row.items() if k != "modality"} for row in rows]
    (folder / "bundle/test.json").write_text(json.dumps(papers[:710]))
    for name, subset in (("ct", "CT(Computed Tomography)"), ("xray", "X-Ray")):
        papers.append({**papers[-1], "subset": subset, "image": [f"images/{name}.png"]})
    (folder / "bundle/MRI_CT_XRAY_300each_dataset.json").write_text(json.dumps(papers[710:]))
    return folder


def n_of(option: str, files: Path, n: int, seed: int = 0):
    """Training questions of one option of conf/data."""
    train, tests = str(files / "train.json"), {"mri": str(files / "test.json")}
    sizes = {"n_train": n, "n_validation": 20, "rows": RowPolicy(check_images=False)}
    if option in ("phantom", "phantom_shortcut"):
        return PhantomSource("mri", n)
    if option in ("phantom_modality", "phantom_task"):
        by, domain = {"y": ("modality", "mri"), "k": ("question_type", "lesion_grading")}[option[-1]]
        return phantom_domains(by, domain, n_train=n, n_validation=20, n_test=5).train
    if option == "mcq_json":
        return mcq_json(train, tests, split_seed=seed, **sizes).train
    if option == "table":
        return table(train, tests, Columns(), split_seed=seed, **sizes).train
    if option == "hf_dataset":
        splits = {"train": "train.json", "test": "test.json"}
        test = {"mri": "test"}
        return hf_dataset(str(files), "train", test, Columns(), files=splits, split_seed=seed, **sizes).train
    if option == "image_folder":
        sizes |= {"labels": "labels.csv", "n_test": 20, "split_seed": seed}
        return image_folder(str(files / "labels"), "mri", **sizes).train
    if "medvlm_r1.data.sources" in (CONF / f"{option}.yaml").read_text():  # they all draw alike
        return draw(list(PhantomSource("mri", 650)), n, seed, "train")
    assert option == "medvlm_r1"
    return MedVLMR1Set("train", root=files / "bundle", n_train=n, rows=RowPolicy(check_images=False))


@pytest.mark.parametrize("option", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_fewer_questions_are_a_part_of_more(option, files):
    """Every option of conf/data; one with n_train that is not known here fails."""
    curve = [{s.id for s in n_of(option, files, n)} for n in CURVE]
    assert [len(part) for part in curve] == list(CURVE)
    for fewer, more in pairwise(curve):
        assert fewer < more
    keys = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    if "split_seed" in keys:
        assert {s.id for s in n_of(option, files, 50, seed=1)} != curve[0]


def test_validation_stays_the_same_along_a_learning_curve(files):
    train, tests = str(files / "train.json"), {"mri": str(files / "test.json")}
    parts = [
        mcq_json(train, tests, n_train=n, n_validation=20, rows=RowPolicy(check_images=False)) for n in CURVE
    ]
    assert len({tuple(s.id for s in p.validation) for p in parts}) == 1


def test_n_of_each_class():
    source = PhantomSource("mri", 90)
    classes = Counter(s.question_type for s in source)
    n = min(classes.values())
    some, more = (choose(source, k, 3, "question_type") for k in (n // 2, n))
    assert Counter(s.question_type for s in more) == dict.fromkeys(classes, n)
    assert {s.id for s in some} < {s.id for s in more}
    assert Counter(s.modality for s in choose(source, 7, 3, "modality")) == {"mri": 7}
    assert set(Counter(s.answer_text for s in choose(source, 1, 3, "answer")).values()) == {1}


@pytest.mark.parametrize(
    ("n", "per", "message"),
    [
        (0, None, "n_train=0: request at least one"),
        (11, None, "n_train=11, but 10 questions remain after validation"),
        (11, "modality", "n_train=11 of each modality, but 10 mri remain"),
        (None, "modality", "n_train_per=modality needs data.n_train"),
        (5, "subset", "n_train_per is 'subset': use modality, question_type, answer"),
    ],
)
def test_what_cannot_be_chosen(n, per, message):
    with pytest.raises(ValueError, match=message):
        choose(PhantomSource("mri", 10), n, 0, per)


def test_the_split_does_not_follow_the_folder(files, tmp_path):
    """Same file names in subfolders: the split is the same wherever the data lie."""
    rows = json.loads((files / "train.json").read_text())[:40]
    for i, row in enumerate(rows):
        row["image"] = [f"images/{i % 20}/1.png"]
    held_out = []
    for place in ("here", "there/below"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(files / "test.json", tmp_path / place)
        (tmp_path / place / "train.json").write_text(json.dumps(rows))
        train, test = (str(tmp_path / place / name) for name in ("train.json", "test.json"))
        parts = mcq_json(train, {"mri": test}, n_validation=8, rows=RowPolicy(check_images=False))
        held_out.append([s.id for s in parts.validation])
        assert not {s.image_group for s in parts.train} & {s.image_group for s in parts.validation}
    assert held_out[0] == held_out[1]


def test_held_out_groups_are_whole():
    source = PhantomSource("mri", 30)
    rest, held_out = hold_out(source, 7, 0)
    assert len(held_out) == 7
    assert not {s.image_group for s in rest} & {s.image_group for s in held_out}


def test_the_whole_of_medvlm_r1_takes_n_train(files):
    with pytest.raises(ValueError, match="does not exist"):
        medvlm_r1(root=str(files / "bundle"), n_train=50, n_validation=20)
