"""Orders of layers as spaces of the search benchmark, one for each form of `slices`.

No emulator knows them: each recipe is merged and scored. The family is the quickstart's, of four
layers (`landscape_spaces.py`).
"""

from collections.abc import Mapping
from typing import Any

from landscape_spaces import ALL, EXPERTS, MODELS, WEIGHT, Space, recipe

from merge_core.checkpoint import Checkpoint
from search.holes import build_space
from search.space import SearchSpace

DEEPEST = 6  # layers, of four that a parent has


def _space(name: str, slices: Mapping[str, Any], about: str, *, merged: bool) -> Space:
    models: dict[str, Any] = (
        recipe("task_arithmetic", EXPERTS, {"weight": WEIGHT}) if merged else {}
    )
    return Space(name, {**models, "slices": dict(slices)}, ALL, 0, {}, about)


ORDERS = {
    space.name: space
    for space in (
        _space(
            "origin",
            {"origin": [*EXPERTS, "merge"]},
            "each layer from one of three experts, or merged with three searched weights",
            merged=True,
        ),
        _space(
            "edits",
            {"origin": "merge", "depth": [3, 5]},
            "merged with three searched weights, up to one layer left out and one repeated",
            merged=True,
        ),
        _space(
            "cuts",
            {"cuts": 2, "of": list(MODELS), "overlap": 2, "depth": [3, DEEPEST]},
            "a frankenmerge: three pieces of four models, overlaps up to two layers",
            merged=False,
        ),
        _space(
            "walk",
            {"walk": 1, "of": list(EXPERTS), "jumps": 3, "scale": True, "depth": [3, DEEPEST]},
            "a walk through three experts with up to three jumps and three scales",
            merged=False,
        ),
    )
}
_OF_CHOICES = {"walk": ("jumps",)}  # keys that the walk as numbers doesn't have


def order_space(
    space: Space, parents: Mapping[str, Checkpoint], *, numbers: bool = False
) -> SearchSpace:
    """What a sampler sees.

    Args:
        space: One of `ORDERS`.
        parents: The opened models.
        numbers: Whether the order is written as numbers, for samplers that know no choices.

    Raises:
        ValueError: If the recipe is one that a study would refuse.
    """
    data = dict(space.recipe or {})
    if numbers:
        lost = _OF_CHOICES.get(space.name, ())
        data["slices"] = {key: one for key, one in data["slices"].items() if key not in lost}
    mistakes: list[str] = []
    built = build_space(data, MODELS, mistakes, parents, numbers=numbers)
    if mistakes:
        raise ValueError(f"space '{space.name}': " + "; ".join(mistakes))
    return built
