"""The exported model's card: what it is made of and what was measured."""

from collections.abc import Iterable, Sequence
from importlib.metadata import version

import yaml

from evals.floors import Room
from merge_core.interleave import COPY
from merge_core.recipe import Recipe, to_dict
from merge_core.registry import find_method
from search.bench import CheckedStudy
from search.finals import WINNER, Claim
from search.record import Record


def model_card(
    checked: CheckedStudy, best: Record, claim: Claim | None, front: Sequence[int] = ()
) -> str:
    """A model card in Markdown with the metadata that model hubs read.

    Args:
        checked: The study.
        best: The trial whose model it is.
        claim: What the comparison found, if it was made.
        front: Numbers of the Pareto front's trials, the winner first, where that was the goal.
    """
    recipe = best.recipe
    methods = [find_method(word) for word in recipe.methods]
    told = " and ".join(f"[{method.title}]({method.reference})" for method in methods)
    head = yaml.safe_dump(
        {
            "library_name": "transformers",
            "tags": ["merge", "outcross"],
            "base_model": [checked.config.models[alias] for alias in recipe.models],
        },
        sort_keys=False,
    )
    body = yaml.safe_dump(to_dict(recipe), sort_keys=False, width=100)
    return (
        f"---\n{head}---\n\n# {checked.config.name}\n\n"
        f"A merge of {', '.join(recipe.models)} by {told}, found by "
        f"outcross {version('outcross')}.{_choice(checked, best, front)}\n\n{_layers(recipe)}"
        f"{_measured(claim)}\n{_limits(best, claim)}{_figures(best, claim)}"
        f"## Recipe\n\n```yaml\n{body}```\n"
    )


def _layers(recipe: Recipe) -> str:
    """Where its layers come from, where they aren't simply all in their order."""
    if all(source.layers is None for part in recipe.slices for source in part.sources):
        return ""
    parts: list[str] = []
    for part in recipe.slices:
        copied = (part.method or recipe.method) == COPY
        start, end = part.sources[0].layers or (0, 0)
        if start < end:
            scaled = ", scaled" if (part.sources[0].parameters if copied else part.scale) else ""
            what = f"{part.sources[0].model if copied else 'the merge'}{scaled}"
            parts.append(
                f"{start} to {end - 1} of {what}" if end - start > 1 else f"{start} of {what}"
            )
    return f"Its layers, from bottom to top: {'; '.join(parts)}.\n\n"


def _choice(checked: CheckedStudy, best: Record, front: Sequence[int]) -> str:
    """Which member of a front it is."""
    if not front:
        return ""
    names = ", ".join(one.name for one in checked.config.objectives if one.maximized)
    size = f"a Pareto front of {len(front)} over {names}"
    if best.number == front[0]:
        return f" Of {size}, it is the member with the best weighted mean."
    if best.number in front:
        return f" It is a member of {size}, chosen by hand."
    return f" It was chosen by hand, and is no member of {size}."


def _limits(best: Record, claim: Claim | None) -> str:
    """Which limits it keeps to: on the holdout, or on the search items if no more is known."""
    if claim is not None and claim.rooms:
        return _section("Limits", map(_room_line, claim.rooms))
    found = (f"{name}: {'missed' if short > 0 else 'kept'}" for name, short in best.missed.items())
    return _section("Limits, on the items of the search alone", found)


def _room_line(room: Room) -> str:
    limit = f"{room.limit:.6g}" + (f" (of {room.against})" if room.against else "")
    told = f"{room.objective}: {room.verdict}; it has {room.figure:.6g}, the limit is {limit}"
    if room.low is None:
        return told
    return f"{told}, room {room.room:+.4g}, 95% interval [{room.low:+.4g}, {room.high:+.4g}]"


def _figures(best: Record, claim: Claim | None) -> str:
    """Figures without items; of its references too, where they are known."""
    known = {name: {WINNER: figure} for name, figure in best.figures.items()}
    found = claim.figures if claim is not None and claim.figures else known
    lines = (
        f"{name}: " + ", ".join(f"{model} {figure:.6g}" for model, figure in models.items())
        for name, models in found.items()
    )
    return _section("Figures without items", lines)


def _section(title: str, lines: Iterable[str]) -> str:
    told = "".join(f"- {line}\n" for line in lines)
    return f"## {title}\n\n{told}\n" if told else ""


def _measured(claim: Claim | None) -> str:
    if claim is None:
        return "It was not compared with its parents on held-out items.\n"
    n = sum(score.n for score in claim.cards[WINNER].scores)
    lines = [
        f"## Measured on {n} held-out items\n",
        "| | " + " | ".join(score.task for score in claim.cards[WINNER].scores) + " | mean |",
        "|---" * (len(claim.cards[WINNER].scores) + 2) + "|",
    ]
    for name, card in claim.cards.items():
        scores = " | ".join(f"{score.value:.3f}" for score in card.scores)
        lines.append(f"| {name} | {scores} | {claim.values[name]:.3f} |")
    lines.append("")
    for c in claim.verdicts.overall:
        lines.append(
            f"- against {c.reference}: {c.gain.value:+.3f}, 95% interval [{c.gain.low:+.3f}, "
            f"{c.gain.high:+.3f}], p = {c.p:.3g}: {c.verdict}"
        )
    path = claim.path
    lines.append(
        f"\nChosen among {path.candidates} candidates. Its mean on the items that it was chosen by "
        f"is {path.search:.3f}, which flatters it; the figures above are of other items."
    )
    return "\n".join(lines) + "\n"
