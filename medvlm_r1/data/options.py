"""Data options whose sources share settings: one function per option of ``conf/data``."""

import functools
from collections.abc import Callable, Mapping

from medvlm_r1.data.formats.image_folder import ImageFolder, Template
from medvlm_r1.data.formats.mcq_json import McqJson
from medvlm_r1.data.formats.question_file import OnBadRow, QuestionFile
from medvlm_r1.data.formats.table import Columns, Table, modality_of_test
from medvlm_r1.data.images.volume import Volumes
from medvlm_r1.data.sources.medvlm_r1_set import SUBSETS, MedVLMR1Set
from medvlm_r1.data.splits import Per, Questions, choose, hold_out


def mcq_json(
    train: str,
    test: Mapping[str, str],
    validation: str | None = None,
    images: str | None = None,
    modality: str | None = None,
    n_train: int | None = None,
    n_train_per: Per | None = None,
    n_validation: int = 100,
    split_seed: int = 0,
    on_bad_row: OnBadRow = "fail",
    check_images: bool = True,
    follow_links: bool = False,
    volumes: Volumes | None = None,
) -> Questions:
    """Questions in the papers' JSON schema, with images from any folder.

    Args:
        train, test: files; test sets by name.
        validation: a file; without one, questions are held out of ``train`` by image group.
        images: folder that image paths start from; by default each file's own.
        modality: of every question, for files whose rows name none; the test sets then take their names.
        n_train: take this many training questions, chosen by ``split_seed``; by default all.
        n_train_per: take so many of each modality, question_type or answer; see :func:`choose`.
        n_validation: how many questions validate.
        split_seed: of the held-out questions and of the choice; not the run's seed, so that seeds
            of one study share their data.
        on_bad_row: ``fail`` or ``skip``; see :class:`~medvlm_r1.data.formats.question_file.QuestionFile`.
        check_images: decode every image before training.
        follow_links: take images outside their folder; see :class:`~medvlm_r1.data.images.resolve.ImageRoot`.
        volumes: how DICOM and NIfTI files are shown where a row does not say otherwise.

    Raises:
        BadRowError: a row cannot be used.
        ValueError: there are fewer questions than asked for.
    """
    read = functools.partial(
        McqJson,
        images=images,
        on_bad_row=on_bad_row,
        check_images=check_images,
        follow_links=follow_links,
        volumes=volumes,
    )
    tests = {name: read(path, name=name, modality=name if modality else None) for name, path in test.items()}
    read = functools.partial(read, modality=modality)
    return _parted(read, tests, train, validation, n_train, n_train_per, n_validation, split_seed)


def table(
    train: str,
    test: Mapping[str, str],
    columns: Columns,
    validation: str | None = None,
    images: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8-sig",
    n_train: int | None = None,
    n_train_per: Per | None = None,
    n_validation: int = 100,
    split_seed: int = 0,
    on_bad_row: OnBadRow = "fail",
    check_images: bool = True,
    follow_links: bool = False,
    volumes: Volumes | None = None,
) -> Questions:
    """Questions in JSON, JSONL, CSV or Parquet files of any layout.

    Args:
        columns: which column holds what, in all files.
        delimiter, encoding: of CSV; see :class:`~medvlm_r1.data.formats.table.Table`.
        train, test, validation, images: as in :func:`mcq_json`, and so is all that follows.

    Raises:
        BadRowError: a row cannot be used, or the mapping names a column that a file has not.
        ValueError: there are fewer questions than asked for.
    """
    shared = {"columns": columns, "images": images, "delimiter": delimiter, "encoding": encoding}
    shared |= {"on_bad_row": on_bad_row, "check_images": check_images, "follow_links": follow_links}
    read = functools.partial(Table, **shared, volumes=volumes)
    tests = {
        name: read(path, name=name, modality=modality_of_test(name, columns)) for name, path in test.items()
    }
    return _parted(read, tests, train, validation, n_train, n_train_per, n_validation, split_seed)


