"""Which items belong together: several questions about one passage are no independent evidence."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evals.errors import EvaluationError
from evals.resampling import Clusters

# Fields that data sets give to the text which several items ask about.
_SHARED = ("passage", "context", "article", "story", "paragraph", "background")
_SHORTEST = 40  # characters; shorter texts repeat by chance


def item_clusters(
    task: str, documents: Sequence[Mapping[str, Any]], field: str | None = None
) -> Clusters | None:
    """The cluster of every item: equal keys of `cluster_keys` as equal numbers.

    Returns:
        Cluster numbers `(items,)`, or None if no two items belong together.
    """
    keys = cluster_keys(task, documents, field)
    if keys is None:
        return None
    # Each loner has a number of its own.
    names = [f"{at}" if key is None else f"={key}" for at, key in enumerate(keys)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def cluster_keys(
    task: str, documents: Sequence[Mapping[str, Any]], field: str | None = None
) -> tuple[str | None, ...] | None:
    """What each item shares with others.

    Args:
        task: Name for errors.
        documents: As the data set has them.
        field: The field whose equal values make a cluster; None looks for a shared passage.

    Returns:
        The cluster of each item by a hash of its content, with the task's name in it unless the
        content is a text so long that it means the same in every task; None for an item that
        stands alone. None as a whole if no two items belong together.

    Raises:
        EvaluationError: If a document lacks the field, or all documents have the same value there.
    """
    if field is None:
        found = (_shared([_passage(doc.get(name)) for doc in documents]) for name in _SHARED)
        return next((keys for keys in found if keys is not None), None)
    for document in documents:
        if field not in document:
            raise EvaluationError(
                f"task '{task}': its documents have no field '{field}' to cluster items by; they "
                f"have {', '.join(map(str, document))}"
            )
    texts = [json.dumps(doc[field], sort_keys=True, default=str) for doc in documents]
    if len(documents) > 1 and len(set(texts)) == 1:
        raise EvaluationError(
            f"task '{task}': all items have the same '{field}', so they would be a single cluster; "
            "name a field that tells clusters apart"
        )
    return _shared(
        [
            _passage(document[field]) or _hash(f"{task}/{text}")
            for document, text in zip(documents, texts, strict=True)
        ]
    )


def _passage(value: object) -> str | None:
    """A long text's hash; None for anything else."""
    if not isinstance(value, str) or len(value) < _SHORTEST:
        return None
    return _hash(" ".join(value.split()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _shared(keys: Sequence[str | None]) -> tuple[str | None, ...] | None:
    """The keys, if some items have the same one and not all do."""
    counts = Counter(key for key in keys if key is not None)
    # One value for all is a constant of the task, an instruction for one, and no passage.
    several = any(count > 1 for count in counts.values())
    return tuple(keys) if several and max(counts.values()) < len(keys) else None
