"""The paper's run, planned once."""

import pytest
from plans import PAPER, planned


@pytest.fixture(scope="session")
def paper():
    return planned(PAPER, timed=True)
