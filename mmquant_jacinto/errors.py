"""The one exception that a user's configuration or data can cause."""

import difflib
from collections.abc import Iterable


class QuantizeError(ValueError):
    """A setting, checkpoint or data set that cannot be quantized as asked.

    Its message is one sentence that names the config key, the value found
    there and what would be right.
    """


class UntrainableError(QuantizeError):
    """What is trained has diverged, or has nothing to learn from."""


def nearest(value: object, valid: Iterable[str]) -> str:
    """Says what is valid, the nearest first, for the end of an error message.

    Args:
        value (object): What was found.
        valid (Iterable[str]): What would have been right.

    Returns:
        str: ``did you mean 'x'? valid: 'x', 'y'`` or ``valid: 'x', 'y'``.
    """
    valid = [str(item) for item in valid]
    close = difflib.get_close_matches(str(value), valid, n=1, cutoff=0.5)
    listing = 'valid: ' + ', '.join(repr(item) for item in valid)
    return f'did you mean {close[0]!r}? {listing}' if close else listing
