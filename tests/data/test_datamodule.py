"""Questions and the data module: disjoint splits, names, order, shares of the ranks."""

import json
import multiprocessing
import pickle
import resource
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from medvlm_r1.data.datamodule import VQADataModule, _Batch
from medvlm_r1.data.formats.mcq_json import mcq_json
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.splits import Questions, hold_out
from medvlm_r1.evaluate.controls import CONTROLS, PerturbedQuestions
from medvlm_r1.phantom import PhantomSource


def rows(folder: Path, name: str, n: int, per_image: int = 1, **more) -> str:
    """A file in the papers' schema with pictures of its own."""
    (folder / name).mkdir(parents=True)
    questions = []
    for i in range(n):
        picture = f"{i // per_image}.png"
        Image.new("L", (32, 32), i % 256).save(folder / name / picture)
        row = {"image": [picture], "question": f"Question {i}?", "options": ["yes", "no"], "answer": "yes"}
        questions.append({**row, "subset": "CT(Computed Tomography)", **more})
    (folder / name / "rows.json").write_text(json.dumps(questions))
    return str(folder / name / "rows.json")


def test_validation_is_held_out_by_image(tmp_path):
    train, test = rows(tmp_path, "a", 30, per_image=3), rows(tmp_path, "b", 5)
    questions = mcq_json(train, {"ct": test}, n_validation=6)
    assert len(questions.validation) == 6
    assert len(questions.train) == 24
    groups = [{s.image_group for s in part} for part in (questions.train, questions.validation)]
    assert not groups[0] & groups[1]


def test_the_choice_of_questions_does_not_follow_the_runs_seed(tmp_path):
    train, test = rows(tmp_path, "a", 30), rows(tmp_path, "b", 5)
    first, again, other = (
        mcq_json(train, {"ct": test}, n_train=10, n_validation=6, split_seed=s) for s in (0, 0, 1)
    )
    assert [s.id for s in first.train] == [s.id for s in again.train]
    assert [s.id for s in first.train] != [s.id for s in other.train]


def test_files_with_equal_stems_and_pictures_stay_apart(tmp_path):
    """Two folders may both hold rows.json and 0.png: neither ids nor images are the same."""
    train, mri, ct = (rows(tmp_path, name, 8) for name in ("train", "mri", "ct"))
    questions = mcq_json(train, {"mri": mri, "ct": ct}, n_validation=2)
    ids = [s.id for part in (questions.train, questions.validation, *questions.test.values()) for s in part]
    assert len(set(ids)) == len(ids)
    assert questions.test["mri"][3].id == "mri-3"


def test_skipped_rows_are_listed_with_file_and_row(tmp_path):
    train, test = rows(tmp_path, "a", 12), rows(tmp_path, "b", 5)
    (tmp_path / "a" / "4.png").unlink()
    (tmp_path / "b" / "1.png").write_bytes(b"no picture")
    questions = mcq_json(train, {"ct": test}, n_validation=2, rows=RowPolicy(on_bad_row="skip"))
    assert len(questions.skipped) == 2
    assert f"{train} row 4" in questions.skipped[0]
    assert f"{test} row 1" in questions.skipped[1]


def test_too_few_questions_are_named(tmp_path):
    train, test = rows(tmp_path, "a", 12), rows(tmp_path, "b", 5)
    with pytest.raises(ValueError, match="n_train=11, but 10"):
        mcq_json(train, {"ct": test}, n_validation=2, n_train=11)
    with pytest.raises(ValueError, match="hold out 40 for validation"):
        mcq_json(train, {"ct": test}, n_validation=40)


def test_hold_out_avoids_the_images_of_tests():
    source = PhantomSource("mri", 10)
    avoid = {source[0].image_group, source[1].image_group}
    for seed in range(5):
        _, held_out = hold_out(source, 8, seed, avoid)
        assert not avoid & {s.image_group for s in held_out}
    message = "10 questions, of which 2 show an image of a test set, are too few to hold out 9 for validation"
    with pytest.raises(ValueError, match=message):
        hold_out(source, 9, 0, avoid)


def test_a_validation_image_in_training_or_test_is_refused():
    train, test = PhantomSource("mri", 8, "train"), PhantomSource("mri", 8, "test")
    validation = PhantomSource("mri", 4, "validation")
    for wrong in (train, test):
        with pytest.raises(ValueError, match="are both in validation and in"):
            Questions(train, [*validation, wrong[0]], {"mri": test})


def test_a_test_image_in_training_is_said():
    train, test = PhantomSource("mri", 8, "train"), PhantomSource("mri", 8, "test")
    with pytest.warns(UserWarning, match="2 of 10 questions of test set 'mri'"):
        Questions(train, PhantomSource("mri", 4, "validation"), {"mri": [*test, train[0], train[1]]})


def test_an_empty_part_is_refused():
    train, validation = PhantomSource("mri", 8), PhantomSource("mri", 4, "validation")
    with pytest.raises(ValueError, match="names no test set"):
        Questions(train, validation, {})
    with pytest.raises(ValueError, match="ct holds no question"):
        Questions(train, validation, {"ct": []})


