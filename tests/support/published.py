"""Small copies of the published sets in their real layouts, with synthetic questions and images."""

import csv
import io
import json
import zipfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


def picture(seed: int, size=(60, 48)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    return Image.fromarray(values)


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    picture(seed).save(stream, "png")
    return stream.getvalue()


def write_json(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def write_pictures(folder: Path, names: list[str]) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(seed))


def write_zip(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for seed, name in enumerate(names):
            archive.writestr(name, png(seed))


def write_parquet(path: Path, rows: list[dict], columns=("image",)) -> None:
    """Write a set with embedded images as the library ``datasets`` does; an image is given by its seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            k: {"bytes": png(v), "path": f"{v}.png"} if k in columns and v is not None else v
            for k, v in r.items()
        }
        for r in rows
    ]
    features = {k: datasets.Image() if k in columns else datasets.Value("string") for k in rows[0]}
    datasets.Dataset.from_list(rows, datasets.Features(features)).to_parquet(path)


def litter(root: Path) -> None:
    """Add what copies of a set also hold: files of macOS in every folder and archive, and notes."""
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        names = [p.name for p in folder.iterdir()]
        (folder / ".DS_Store").write_bytes(b"Bud1")
        (folder / "README.md").write_text("# Notes")
        for name in names:
            (folder / f"._{name}").write_bytes(b"\x00\x05\x16\x07not the file")
        (folder / "__MACOSX/images").mkdir(parents=True, exist_ok=True)
        (folder / "__MACOSX/images/._1.json").write_bytes(b"\x00\x05\x16\x07")
    for path in root.rglob("[!.]*.zip"):
        with zipfile.ZipFile(path, "a") as archive:
            for name in archive.namelist():
                head, _, tail = name.rpartition("/")
                archive.writestr(f"__MACOSX/{head}/._{tail}", b"\x00\x05\x16\x07")
            archive.writestr(".DS_Store", b"Bud1")


# --- one function per set, which writes it to ``root`` ---------------------------------------------


def med_r1(root: Path) -> None:
    """Domains xray and oct, and two tasks; image 0 of each domain is in its training and its test part."""
    for by, names in {
        "modality": ("X-Ray", "OCT (Optical Coherence Tomography)"),
        "question_type": ("Disease Diagnosis", "Lesion Grading"),
    }.items():
        for name in names:
            for part, images in (("train", range(12)), ("test", (0, 20, 21))):
                rows = [
                    {
                        "image": f"Images/{name[:3]}/{i}.png",
                        "problem": f"What is shown in {i}? A)Liver, left lobe, B) MRI, or CT , C)None (yet)",
                        "solution": f"<answer> {'ABC'[i % 3]} </answer>",
                    }
                    for i in images
                ]
                write_json(root / f"Splits/{by}/{part}/{name}_{part}.json", rows)
    names = [f"Images/{d}/{i}.png" for d in ("X-R", "OCT", "Dis", "Les") for i in (*range(12), 20, 21)]
    write_pictures(root / "OmniMedVQA", names)
    with zipfile.ZipFile(root / "OmniMedVQA.zip", "w") as archive:
        for name in names:
            archive.write(root / "OmniMedVQA" / name, f"OmniMedVQA/{name}")


MED_R1_FILES = {
    "modality": (
        "CT(Computed Tomography)",
        "Dermoscopy",
        "Fundus Photography",
        "MR (Mag-netic Resonance Imaging)",
        "Microscopy Images",
        "OCT (Optical Coherence Tomography",  # the authors' spelling
        "X-Ray",
        "ultrasound",
    ),
    "question_type": (
        "Anatomy Identification",
        "Disease Diagnosis",
        "Lesion Grading",
        "Modality Recognition",
        "Other Biological Attributes",
    ),
}
MED_R1_DUPLICATES = {
    ("CT(Computed Tomography)", "train"): 3,
    ("ultrasound", "train"): 5,
    ("Modality Recognition", "train"): 2,
    ("Modality Recognition", "test"): 3,
}


def med_r1_as_released(root: Path) -> None:
    """All files of the authors' repository under their names, 12 and 3 usable rows a file, and its faults.

    ``unknown_train.json`` has one row and no test; some rows offer the same option twice.
    """

    def row(image: str, options: str, letter: str) -> dict:
        problem = f"What is shown in {image}? {options}"
        return {"image": f"Images/{image}", "problem": problem, "solution": f"<answer> {letter} </answer>"}

    names = []
    for by, files in MED_R1_FILES.items():
        for name in files:
            for part, numbers in (("train", range(12)), ("test", range(20, 23))):
                good = "A)Liver, left lobe, B)MRI, or CT, C)This is normal., D)None (yet)"
                images = [f"{name[:3]}/{i}.png" for i in numbers]
                rows = [row(image, good, "ABCD"[i % 4]) for i, image in enumerate(images)]
                twice = "A)Liver, B)Lung, C)Liver, D)Heart"
                for i in range(MED_R1_DUPLICATES.get((name, part), 0)):
                    rows.insert(2 * i, row(images[i % 3], twice, "B"))
                write_json(root / f"Splits/{by}/{part}/{name}_{part}.json", rows)
                names += [f"Images/{image}" for image in images]
    unknown = row("CT(/0.png", "A)Angiography, B)Electrocardiogram (ECG), C)Mammogram, D)CT", "D")
    write_json(root / "Splits/modality/train/unknown_train.json", [unknown])
    write_pictures(root / "OmniMedVQA", names)


def omnimedvqa(root: Path) -> None:
    """20 CT images with a question of each type, and 20 MRI images; open and restricted access."""

    def row(image: str, modality: str, kind: str, options: list[str], **more) -> dict:
        return {
            "dataset": "Made",
            "question_id": "made_0",
            "question_type": kind,
            "question": f"What about {image}? ",
            "gt_answer": options[-1],
            "image_path": f"Images/{image}",
            **{f"option_{letter}": text for letter, text in zip("ABCD", options, strict=False)},
            **more,
            "modality_type" if modality != "CT(Computed Tomography)" else "modality": modality,
        }

    ct, mri = "CT(Computed Tomography)", "MR (Mag-netic Resonance Imaging)"
    four, two = ["Brain", "Liver", "Lung, left", "Heart"], ["No", "Yes"]
    folder = root / "OmniMedVQA/QA_information"
    rows = [row(f"ct/{i}.png", ct, "Anatomy Identification", four) for i in range(20)]
    rows += [row(f"ct/{i}.png", ct, "Disease Diagnosis", two) for i in range(20)]
    write_json(folder / "Open-access/Chest CT Scan.json", rows)
    write_json(
        folder / "Open-access/MRI.json",
        [row(f"mr/{i}.png", mri, "Disease Diagnosis", four) for i in range(20)],
    )
    rows = [row(f"us/{i}.png", "ultrasound", "Lesion Grading", two, option_C=None) for i in range(10)]
    write_json(folder / "Restricted-access/US.json", rows)
    names = [f"Images/{d}/{i}.png" for d, n in (("ct", 20), ("mr", 20), ("us", 10)) for i in range(n)]
    write_pictures(root / "OmniMedVQA", names)


def vqa_rad(root: Path) -> None:
    """40 training rows on 20 images, 10 of which the test repeats; every fifth answer is open."""

    def row(i: int, image: int) -> dict:
        answer = "left lung" if i % 5 == 4 else ("Yes", "no", "yes ", "No.")[i % 4]
        return {"image": image, "question": f"Is there something in {i}?", "answer": answer}

    train = [row(i, i % 20) for i in range(40)]
    write_parquet(root / "data/train-00000-of-00001-0123456789abcdef.parquet", train)
    write_parquet(root / "data/test-00000-of-00001-0123456789abcdef.parquet", [row(i, i) for i in range(10)])


def path_vqa(root: Path) -> None:
    """Training in two shards; its image 3 is also in the test."""

    def rows(first: int, n: int) -> list[dict]:
        return [
            {"image": i, "question": f"Is this {i}?", "answer": ("yes", "no", "in the wall")[i % 3]}
            for i in range(first, first + n)
        ]

    write_parquet(root / "data/train-00000-of-00002.parquet", rows(0, 9))
    write_parquet(root / "data/train-00001-of-00002.parquet", rows(9, 9))
    write_parquet(root / "data/validation-00000-of-00001.parquet", rows(30, 6))
    write_parquet(root / "data/test-00000-of-00001.parquet", [*rows(40, 6), *rows(3, 1)])


def slake(root: Path, zipped: bool = True) -> None:
    def row(i: int, **changes) -> dict:
        plain = {
            "img_id": i,
            "img_name": f"xmlab{i}/source.jpg",
            "question": f"Is the lung in {i} healthy?",
            "answer": ("Yes", "No")[i % 2],
            "q_lang": "en",
            "location": "Lung",
            "modality": ("X-Ray", "CT", "MRI")[i % 3],
            "answer_type": "CLOSED",
            "base_type": "vqa",
            "content_type": "Abnormality",
            "triple": ["vhead", "_", "_"],
            "qid": i,
        }
        return plain | changes

    chinese = row(0, q_lang="zh", question="肺健康吗", answer="是")
    bigger = row(1, question="Which is bigger, lung or heart?", answer="Lung")
    where = row(2, question="Where is it?", answer="Left lung", answer_type="OPEN")
    write_json(root / "train.json", [*(row(i) for i in range(10)), chinese, bigger, where])
    openly = row(21, question="Where is it?", answer="Left lung", answer_type="OPEN")
    write_json(root / "validation.json", [*(row(i) for i in range(20, 24)), openly])
    write_json(root / "test.json", [*(row(i) for i in range(30, 34)), row(3, question="Is 3 bright?"), where])
    names = [f"xmlab{i}/source.jpg" for i in (*range(10), *range(20, 24), *range(30, 34))]
    if zipped:
        write_zip(root / "imgs.zip", [f"imgs/{name}" for name in names])
    else:
        write_pictures(root / "imgs", names)


def pmc_vqa(root: Path, version: int) -> None:
    end, zipped = {1: ("", "images/"), 2: ("_2", "figures/")}[version]
    for part, numbers in (("train", range(12)), ("test", (1, 20, 21, 22, 23))):
        rows = []
        for i in numbers:
            texts = [f"organ {i}", "B cells, or none", "lung", "heart\nmuscle"]
            if version == 1:
                row = {"Figure_path": f"PMC{i}.jpg", "Question": f" What, in {i}? ", "Answer": texts[i % 4]}
                row |= {f"Choice {a}": f" {a}:{t} " for a, t in zip("ABCD", texts, strict=True)}
                row["Answer_label"] = "ABCD"[i % 4]
            else:
                row = {
                    "index": i,
                    "figure_path": f"PMC{i}.jpg",
                    "caption": "long",
                    "question": f"What in {i}?",
                }
                row |= {f"choice{a}": f"{a}: {t}" for a, t in zip("ABCD", texts, strict=True)}
                row |= {"answer": "ABCD"[i % 4] if i % 2 else texts[i % 4], "split": part}
            rows.append(row)
        with (root / f"{part}{end}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    write_zip(root / f"images{end}.zip", [f"{zipped}PMC{i}.jpg" for i in (*range(12), *range(20, 24))])


def mmmu_med(root: Path) -> None:
    """Five subjects with five questions per part: the second of a subject has two images."""
    subjects = ("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine")
    for s, subject in enumerate((*subjects, "Pharmacy", "Public_Health")):
        for part, first in (("dev", 0), ("validation", 1000)):
            rows = [
                {
                    "id": f"{part}_{subject}_{i}",
                    "question": f"<image 1> What is in {i}?",
                    "options": str(["it's one", 'the "two"', "both", "none"]) if i != 4 else "[]",
                    **{f"image_{k}": None for k in range(1, 8)},
                    "image_1": first + 10 * s + i,
                    "image_2": first + 10 * s + 5 if i == 1 else None,
                    "answer": "ABCD"[i % 4] if i != 4 else "42 mg",
                    "question_type": "multiple-choice" if i != 4 else "open",
                    "subfield": "Made",
                }
                for i in range(5)
            ]
            write_parquet(
                root / subject / f"{part}-00000-of-00001.parquet", rows, [f"image_{k}" for k in range(1, 8)]
            )


def medxpertqa_mm(root: Path) -> None:
    (root / "MM").mkdir()
    names = []
    for part, count in (("dev", 5), ("test", 6)):
        lines = []
        for i in range(count):
            images = [f"MM-{part}-{i}-{a}.jpeg" for a in "ab"[: 1 + i % 2]]
            names += images
            row = {
                "id": f"MM-{part}-{i}",
                "question": f"A patient of {i}. What next?\nAnswer Choices: (A) a (B) b (C) c (D) d (E) e",
                "options": {"A": "rest", "B": "scan", "C": "drug", "D": "wait", "E": "operate"},
                "label": "ABCDE"[i % 5],
                "images": images,
                "medical_task": "Treatment",
                "question_type": "Reasoning",
            }
            lines.append(json.dumps(row))
        (root / f"MM/{part}.jsonl").write_text("\n".join(lines))
    write_zip(root / "images.zip", [f"images/{name}" for name in names])
