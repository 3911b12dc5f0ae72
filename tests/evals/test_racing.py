"""Races stop who has lost, and hardly ever who hasn't, however often they are looked at."""

import itertools
import math

import numpy as np
import pytest
from simulated_races import (
    Landscape,
    lucky_pairs,
    paired,
    plain_pairs,
    run_race,
    search,
    stopped,
)

from evals.errors import EvaluationError
from evals.racing import Duel, Rule, expected, race, race_front, rung_ends

EVERY = tuple(k / 10 for k in range(1, 10))


def test_at_most_six_percent_of_equals_are_stopped_though_the_incumbent_was_the_luckiest():
    rng = np.random.default_rng(0)
    share, used = stopped((lucky_pairs(rng, [100, 100]) for _ in range(250)), Rule())
    assert share <= 0.06 + 2 * math.sqrt(0.06 * 0.94 / 250)
    assert used > 0.9


def test_poor_candidates_are_stopped_early():
    rng = np.random.default_rng(0)
    share, used = stopped((plain_pairs(rng, 400, 0.2, 0.3) for _ in range(100)), Rule())
    assert share > 0.95
    assert used < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["right", "probability", "nats"])
@pytest.mark.parametrize("items", [[200], [500, 500], [128] * 4, [300, 40, 97]])
def test_false_stops_in_thousands_of_races(kind: str, items: list[int]):
    rng = np.random.default_rng(1)
    span = None if kind == "nats" else 1.0
    pairs = (lucky_pairs(rng, items, kind=kind) for _ in range(2000))
    assert stopped(pairs, Rule(), span)[0] <= 0.06


@pytest.mark.parametrize("behind", [(0.2, 0.2), (0.6, -0.2)], ids=["alike", "gains and losses"])
def test_who_lies_within_the_margin_on_all_items_is_stopped_with_the_stated_error(behind):
    """The promise itself: scores are given, their order is drawn, and every tenth is looked at."""
    rng = np.random.default_rng(2)
    parts = [(np.arange(30) < 30 * one, np.arange(30) < -30 * one) for one in behind]
    rule = Rule(error=0.2, margin=0.0, points=0.2, rungs=(*EVERY, 1.0))
    stops: list[bool] = []
    for _ in range(300):
        pairs = [(rng.permutation(30), *part) for part in parts]
        incumbent = [one[order] * 1.0 for order, one, _ in pairs]
        candidate = [other[order] * 1.0 for order, _, other in pairs]
        stops.append(run_race(incumbent, candidate, rule)[0])
    assert 0 < np.mean(stops) <= 0.2 + 2 * math.sqrt(0.16 / 300)


def test_weights_decide_which_loss_counts():
    worse, equal = np.zeros(80), np.ones(80)
    halves = [np.ones(80), np.ones(80)]
    for weights, lost in (([0.9, 0.1], True), ([0.02, 0.98], False)):
        duel = Duel(halves, [worse[:20], equal[:20]], weights, [1.0, 1.0])
        assert race(duel, Rule(points=0.05)).lost is lost


def test_evidence_is_the_products_mean_worked_out_by_hand():
    incumbent, candidate = np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0])
    rule = Rule(margin=0.0, points=0.1, rungs=(0.5, 1.0))
    own = incumbent.var()
    stakes = [math.sqrt(2 * math.log(20) / (0.5 * 4 * v)) for v in (own, own / 2)]
    left = [0.1, (4 * 0.1 - 1) / 3]  # what those that are left may lose on average
    stakes = [min(stake, 0.9 / (1 + one)) for stake, one in zip(stakes, left, strict=True)]
    by_hand = (1 + stakes[0] * (1 - left[0])) * (1 + stakes[1] * (0 - left[1]))
    found = race(Duel([incumbent], [candidate], [1.0], [1.0]), rule)
    assert found.evidence == pytest.approx(by_hand)
    assert found.items == 2


def test_unbounded_scores_don_t_depend_on_their_unit():
    rng = np.random.default_rng(4)
    incumbent = rng.normal(-300, 80, 64)
    candidate = incumbent[:32] - rng.normal(20, 20, 32)
    found = [
        race(Duel([incumbent * unit], [candidate * unit], [1.0])).evidence for unit in (1.0, 1e-3)
    ]
    assert found[0] == pytest.approx(found[1])
    assert found[0] > 20


