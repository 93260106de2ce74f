"""Hugging Face data sets as people have them: hub caches, Parquet, image folders, ``save_to_disk``."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pandas
import published
import pyarrow.parquet
import pytest
from command import ROOT, environment, run_here
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from medvlm_r1.audit.pre_run import _image_digests, data_digests
from medvlm_r1.audit.run_audit import audit
from medvlm_r1.data.formats.columns import Columns
from medvlm_r1.data.formats.table import Table
from medvlm_r1.data.images.arrow import ArrowImage, open_arrow
from medvlm_r1.data.images.cache import ImageCache
from medvlm_r1.data.images.content_key import image_key
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.digest_cache import DigestCache
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.data.splits import Questions


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """The caches of the library and of the hub's client, empty; no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf/datasets"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield tmp_path / "hf"
    datasets.enable_progress_bars()


def load(path, **keys) -> Questions:
    """Load the questions of ``data=hf_dataset``."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = compose("config", overrides=["data=hf_dataset"]).data
    keys = {"path": str(path), "test": {"vqa": "test"}, "n_validation": 2, "split_seed": 0} | keys
    keys["columns"] = {"modality": {"value": "ct"}} | keys.get("columns", {})
    try:
        return instantiate(OmegaConf.merge(node, keys))
    except InstantiationException as error:
        raise error.__cause__ from None


def embedded(seed: int, path: str | None = None) -> dict:
    return {"bytes": published.png(seed), "path": path}


PLAIN = Features(
    image=datasets.Image(), question=Value("string"), options=List(Value("string")), answer=Value("string")
)


def rows(numbers, **changes) -> list[dict]:
    """One question an image; ``changes`` are functions of the number."""
    made = []
    for i in numbers:
        row = {"image": embedded(i, f"{i}.png"), "question": f"What is shown in {i}?"}
        row |= {"options": ["lung", "liver", "brain"], "answer": ("lung", "liver", "brain")[i % 3]}
        made.append(row | {name: change(i) for name, change in changes.items()})
    return made


def both(features: Features = PLAIN, **changes) -> DatasetDict:
    """12 training and 4 test questions."""
    parts = {"train": rows(range(12), **changes), "test": rows(range(20, 24), **changes)}
    return DatasetDict({name: Dataset.from_list(part, features) for name, part in parts.items()})


def write(made: DatasetDict, folder: Path, layout: str) -> Path:
    if layout == "save_to_disk":
        made.save_to_disk(str(folder))
    elif layout == "saved splits":
        for name, part in made.items():
            part.save_to_disk(str(folder / name))
    else:
        (folder / "data").mkdir(parents=True)
        for name, part in made.items():
            for shard in range(2):
                path = folder / f"data/{name}-{shard:05}-of-00002.parquet"
                part.shard(2, shard, contiguous=True).to_parquet(path)
    return folder


def pixels(sample) -> list[bytes]:
    return [handle.load().tobytes() for handle in sample.images]


def shown(seed: int) -> bytes:
    return published.picture(seed).convert("RGB").tobytes()


def all_samples(questions: Questions) -> list:
    return [s for p in (questions.train, questions.validation, *questions.test.values()) for s in p]


# --- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["parquet", "save_to_disk", "saved splits"])
def test_layouts(tmp_path, layout):
    folder = write(both(), tmp_path / "set", layout)
    published.litter(folder)
    questions = load(folder, n_train=9)
    assert [len(part) for part in (questions.train, questions.validation, questions.test["vqa"])] == [9, 2, 4]
    for sample in all_samples(questions):
        number = int(sample.question.split()[-1][:-1])
        assert pixels(sample) == [shown(number)]
        assert sample.options == ("lung", "liver", "brain")
        assert sample.answer == "ABC"[number % 3]
        assert sample.modality == "ct"
    first = questions.test["vqa"][3]
    assert first.id == "vqa-3"
    assert first.images[0].name == f"{folder}/test/3/image"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_image_folder_with_metadata(tmp_path, kind):
    """The library's image folder whose questions are in a file beside the images."""
    for part, numbers in (("train", range(12)), ("test", range(20, 24))):
        published.write_pictures(tmp_path / f"set/{part}", [f"scans/{i}.png" for i in range(24)])
        made = rows(numbers, options=lambda i: "lung|liver|brain")
        made = [{"file_name": f"scans/{i}.png"} | row for i, row in zip(numbers, made, strict=True)]
        table = pandas.DataFrame(made).drop(columns="image")
        if kind == "csv":
            table.to_csv(tmp_path / f"set/{part}/metadata.csv", index=False)
        else:
            table.to_json(tmp_path / f"set/{part}/metadata.jsonl", orient="records", lines=True)
    questions = load(f"{tmp_path}/set/")
    assert pixels(questions.test["vqa"][1]) == [shown(21)]
    assert questions.test["vqa"][1].options == ("lung", "liver", "brain")


