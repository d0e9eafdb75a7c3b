"""What a refusal must be."""

import pytest

from mmquant_jacinto import QuantizeError


def refused(act, *words):
    """Runs ``act``; its one sentence of refusal must hold all of ``words``."""
    with pytest.raises(QuantizeError) as caught:
        act()
    message = str(caught.value)
    for word in words:
        assert word in message
    assert '\n' not in message
    assert not message.endswith('.')
    return message