def test_one_item_alone_never_decides():
    incumbent = np.zeros(64)
    candidate = np.zeros(32)
    candidate[3] = -1e6
    assert not race(Duel([incumbent], [candidate], [1.0])).lost


def test_what_other_benchmarks_may_give_protects():
    duel = Duel([np.ones(80)], [np.zeros(20)], [0.5], [1.0])
    assert race(duel).lost
    assert not race(Duel(duel.incumbent, duel.candidate, [0.5], [1.0], beyond=0.5)).lost


def test_a_member_of_the_front_must_win_everywhere():
    worse = Duel([np.ones(80)], [np.zeros(40)], [1.0], [1.0])
    same = Duel([np.ones(80)], [np.ones(40)], [1.0], [1.0])
    assert not race_front([[worse, same], [same, worse]]).lost
    found = race_front([[worse, same], [worse, worse]])
    assert found.lost
    assert found.by == 1
    assert not race_front([]).lost


def test_many_members_are_no_better_excuse():
    one = Duel([np.ones(40)], [np.zeros(6)], [1.0], [1.0])
    alone, among = race_front([[one]]), race_front([[one]] * 50)
    assert among.evidence == pytest.approx(alone.evidence / 50)


@pytest.mark.parametrize("counts", [(200,), (128,) * 4, (300, 40, 97), (3, 1000), (1, 1)])
def test_rungs_are_stretches_that_hold_each_benchmarks_share(counts: tuple[int, ...]):
    ends = rung_ends(counts)
    assert ends[-1] == counts
    assert all(
        a < b for one, two in itertools.pairwise(ends) for a, b in zip(one, two, strict=True)
    )
    for row in ends:
        shares = [end / count for end, count in zip(row, counts, strict=True)]
        assert max(shares) - min(shares) < 1 / min(counts)


def test_whatever_is_in_half_a_round_waits():
    full, part = [np.ones(40), np.ones(20)], [np.zeros(21), np.zeros(10)]
    even = [np.zeros(20), np.zeros(10)]
    found = [race(Duel(full, seen, [0.5, 0.5], [1.0, 1.0])).evidence for seen in (part, even)]
    assert found[0] == found[1]


def test_what_the_sampler_is_told_is_exact_when_all_is_seen():
    rng = np.random.default_rng(5)
    incumbent, candidate = [rng.random(40), rng.random(20)], [rng.random(40), rng.random(20)]
    mean = 0.75 * candidate[0].mean() + 0.25 * candidate[1].mean()
    assert expected(Duel(incumbent, candidate, [0.75, 0.25])) == pytest.approx(mean)


def test_what_the_sampler_is_told_is_nearer_than_the_mean_of_what_was_seen():
    rng = np.random.default_rng(6)
    told, seen, true = [], [], []
    for _ in range(200):
        incumbent, candidate = lucky_pairs(rng, [100], gap=0.1, tried=2)
        duel = Duel(incumbent, [candidate[0][:25]], [1.0])
        told.append(expected(duel))
        seen.append(candidate[0][:25].mean())
        true.append(candidate[0].mean())
    errors = [np.abs(np.array(one) - true).mean() for one in (told, seen)]
    assert errors[0] < 0.8 * errors[1]


def test_mistakes_are_told():
    with pytest.raises(EvaluationError, match="has 5 items, the incumbent 4; both need the same"):
        race(Duel([np.ones(4)], [np.ones(5)], [1.0], [1.0]))
    with pytest.raises(EvaluationError, match="an item gains 3, more than the span 1; give the"):
        race(Duel([np.ones(4)], [np.full(2, 4.0)], [1.0], [1.0]))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
@pytest.mark.parametrize("graded", [True, False])
def test_a_search_that_races_is_better_at_equal_items_and_not_worse_at_equal_trials(
    sampler: str, graded: bool
):
    pairs: list[tuple[float, float]] = []
    same: list[tuple[float, float]] = []
    for seed in range(40):
        land = Landscape(seed, graded=graded)
        whole = search(land, sampler, seed, 60, None)
        raced = search(land, sampler, seed, 60, Rule())
        pairs.append((raced.truths[-1], whole.truths[-1]))
        same.append((raced.truths[59], whole.truths[59]))
    (gain, apart), (gain_of_same, slack) = paired(pairs), paired(same)
    # Rights and wrongs are stopped later, so less is gained: not worse is what 40 seeds can show.
    assert gain > (apart if graded else -apart)
    assert gain_of_same > -slack