def test_two_processes_convert_at_once(tmp_path):
    write(both(), tmp_path / "set", "parquet")
    code = "from medvlm_r1.data.formats.hf_load import load_splits; print(len(load_splits('set')['train']))"
    home = environment(HF_HOME=str(tmp_path / "home"), HF_DATASETS_CACHE=str(tmp_path / "home/datasets"))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=home, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert [process.communicate()[0] for process in started] == ["12\n"] * 3


def test_columns_that_pandas_wrote(tmp_path):
    """Categories, large types and nullable integers are what they say."""
    for part, numbers in (("train", range(12)), ("test", range(20, 24))):
        table = pandas.DataFrame(rows(numbers)).assign(number=[i % 3 for i in numbers], patient=[*numbers])
        table["kind"] = pandas.Categorical(["CT" if i % 2 else "MRI" for i in numbers])
        table["patient"] = table["patient"].astype("Int64").where(table["patient"] % 5 > 0)
        (tmp_path / "set").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / f"set/{part}.parquet")
    columns = {"modality": "kind", "group": "patient", "answer": "number", "answer_is": "index"}
    questions = load(tmp_path / "set", columns=columns)
    assert [s.modality for s in questions.test["vqa"]] == ["mri", "ct"] * 2
    assert [s.answer for s in questions.test["vqa"]] == ["C", "A", "B", "C"]
    assert [s.image_group for s in questions.test["vqa"]][1:] == ["21", "22", "23"]
    assert len(questions.test["vqa"][0].image_group) == 16
    assert pixels(questions.test["vqa"][1]) == [shown(21)]


def test_a_set_is_never_loaded_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 1 << 40)
    for layout in ("parquet", "save_to_disk"):
        assert load(write(both(), tmp_path / layout, layout)).train


def test_one_split_that_save_to_disk_wrote_is_split_by_rows(tmp_path):
    both()["train"].save_to_disk(str(tmp_path / "one"))
    questions = load(tmp_path / "one", train="train[:75%]", test={"vqa": "train[-3:]"})
    assert {s.id for s in questions.test["vqa"]} == {"vqa-9", "vqa-10", "vqa-11"}
    assert len(questions.train) + len(questions.validation) == 9
    assert pixels(questions.test["vqa"][0]) == [shown(9)]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv"])
def test_local_files_with_paths(tmp_path, kind):
    """One file is the split ``train``; image paths start from its folder, and may not leave it."""
    published.write_pictures(tmp_path / "images", [f"{i}.png" for i in range(12)])
    made = rows(range(12), image=lambda i: f"images/{i}.png", options=lambda i: "lung|liver|brain")
    if kind == "json":
        (tmp_path / "set.json").write_text(json.dumps(made))
    elif kind == "jsonl":
        (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, made)))
    else:
        table = Dataset.from_list(made).to_pandas()
        table.to_csv(tmp_path / f"set.{kind}", sep="\t" if kind == "tsv" else ",", index=False)
    questions = load(tmp_path / f"set.{kind}", train="train[:9]", test={"vqa": "train[9:]"})
    assert isinstance(questions.train[0].images[0], ImageFile)
    assert [pixels(s)[0] for s in questions.test["vqa"]] == [shown(i) for i in (9, 10, 11)]


def test_files_of_any_name(tmp_path):
    made = both()
    made["train"].to_parquet(tmp_path / "a.parquet")
    made["test"].to_parquet(tmp_path / "b.parquet")
    questions = load(tmp_path, files={"train": "a.parquet", "test": ["b.parquet"]})
    assert len(questions.test["vqa"]) == 4


