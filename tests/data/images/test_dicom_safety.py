"""DICOM in rows of questions: identifying and malicious files are refused."""

import io
import json
import subprocess
import sys
import zlib

import numpy as np
import pydicom
import pytest
from command import ROOT, run_here
from dicom_files import CT, write
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medvlm_r1.cli import predict
from medvlm_r1.data.formats.mcq_json import McqJson
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.images.content_key import image_digest
from medvlm_r1.data.images.dicom import DicomImage
from medvlm_r1.data.images.volume import Volumes
from medvlm_r1.data.sample import BadRowError


@pytest.fixture
def here(tmp_path):
    return tmp_path / "a.dcm"


class TestPrivacy:
    def test_identifying_headers_are_refused_without_their_values(self, here):
        values = np.zeros((2, 2), np.uint8)
        write(here, values, PatientName="Zyx^Distinct", PatientID="7", AccessionNumber="")
        with pytest.raises(BadRowError) as refused:
            DicomImage(here).load()
        message = str(refused.value)
        assert message.startswith(f"image {here} identifies a patient by PatientName, PatientID: ")
        assert "allow_identifying=true" in message
        assert "Zyx" not in message
        assert DicomImage(here, allow_identifying=True).load()
        write(here, values, PatientName="Zyx^Distinct", PatientIdentityRemoved="YES")
        assert DicomImage(here).load()

    @pytest.mark.parametrize("place", ["run", "row", "file"])
    def test_the_remedy_of_a_run_works(self, place, tmp_path):
        write(tmp_path / "a.dcm", np.eye(3, dtype=np.uint8), PatientID="Zyx")
        row = {"image": "a.dcm", "question": "What?", "options": ["a", "b"], "answer": "a", "subset": "CT"}
        (tmp_path / "rows.json").write_text(json.dumps([row]))
        with pytest.raises(BadRowError) as refused:
            McqJson(tmp_path / "rows.json")
        message = str(refused.value)
        policy = RowPolicy()
        if place == "run":
            assert "set data.rows.volumes.allow_identifying=true" in message
            policy = RowPolicy(volumes=Volumes(allow_identifying=True))
        elif place == "row":
            assert '"allow_identifying": true in the image of the row' in message
            row["image"] = {"path": "a.dcm", "allow_identifying": True}
            (tmp_path / "rows.json").write_text(json.dumps([row]))
        else:
            assert "de-identify it and mark it PatientIdentityRemoved YES" in message
            header = pydicom.dcmread(tmp_path / "a.dcm")
            header.PatientID, header.PatientIdentityRemoved = "", "YES"
            header.save_as(tmp_path / "a.dcm")
        assert len(McqJson(tmp_path / "rows.json", rows=policy)) == 1

    @pytest.mark.parametrize("form", ["one", "file"])
    def test_the_remedy_of_predict_works(self, form, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "a.dcm", np.eye(3, dtype=np.uint8), PatientID="Zyx")
        row = {"image": "a.dcm", "question": "What?", "options": ["a", "b"]}
        (tmp_path / "rows.json").write_text(json.dumps([row]))
        command = ["--model", "none"]
        if form == "one":
            command += ["--image", "a.dcm", "--question", "What?", "--options", "a", "b"]
        else:
            command += ["--questions", "rows.json", "--out", "out.jsonl"]
        assert predict.main(command) == 2
        message = capsys.readouterr().err
        assert "identifies a patient by PatientID: " in message
        assert "or give --allow-identifying" in message
        assert "data.rows" not in message
        assert ("in the image of the row" in message) == (form == "file")
        assert predict.main([*command, "--allow-identifying"]) == 2  # at the model, which is not there
        assert "identifies" not in capsys.readouterr().err

    def test_burned_in_text_is_refused(self, here):
        write(here, np.zeros((2, 2), np.uint8), BurnedInAnnotation="YES", PatientIdentityRemoved="YES")
        with pytest.raises(BadRowError, match=r"a\.dcm has BurnedInAnnotation YES: remove"):
            DicomImage(here).load()
        assert DicomImage(here, allow_identifying=True).load()

    def test_of_a_series_the_file_is_named(self, here):
        write(here, np.zeros((2, 2), np.uint8), PatientID="Zyx")
        with pytest.raises(BadRowError, match=r"identifies a patient by PatientID in a\.dcm: "):
            DicomImage(here.parent).load()

    def test_damage_does_not_quote_the_header(self, here, caplog, recwarn):
        write(here, np.zeros((2, 2), np.uint8), NumberOfFrames=3, PatientBirthDate="19990101")
        data = here.read_bytes()
        here.write_bytes(data.replace(b"IS\x02\x003 ", b"IS\x02\x00Zy").replace(b"19990101", b"Zyx Zyx "))
        with pytest.raises(BadRowError, match=r"a\.dcm cannot be decoded \(damaged: \w+\)$") as refused:
            DicomImage(here, allow_identifying=True).load()
        assert refused.value.__cause__ is None
        assert "Zy" not in caplog.text + "".join(str(w.message) for w in recwarn)

    def test_nothing_of_a_patient_enters_a_run(self, tmp_path):
        rows = []
        for k in range(12):
            values = np.random.default_rng(k).integers(0, 2000, (56, 56)).astype(np.int16)
            named = {
                "PatientName": "Zyxwell^Distinctive",
                "PatientID": "ID-Zyxwell",
                "InstitutionName": "Zyxwell",
            }
            write(tmp_path / f"{k}.dcm", values, **named, **CT)
            row = {"image": {"path": f"{k}.dcm", "window": "brain"}, "question": f"What is shown in {k}?"}
            rows.append(row | {"options": ["liver", "brain"], "answer": "brain", "subset": "CT"})
        (tmp_path / "train.json").write_text(json.dumps(rows[:10]))
        (tmp_path / "test.json").write_text(json.dumps(rows[10:]))
        start = ["+experiment=grpo_600", "model=tiny", "data=mcq_json", "data.n_validation=2"]
        start += ["data.train=train.json", "data.test={ct:test.json}", "trainer.max_steps=1", "workers=1"]
        done = run_here(tmp_path, *start, code=2)
        assert "identifies a patient by PatientName, PatientID" in done.stderr
        assert "Zyxwell" not in done.stderr + done.stdout
        done = run_here(tmp_path, *start, "data.rows.volumes.allow_identifying=true")
        assert "Zyxwell" not in done.stderr + done.stdout
        files = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
        assert {"report.html", "predictions.jsonl", "last.ckpt"} <= {path.name for path in files}
        assert any(path.suffix == ".png" for path in files)
        assert not [path for path in files if b"Zyxwell" in path.read_bytes()]


