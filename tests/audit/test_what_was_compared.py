"""The verdict of an audit names what was compared: no all-clear without a look."""

import io
import json

import dicom_files
import numpy as np
import pytest
from PIL import Image

from medvlm_r1.audit import Audit, PreRunAudit, audit
from medvlm_r1.audit.question_files import read_files
from medvlm_r1.cli.audit import main
from medvlm_r1.data.formats.mcq_json import McqJson, mcq_json
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.images.notes import BLANK, FRAMES, LEFT_OUT
from medvlm_r1.data.splits import Questions
from medvlm_r1.evaluate.audit_warnings import leak_shares

ROW = {"question": "What is shown?", "options": ["Cyst", "Mass"], "answer": "Cyst", "subset": "CT"}


def write_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([ROW | row for row in rows]))
    return path


def noise(path, seed):
    values = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
    Image.fromarray(values).resize((60, 60)).save(path)


@pytest.fixture
def pictures(tmp_path):
    for k in range(4):
        noise(tmp_path / f"{k}.png", k)
    return tmp_path


def findings(train, *tests, images=None):
    parts = {path.stem: read_files([path], images) for path in (train, *tests)}
    rows = parts.pop(train.stem)
    refused = {"train": rows.refused} | {name: part.refused for name, part in parts.items()}
    return audit(rows.samples, {name: part.samples for name, part in parts.items()}, refused=refused)


class TestWithoutImages:
    def audited(self, tmp_path, capsys, *options, train="a", test="b"):
        rows = ({"image": "1.png"}, {"image": "2.png"})
        files = [
            write_rows(tmp_path / train / "train.json", *rows),
            write_rows(tmp_path / test / "test.json", rows[0]),
        ]
        code = main(["--train", str(files[0]), "--test", str(files[1]), "--fail-on-leak", *options])
        return code, " ".join(capsys.readouterr().out.split()).partition("Verdict: ")[2]

    def test_from_different_folders_nothing_is_said_to_be_compared(self, tmp_path, capsys):
        code, verdict = self.audited(tmp_path, capsys)
        assert code == 0
        assert "no test image is a copy" not in verdict
        assert verdict.startswith(
            "nothing was compared: no image is there, and image paths start from different"
        )
        assert f"train from '{tmp_path}/a', test from '{tmp_path}/b'): give --images DIR" in verdict
        assert "1 test questions show an image with a training image's file name" in verdict

    def test_the_remedy_compares_them(self, tmp_path, capsys):
        code, verdict = self.audited(tmp_path, capsys, "--images", str(tmp_path))
        assert code == 1
        assert verdict.startswith("1 of 1 test questions (100.0 %) show a copy of a training image")

    def test_from_one_folder_paths_are_compared(self, tmp_path, capsys):
        assert self.audited(tmp_path, capsys, train="a", test="a")[0] == 1
        train = write_rows(tmp_path / "train.json", {"image": "1.png"})
        test = write_rows(tmp_path / "test.json", {"image": "2.png"})
        assert findings(train, test).verdict == (
            "no test question names the path of a training image, and no pixels were compared; "
            "no image was there, so pixels were not checked"
        )

    def test_of_some_they_are_counted_for_each_set(self, pictures):
        train = write_rows(pictures / "train.json", {"image": "0.png"}, {"image": "gone.png"})
        test = write_rows(pictures / "test.json", {"image": "1.png"})
        verdict = findings(train, test).verdict
        assert verdict.startswith("no copy of a training image among the test images that are there")
        assert verdict.endswith("pixels checked of 1 of 2 train, 1 of 1 test images")

    def test_all_clear_is_given_after_a_look(self, pictures):
        train = write_rows(pictures / "train.json", {"image": "0.png"})
        test = write_rows(pictures / "test.json", {"image": "1.png"})
        verdict = "no test image is a copy of a training image; pixels checked of all 2 images"
        assert findings(train, test).verdict == verdict

    def test_a_dicom_file_that_is_not_there(self, tmp_path):
        train = write_rows(tmp_path / "train.json", {"image": "a.dcm"})
        test = write_rows(tmp_path / "test.json", {"image": "a.dcm"}, {"image": "b.dcm"})
        assert findings(train, test).leaks[0].kinds == {"same file": 1}


