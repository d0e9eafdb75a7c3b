"""Overrides: what ``quantize.overrides`` says of a module."""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import QuantizeError, nearest
from ..record.graph import Site


class Overrides:
    """``quantize.overrides``, with a record of what each pattern matched.

    Args:
        patterns (Mapping[str, Any]): As the user gave them.
    """

    def __init__(self, patterns: Mapping[str, Any]) -> None:
        self.patterns = patterns
        self._unused: set[str] = set(patterns)

    def find(self, module: str) -> Any:
        """The value of the last pattern that matches; None if none does."""
        found = None
        for pattern, value in self.patterns.items():
            if fnmatch.fnmatchcase(module, pattern) or fnmatch.fnmatchcase(
                module, pattern + '.*'
            ):
                self._unused.discard(pattern)
                found = value
        return found

    def is_off(self, site: Site) -> bool:
        """Whether a site stays in float."""
        return self.find(site.module) is False

    def check_used(self, sites: Iterable[Site]) -> None:
        """Refuses patterns that matched nothing so far.

        Raises:
            QuantizeError: If there is one; it names the nearest module.
        """
        if self._unused:
            pattern = sorted(self._unused)[0]
            modules = {site.module for site in sites}
            raise QuantizeError(
                f'quantize.overrides has the pattern {pattern!r}, which '
                'matches no module; ' + nearest(pattern, sorted(modules))
            )
