"""Overrides: what ``quantize.overrides`` says of a module."""

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Optional

from ..config.max_drop import Raised
from ..errors import QuantizeError, nearest
from ..record.graph import Site
from .plan import wide_name


class Overrides:
    """``quantize.overrides``, with a record of what each pattern matched.

    Args:
        patterns (Mapping[str, Any]): As the user gave them.
        calls (Mapping[str, Any], optional): The same for single calls by the names of
            their sites, where no pattern says anything: what a search has raised.

    Attributes:
        edges (Mapping[str, Mapping[str, int]]): Widths of calls, of which, and of kinds
            of which, neither says anything.
        light (Mapping[str, Mapping[str, int]]): The same of weights alone, where
            no edge has any.
        splines (Collection[str]): Names of sites that stay in float where no pattern
            says anything; see :class:`~.fusion.Dataflow`.
    """

    def __init__(
        self, patterns: Mapping[str, Any], calls: Optional[Mapping[str, Any]] = None
    ) -> None:
        self.patterns = patterns
        self.calls = calls or {}
        self.edges: Mapping[str, Mapping[str, int]] = {}
        self.light: Mapping[str, Mapping[str, int]] = {}
        self.splines: Collection[str] = ()
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
        return self.of(site) is False

    def of(self, site: Site) -> Any:
        """What is said of a site; None if nothing is."""
        found = self.find(site.module)
        if found is not None:
            return found
        if site.name in self.splines:
            return False
        raised, edge = self.calls.get(site.name), self._kept(site)
        if not isinstance(raised, Mapping) or edge is None:
            return edge if raised is None else raised
        # Sums and outputs are what was raised as an activation.
        kept = ('weight',) if 'activation' in raised else edge
        return {**{kind: edge[kind] for kind in kept if kind in edge}, **raised}

    def _kept(self, site: Site) -> Optional[Mapping[str, int]]:
        """Widths that a site keeps though ``quantize.bits`` asks for fewer."""
        edge, light = self.edges.get(site.name), self.light.get(site.name)
        return edge if light is None else {**light, **(edge or {})}

    def asked(self, site: Site) -> Any:
        """What is said of what a site reads: not what a search raised of its result."""
        found = self.find(site.module)
        if found is not None:
            return found
        edge = self.edges.get(site.name)
        # One without is no edge itself, but makes what an edge reads.
        return edge if edge is not None and 'weight' in edge else None

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

    def check_calls(self, names: Collection[str], raised: Raised) -> None:
        """Refuses calls that a model does not have.

        Args:
            names (Collection[str]): Of all its sites and inputs.
            raised (Raised): What has raised them.

        Raises:
            QuantizeError: If there is one.
        """
        missing = [name for name in self.calls if wide_name(name) not in names]
        if missing:
            raise QuantizeError(
                f'quantize.{raised.section}={raised.path!r} was found for another '
                f'model: this one has no call {missing[0]}'
            )