def test_a_folder_of_labelled_images(tmp_path):
    """The library's image folder: labels are subfolders, splits folders above; the question is a constant."""
    for part, numbers in (("train", range(12)), ("test", range(20, 24))):
        for i in numbers:
            label = ("normal", "nodule")[i % 2]
            (tmp_path / f"set/{part}/{label}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"set/{part}/{label}/{i}.png").write_bytes(published.png(i))
    columns = {"question": {"value": "Which finding?"}, "answer": "label"}
    columns["options"] = {"value": ["normal", "nodule"]}
    questions = load(tmp_path / "set", columns=columns)
    for sample in all_samples(questions):
        number = int(Path(sample.images[0].name).stem)
        assert sample.answer_text == ("normal", "nodule")[number % 2]
        assert pixels(sample) == [shown(number)]


# --- columns ---------------------------------------------------------------------------------------


def test_lists_of_images_labels_and_structs(tmp_path):
    features = Features(
        images=List(datasets.Image()),
        qa={"text": Value("string"), "choices": {letter: Value("string") for letter in "ABCD"}},
        label=ClassLabel(names=["lung", "liver", "brain"]),
        kind=ClassLabel(names=["CT", "MRI"]),
        patient=Value("int64"),
    )

    def row(i: int) -> dict:
        return {
            "images": [embedded(i), embedded(100 + i)][: 1 + i % 2],
            "qa": {"text": f"What is shown in {i}?", "choices": {"A": "lung", "B": "liver", "C": "brain"}},
            "label": i % 3,
            "kind": i % 2,
            "patient": i // 2,
        }

    parts = {"train": range(12), "test": range(20, 24)}
    made = {k: Dataset.from_list([row(i) for i in v], features) for k, v in parts.items()}
    folder = write(DatasetDict(made), tmp_path / "set", "parquet")
    columns = {"image": "images", "question": "qa.text", "options": "qa.choices", "answer": "label"}
    columns |= {"modality": "kind", "group": "patient"}
    questions = load(folder, columns=columns)
    for sample in all_samples(questions):
        i = int(sample.question.split()[-1][:-1])
        assert pixels(sample) == [shown(i), shown(100 + i)][: 1 + i % 2]
        assert sample.options == ("lung", "liver", "brain")
        assert sample.answer == "ABC"[i % 3]
        assert (sample.modality, sample.image_group) == (("ct", "mri")[i % 2], str(i // 2))
    by_index = load(folder, columns=columns | {"answer_is": "index"})
    assert [s.answer for s in all_samples(by_index)] == [s.answer for s in all_samples(questions)]


def test_images_that_are_bytes_alone(tmp_path):
    features = PLAIN.copy()
    features["image"] = Value("binary")
    for name, numbers in (("train", range(12)), ("test", range(20, 24))):
        Dataset.from_list(rows(numbers, image=published.png), features).to_parquet(
            tmp_path / f"{name}.parquet"
        )
    questions = load(tmp_path)
    assert pixels(questions.test["vqa"][1]) == [shown(21)]


def paths_alone(folder: Path, path) -> None:
    """Parquet files whose images are paths of files; ``path`` is a function of the number."""
    (folder / "data").mkdir(parents=True)
    for name, part in both(image=lambda i: {"bytes": None, "path": path(i)}).items():
        pyarrow.parquet.write_table(
            part.data.table, folder / f"data/{name}.parquet"
        )  # to_parquet embeds them


def test_images_that_are_paths_alone(tmp_path):
    published.write_pictures(tmp_path / "set", [f"scans/{i}.png" for i in range(24)])
    paths_alone(tmp_path / "set", lambda i: f"scans/{i}.png")
    questions = load(tmp_path / "set")
    assert pixels(questions.test["vqa"][1]) == [shown(21)]
    assert isinstance(questions.train[0].images[0], ImageFile)
    published.write_zip(tmp_path / "x.zip", [f"scans/{i}.png" for i in range(24)])
    shutil.rmtree(tmp_path / "set/scans")
    zipped = load(tmp_path / "set", images=str(tmp_path / "x.zip"))
    assert pixels(zipped.test["vqa"][1]) == [shown(21)]


def test_a_path_does_not_leave_the_folder(tmp_path):
    published.write_pictures(tmp_path / "secret", [f"{i}.png" for i in range(24)])
    paths_alone(tmp_path / "set", lambda i: str(tmp_path / f"secret/{i}.png"))
    with pytest.raises(BadRowError, match=r"set\[test\] row 0: .*outside .*data\.rows\.follow_links=true"):
        load(tmp_path / "set")
    trusted = load(tmp_path / "set", rows={"follow_links": True})
    assert pixels(trusted.test["vqa"][1]) == [shown(21)]


def test_files_in_the_librarys_caches_are_read(tmp_path, caches):
    """Image folders of the hub are links in its cache; archives are unpacked into the other."""
    published.write_pictures(caches / "hub/blobs", [f"{i}.png" for i in range(24)])
    (caches / "hub/snapshot").mkdir()
    for i in range(24):
        (caches / f"hub/snapshot/{i}.png").symlink_to(caches / f"hub/blobs/{i}.png")
    paths_alone(tmp_path / "set", lambda i: str(caches / f"hub/snapshot/{i}.png"))
    assert pixels(load(tmp_path / "set").test["vqa"][1]) == [shown(21)]


def test_a_table_with_embedded_images_names_the_option_that_reads_it(tmp_path):
    folder = write(both(), tmp_path / "set", "parquet") / "data"
    with pytest.raises(BadRowError, match=rf"holds bytes .*; or use data=hf_dataset data\.path={folder}$"):
        Table(folder / "test-00000-of-00002.parquet", Columns(modality={"value": "ct"}))
    assert pixels(load(folder).test["vqa"][1]) == [shown(21)]


def test_open_questions_and_rows_of_one_kind(tmp_path):
    """VQA-RAD's columns: yes/no answers in any spelling have two options, the others are open."""
    features = Features(
        image=datasets.Image(), question=Value("string"), answer=Value("string"), kind=Value("string")
    )

    def part(numbers) -> Dataset:
        answers = ("Yes", "no.", " YES", "left lobe")
        made = [{"image": embedded(i), "question": f"Is {i}?", "answer": answers[i % 4]} for i in numbers]
        made = [row | {"kind": "OPEN" if row["answer"] == "left lobe" else "CLOSED"} for row in made]
        return Dataset.from_list(made, features)

    folder = write(DatasetDict(train=part(range(16)), test=part(range(20, 28))), tmp_path / "set", "parquet")
    closed = load(folder, columns={"options": {"value": ["yes", "no"]}}, where={"kind": "closed"})
    assert [s.answer_text for s in closed.test["vqa"]] == ["yes", "no", "yes"] * 2
    opened = load(folder, columns={"options": None}, where={"kind": "open"}, n_validation=1)
    assert {s.answer for s in opened.test["vqa"]} == {"left lobe"}


# --- images ----------------------------------------------------------------------------------------


def test_handles_are_small_and_open_the_file_again(tmp_path):
    folder = write(both(), tmp_path / "set", "save_to_disk")
    handle = load(folder).test["vqa"][3].images[0]
    assert isinstance(handle, ArrowImage)
    assert len(pickle.dumps(handle)) < 600
    code = f"import pickle; print(pickle.loads({pickle.dumps(handle)!r}).load().getpixel((3, 4))[0])"
    alone = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert int(alone.stdout) == published.picture(23).getpixel((3, 4))
    shutil.rmtree(folder)
    open_arrow.cache_clear()
    with pytest.raises(BadRowError, match=rf"image {folder}/test/3/image cannot be read from .*arrow"):
        handle.load()


def test_nothing_is_decoded_until_an_image_is_needed(tmp_path):
    broken = both(image=lambda i: {"bytes": b"no image " + bytes([i]), "path": None})
    folder = write(broken, tmp_path / "set", "parquet")
    assert load(folder, rows={"check_images": False}).train
    with pytest.raises(BadRowError, match=r"set\[t\w+\] row \d+: image .*/\d+/image cannot be decoded"):
        load(folder)


def test_equal_bytes_are_one_image_in_every_split(tmp_path):
    """A test image in training is told; the audit, its digests and the image cache take embedded images."""
    part = {"train": [*range(12), 3], "test": [3, 20, 21]}
    made = DatasetDict({k: Dataset.from_list(rows(v), PLAIN) for k, v in part.items()})
    with pytest.warns(UserWarning, match="1 of 3 questions of test set 'vqa' show an image of training"):
        questions = load(write(made, tmp_path / "set", "parquet"))
    twin = questions.test["vqa"][0].images[0]
    again = [s.images[0] for s in questions.train if s.question == "What is shown in 3?"]
    assert again == [twin, twin]
    with DigestCache(tmp_path / "digests") as known:
        keys = {handle.name: image_key(handle, known) for s in all_samples(questions) for handle in s.images}
    assert None not in keys.values()
    assert len(set(keys.values())) == len(keys) == 14
    result = audit(questions.train, questions.test)
    assert len(result.leaking) == 2
    elsewhere = write(made, tmp_path / "elsewhere/set", "save_to_disk")
    with pytest.warns(UserWarning, match="show an image of training"):
        copied = load(elsewhere)
    first, second = (data_digests(q, _image_digests(q)) for q in (questions, copied))
    assert first == second
    cache = ImageCache(tmp_path / "cache")
    small = cache.get(twin, (8, 8), lambda: twin.load().resize((8, 8)))
    assert cache.get(again[0], (8, 8), lambda: pytest.fail("not from the cache")).tobytes() == small.tobytes()


# --- rows and settings -----------------------------------------------------------------------------


def test_unusable_rows_are_named_and_counted(tmp_path):
    features = PLAIN.copy()
    features["answer"] = ClassLabel(names=["lung", "liver", "brain"])
    faults = {2: {"answer": -1}, 5: {"options": ["lung", "Lung ", "liver"]}, 7: {"image": None}}
    made = [row | {"answer": i % 3} | faults.get(i, {}) for i, row in enumerate(rows(range(12)))]
    test = [row | {"answer": i % 3} for i, row in enumerate(rows(range(20, 24)))]
    parts = DatasetDict(train=Dataset.from_list(made, features), test=Dataset.from_list(test, features))
    folder = write(parts, tmp_path / "set", "parquet")
    with pytest.raises(BadRowError, match=r"set\[train\] row 2: has no answer .*on_bad_row=skip"):
        load(folder)
    questions = load(folder, rows={"on_bad_row": "skip"})
    assert len(questions.train) == 7
    places = [line.partition(": ")[0].rpartition("/")[2] for line in questions.skipped]
    assert places == ["set[train] row 2", "set[train] row 5", "set[train] row 7"]
    assert [len(handles) for _, _, handles in questions.refused] == [1, 1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train": "training"}, r"has no split 'training': did you mean 'train'\? It has train, test"),
        ({"train": "train[12:]"}, r"has no rows 'train\[12:\]': the split has 12"),
        ({"test": {"vqa": "test[:x]"}}, r"has no rows 'test\[:x\]' .*give e\.g\. 'train\[:80%\]'"),
        ({"train": "train[:3]+test"}, r"has no rows 'train\[:3\]\+test' "),
        (
            {"columns": {"answer": "anwser"}},
            r"no column 'anwser' \(data\.columns\.answer\): did you mean 'answer'\?",
        ),
        ({"columns": {"question": "image.text"}}, r"no column 'image\.text' \(data\.columns\.question\)"),
        (
            {"columns": {"question": "image"}},
            r"data\.columns\.question is 'image', which holds images: name a",
        ),
        ({"where": {"image": "x"}}, r"data\.where is 'image', which holds images"),
        ({"name": "other"}, r"BuilderConfig 'other' not found\. Available: \['default'\]"),
        (
            {"files": {"train": "none/*.parquet"}},
            r"cannot be loaded \(.*check data\.path, data\.name, data\.files",
        ),
    ],
    ids=[
        "split",
        "no rows",
        "slice",
        "two splits",
        "column",
        "field",
        "text",
        "filter",
        "configuration",
        "files",
    ],
)
def test_settings_that_do_not_fit(tmp_path, keys, message):
    folder = write(both(), tmp_path / "set", "parquet")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(folder, **keys)
    assert len(str(caught.value)) < 2000
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files_are_named(tmp_path):
    folder = write(both(), tmp_path / "set", "parquet")
    (folder / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"set/data has 1 of 2 .*train.*copy"):
        load(folder)
    (folder / "data/train-00001-of-00002.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(BadRowError, match=r"data\.path=.*set cannot be read .*a file is damaged"):
        load(folder)
    saved = write(both(), tmp_path / "saved", "save_to_disk")
    (saved / "train/data-00000-of-00001.arrow").write_bytes(b"cut short")
    with pytest.raises(BadRowError, match=r"data\.path=.*saved cannot be read"):
        load(saved)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*empty cannot be loaded .*check data\.path"):
        load(tmp_path / "empty")
    (tmp_path / "set.xlsx").write_bytes(b"PK")
    with pytest.raises(BadRowError, match=r"has the suffix '\.xlsx': give a folder, or one of \.parquet"):
        load(tmp_path / "set.xlsx")
    with pytest.raises(
        FileNotFoundError, match=r"/nowhere does not exist: give a folder, a file, or ORG/NAME"
    ):
        load(tmp_path / "nowhere")


def test_a_script_is_never_run(tmp_path):
    folder = write(both(), tmp_path / "set", "parquet")
    (folder / "set.py").write_text("raise SystemExit('run')")
    with pytest.raises(BadRowError, match=r"Scripts of a data set are never run: give its data files"):
        load(folder)
    shutil.move(folder / "set.py", folder / "other.py")
    assert load(folder).train


# --- the hub, and its caches ------------------------------------------------------------------------

COMMITS = ["a" * 40, "b" * 40]


def prepare(caches: Path, commit: str, made: DatasetDict, name: str = "default") -> None:
    """Leave in the library's cache what an earlier ``load_dataset("lab/Vqa")`` left."""
    source = write(made, caches.parent / f"set-{commit[0]}-{name}", "parquet")
    files = [split.cache_files[0]["filename"] for split in datasets.load_dataset(str(source)).values()]
    folder = caches / f"datasets/lab___vqa/{name}/0.0.0/{commit}"
    folder.mkdir(parents=True)
    for file in map(Path, files):
        shutil.copy(file, folder / f"vqa-{file.stem.rpartition('-')[2]}.arrow")
    info = json.loads((file.parent / "dataset_info.json").read_text())
    info |= {"dataset_name": "vqa", "config_name": name}
    for split in info["splits"].values():
        split["dataset_name"] = "vqa"
    (folder / "dataset_info.json").write_text(json.dumps(info))


def snapshot(caches: Path, commit: str, made: DatasetDict, branch: str = "main") -> None:
    """Leave in the hub client's cache what ``hf download lab/Vqa`` left."""
    write(made, caches / f"hub/datasets--lab--Vqa/snapshots/{commit}", "parquet")
    (caches / "hub/datasets--lab--Vqa/refs").mkdir(exist_ok=True)
    (caches / f"hub/datasets--lab--Vqa/refs/{branch}").write_text(commit)


def test_a_prepared_set_is_read_without_a_network(caches, caplog):
    caplog.set_level("INFO")
    prepare(caches, COMMITS[0], both())
    questions = load("lab/Vqa")
    assert pixels(questions.test["vqa"][1]) == [shown(21)]
    assert f"lab/Vqa, configuration default: commit {COMMITS[0]}" in caplog.text
    assert questions.test["vqa"][1].images[0].name == "lab/Vqa/test/1/image"


def test_the_commit_is_the_one_that_is_asked_for(caches):
    """The library alone takes the newest prepared commit, whatever the revision."""
    prepare(caches, COMMITS[0], both())
    prepare(caches, COMMITS[1], both(question=lambda i: f"What else is shown in {i}?"))
    assert load("lab/Vqa", revision=COMMITS[0]).train[0].question.startswith("What is")
    assert load("lab/Vqa", revision=COMMITS[1]).train[0].question.startswith("What else")
    snapshot(caches, COMMITS[0], both(), "v1")
    assert load("lab/Vqa", revision="v1").train[0].question.startswith("What is")
    with pytest.raises(FileNotFoundError, match=r"lab/Vqa \(revision v2\) is .*not in the cache"):
        load("lab/Vqa", revision="v2")


def test_configurations_are_told_apart(caches):
    prepare(caches, COMMITS[0], both(), "head")
    prepare(caches, COMMITS[0], both(question=lambda i: f"Which chest is {i}?"), "chest")
    assert load("lab/Vqa", name="chest").train[0].question.startswith("Which chest")
    with pytest.raises(FileNotFoundError, match=r"not in the cache.*chest, head.*data\.name"):
        load("lab/Vqa")


def test_a_downloaded_set_is_read_without_a_network(caches):
    snapshot(caches, COMMITS[0], both())
    assert pixels(load("lab/Vqa").test["vqa"][1]) == [shown(21)]


def test_a_set_out_of_reach_is_one_message_whose_remedy_works(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"data\.path=lab/Vqa \(revision main\) is no folder"
    ) as caught:
        load("lab/Vqa")
    assert "Set data.path=DIR to a copy of its files" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert load(write(both(), tmp_path / "copy", "parquet")).train


# --- runs ------------------------------------------------------------------------------------------


def test_a_run(tmp_path):
    folder = write(both(), tmp_path / "set", "parquet")
    keys = ["data=hf_dataset", f"data.path={folder}", "data.test={vqa:test}", "data.n_validation=2"]
    keys += ["data.columns.modality={value: ct}", "trainer.max_steps=1", "controls=[image]", "workers=2"]
    done = run_here(tmp_path, *keys)
    assert "tests: 4 vqa" in " ".join((done.stdout + done.stderr).split())


def test_the_library_is_imported_only_where_it_is_used():
    code = "import sys, medvlm_r1.run, medvlm_r1.data.formats.hf_dataset; print('datasets' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
