"""What the tests of the detectors share: each of them in turn, in each of its forms."""

import pytest

from tests.detector_runs import VARIANTS
from tools.detectors import CLUSTERED, DETECTORS


@pytest.fixture(scope="session", params=DETECTORS)
def detector(request: pytest.FixtureRequest) -> str:
    """The name of a detector's folder."""
    return request.param


@pytest.fixture(scope="session", params=CLUSTERED)
def clustered(request: pytest.FixtureRequest) -> str:
    """The name of the folder of a detector that ENACT is in."""
    return request.param


@pytest.fixture(scope="session", params=[(d, v) for d in DETECTORS for v in VARIANTS[d]], ids=lambda p: "-".join(p))
def variant(request: pytest.FixtureRequest) -> tuple[str, tuple[str, ...]]:
    """The name of a detector's folder, and options that make it one of its forms."""
    detector, name = request.param
    return detector, VARIANTS[detector][name]
