"""Copies of the packages that the detectors share: never edited here."""
