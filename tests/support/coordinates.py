"""Any values of a search space, for hypothesis."""

from typing import Any

from hypothesis import strategies as st

from search.space import Choice, Dimension, SearchSpace, Values, Whole


def draw_values(space: SearchSpace, data: st.DataObject) -> Values:
    """Values of the dimensions that exist under one another."""
    return space.draw(lambda dimension: data.draw(coordinates(dimension)))


def coordinates(dimension: Dimension) -> st.SearchStrategy[Any]:
    """Any coordinate of a dimension, its ends included."""
    if isinstance(dimension, Choice):
        return st.sampled_from(dimension.options)
    if isinstance(dimension, Whole):
        return st.integers(dimension.low, dimension.high)
    return st.floats(dimension.low, dimension.high)
