"""Look at models before there is a study: which fit each other, which is the base, what changed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from merge_core.checkpoint import Checkpoint
from merge_core.errors import CheckpointError, MergeError
from merge_core.heads import with_heads
from merge_core.keys import nearest
from merge_core.plan import compile_plan
from merge_core.recipe import from_dict
from merge_core.sketches import Sketch, same_weights, sketch
from merge_core.vocabulary import align_vocabularies
from search.errors import StudyError
from search.models import open_models, read_reference

WHERE = "outcross new"
_SIBLINGS = 0.4  # task vectors of three equal siblings, taken from one of them, have cosine 0.5
_ONLY = "two models or more are needed that fit each other and differ"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found.

    Attributes:
        references: Path or hub id of every model that was named or added, by alias.
        checkpoints: Those that take part.
        base: The base model's alias, if there is one.
        why_base: How that was found.
        left_out: Why each other model takes no part, by alias.
        union: Whether their vocabularies differ.
        sketch: How far they lie apart.
    """

    references: Mapping[str, str]
    checkpoints: Mapping[str, Checkpoint]
    base: str | None
    why_base: str
    left_out: Mapping[str, str]
    union: bool
    sketch: Sketch = field(repr=False)

    @property
    def experts(self) -> tuple[str, ...]:
        """The models to merge."""
        return tuple(alias for alias in self.checkpoints if alias != self.base)

    @property
    def donor(self) -> Checkpoint:
        """The model whose form all others share."""
        return self.checkpoints[self.base or self.experts[0]]


def inspect_models(
    references: Mapping[str, str], base: str | None, mistakes: list[str]
) -> Inspection | None:
    """Open models, sort out which can be merged, and measure a sample of their tensors.

    Args:
        references: Path or hub id by alias; paths are relative to the working directory.
        base: Alias of the base model, if the user names it; `base` always is.
        mistakes: What can't be opened is added here.

    Raises:
        StudyError: If fewer than two models fit each other and differ.
    """
    base = base or ("base" if "base" in references else None)
    if base is not None and base not in references:
        mistakes.append(f"--base: '{base}' is none of the models; {nearest(base, references)}")
        return None
    named, plain = _with_plain_model(references, base)
    opened = open_models(named, Path(), mistakes)
    if mistakes:
        return None
    stated = base or plain
    fitting, left_out, union = _fitting(opened, stated)
    distinct, equal = _distinct(fitting, stated)
    left_out = left_out | equal
    if len(distinct) < 2:
        told = "; ".join(f"'{alias}' {reason}" for alias, reason in left_out.items())
        raise StudyError([_ONLY + (f": {told}" if told else "")], WHERE)
    found = sketch(distinct)
    why = "as you say" if base else f"the adapters of {_listed(named, plain)} are of it"
    if stated is None:
        stated, why = _guess_base(found)
    return Inspection(named, distinct, stated, why, left_out, union, found)


def _with_plain_model(
    references: Mapping[str, str], base: str | None
) -> tuple[dict[str, str], str | None]:
    """Adapters of one model have that model as their base, whether it is listed or not."""
    try:
        read = {alias: read_reference(text, Path()) for alias, text in references.items()}
    except CheckpointError:  # will be told when it is opened
        return dict(references), None
    models = {found.model for found in read.values()}
    plain = [alias for alias, found in read.items() if found.adapter is None]
    if base or len(models) != 1 or len(plain) > 1 or len(plain) == len(read):
        return dict(references), None
    if plain:
        return dict(references), plain[0]
    return {"base": models.pop(), **references}, "base"


def _listed(references: Mapping[str, str], plain: str | None) -> str:
    return ", ".join(f"'{alias}'" for alias in references if alias != plain)


def _fitting(
    opened: Mapping[str, Checkpoint], base: str | None
) -> tuple[dict[str, Checkpoint], dict[str, str], bool]:
    """The models that fit the base, or the one that most fit; and whether vocabularies differ."""
    centres = [base] if base else list(opened)
    found = {centre: _against(centre, opened) for centre in centres}
    centre = max(centres, key=lambda alias: sum(isinstance(f, bool) for f in found[alias].values()))
    judged = found[centre]
    fitting = {alias: opened[alias] for alias in opened if isinstance(judged[alias], bool)}
    left_out = {alias: reason for alias, reason in judged.items() if isinstance(reason, str)}
    return fitting, left_out, any(judged[alias] is True for alias in fitting)


