"""MedVLM-R1's data: the selection of questions, the location of the bundle, and the official test file."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from published import litter

from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.data.sources.huatuo_bundle import HUB_ID, IMAGES, ROWS
from medvlm_r1.data.sources.medvlm_r1 import SUBSETS, TEST_FILE, MedVLMR1Set, medvlm_r1
from medvlm_r1.prompts import PromptStyle

SMALL = {"n_train": 6, "n_validation": 3}


def row(image: str, modality: str = "mri", **changes) -> dict:
    return {
        "image": [f"images/{image}.png"],
        "question": f"What is shown in {image}?",
        "options": ["brain", "liver"],
        "answer": "liver",
        "dataset": "OmniMedVQA",
        "subset": SUBSETS[modality],
    } | changes


@pytest.fixture
def bundle(tmp_path):
    """Bundle rows by index, images of MRI training rows m*, of test rows t*, and the traps among them.

    0 CT | 1-2 m0 m1 | 3 t0: name of a test image | 4 m0 again | 5 copy of t1 | 6-8 m2 m3 m4
    | 9 m1 again, behind the six of training | 10 copy of m2 | 11 t2 | 12 m5 | 13 CT | 14-15 m6 m7
    """
    root = tmp_path / "bundle"
    (root / "images").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for name in [*(f"m{i}" for i in range(8)), "t0", "t1", "t2", "c0", "c1", "x0"]:
        Image.fromarray(noise.integers(0, 255, (16, 16), dtype=np.uint8)).save(root / f"images/{name}.png")
    for copy, of in (("copy_of_t1", "t1"), ("copy_of_m2", "m2")):
        (root / f"images/{copy}.png").write_bytes((root / f"images/{of}.png").read_bytes())
    order = ["c0", "m0", "m1", "t0", "m0", "copy_of_t1", "m2", "m3", "m4", "m1", "copy_of_m2", "t2", "m5"]
    rows = [row(name, "ct" if name in ("c0", "c1") else "mri") for name in [*order, "c1", "m6", "m7"]]
    test = [row("t0"), row("t1"), row("t2"), row("c1", "ct"), row("x0", "xray")]
    (root / ROWS).write_text(json.dumps(rows))
    (root / TEST_FILE).write_text(json.dumps(test))
    return root


def numbers(part: MedVLMR1Set) -> list[int]:
    return [int(sample.id.rpartition("-")[2]) for sample in part]


def test_selection_leaves_out_test_images_by_name_and_by_bytes(bundle, caplog):
    caplog.set_level(logging.INFO)
    train = MedVLMR1Set("train", root=bundle, **SMALL)
    assert numbers(train) == [1, 2, 4, 6, 7, 8]
    assert train[0].id == "medical_multimodel_evaluation_data-1"
    assert train[0].modality == "mri"
    assert len(train.skipped) == 2
    assert f"{bundle / ROWS} row 3: image " in train.skipped[0]
    assert train.skipped[0].endswith("t0.png has the file name of a test image")
    assert f"{bundle / ROWS} row 5: image " in train.skipped[1]
    assert train.skipped[1].endswith("copy_of_t1.png has the bytes of a test image")
    said = caplog.records[-1].getMessage()
    assert "train, mri: 6 of 14 rows" in said
    assert "1 with the file name of a test image, 1 with the bytes of a test image" in said
    assert "5 test images" in said


def test_validation_follows_and_shares_no_image(bundle, caplog):
    caplog.set_level(logging.INFO)
    validation = MedVLMR1Set("validation", root=bundle, **SMALL)
    assert numbers(validation) == [12, 14, 15]
    assert [line.rpartition("has the ")[2] for line in validation.skipped] == [
        "file name of a training image",
        "bytes of a training image",
        "file name of a test image",
    ]
    assert "1 with the bytes of a training image" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("modality", "images"), [("mri", ["t0", "t1", "t2"]), ("ct", ["c1"]), ("xray", ["x0"])]
)
def test_test_part_is_the_official_file(bundle, modality, images):
    part = MedVLMR1Set("test", modality, root=bundle)
    assert [s.images[0].path for s in part] == [bundle / f"images/{name}.png" for name in images]
    assert part[0].images[0].load().size == (16, 16)


def test_without_images_only_names_are_compared(bundle):
    for image in (bundle / "images").iterdir():
        image.unlink()
    assert numbers(MedVLMR1Set("train", root=bundle, rows=RowPolicy(check_images=False), **SMALL)) == [
        1,
        2,
        4,
        5,
        6,
        7,
    ]
    with pytest.raises(BadRowError, match=r"row 1: image .*m0\.png does not exist; unpack .*\(5 more rows"):
        MedVLMR1Set("train", root=bundle, **SMALL)


def test_too_few_rows_names_both_numbers(bundle):
    with pytest.raises(
        ValueError, match=r"12 train questions requested, but 14 usable rows .* leave 11 \(3 left"
    ):
        MedVLMR1Set("train", root=bundle, n_train=12)
    with pytest.raises(ValueError, match=r"100 validation questions requested, .* leave 3 \(3 left"):
        MedVLMR1Set("validation", root=bundle, n_train=6)
    with pytest.raises(
        ValueError, match=r"600 train questions requested, but 0 usable rows of subset 'X-Ray'"
    ):
        MedVLMR1Set("train", "xray", root=bundle)
    (bundle / TEST_FILE).write_text(json.dumps([row("t0")]))
    with pytest.raises(ValueError, match="holds no question of subset 'X-Ray'"):
        MedVLMR1Set("test", "xray", root=bundle)


def test_unusable_row_of_the_bundle(bundle):
    rows = json.loads((bundle / ROWS).read_text())
    rows[0]["answer"] = "another subset's row is not read"
    rows[2]["options"] = ["liver", "liver"]
    (bundle / ROWS).write_text(json.dumps(rows))
    with pytest.raises(BadRowError, match=r"data\.json row 2: options \['liver', 'liver'\].*on_bad_row=skip"):
        MedVLMR1Set("train", root=bundle, rows=RowPolicy(on_bad_row="fail"), **SMALL)
    train = MedVLMR1Set("train", root=bundle, **SMALL)
    assert numbers(train) == [1, 4, 6, 7, 8, 9]
    assert len(train.skipped) == 3


def test_wrong_part_and_modality(bundle):
    with pytest.raises(ValueError, match="part is 'dev'"):
        MedVLMR1Set("dev", root=bundle)
    with pytest.raises(ValueError, match="modality is 'pet': use one of mri, ct, xray"):
        MedVLMR1Set("train", "pet", root=bundle)


@pytest.mark.parametrize("layout", ["parquet", "parquet shards", "test.json", "test.jsonl"])
def test_other_layouts_of_rows(bundle, layout):
    rows = json.loads((bundle / ROWS).read_text())
    rows[0]["only_here"] = "parquet fills the other rows with null"
    (bundle / ROWS).unlink()
    (bundle / "data").mkdir()
    if layout == "test.json":
        (bundle / layout).write_text(json.dumps(rows))
    elif layout == "test.jsonl":
        (bundle / layout).write_text("\n".join(json.dumps(r) for r in rows))
    else:
        cut = len(rows) if layout == "parquet" else 5
        for i, shard in enumerate(filter(None, (rows[:cut], rows[cut:]))):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(shard), bundle / f"data/test-{i}.parquet")
    assert numbers(MedVLMR1Set("train", root=bundle, **SMALL)) == [1, 2, 4, 6, 7, 8]


def test_damaged_parquet_is_named(bundle):
    (bundle / ROWS).unlink()
    (bundle / "test.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(BadRowError, match="unreadable Parquet"):
        MedVLMR1Set("train", root=bundle, **SMALL)


@pytest.mark.parametrize("inside", ["images/", "bundle/images/", ""])
def test_archive_is_unpacked_once(bundle, tmp_path, inside):
    with zipfile.ZipFile(bundle / IMAGES, "w") as archive:
        for image in (bundle / "images").iterdir():
            archive.write(image, f"{inside}{image.name}")
            image.unlink()
    (bundle / "images").rmdir()
    cache = tmp_path / "cache"
    train = MedVLMR1Set("train", root=bundle, cache=cache, **SMALL)
    assert numbers(train) == [1, 2, 4, 6, 7, 8]
    path = train[0].images[0].path
    before = path.stat().st_ctime_ns
    again = MedVLMR1Set("test", root=bundle, cache=cache)
    assert again[0].images[0].path.parent == path.parent
    assert path.stat().st_ctime_ns == before
    assert [folder.name for folder in cache.iterdir() if folder.suffix == ".part"] == []


@pytest.mark.parametrize("packed", [False, True])
def test_files_that_nobody_asked_for_are_passed_over(bundle, tmp_path, packed):
    clean = MedVLMR1Set("train", root=bundle, **SMALL)
    pixels = [s.images[0].load().tobytes() for s in clean]
    if packed:
        with zipfile.ZipFile(bundle / IMAGES, "w") as archive:
            for image in (bundle / "images").iterdir():
                archive.write(image, f"bundle/images/{image.name}")
        shutil.rmtree(bundle / "images")
    litter(bundle)
    found = MedVLMR1Set("train", root=bundle, cache=tmp_path / "cache", **SMALL)
    assert numbers(found) == numbers(clean)
    assert [s.images[0].load().tobytes() for s in found] == pixels
    assert not list((tmp_path / "cache").rglob("._*"))


def test_unusable_rows_of_both_files_are_left_out_and_counted(bundle, caplog):
    """A refused test row still keeps its image out of training; rows of one file are counted once."""
    rows = [row(f"m{i}", options=["liver", "Liver "] if i == 2 else ["brain", "liver"]) for i in range(8)]
    (bundle / ROWS).write_text(json.dumps(rows))
    refused = row("m0", options=["liver", "liver"])
    tests = [refused, row("t1"), row("c1", "ct"), row("x0", "xray")]
    (bundle / TEST_FILE).write_text(json.dumps(tests))
    questions = medvlm_r1(root=str(bundle), n_train=3, n_validation=2)
    assert numbers(questions.train) == [1, 3, 4]
    assert len(questions.test["mri"]) == 1
    reasons = [line.partition(": ")[0].rpartition("/")[2] for line in questions.skipped]
    assert reasons == [f"{ROWS} row 2", f"{ROWS} row 0", f"{TEST_FILE} row 0"]
    said = " ".join(r.message for r in caplog.records if "rows skipped" in r.message)
    assert "data, bundle: 1 rows skipped" in said
    assert "data, test file: 1 rows skipped" in said


def test_damaged_archive_is_named(bundle, tmp_path):
    (bundle / "images").rename(bundle / "elsewhere")
    (bundle / IMAGES).write_bytes(b"PK cut short")
    with pytest.raises(BadRowError, match=r"images\.zip is damaged .*fetch it again"):
        MedVLMR1Set("train", root=bundle, cache=tmp_path / "cache", **SMALL)
    assert not [f for f in (tmp_path / "cache").iterdir() if f.is_dir()]


def test_missing_parts_of_a_local_copy(bundle, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"none is no folder: give(.|\n)*{ROWS}"):
        MedVLMR1Set("train", root=tmp_path / "none", test_file=bundle / TEST_FILE)
    with pytest.raises(FileNotFoundError, match=f"{TEST_FILE} from https://github.com/JZPeterPan"):
        MedVLMR1Set("train", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds neither images/ nor images\.zip"):
        MedVLMR1Set("train", root=tmp_path, test_file=bundle / TEST_FILE)
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no rows"):
        MedVLMR1Set("train", root=tmp_path, test_file=bundle / TEST_FILE)


def in_a_process(code: str, **environment: str) -> tuple[str, float]:
    """What a fresh interpreter prints, and how long the call in it took: the hub client reads its
    environment at import. Port 9 refuses connections, so no test depends on a network."""
    script = f"import time\nfrom medvlm_r1.data.sources.medvlm_r1 import MedVLMR1Set\nt = time.time()\n{code}"
    script += "\nprint(time.time() - t)"
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9"} | environment
    out = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | hub, capture_output=True, text=True, check=True
    )
    said, _, seconds = out.stdout.strip().rpartition("\n")
    return said, float(seconds)


def test_hub_out_of_reach_is_one_quick_message(bundle, tmp_path):
    code = f"""
