"""What `outcross run` would refuse before its first trial, found without a whole model.

`run` proves on the live model that layers may be moved and that scales can be folded. Here the
first is found on the model's form, and the second on a parent's first layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from evals.errors import EvaluationError
from evals.folding import refusal
from evals.places import rooted_form
from evals.resident import Resident, build_model, match_slots
from merge_core.apply import Workbench, apply
from merge_core.interleave import COPY
from merge_core.parents import Parents
from merge_core.recipe import Recipe, Slice, Source
from merge_core.writers import Writers, powers
from search.bench import CheckedStudy, deepest
from search.placing import moved, orders, refuse_moves, scaled_origins, unfolded
from search.sizes import size

_LAYERS = 2  # of a parent: some families begin with a layer of another kind
_LARGEST = 2 * 10**9  # bytes of these layers with embeddings and head: seconds


@dataclass(frozen=True, slots=True)
class Foresight:
    """What is known of a study before its model is built.

    Attributes:
        refused: What `run` will refuse, in its own words.
        unknown: What only `run` can find out, and why.
    """

    refused: tuple[str, ...]
    unknown: tuple[str, ...]


def foresee(study: CheckedStudy) -> Foresight:
    """Find out whether the layers that a study moves and scales may be.

    It takes seconds, and at most one layer (2 GB) or the first layers (2 GB) of one parent at once.
    """
    refused: list[str] = []
    unknown: list[str] = []
    for question, answers in (
        ("recipe.slices: whether layers may be moved", _refused_moves(study)),
        ("recipe.slices.scale: whether it can be folded into the weights", _refused_scales(study)),
    ):
        try:
            refused += answers
        except EvaluationError as error:
            told = f"{question} isn't known yet: {error}"
            unknown.append(f"{told}; outcross run finds out before its first trial")
    return Foresight(tuple(refused), tuple(unknown))


def _refused_moves(study: CheckedStudy) -> Iterator[str]:
    plans = (study.plan(recipe, judge=False) for recipe in orders(study.space))
    plan = next((plan for plan in plans if moved(plan, study.checkpoints)), None)
    if plan is None:
        return
    most = deepest(study)  # as the live model is built, where a layer's number shows
    if (rooted := rooted_form(most.config, f"'{most.donor}'")) is None:
        return
    try:
        refuse_moves(plan, study.checkpoints, rooted)
    except EvaluationError as error:
        yield str(error)


def _refused_scales(study: CheckedStudy) -> Iterator[str]:
    for name, writers in scaled_origins(study.space).items():
        try:
            reason = _unfoldable(study, name, writers)
        except EvaluationError:
            raise
        except Exception as error:  # whatever a family does with fewer layers than it had
            raise EvaluationError(f"'{name}': its first layers can't be tried: {error}") from None
        if reason:
            yield unfolded(name, reason)


def _unfoldable(study: CheckedStudy, name: str, writers: Writers) -> str | None:
    """As `evals.folding.refusal`, of a model of a parent's first layers."""
    parent = study.checkpoints[name]
    depth = min(_LAYERS, parent.layout.depth)
    plan = study.plan(Recipe(COPY, (Slice((Source(name, (0, depth)),)),)))
    if plan.bytes_out > _LARGEST:
        told = f"{depth} layers of it, embeddings and head take {size(plan.bytes_out)}"
        raise EvaluationError(f"'{name}' is too large to be tried: {told}")
    model = build_model(plan.config, f"'{name}'", study.dtype)
    slots = match_slots(model, [step.out for step in plan.steps])
    parents = Parents(study.checkpoints, torch.device("cpu"), study.scratch)
    apply(plan, Workbench(parents, slots))
    return refusal(Resident(model.eval(), None, slots), powers(parent, writers)[:depth])
