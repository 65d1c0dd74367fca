"""Strata: which candidates a short training may compare with each other.

Short proxies favour wide bands: on the demo model 40 % of the layers lose clearly to full depth at 60 steps and equal
it at 150. So nothing is stopped because of a band of another width, the sampler proposes for every width class in turn,
and every class has its finalist.
"""

from __future__ import annotations

from enum import StrEnum

from bandsearch.values.candidate import Candidate, Role


class WidthClass(StrEnum):
    """Thirds of depth."""

    NARROW = "narrow"
    MIDDLE = "middle"
    WIDE = "wide"


def width_class(candidate: Candidate, layer_count: int) -> WidthClass:
    """By the share of all layers that carry an adapter: up to a third, up to two thirds, more."""
    return class_of(len(candidate.layers), layer_count)


def class_of(layers: int, layer_count: int) -> WidthClass:
    if 3 * layers <= layer_count:
        return WidthClass.NARROW
    return WidthClass.MIDDLE if 3 * layers <= 2 * layer_count else WidthClass.WIDE


def stratum(candidate: Candidate, role: Role, layer_count: int) -> str:
    """Searched candidates compete within their width class, a baseline with the other rates of its own kind."""
    return role.value if role.is_baseline else width_class(candidate, layer_count).value
