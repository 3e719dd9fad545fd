"""The tables of numbers that stand in the Markdown files, by their names."""

from . import quality, speed
from .cells import Rows, Table

TABLES: dict[str, Table] = speed.TABLES | quality.TABLES

__all__ = ["TABLES", "Rows", "Table"]