class TestHostileFiles:
    def test_truncated(self, here):
        write(here, np.zeros((64, 64), np.uint16))
        data = here.read_bytes()
        for length in (100, 140, 300, len(data) - 100):
            here.write_bytes(data[:length])
            with pytest.raises(BadRowError, match=r"image .*a\.dcm (cannot be decoded|holds no image)"):
                DicomImage(here).load()

    def test_without_the_magic(self, here):
        here.write_bytes(b"\0" * 400)
        with pytest.raises(BadRowError, match="no DICM at byte 128"):
            DicomImage(here).load()

    @pytest.mark.parametrize("size", [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 2**31 - 1}])
    def test_huge(self, size, here):
        write(here, np.zeros((64, 64), np.uint8))
        ds = pydicom.dcmread(here)
        for key, value in size.items():
            setattr(ds, key, value)
        ds.save_as(here)
        with pytest.raises(
            BadRowError, match=r"a\.dcm declares .* above the limit of 67108864 pixels a slice"
        ):
            DicomImage(here).load()

    def test_inflating_far(self, here):
        write(here, np.zeros((64, 64), np.uint8), syntax=DeflatedExplicitVRLittleEndian)
        assert DicomImage(here).load()
        meta = 144 + pydicom.dcmread(here).file_meta.FileMetaInformationGroupLength
        stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        bomb = b"".join(stream.compress(bytes(2**24)) for _ in range(17)) + stream.flush()
        here.write_bytes(here.read_bytes()[:meta] + bomb)
        with pytest.raises(BadRowError, match=r"a\.dcm inflates to more than the limit of 268435456 bytes"):
            DicomImage(here).load()

    def test_huge_inside(self, here):
        """The header says 64 x 64, the JPEG stream in it 65000 x 65000."""
        stream = io.BytesIO()
        Image.new("L", (64, 64)).save(stream, "JPEG")
        data = stream.getvalue()
        assert data.count(b"\0\x40\0\x40") == 1
        write(here, np.zeros((64, 64), np.uint8))
        for size, fails in ((b"\0\x40\0\x40", False), (b"\xfd\xe8\xfd\xe8", True)):
            ds = pydicom.dcmread(here)
            ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
            ds.PixelData = pydicom.encaps.encapsulate([data.replace(b"\0\x40\0\x40", size)])
            ds["PixelData"].is_undefined_length = True
            ds.save_as(here)
            if fails:
                with pytest.raises(BadRowError, match=r"a\.dcm holds a compressed image above the limit"):
                    DicomImage(here).load()
            else:
                assert DicomImage(here).load().size == (64, 64)

    def test_an_unknown_syntax_is_named(self, here):
        write(here, np.zeros((2, 2), np.uint8))
        ds = pydicom.dcmread(here)
        ds.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
        ds.PixelData = pydicom.encaps.encapsulate([b"film"])
        ds["PixelData"].is_undefined_length = True
        ds.save_as(here)
        with pytest.raises(BadRowError, match=r"is compressed as MPEG2 .*which cannot be read: convert it"):
            DicomImage(here).load()

    def test_missing_links_and_empty_folders(self, tmp_path):
        loop = tmp_path / "loop"
        loop.symlink_to(loop)
        with pytest.raises(BadRowError, match="is a broken or circular link"):
            DicomImage(tmp_path).load()
        with pytest.raises(BadRowError, match=r"loop cannot be decoded .*Too many levels"):
            DicomImage(loop).load()
        with pytest.raises(BadRowError, match=r"none\.dcm does not exist"):
            DicomImage(tmp_path / "none.dcm").load()
        (tmp_path / "empty").mkdir()
        with pytest.raises(BadRowError, match="a folder without DICOM images"):
            DicomImage(tmp_path / "empty").load()


