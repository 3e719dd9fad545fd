"""Lets every test import the detectors by the names of their packages."""

import tools.detectors  # noqa: F401 - puts their folders on the path
