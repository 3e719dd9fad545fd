"""A small part of what ``python -m tests.reliability.fuzz`` runs by hand."""

from tests.reliability.fuzz import fuzz

COUNT = 200


def test_damaged_files_end_with_success_or_one_sentence(tmp_path):
    """Annotation files, checkpoints and logs: no traceback, no hang, no crash, no file where none should be; both ends occur."""
    counts, reports = fuzz(COUNT, 0, tmp_path)
    assert not reports, "\n\n".join(reports)
    assert sum(counts.values()) == COUNT
    for kind in ("instances", "panoptic", "weights", "record"):
        assert min(counts[f"{kind} taken"], counts[f"{kind} refused"]) >= 3, counts
