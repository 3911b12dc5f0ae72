# pyright: standard
"""What went wrong with generations: cut off, empty, going round in circles, without an answer.

A score can fall, or rise, for these reasons alone. They are counted for every model, so that a
candidate can be held against its parents.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import normalize_gen_kwargs

from evals.pieces import Tally
from evals.scorecard import Scorecard

if TYPE_CHECKING:
    from evals.harness import Item

_REPEATS = 4  # a text that ends with this many copies of the same piece goes round in circles
_SPAN = 16  # characters that the copies must cover, so that '....' and '0000' don't count
_BEYOND = 0.5  # a share this far above the worst parent's fails a candidate
_NOTABLE = 0.05  # a share of cut-off texts above which a score is said to depend on the limit

_WORDS = {
    "empty": "are empty",
    "looping": "repeat themselves to the end",
    "missed": "give the answer extractor nothing",
}


def symptoms(lm: Any, items: Sequence["Item"]) -> dict[str, Tally]:
    """Count what went wrong with a benchmark's generations.

    Args:
        lm: lm-eval's model, for its tokenizer.
        items: Answered and filtered items.

    Returns:
        How many of the generations are `truncated` (as long as `max_gen_toks` allows), `empty`,
        `looping`, or `missed` by an answer extractor; nothing for a benchmark that generates none.
    """
    found: dict[str, list[bool]] = {"truncated": [], "empty": [], "looping": [], "missed": []}
    for item in items:
        for request in item.requests:
            if request.request_type != "generate_until":
                continue
            limit = _limit(lm, request)
            for text in map(str, request.resps):
                found["truncated"].append(_length(lm, text) >= limit)
                found["empty"].append(not text.strip())
                found["looping"].append(loops(text))
            if (nothing := _fallbacks(item.task)) is not None:
                found["missed"].append(_missed(request, nothing))
    return {name: (sum(told), len(told)) for name, told in found.items() if told}


def shares_of(tallies: Mapping[str, Tally]) -> dict[str, float]:
    """The share of a benchmark's generations that shows each symptom."""
    return {name: shown / every for name, (shown, every) in tallies.items()}


def loops(text: str) -> bool:
    """Whether a text ends in copies of one piece."""
    text = " ".join(text.split()) + " "  # as if the piece that is repeated ended in a blank
    for ending in (text, text[:-1]):
        for length in range(1, len(ending) // _REPEATS + 1):
            copies = max(_REPEATS, -(-_SPAN // length))
            if copies * length <= len(ending) and ending.endswith(ending[-length:] * copies):
                return True
    return False


def failing(
    card: Scorecard, worst: Mapping[str, Mapping[str, float]], whose: str = "parent"
) -> str | None:
    """Why a model's generations are no answers, or None.

    Args:
        card: The candidate's.
        worst: The largest share of each symptom among the parents, by benchmark.
        whose: What the models are called that the shares are of.
    """
    for name, rates in card.symptoms.items():
        for symptom, words in _WORDS.items():
            share, known = rates.get(symptom, 0.0), worst.get(name, {}).get(symptom, 0.0)
            if share > known + _BEYOND:
                told = f"{name}: {share:.0%} of its texts {words}"
                return f"{told}; of no {whose}'s more than {known:.0%}"
    return None


def flags(
    card: Scorecard, worst: Mapping[str, Mapping[str, float]], whose: str = "parent"
) -> tuple[str, ...]:
    """What to know before believing a score: how much of it depends on the generation limit.

    Arguments as those of `failing`.
    """
    return tuple(
        f"{name}: {share:.0%} of its texts end at the generation limit (at most {known:.0%} of a "
        f"{whose}'s), so the score depends on it"
        for name, rates in card.symptoms.items()
        for share, known in [
            (rates.get("truncated", 0.0), worst.get(name, {}).get("truncated", 0.0))
        ]
        if share > max(_NOTABLE, known)
    )


def worst_of(cards: Sequence[Scorecard]) -> dict[str, dict[str, float]]:
    """The largest share of each symptom, by benchmark."""
    found: dict[str, dict[str, float]] = {}
    for card in cards:
        for name, rates in card.symptoms.items():
            known = found.setdefault(name, {})
            for symptom, share in rates.items():
                known[symptom] = max(share, known.get(symptom, 0.0))
    return found


def _limit(lm: Any, request: Instance) -> int:
    _, given = cast("tuple[str, dict[str, Any]]", request.args)
    return cast("Any", normalize_gen_kwargs(given, lm.max_gen_toks))["max_gen_toks"]


def _length(lm: Any, text: str) -> int:
    """Tokens of a text; its own, since how the model had cut it is not told."""
    return len(lm.tok_encode(text, add_special_tokens=False))


def _fallbacks(task: ConfigurableTask) -> dict[str, str] | None:
    """What each extractor of the task says when it finds nothing, by filter; None without any."""
    found: dict[str, str] = {}
    for ensemble in task._filters:
        for part in ensemble.filters:
            fallback = getattr(part(), "fallback", None)
            if isinstance(fallback, str):
                found[ensemble.name] = fallback
    return found or None


def _missed(request: Instance, nothing: Mapping[str, str]) -> bool:
    """Whether no extractor found an answer: tasks have a strict and a lenient one."""
    told = [(request.filtered_resps.get(name), word) for name, word in nothing.items()]
    return all(
        word in answer if isinstance(answer, list) else answer == word for answer, word in told
    )
