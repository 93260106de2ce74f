"""The installed command ``medvlm-r1``, and the wheel that holds it."""

import subprocess
import sys
import zipfile

import pytest
from command import ROOT, python

from medvlm_r1.cli.main import COMMANDS, main


def test_without_a_command_it_lists_them_all(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)


def test_a_misspelt_command_is_answered_with_the_near_one(capsys):
    assert main(["comapre"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'comapre': did you mean compare?\n"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "run"])
def test_a_command_shows_its_own_name_and_examples(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["medvlm-r1"])
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert not stopped.value.code
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: medvlm-r1 {name} ")
    assert f"  medvlm-r1 {name} " in printed.partition("examples:")[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The files of the wheel in an empty folder, as pip lays them out."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        ROOT,
    ]
    subprocess.run([sys.executable, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_file_of_the_package(installed):
    tracked = subprocess.run(
        ["git", "ls-files", "medvlm_r1", "conf"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = {
        name.replace("conf/", "medvlm_r1/conf/", name.startswith("conf/")) for name in tracked.stdout.split()
    }
    assert {
        path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()
    } >= names
    assert (installed / "medvlm_r1/py.typed").exists()


COMMANDS_IN_TURN = """
import sys
from pathlib import Path
from medvlm_r1.cli.main import main
main(["run", "debug=fast", "audit=null", "workers=0", *sys.argv[1:]])
(image, *_) = Path("outputs").glob("runs/*/images/*.png")
question = ["--question", "Where?", "--options", "heart", "liver"]
main(["predict", "--model", "embedded", "--prompt", "medvlm_r1", "--image", str(image), *question])
sys.exit(main(["compare", "outputs/runs", "--out", "compared"]))
"""


def test_the_wheel_trains_and_predicts_in_another_folder(installed, tmp_path):
    """Without the repository on the path: configuration, tiny model and page come from the wheel."""
    small = ["data.train.n=8", "data.validation.n=4", "controls=[image]"]
    small += [f"data.test.{name}.n=4" for name in ("mri", "ct", "xray")]
    done = python(tmp_path, "-c", COMMANDS_IN_TURN, *small, PYTHONPATH=str(installed))
    assert "answer" in done.stdout
    (run,) = (tmp_path / "outputs/runs").iterdir()
    assert str(installed / "medvlm_r1/conf") in (run / ".hydra/hydra.yaml").read_text()
    assert (run / "report.html").stat().st_size > 10_000
    assert (tmp_path / "compared/comparison.json").exists()
