import pytest

from benchmarks.lib.seeds import named_seeds, over_seeds


def test_what_records_and_captions_say_of_seeds():
    """Names and order of the entries, which results that are kept have; one seed has no spread."""
    assert list(over_seeds("AP", (1.0, 3.0)).items()) == [
        ("AP", 2.0),
        ("AP_seeds", [1.0, 3.0]),
        ("AP_spread", pytest.approx(2**0.5)),
    ]
    assert over_seeds("AP", [1.0])["AP_spread"] is None
    assert (named_seeds([1]), named_seeds([1, 2])) == ("seed 1", "seeds 1, 2")