def image_folder(
    folder: str,
    modality: str,
    labels: str | None = None,
    template: Template | None = None,
    test: Mapping[str, str] | None = None,
    group: str | None = None,
    delimiter: str = ",",
    encoding: str = "utf-8-sig",
    n_train: int | None = None,
    n_train_per: Per | None = None,
    n_validation: int = 100,
    n_test: int = 300,
    split_seed: int = 0,
    on_bad_row: OnBadRow = "fail",
    check_images: bool = True,
    follow_links: bool = False,
    volumes: Volumes | None = None,
) -> Questions:
    """A folder of labelled images, and folders of other images to test on.

    Where the labels file has a column ``split``, that is the split; otherwise test (unless ``test`` has a
    folder for this modality) and validation are held out, whole patients at a time.

    Args:
        folder, modality, labels, template, group, delimiter, encoding: see
            :class:`~medvlm_r1.data.formats.image_folder.ImageFolder`.
        test: folders by the modality that they show, with labels in the same form.
        n_test: how many questions test, where they are held out.
        n_train, n_train_per, n_validation, split_seed, on_bad_row, check_images, follow_links, volumes: as
            in :func:`mcq_json`.

    Raises:
        BadRowError: a row or an image cannot be used.
        ValueError: there are fewer questions than asked for.
    """
    read = functools.partial(
        ImageFolder,
        labels=labels,
        template=template,
        group=group,
        delimiter=delimiter,
        encoding=encoding,
        on_bad_row=on_bad_row,
        check_images=check_images,
        follow_links=follow_links,
        volumes=volumes,
    )
    tests = {name: read(path, modality=name, name=f"{name}-test") for name, path in (test or {}).items()}
    rows = read(folder, modality, name=modality)
    skipped = [line for source in (rows, *tests.values()) for line in source.skipped]
    rest, validation = list(rows), []
    if rows.splits:
        parts = {
            part: [s for s in rows if rows.splits[s.id] == part] for part in ("train", "validation", "test")
        }
        rest, validation, own_test = parts["train"], parts["validation"][:n_validation], parts["test"]
    elif modality not in tests and n_test:
        rest, own_test = hold_out(rest, n_test, split_seed, what="test")
    else:
        own_test = []
    if own_test and modality not in tests:
        tests = {modality: own_test, **tests}
    if not validation:
        tested = {sample.image_group for source in tests.values() for sample in source}
        rest, validation = hold_out(rest, n_validation, split_seed, avoid=tested)
    return Questions(choose(rest, n_train, split_seed, n_train_per), validation, tests, tuple(skipped))


def medvlm_r1(
    root: str | None = None,
    test_file: str | None = None,
    revision: str = "main",
    n_train: int = 600,
    n_validation: int = 100,
    on_bad_row: OnBadRow = "fail",
    follow_links: bool = False,
) -> Questions:
    """MedVLM-R1's MRI questions and its test on MRI, CT and X-ray; see :class:`MedVLMR1Set`."""
    shared = {"root": root, "test_file": test_file, "revision": revision, "on_bad_row": on_bad_row}
    shared["follow_links"] = follow_links
    sizes = {"n_train": n_train, "n_validation": n_validation}
    train, validation = (MedVLMR1Set(part, **shared, **sizes) for part in ("train", "validation"))
    tests = {name: MedVLMR1Set("test", name, **shared) for name in SUBSETS}
    return Questions(train, validation, tests, tuple(train.skipped + validation.skipped))


def _parted(
    read: Callable[..., QuestionFile],
    tests: dict[str, QuestionFile],
    train: str,
    validation: str | None,
    n_train: int | None,
    n_train_per: Per | None,
    n_validation: int,
    split_seed: int,
) -> Questions:
    """Training and validation questions of files, beside test sets that are read already."""
    rows = read(train, name="train")
    if validation is None:
        tested = {sample.image_group for source in tests.values() for sample in source}
        rest, held_out = hold_out(rows, n_validation, split_seed, avoid=tested)
        skipped = rows.skipped
    else:
        held_out = read(validation, name="validation", n=n_validation)
        rest, skipped = list(rows), rows.skipped + held_out.skipped
    chosen = choose(rest, n_train, split_seed, n_train_per)
    skipped = skipped + [line for source in tests.values() for line in source.skipped]
    return Questions(chosen, held_out, tests, tuple(skipped))