class TestRefusedRows:
    REFUSED = {"image": "1.png", "options": ["Cyst", "Cyst"]}  # noqa: RUF012

    def test_of_training_count_as_originals(self, pictures):
        train = write_rows(pictures / "train.json", self.REFUSED, {"image": "2.png"})
        test = write_rows(pictures / "test.json", {"image": "1.png"}, {"image": "3.png"})
        result = findings(train, test)
        (leak,) = result.leaks
        assert (leak.questions, leak.n, leak.of_refused, leak.sources) == (1, 2, 1, ())
        assert "1 of these a copy of an image of refused training rows alone" in result.verdict
        assert "rows refused, whose images were compared: 1 train" in result.verdict
        assert Audit.from_dict(json.loads(json.dumps(result.as_dict()))) == result

    def test_are_not_named_where_a_good_row_shows_it_too(self, pictures):
        train = write_rows(pictures / "train.json", self.REFUSED, {"image": "1.png"})
        test = write_rows(pictures / "test.json", {"image": "1.png"})
        (leak,) = findings(train, test).leaks
        assert (leak.questions, leak.of_refused) == (1, 0)

    def test_of_a_test_are_counted_apart(self, pictures):
        train = write_rows(pictures / "train.json", {"image": "1.png"})
        test = write_rows(pictures / "test.json", self.REFUSED, {"image": "3.png"})
        result = findings(train, test)
        assert (result.leaks[0].questions, result.leaks[0].refused) == (0, 1)
        assert "1 refused test rows show a copy of a train image" in result.verdict

    def test_may_have_damaged_images(self, pictures):
        (pictures / "1.png").write_bytes(b"no picture")
        train = write_rows(pictures / "train.json", self.REFUSED, {"image": "2.png"})
        test = write_rows(pictures / "test.json", {"image": "3.png"})
        assert findings(train, test).images_checked == 2

    def test_before_a_run(self, pictures, tmp_path):
        train = write_rows(pictures / "train.json", self.REFUSED, {"image": "0.png"}, {"image": "2.png"})
        test = write_rows(pictures / "test.json", {"image": "1.png"})
        rows = RowPolicy(on_bad_row="skip")
        questions = mcq_json(str(train), {"mri": str(test)}, n_validation=1, rows=rows)
        for policy in ("warn", "drop", "fail"):  # the model is not trained on the row
            _, result = PreRunAudit(policy, tmp_path / "cache")(questions)
            leak = next(leak for leak in result.leaks if (leak.source, leak.target) == ("train", "mri"))
            assert (leak.questions, leak.of_refused) == (1, 1)
            assert not result.leaking
            assert leak_shares(result.as_dict(), trained=True) == {}


class TestGroups:
    def test_of_one_patient_are_told(self, pictures):
        """A number of any type is one patient; '007' and '7' may be one."""
        train = write_rows(
            pictures / "train.json", {"image": "0.png", "group": 0.0}, {"image": "1.png", "group": "P 007"}
        )
        test = write_rows(
            pictures / "test.json", {"image": "2.png", "group": 0}, {"image": "3.png", "group": "p7"}
        )
        result = findings(train, test)
        assert (result.leaks[0].questions, result.leaks[0].same_group) == (0, 1)
        assert result.leaks[0].alike_group == ("P 007", "p7")
        assert (
            "a leak by group: 1 of 2 test questions show a group (patient) of train in another image"
            in result.verdict
        )
        assert "the groups 'P 007' and 'p7' of train and test may be one, spelt in two ways" in result.verdict