try:
    MedVLMR1Set("train", test_file={str(bundle / TEST_FILE)!r})
except FileNotFoundError as error:
    print(error)"""
    said, seconds = in_a_process(code, HF_HOME=str(tmp_path))
    for part in (HUB_ID, "data.root=DIR", ROWS, IMAGES, "data=phantom"):
        assert part in said
    assert seconds < 4


def test_hub_that_does_not_answer_is_one_quick_message(bundle, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = f"""
try:
    MedVLMR1Set("train", test_file={str(bundle / TEST_FILE)!r})
except FileNotFoundError as error:
    print(error)"""
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        said, seconds = in_a_process(code, HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint)
    assert "data=phantom" in said
    assert seconds < 4


def test_cache_of_the_hub_is_used_first(bundle, tmp_path):
    commit = "0" * 40
    repo = tmp_path / "hub" / f"datasets--{HUB_ID.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    (bundle / ROWS).rename(snapshot / ROWS)
    with zipfile.ZipFile(snapshot / IMAGES, "w") as archive:
        for image in (bundle / "images").iterdir():
            archive.write(image, f"images/{image.name}")
    code = f"""
part = MedVLMR1Set("train", test_file={str(bundle / TEST_FILE)!r}, n_train=6, n_validation=3)
print([sample.id.rpartition("-")[2] for sample in part])"""
    said, _ = in_a_process(code, HF_HOME=str(tmp_path))
    assert said == "['1', '2', '4', '6', '7', '8']"


def test_the_questions_alone_need_no_bundle(bundle):
    start = time.time()
    part = MedVLMR1Set("test", "ct", test_file=bundle / TEST_FILE, rows=RowPolicy(check_images=False))
    assert len(part) == 1
    assert time.time() - start < 1


def test_real_official_test_file():
    if not os.environ.get("MEDVLM_R1_REAL_QUESTIONS"):
        pytest.skip("MEDVLM_R1_REAL_QUESTIONS is not set: no real data to read")
    path = Path(os.environ["MEDVLM_R1_REAL_QUESTIONS"]) / "medvlm_r1_test_900.json"
    parts = [
        MedVLMR1Set("test", m, test_file=path, rows=RowPolicy(check_images=False))
        for m in ("mri", "ct", "xray")
    ]
    assert [len(part) for part in parts] == [300, 300, 300]
    samples = [sample for part in parts for sample in part]
    rows = json.loads(path.read_text())
    assert Counter(len(sample.options) for sample in samples) == {4: 825, 2: 75}
    assert [sample.answer for sample in samples] == [r["solution"] for r in rows]
    style = PromptStyle("lines", "{Question}", "{Question}", layout="lines")
    assert [style.problem(sample) for sample in samples] == [r["problem"] for r in rows]
    assert [sample.images[0].name for sample in samples] == [str(path.parent / r["image"][0]) for r in rows]
