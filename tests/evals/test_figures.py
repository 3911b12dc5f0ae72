"""Figures of a whole set: kept item by item, made again exactly, compared by shares."""

import json
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lm_eval.api import metrics as lm_eval
from lm_eval.api.registry import aggregation_registry, get_aggregation
from sklearn.metrics import f1_score

from evals.compact import pack, unpack
from evals.compare import compare, in_points
from evals.figures import FIGURES, falls, figure_name, keep, shares, whole
from evals.flips import flips
from evals.harness import Benchmark, Item
from evals.items import Role
from evals.objective import item_scores, objective, reading
from evals.scorecard import Score, Scorecard, Value

WORDS = [*"abcdefgh", "the", "of", "and", "to", "is", "that", "was", "for", "on", "with"]
OF_TEXTS = {
    "bleu": lm_eval.bleu,
    "chrf": lm_eval.chrf,
    "chrf++": lm_eval.chrfpp,
    "ter": lm_eval.ter,
}


def texts(seed: int, count: int = 40, right: float = 0.7, references: Sequence[int] = ()) -> list:
    """Right and given texts as lm-eval's tasks hand them to BLEU; the right ones are always the
    same."""
    truth, generator = random.Random(0), random.Random(seed)
    found = []
    for at in range(count):
        true = [truth.choice(WORDS) for _ in range(truth.randint(5, 20))]
        said = [w if generator.random() < right else generator.choice(WORDS) for w in true]
        said = said[: generator.randint(len(said) - 3, len(said))]
        many = references[at % len(references)] if references else 0
        other = [" ".join([*true[:3], truth.choice(WORDS)]) + "." for _ in range(many - 1)]
        own = " ".join(true) + "."
        found.append(([own, *other] if many else own, " ".join(said)))
    return found


def pairs(seed: int, right: float = 0.7, count: int = 60) -> list[tuple[int, int]]:
    truth, generator = random.Random(0), random.Random(seed)
    golds = [truth.randrange(2) for _ in range(count)]
    return [(g, g if generator.random() < right else 1 - g) for g in golds]