class TestImages:
    def test_that_show_nothing_are_counted_for_each_set(self, pictures):
        Image.new("L", (9, 9), 40).save(pictures / "flat.png")
        Image.new("RGBA", (9, 9), (1, 2, 3, 0)).save(pictures / "clear.png")
        frames = [Image.open(pictures / f"{k}.png") for k in (0, 1)]
        frames[0].save(pictures / "two.gif", save_all=True, append_images=frames[1:])
        train = write_rows(pictures / "train.json", {"image": "flat.png"}, {"image": "clear.png"})
        test = write_rows(pictures / "test.json", {"image": "2.png"}, {"image": "two.gif"})
        result = findings(train, test)
        assert result.notes["train"] == {BLANK: {"n": 2, "first": f"{pictures}/flat.png"}}
        assert result.notes["test"] == {
            FRAMES: {"n": 1, "first": f"{pictures}/two.gif: frame 0 of 2, from 0"}
        }
        assert f"2 train images {BLANK} (the first: {pictures}/flat.png)" in result.verdict

    def test_left_out_of_a_folder_are_named(self, pictures):
        (pictures / "series").mkdir()
        values = np.random.default_rng(0).integers(0, 99, (9, 9)).astype(np.int16)
        dicom_files.write(pictures / "series" / "a", values)
        (pictures / "series" / "b.txt").write_text("no image")
        train = write_rows(pictures / "train.json", {"image": "series"})
        test = write_rows(pictures / "test.json", {"image": "2.png"})
        notes = findings(train, test).notes["train"]
        assert notes[LEFT_OUT]["first"] == f"{pictures}/series: 1 left out: 1 no DICOM file ('b.txt')"

    def test_check_before_training_warns(self, pictures, caplog):
        for k in range(3):
            Image.new("L", (9, 9), k).save(pictures / f"flat{k}.png")
        rows = [{"image": f"flat{k}.png"} for k in range(3)] + [{"image": "0.png"}]
        McqJson(write_rows(pictures / "train.json", *rows))
        (record,) = caplog.records
        assert record.getMessage() == f"3 images {BLANK}; the first: {pictures}/flat0.png"


class TestIdentifyingFiles:
    """The remedy that the command names is tried: it works."""

    def test_in_the_audit(self, tmp_path, capsys):
        values = np.random.default_rng(0).integers(0, 99, (9, 9)).astype(np.int16)
        dicom_files.write(tmp_path / "a.dcm", values, PatientName="Zyx^Distinct")
        train = write_rows(tmp_path / "train.json", {"image": "a.dcm"})
        options = [
            "--train",
            str(train),
            "--test",
            str(write_rows(tmp_path / "test.json", {"image": "a.dcm"})),
        ]
        assert main(options) == 2
        message = capsys.readouterr().err
        assert "identifies a patient by PatientName" in message
        assert "data.rows" not in message
        assert 'give --allow-identifying, or "allow_identifying": true in the image of the row' in message
        assert main([*options, "--allow-identifying"]) == 0
        own = {"image": {"path": "a.dcm", "allow_identifying": True}}
        write_rows(tmp_path / "train.json", own)
        write_rows(tmp_path / "test.json", own)
        assert main(options) == 0


def test_a_changed_refused_image_is_audited_again(pictures, tmp_path):
    train = write_rows(
        pictures / "train.json", TestRefusedRows.REFUSED, {"image": "0.png"}, {"image": "2.png"}
    )
    test = write_rows(pictures / "test.json", {"image": "3.png"})
    questions: Questions = mcq_json(
        str(train), {"mri": str(test)}, n_validation=1, rows=RowPolicy(on_bad_row="skip")
    )
    assert not PreRunAudit("warn", tmp_path / "cache")(questions)[1].into_tests
    (pictures / "1.png").write_bytes((pictures / "3.png").read_bytes())
    assert PreRunAudit("warn", tmp_path / "cache")(questions)[1].into_tests


def test_a_damaged_image_of_a_refused_row_is_none(pictures):
    """A strip whose place is no number makes Pillow raise a TypeError."""
    image = io.BytesIO()
    Image.new("L", (3, 3)).save(image, "TIFF")
    (pictures / "1.png").write_bytes(image.getvalue().replace(b"\x11\1\4\0", b"\x11\1\x0c\0"))
    train = write_rows(
        pictures / "train.json", TestRefusedRows.REFUSED, {"image": "0.png"}, {"image": "2.png"}
    )
    result = findings(train, write_rows(pictures / "test.json", {"image": "3.png"}))
    assert result.refused == {"train": 1, "test": 0}
