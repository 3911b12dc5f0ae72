"""The text of a new study: each line with what it does or why it was chosen."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.tasks import OpenTask
from search.bench import CheckedStudy
from search.commented import Line, entry, flow
from search.config import SearchConfig, StudyConfig
from search.inspection import Inspection, overlap
from search.outlook import reach
from search.proposal import FEWEST, MOST, Change, Space
from search.sizes import counted, size

_NUMBER = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the study will say.

    Attributes:
        name: Of the study.
        command: The file as the user calls it.
        found: The models.
        changes: What each expert changed.
        space: What to search.
        places: References as the file writes them, by alias.
        tasks: The opened tasks.
        task_names: What the file calls each of them.
        sizes: Items of each that may have a role.
        items: Items per role.
        include: Folders with local tasks, as the file writes them.
        trials: The budget.
        asked: Whether the user gave it.
    """

    name: str
    command: Path
    found: Inspection
    changes: Mapping[str, Change]
    space: Space
    places: Mapping[str, str]
    tasks: tuple[OpenTask, ...]
    task_names: Mapping[str, str]
    sizes: Mapping[str, int]
    items: Mapping[str, int]
    include: tuple[str, ...]
    trials: int
    asked: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What only the check of a study tells.

    Attributes:
        sampler: What `auto` takes.
        reason: Why.
        gain: Smallest gain in the mean that the holdout shows, if models differ on 10% of items.
        needed: Holdout items of each task that two points would need.
    """

    sampler: str
    reason: str
    gain: float
    needed: int

    @staticmethod
    def of(checked: CheckedStudy) -> "Facts":
        """Those of a study."""
        found = next(r for r in reach(checked) if r.discordance == 0.10)
        return Facts(*checked.sampler(), found.mean, found.needed)


def study_lines(plan: Plan, facts: Facts | None) -> Iterator[Line]:
    """The file; without facts its values are the same and some comments shorter."""
    yield Line(0, "", f"Written by: outcross new. Next: outcross run {plan.command}")
    yield Line(0, "", "Every value may be changed; outcross check tells what it then means.")
    yield entry(0, "name", plan.name, "what tables and the storage call the study")
    yield from _models(plan)
    yield entry(0, "dtype", *_dtype(plan))
    yield entry(0, "device", "auto", "a GPU if there is one; or cpu, cuda:1")
    yield from _recipe(plan)
    yield from _objectives(plan)
    yield from _items(plan, facts)
    yield from _search(plan, facts)
    yield from _evaluation(plan)
    yield Line(0, "compare:", "what the final claim is about")
    yield entry(1, "margin", 0.01, "differences in the mean below it don't matter: one point")
    place = f"runs/{plan.name}"
    yield entry(0, "storage", place, "a folder, or sqlite:///study.db, or postgresql://…")


def _models(plan: Plan) -> Iterator[Line]:
    yield Line(0, "models:", "your names for folders (seen from this file) and hub ids")
    for alias, place in plan.places.items():
        if alias in plan.found.checkpoints:
            yield entry(1, alias, place, _model(plan, alias))
        else:
            reason = f"left out: it {plan.found.left_out[alias]}"
            yield Line(1, "", f"{flow(alias)}: {flow(place)}   {reason}")


def _model(plan: Plan, alias: str) -> str:
    found = plan.found
    checkpoint = found.checkpoints[alias]
    form = f"{checkpoint.layout.depth} layers, {size(checkpoint.bytes)}"
    if alias == found.base:
        return f"the base ({found.why_base}); {form}"
    if alias not in plan.changes:
        return f"{form}; what the others are measured from"
    change = plan.changes[alias]
    shares = sorted(change.shares.items(), key=lambda pair: -pair[1])
    told = ", ".join(f"{role} {share:.0%}" for role, share in shares if share >= 0.005)
    return f"{form}; differs by {change.relative:.2%} of the norm, of which (squared) {told}"


def _dtype(plan: Plan) -> tuple[str, str]:
    stored = max(plan.found.donor.tensors.values(), key=lambda spec: spec.numel).dtype
    name = str(stored).removeprefix("torch.")
    donor = plan.found.donor.name
    if name in _NUMBER:
        return name, f"of the merged model, as '{donor}' is stored; arithmetic is float32"
    return "float32", f"of the merged model; '{donor}' is stored as {name}, which is not run"


def _recipe(plan: Plan) -> Iterator[Line]:
    space, found = plan.space, plan.found
    yield Line(0, "recipe:", _room(space))
    yield entry(1, "merge_method", _method(space), _why_method(plan))
    if found.base is not None:
        yield entry(1, "base_model", found.base, "task vectors are differences from it")
    yield Line(1, "models:", _why_weights(plan))
    for alias in found.experts:
        yield from _expert(plan, alias)
    yield from _shared(plan)
    if found.union:
        why = "vocabularies differ: the result has all tokens, rows are merged by token"
        yield entry(1, "tokenizer_source", "union", why)


def _room(space: Space) -> str:
    text = f"a mergekit recipe with holes; {counted(space.dimensions, 'dimension')}"
    if space.dimensions > MOST:
        return f"{text}: many, since each model has its own weight; give it more trials"
    if space.dimensions < FEWEST:
        return f"{text}: few, since the models differ in few tensors"
    return text


def _method(space: Space) -> Any:
    return space.methods[0] if len(space.methods) == 1 else {"choice": list(space.methods)}


def _why_method(plan: Plan) -> str:
    space, found = plan.space, plan.found
    if found.base is None:
        why = f"no base ({found.why_base}), so models are averaged"
        if len(space.methods) > 1:
            return f"{why}: straight, or along the sphere, which keeps their lengths"
        return f"{why}; they are so near that an average along the sphere would be the same"
    if space.methods == ("task_arithmetic",):
        return "base + weight x (model - base)"
    why = "sum of weighted task vectors, whole or (ties) their largest elements where signs agree"
    shared = overlap(found)
    return why if shared is None else f"{why}; the task vectors' mean cosine is {shared:.2f}"


def _why_weights(plan: Plan) -> str:
    space = plan.space
    roles, depth = space.spreads
    told = f"changes vary by {roles:.0%} over roles and by {depth:.0%} over depth, so "
    parts = [f"{len(space.groups)} groups of tensors"] if space.groups else ["one group of tensors"]
    parts.append(
        f"{space.knots} knots over depth" if space.knots > 1 else "one number for all depths"
    )
    return told + " and ".join(parts) + " have weights of their own"


def _spread(space: Space) -> dict[str, Any]:
    by = {"by": {"roles": list(space.groups)}} if space.groups else {}
    return by | ({"knots": space.knots} if space.knots > 1 else {})


def _expert(plan: Plan, alias: str) -> Iterator[Line]:
    space = plan.space
    if plan.found.base is None:
        yield Line(2, f"- {flow(alias)}", "its weight stands below")
        return
    yield entry(2, "model", alias, "one of the models to merge", item=True)
    yield Line(3, "parameters:", "of this model alone")
    hole = {"range": [0.0, space.high[alias]]} | _spread(space)
    yield entry(4, "weight", hole, _why_range(plan, alias))
    if space.densities > 1:
        yield entry(4, "density", _DENSITY, "share of its change that ties keeps; tried first: 0.2")


_DENSITY = {"range": [0.05, 1.0], "start": 0.2}


def _why_range(plan: Plan, alias: str) -> str:
    high = plan.space.high[alias]
    text = "0 leaves it out, 1 adds its whole change"
    others = [c.relative for name, c in plan.changes.items() if name != alias]
    if high > 1.5:
        return f"{text}, {high:g} stretches it: it changed less than the others"
    if high < 1.5 and others:
        return f"{text}; more than {high:g} would drown the others, who changed less"
    return f"{text}, {high:g} half as much again"


def _shared(plan: Plan) -> Iterator[Line]:
    space = plan.space
    if plan.found.base is None:
        yield Line(1, "parameters:", "of all models together")
        hole = {"simplex": True} | _spread(space)
        yield entry(2, "weight", hole, "weights that sum to one; equal ones are tried first")
    elif space.densities == 1:
        yield Line(1, "parameters:", "of all models together, to keep the dimensions few")
        yield entry(2, "density", _DENSITY, "share of each change that ties keeps; first: 0.2")


def _objectives(plan: Plan) -> Iterator[Line]:
    yield Line(0, "objectives:", "lm-eval tasks; the search raises their weighted mean")
    for task in plan.tasks:
        metric = task.metric.removesuffix(",none")
        better = "higher" if task.higher_is_better else "lower"
        why = f"{plan.sizes[task.name]:,} items; {better} is better"
        value = {"task": plan.task_names[task.name], "metric": metric, "weight": 1.0}
        yield Line(1, f"- {flow(value)}", why)


def _items(plan: Plan, facts: Facts | None) -> Iterator[Line]:
    smallest = min(plan.sizes, key=lambda name: plan.sizes[name])
    why = f"of each task, disjoint; '{smallest}', the smallest, has {plan.sizes[smallest]:,}"
    yield Line(0, "items:", why if len(plan.sizes) > 1 else "of the task, disjoint")
    yield entry(1, "search", plan.items["search"], "score every candidate")
    yield entry(1, "select", plan.items["select"], "choose the winner among the finalists")
    gain = "" if facts is None else _gain(facts)
    yield entry(1, "holdout", plan.items["holdout"], f"judge the winner, once{gain}")
    yield entry(1, "seed", 0, "which items go where")


def _gain(facts: Facts) -> str:
    return (
        f": a gain of {100 * facts.gain:.1f} points in the mean shows, if two models differ on 10% "
        f"of the items (80% power); two points need {facts.needed:,} items per task"
    )


def _search(plan: Plan, facts: Facts | None) -> Iterator[Line]:
    usual = SearchConfig()
    yield Line(0, "search:", "how candidates are proposed")
    told = "" if facts is None else f": {facts.sampler} here ({facts.reason})"
    yield entry(1, "sampler", usual.sampler, f"chosen by space and budget{told}")
    why = (
        "as asked"
        if plan.asked
        else f"for {counted(plan.space.dimensions, 'dimension')}; more can follow"
    )
    yield entry(1, "trials", plan.trials, f"recipes to try, {why}")
    why = "proposed at once, so many workers can be busy; scores of a batch are seen together"
    yield entry(1, "batch", usual.batch, why)
    yield entry(1, "finalists", usual.finalists, "the best of them are scored on the select items")
    yield entry(1, "seed", usual.seed, "the same seed, the same search")


def _evaluation(plan: Plan) -> Iterator[Line]:
    usual = StudyConfig.model_fields["evaluation"].default
    yield Line(0, "evaluation:", "how items are scored: lm-eval's arguments")
    if plan.include:
        yield entry(1, "tasks", list(plan.include), "folders with local task YAMLs")
    yield entry(1, "batch_size", usual.batch_size, "prompts in one forward pass; auto finds it")
    why = "true writes prompts as chats, for models that were tuned on chats"
    yield entry(1, "apply_chat_template", usual.apply_chat_template, why)
