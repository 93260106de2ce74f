"""A browser for the tests of the page; ``MEDVLM_R1_SCREENSHOTS`` names a folder for its screenshots."""

import os
from pathlib import Path

import pytest
from chromium import EXECUTABLE, Chromium


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    name = os.environ.get("MEDVLM_R1_SCREENSHOTS")
    folder = Path(name) if name else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def browser():
    if EXECUTABLE is None:
        pytest.skip("no chromium on this machine to open the page in")
    with Chromium() as chromium:
        yield chromium


@pytest.fixture
def chromium(browser):
    """The browser; a test that leaves an error on the console fails."""
    browser.errors.clear()
    yield browser
    assert browser.errors == []
