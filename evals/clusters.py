"""Which items belong together: several questions about one passage are no independent evidence."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from evals.errors import EvaluationError
from evals.resampling import Clusters

# Fields that data sets give to the text which several items ask about.
_SHARED = ("passage", "context", "article", "story", "paragraph", "background")
_SHORTEST = 40  # characters; shorter texts repeat by chance


def item_clusters(
    task: str, documents: Sequence[Mapping[str, Any]], field: str | None = None
) -> Clusters | None:
    """The cluster of every item.

    Args:
        task: Name for errors.
        documents: As the data set has them.
        field: The field whose equal values make a cluster; None looks for a shared passage.

    Returns:
        Cluster numbers `(items,)`, or None if no two items belong together.

    Raises:
        EvaluationError: If a document lacks the field, or all documents have the same value there.
    """
    if field is None:
        found = (_numbered([_passage(doc.get(name)) for doc in documents]) for name in _SHARED)
        return next((clusters for clusters in found if clusters is not None), None)
    for document in documents:
        if field not in document:
            raise EvaluationError(
                f"task '{task}': its documents have no field '{field}' to cluster items by; they "
                f"have {', '.join(map(str, document))}"
            )
    values = [json.dumps(doc[field], sort_keys=True, default=str) for doc in documents]
    if len(documents) > 1 and len(set(values)) == 1:
        raise EvaluationError(
            f"task '{task}': all items have the same '{field}', so they would be a single cluster; "
            "name a field that tells clusters apart"
        )
    return _numbered(cast("list[str | None]", values))


def _passage(value: object) -> str | None:
    """A long text's hash; None for anything else."""
    if not isinstance(value, str) or len(value) < _SHORTEST:
        return None
    return hashlib.sha256(" ".join(value.split()).encode()).hexdigest()


def _numbered(values: Sequence[str | None]) -> Clusters | None:
    """Equal values get one number, None a number of its own; None if nothing is shared."""
    keys = [f"item {at}" if value is None else f"={value}" for at, value in enumerate(values)]
    known, numbers = np.unique(keys, return_inverse=True)
    # One value for all is a constant of the task, an instruction for one, and no passage.
    return None if len(known) in (1, len(keys)) else numbers.astype(np.int64)
