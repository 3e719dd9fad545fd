"""How a call ends that refuses what it was given."""

from collections.abc import Callable

import pytest

from common.errors import MOST_SAID, UserError


def said_by(call: Callable, *args: object) -> str:
    """The sentence, printable and not too long."""
    with pytest.raises(UserError) as raised:
        call(*args)
    text = str(raised.value)
    assert text.isprintable() and len(text) <= MOST_SAID, text
    return text
