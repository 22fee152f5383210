"""Nearest users of a space, and items near a user: the index, its job, and what reads it."""

from materialize.neighbours.index import NeighbourIndex

__all__ = ["NeighbourIndex"]