def _against(centre: str, opened: Mapping[str, Checkpoint]) -> dict[str, bool | str]:
    """For each model why it doesn't fit, else whether it needs another vocabulary."""
    judged: dict[str, bool | str] = {centre: False}
    for alias, checkpoint in opened.items():
        if alias != centre:
            judged[alias] = _fit(opened[centre], checkpoint)
    return judged


def _fit(one: Checkpoint, other: Checkpoint) -> bool | str:
    if one.layout.depth != other.layout.depth:
        depths = f"{other.layout.depth} layers and '{one.name}' {one.layout.depth}"
        return f"has {depths}; only slices mix models of several depths"
    try:
        return _differ(one, other)
    except MergeError:
        pass
    try:
        _plan(one, other, {"tokenizer_source": "union"})
    except MergeError as error:
        return f"doesn't fit '{one.name}': {error}"
    return True


def _differ(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether the rows of two models of one shape mean different tokens.

    Raises:
        MergeError: If they can't be merged row by row.
    """
    return bool(_plan(one, other, {}))


def _plan(one: Checkpoint, other: Checkpoint, more: Mapping[str, str]) -> tuple[str, ...]:
    """Warnings of an average's vocabulary."""
    models = [{"model": alias, "parameters": {"weight": 1.0}} for alias in (one.name, other.name)]
    recipe = from_dict({"merge_method": "linear", "models": models, **more})
    aligned = align_vocabularies(recipe, {one.name: one, other.name: other})
    parents = {model: aligned.checkpoints[model] for model in recipe.models}
    compile_plan(recipe, {**aligned.checkpoints, **with_heads(parents)})
    return aligned.warnings


def _distinct(
    fitting: Mapping[str, Checkpoint], base: str | None
) -> tuple[dict[str, Checkpoint], dict[str, str]]:
    """The models without those that equal another one, which is the base if it is among them."""
    if len(fitting) < 2:
        return dict(fitting), {}
    found = sketch(fitting)
    order = sorted(fitting, key=lambda alias: alias != base)
    equal: dict[str, str] = {}
    for one, other in combinations(order, 2):
        if one in equal or other in equal or found.distance(one, other) > 0:
            continue
        if same_weights(fitting[one], fitting[other]):
            equal[other] = f"has the same weights as '{one}', so there is nothing to merge of it"
    return {alias: fitting[alias] for alias in fitting if alias not in equal}, equal


def _guess_base(found: Sketch) -> tuple[str | None, str]:
    """The model that all others are nearest to, unless their task vectors tell of another one."""
    if len(found.models) < 3:
        return None, "of two models nothing tells which is the other's base"
    nearest_to = {alias: _nearest(alias, found) for alias in found.models}
    for alias in found.models:
        others = [other for other in found.models if other != alias]
        if all(nearest_to[other] == alias for other in others):
            overlap = _mean_cosine(found, others, alias)
            if overlap < _SIBLINGS:
                return alias, "guessed: every other model is nearer to it than to any other"
            return None, (
                f"'{alias}' is nearest to all others, but their differences from it point the same "
                f"way (cosine {overlap:.2f}), as those of siblings do whose base is missing"
            )
    return None, "no model is nearest to all others"


def _nearest(alias: str, found: Sketch) -> str:
    others = [other for other in found.models if other != alias]
    return min(others, key=lambda other: found.distance(alias, other))


def _mean_cosine(found: Sketch, models: Sequence[str], base: str) -> float:
    pairs = list(combinations(models, 2))
    return sum(found.cosine(one, other, base) for one, other in pairs) / len(pairs)


def overlap(inspection: Inspection) -> float | None:
    """Mean cosine of the experts' task vectors; None with fewer than two of them, or no base."""
    if inspection.base is None or len(inspection.experts) < 2:
        return None
    return _mean_cosine(inspection.sketch, inspection.experts, inspection.base)


def told(inspection: Inspection) -> Iterator[str]:
    """What was found, a line each."""
    if inspection.base:
        yield f"base: '{inspection.base}' ({inspection.why_base})"
    else:
        yield f"no base: {inspection.why_base}; --base NAME says which one it is"
    others = ", ".join(f"'{alias}'" for alias in inspection.experts)
    yield f"fit each other: {others}" + (f" and '{inspection.base}'" if inspection.base else "")
    for alias, reason in inspection.left_out.items():
        yield f"left out: '{alias}' {reason}"
    if inspection.union:
        yield "vocabularies differ: rows are merged by token"