def served(seed=0, rank=0, world=1, workers=0, epoch=0):
    """Ids of each training batch, and of the test questions, as one rank sees them."""
    questions = Questions(
        PhantomSource("mri", 32),
        PhantomSource("mri", 4, "validation"),
        {"mri": PhantomSource("mri", 7, "test")},
    )
    module = VQADataModule(questions, lambda s, phase, **_: (s.id, phase), 8, 3, seed, workers)
    module.trainer = SimpleNamespace(world_size=world, global_rank=rank)
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    (test,) = module.test_dataloader()
    return [list(batch) for batch in loader], [item for batch in test for [(_, item)] in batch]


def test_order_follows_from_seed_and_epoch_alone():
    assert served() == served()
    assert served()[0] != served(seed=1)[0]
    assert served()[0] != served(epoch=1)[0]
    ids = [sample for batch in served()[0] for sample, _ in batch]
    assert len(set(ids)) == 32


def test_workers_start_in_a_process_of_joblib_too():
    """``hydra/launcher=processes``: there, the default method to start a process is joblib's own."""
    import joblib  # noqa: F401  (registers the method)

    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("loky", force=True)
    try:
        assert served(workers=1) == served()
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_phases_choose_the_template():
    batches, tests = served()
    assert {phase for batch in batches for _, phase in batch} == {"train"}
    assert {phase for _, phase in tests} == {"evaluate"}


def test_two_ranks_share_the_steps_of_one():
    alone = served()[0]
    ranks = [served(rank=r, world=2) for r in (0, 1)]
    for step, batch in enumerate(alone):
        assert {s for s, _ in batch} == {s for r in ranks for s, _ in r[0][step]}
    answered = [s for r in ranks for s, _ in r[1]]
    assert sorted(answered) == sorted(f"mri-test-0-{i:05d}" for i in range(7))


def test_prompts_must_divide_among_devices():
    with pytest.raises(ValueError, match="no multiple of the 3 devices"):
        served(world=3)


def test_a_step_needs_enough_questions():
    questions = Questions(
        PhantomSource("mri", 5),
        PhantomSource("mri", 4, "validation"),
        {"mri": PhantomSource("mri", 7, "test")},
    )
    with pytest.raises(ValueError, match="do not fill a step of 8"):
        VQADataModule(questions, lambda s, phase: s, 8, 3, 0, 0)


def test_a_large_test_batch_leaves_its_worker_without_open_files_or_shared_memory(encoder, short_style):
    """64 questions under all controls, with 256 files open at most: as tensors they would be 1,100 files."""
    questions = Questions(
        PhantomSource("mri", 8),
        PhantomSource("mri", 4, "validation"),
        {"mri": PhantomSource("mri", 64, "test")},
    )
    perturb = partial(PerturbedQuestions, controls=CONTROLS, assistant_prefix="<answer>")
    encode = partial(encoder.encode, prompt=short_style)
    there, here = (VQADataModule(questions, encode, 8, 64, 0, workers, perturb) for workers in (1, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        (batch,) = there.test_dataloader()[0]
        (expected,) = here.test_dataloader()[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    prompts, same = ([prompt for question in b for _, prompt in question] for b in (batch, expected))
    assert len(prompts) > 64 * 4
    for ours, theirs in zip(prompts, same, strict=True):
        assert ours.sample == theirs.sample
        for name in ("ids", "positions", "pixels", "grid"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
            assert not getattr(ours, name).is_shared()
    # the perturbations of a question that show the same image share its patches: unchanged, permuted, cut
    patches = {prompt.pixels.data_ptr(): prompt.pixels.nbytes for prompt in prompts}
    assert len(patches) < 3.1 * 64
    assert len(pickle.dumps(_Batch(batch))) < 1.1 * sum(patches.values()) + 2e6


@pytest.mark.parametrize("name", [1, 1.5, True, "a/b", "é 中", "..", "x=1", "<b>|"])
def test_names_of_test_sets_are_text(tmp_path, name):
    """YAML reads 1 and true as values of other types."""
    train, test = rows(tmp_path, "a", 8), rows(tmp_path, "b", 5)
    loaded = mcq_json(train, {"ct": test}, n_validation=2)
    assert list(replace(loaded, test={name: loaded.test["ct"]}).test) == [str(name)]


@pytest.mark.parametrize("names", [["train"], ["validation"], [1, "1"], [""], [" "], ["a\nb"], ["x" * 81]])
def test_a_name_that_cannot_be_used(tmp_path, names):
    train, test = rows(tmp_path, "a", 8), rows(tmp_path, "b", 5)
    loaded = mcq_json(train, {"ct": test}, n_validation=2)
    with pytest.raises(ValueError, match=r"data\.test names") as error:
        replace(loaded, test=dict.fromkeys(names, loaded.test["ct"]))
    assert len(str(error.value)) < 300