class TestRows:
    def source(self, folder, image, **settings):
        row = {"image": image, "question": "What?", "options": ["a", "b"], "answer": "a", "subset": "CT"}
        (folder / "rows.json").write_text(json.dumps([row]))
        return McqJson(folder / "rows.json", **settings)

    def test_paths_and_objects(self, tmp_path):
        frames = np.zeros((4, 2, 2), np.int16)
        for name in ("a.dcm", "b.DICOM", "IM0001", "1.2.840"):
            write(tmp_path / name, frames, **CT)
        entry = {"path": "a.dcm", "window": "lung", "slice": 2}
        (sample,) = self.source(
            tmp_path, ["b.DICOM", entry, "IM0001", "1.2.840"], rows=RowPolicy(volumes=Volumes(slices=2))
        )
        names = [handle.name.removeprefix(f"{tmp_path}/") for handle in sample.images]
        assert names == [
            *("b.DICOM#slice=1of2", "b.DICOM#slice=2of2", "a.dcm#slice=2&window=lung"),
            *("IM0001#slice=1of2", "IM0001#slice=2of2", "1.2.840#slice=1of2", "1.2.840#slice=2of2"),
        ]
        assert image_digest(sample.images[0]) == image_digest(sample.images[1])

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            ({"path": "a.dcm", "window": "lungs"}, "window is 'lungs': use lung, bone"),
            ({"path": "a.dcm", "window": [40, 0]}, "width above 0"),
            ({"path": "a.dcm", "slices": 0}, "slices is 0: use middle"),
            ({"path": "a.dcm", "slice": -1}, "slices is"),
            ({"path": "a.dcm", "slice": 0, "slices": 1}, "give one"),
            ({"path": "a.dcm", "windows": "lung"}, "rename it to 'window'"),
            ({"path": "a.dcm", "plane": "axial"}, "'plane', which a DICOM file does not take"),
            ({"path": "a.dcm", "frame": 1}, "it takes slice, slices, volume, window, allow_identifying"),
            ({"path": "a.png", "frame": -1}, "frame is -1: give an index from 0"),
            ({"path": "a.png", "window": "lung"}, "which a plain image file does not take"),
            ({"window": "lung"}, "give a path"),
            ([], "'image' is missing or empty"),
        ],
    )
    def test_settings_that_cannot_be(self, image, message, tmp_path):
        with pytest.raises(BadRowError, match=message):
            self.source(tmp_path, image, rows=RowPolicy(check_images=False))

    def test_a_link_to_itself(self, tmp_path):
        (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
        with pytest.raises(
            BadRowError, match=r"row 0: image .*loop\.png cannot be decoded \(.*symbolic links"
        ):
            self.source(tmp_path, "loop.png")

    @pytest.mark.parametrize(
        ("name", "package", "extra"), [("a.dcm", "pydicom", "dicom"), ("a.nii", "nibabel", "nifti")]
    )
    def test_a_missing_package_is_named(self, name, package, extra):
        """Imported anew in a process in which the package cannot be found."""
        code = f"""import sys; sys.modules["{package}"] = None
from pathlib import Path
from medvlm_r1.data.images.resolve import image_handles
from medvlm_r1.data.images.volume import Volumes
list(image_handles("{name}", Path("."), Volumes()))"""
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert f"pip install -e '.[{extra}]'" in done.stderr.splitlines()[-1]
        assert "BadRowError" not in done.stderr
