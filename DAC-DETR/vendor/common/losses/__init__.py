"""Matching and set losses."""
