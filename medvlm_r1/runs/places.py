"""The folder of the configuration: ``conf/`` of a checkout, or the copy in an installed package."""

from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())


def pip_install(extra: str) -> str:
    """Command that installs an extra; no package index has this package."""
    if CONF.parent == PACKAGE:
        return f"pip install 'FOLDER/medvlm_r1-{version('medvlm_r1')}-py3-none-any.whl[{extra}]'"
    return f"pip install -e '.[{extra}]'"