def chances(seed: int, count: int = 40) -> list[tuple[int, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [(at % 4, generator.dirichlet(np.ones(4))) for at in range(count)]


def graded(seed: int, count: int = 40) -> list[float]:
    generator = random.Random(seed)
    return [generator.random() if at % 5 else float("nan") for at in range(count)]


CASES: list[tuple[Callable[..., Any], Callable[[int], list[Any]]]] = [
    *((aggregate, texts) for aggregate in OF_TEXTS.values()),
    (lm_eval.bleu, lambda seed: texts(seed, references=(2,))),
    (lm_eval.ter, lambda seed: texts(seed, references=(3, 2))),
    (lm_eval.f1_score, pairs),
    (lm_eval.matthews_corrcoef, pairs),
    (lm_eval.brier_score, chances),
    (lm_eval.nanmean, graded),
    (lm_eval.mean, lambda seed: [float(g == p) for g, p in pairs(seed)]),
    (lm_eval.median, lambda seed: np.random.default_rng(seed).normal(size=31).tolist()),
    (lm_eval.weighted_perplexity, lambda seed: [(-1.0 * at, at + seed) for at in range(1, 9)]),
]
NAMES = [f"{aggregate.__name__}-{at}" for at, (aggregate, _) in enumerate(CASES)]
every_case = pytest.mark.parametrize(("aggregate", "results"), CASES, ids=NAMES)


def stored(kept: Sequence[Value | None]) -> tuple[Value, ...]:
    assert None not in kept
    return unpack(json.loads(json.dumps(pack([value for value in kept if value is not None]))))


@every_case
def test_the_figure_comes_again_from_what_is_kept(aggregate: Any, results: Any):
    given = results(1)
    kept = keep(aggregate, given)
    assert whole(aggregate, kept) == pytest.approx(float(aggregate(given)), rel=1e-12)
    assert whole(aggregate, stored(kept)) == pytest.approx(float(aggregate(given)), rel=1e-4)


@pytest.mark.parametrize(("aggregate", "results"), CASES[:10], ids=NAMES[:10])
def test_the_figure_of_some_items_comes_from_what_is_kept_of_all(aggregate: Any, results: Any):
    given = results(1)
    kept, some = keep(aggregate, given), [*range(0, 20, 2), 33, 7]
    expected = float(aggregate([given[at] for at in some]))
    assert whole(aggregate, [kept[at] for at in some]) == pytest.approx(expected, rel=1e-12)


@every_case
def test_counts_come_back_from_storage_as_they_were(aggregate: Any, results: Any):
    kept = keep(aggregate, results(1))
    if figure_name(aggregate) not in (None, "nanmean"):
        assert stored(kept) == tuple(kept)


@pytest.mark.parametrize(
    ("name", "results"),
    [*((name, texts) for name in OF_TEXTS), ("f1", pairs), ("nanmean", graded)],
)
def test_shares_are_the_jackknifes(name: str, results: Any):
    """Against leaving each item out and aggregating the rest with lm-eval's own function."""
    given = results(1)
    aggregate = next(a for a, _ in CASES if figure_name(a) == name)
    found = shares(name, keep(aggregate, given)) * FIGURES[name].unit
    figure, n = aggregate(given), len(given)
    left = np.array([aggregate(given[:at] + given[at + 1 :]) for at in range(n)])
    assert found.mean() == pytest.approx(figure, rel=1e-12)
    pseudo = n * figure - (n - 1) * left
    assert found - found.mean() == pytest.approx(pseudo - pseudo.mean(), abs=1e-8)


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter", "f1"])
def test_one_item_or_a_set_without_a_match_has_shares_too(name: str):
    one = [(1.0, 1.0)] if name == "f1" else keep(OF_TEXTS[name], [("a b", "c d")])
    assert shares(name, one).shape == (1,)
    assert np.isfinite(shares(name, one * 5)).all()


def weighted_f1(items: list[tuple[str, str]]) -> float:
    """As tasks of lm-eval bring along: a figure of texts that only the task can make."""
    golds, given = zip(*items, strict=True)
    return float(f1_score(golds, given, average="weighted"))


def all_parts(items: list[list[bool]]) -> float:
    """As IFEval's: a share of parts, of which items have different numbers."""
    return sum(sum(item) for item in items) / sum(len(item) for item in items)


def mean_of_lengths(items: list[tuple[str, str]]) -> float:
    return sum(len(given.split()) for _, given in items) / len(items)


@pytest.mark.parametrize(
    ("aggregate", "results"),
    [
        (weighted_f1, [(str(gold), str(given)) for gold, given in pairs(1)]),
        (all_parts, [[at % 3 == 0] * (at % 4 + 1) for at in range(30)]),
        (lambda items: max(item["n"] for item in items) / 7, [{"n": at % 5} for at in range(9)]),
    ],
)
def test_a_tasks_own_figure_is_shared_out_where_it_is_scored(aggregate: Any, results: list):
    kept = keep(aggregate, results)
    figure, n = aggregate(results), len(results)
    assert whole(aggregate, kept) == pytest.approx(figure, rel=1e-12)
    left = np.array([aggregate(results[:at] + results[at + 1 :]) for at in range(n)])
    assert kept == pytest.approx(figure + (n - 1) * (left.mean() - left), abs=1e-12)


def test_a_tasks_own_mean_over_items_is_kept_item_by_item():
    calls = []

    def counting(items: list) -> float:
        calls.append(len(items))
        return mean_of_lengths(items)

    given = texts(1)
    assert keep(counting, given) == [len(said.split()) for _, said in given]
    assert calls.count(1) == len(given)
    assert sum(size > 1 for size in calls) == 2


@pytest.mark.parametrize(
    ("aggregate", "results"),
    [
        (lm_eval.bleu, [1.0, 0.0, 1.0]),
        (lm_eval.brier_score, [(-100, [0.5, 0.5])]),
        (lm_eval.mean, [("a", "b")]),
        (lambda items: items[5], [1.0, 2.0]),
    ],
    ids=["no texts", "no right option", "no numbers", "its own code fails"],
)
def test_results_that_make_no_figure_are_missing(aggregate: Any, results: list):
    assert keep(aggregate, results) == [None] * len(results)


def benchmark(aggregate: Any, better: bool, **options: Any) -> Benchmark:
    class Stub(Benchmark):
        @property
        def aggregations(self) -> dict[str, Any]:
            return {"metric": aggregate}

    return Stub("task", "metric,none", better, 1.0, options.pop("items", {}), **options)


def card(aggregate: Any, *parts: list[Any], role: Role = Role.HOLDOUT) -> Scorecard:
    kept = [value for part in parts for value in keep(aggregate, part)]
    name = figure_name(aggregate)
    unit = FIGURES[name].unit if name else 1.0
    score = Score("task", "metric,none", 0.0, None, len(kept), None, unit)
    return Scorecard((score,), {"task": {"metric,none": kept}}, 0.0, role)


@pytest.mark.parametrize(
    ("aggregate", "results", "better", "unit"),
    [
        (lm_eval.bleu, texts, True, 100),
        (lm_eval.chrf, texts, True, 100),
        (lm_eval.chrfpp, texts, True, 100),
        (lm_eval.ter, texts, False, 100),
        (lm_eval.f1_score, pairs, True, 1),
        (lm_eval.brier_score, chances, False, 1),
    ],
)
def test_a_gain_is_the_difference_of_the_figures(
    aggregate: Any, results: Any, better: bool, unit: float
):
    ours, theirs = results(1), results(2)
    one, cards = benchmark(aggregate, better), {"a": card(aggregate, ours)}
    cards["b"] = card(aggregate, theirs)
    sign = 1 if better else -1
    expected = sign * (aggregate(ours) - aggregate(theirs)) / unit
    (found,) = compare(cards, [("a", "b")], [one]).overall
    assert found.gain.value == pytest.approx(expected, abs=1e-12)
    assert found.gain.low < expected < found.gain.high
    assert objective([cards["a"]], [one]) == pytest.approx(sign * aggregate(ours) / unit)
    assert not falls(aggregate)


@pytest.mark.parametrize("name", ["bleu", "ter"])
def test_its_error_is_that_of_resampled_sets(name: str):
    """Against drawing items anew and making both corpus figures of them, as sacrebleu does it."""
    aggregate, ours, theirs = OF_TEXTS[name], texts(1, 200, 0.8), texts(2, 200, 0.75)
    cards = {"a": card(aggregate, ours), "b": card(aggregate, theirs)}
    one = benchmark(aggregate, name != "ter")
    (found,) = compare(cards, [("a", "b")], [one]).overall
    kept = [np.array(c.items["task"]["metric,none"]) for c in cards.values()]
    generator, drawn = np.random.default_rng(0), []
    for _ in range(1000):
        at = generator.integers(0, 200, 200)
        first, second = (whole(aggregate, part[at]) for part in kept)
        drawn.append((first - second) / 100)
    sign = -1 if name == "ter" else 1
    low, high = sorted(sign * np.quantile(drawn, [0.025, 0.975]))
    assert found.gain.error == pytest.approx(np.std(drawn), rel=0.1)
    assert (found.gain.low, found.gain.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_items_that_both_answer_alike_are_neither_fixed_nor_broken():
    ours, theirs = texts(1), texts(1)
    ours[3] = (ours[3][0], ours[3][0])
    theirs[5] = (theirs[5][0], theirs[5][0])
    told: Any = SimpleNamespace(
        doc_to_text=str,
        doc_to_target=str,
        higher_is_better=dict,
        _filters=(),
        OUTPUT_TYPE="generate_until",
    )
    items = tuple(Item(told, at, (), (), "") for at in range(40))
    one = benchmark(lm_eval.bleu, True, items={Role.HOLDOUT: items})
    cards = {"a": card(lm_eval.bleu, ours), "b": card(lm_eval.bleu, theirs)}
    found = flips(cards["a"], cards["b"], [one], Role.HOLDOUT)
    assert {(flip.place, flip.change > 0) for flip in found} == {(3, True), (5, False)}
    (gain,) = (c.gain for c in compare(cards, [("a", "b")], [one]).overall)
    assert (gain.fixed, gain.broken, gain.n) == (1, 1, 40)


@pytest.mark.parametrize("by_size", [True, False])
def test_in_a_group_each_task_has_its_own_figure(by_size: bool):
    parts = [texts(1, 10), texts(2, 30)]
    mixed = [*((0, r) for r in parts[0]), *((1, r) for r in parts[1])]
    random.Random(0).shuffle(mixed)
    items = tuple(Item(None, {}, (), (), "", number) for number, _ in mixed)  # pyright: ignore
    one = benchmark(lm_eval.bleu, True, items={Role.HOLDOUT: items}, by_size=by_size)
    found = card(lm_eval.bleu, [result for _, result in mixed])
    expected = lm_eval.aggregate_subtask_metrics(
        [lm_eval.bleu(part) for part in parts], [10, 30], by_size
    )
    kept = found.items["task"]["metric,none"]
    assert one.figure(kept, Role.HOLDOUT) == pytest.approx(expected)
    (scores,) = item_scores(found, [reading(one)])
    assert 100 * scores.mean() == pytest.approx(expected)


def test_every_aggregation_of_lm_eval_is_known():
    """One that a later version brings must find its place here and in the notes."""
    known = {name for aggregate, _ in CASES if (name := aggregate.__name__)}
    known |= {"perplexity", "bits_per_byte", "bypass_agg"}
    assert {get_aggregation(name).__name__ for name in aggregation_registry} == known


def test_percentages_are_told_in_points_and_other_figures_in_their_units():
    assert in_points([card(lm_eval.bleu, texts(1))])
    assert not in_points([card(lm_eval.f1_score, pairs(1))])
