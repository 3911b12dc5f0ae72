"""The exported model's card: what it is made of and what was measured."""

from importlib.metadata import version

import yaml

from merge_core.recipe import Recipe, to_dict
from merge_core.registry import find_method
from search.bench import CheckedStudy
from search.finals import WINNER, Claim


def model_card(checked: CheckedStudy, recipe: Recipe, claim: Claim | None) -> str:
    """A model card in Markdown with the metadata that model hubs read."""
    method = find_method(recipe.method)
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
        f"A merge of {', '.join(recipe.models)} by [{method.title}]({method.reference}), found by "
        f"outcross {version('outcross')}.\n\n{_measured(claim)}\n"
        f"## Recipe\n\n```yaml\n{body}```\n"
    )


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
