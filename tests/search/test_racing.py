"""What a proposer calls: incumbents, verdicts, and what a stopped trial tells the sampler."""

from dataclasses import replace

import numpy as np
import optuna
import pytest

from evals.items import Role
from evals.objective import Reading, objective
from evals.racing import expected
from evals.scorecard import Score, Scorecard
from search.racing import Leaders, Race, duel
from search.record import STOPPED, card_to_dict

RIGHT = Reading("right", "acc,none", None, 1.0, {"acc,none": 1.0}, {}, {})
GRADED = Reading("graded", "acc,none", "probability", 3.0, {"probability": 1.0}, {}, {})
BYTES = Reading("bytes", "bits,none", "bits_per_byte", 1.0, {"bits_per_byte": 1.0}, {}, {})
F1 = Reading("pairs", "f1,none", None, 1.0, {"f1,none": 1.0}, {}, {"f1,none": "f1"})
KEYS = {"right": "acc,none", "graded": "probability", "bytes": "bits_per_byte", "pairs": "f1,none"}


def card(**values) -> Scorecard:
    scores = tuple(Score(name, KEYS[name], 0.5, None, len(v)) for name, v in values.items())
    items = {name: {KEYS[name]: list(v)} for name, v in values.items()}
    return Scorecard(scores, items, 0.0, Role.SEARCH)


def first(whole: Scorecard, count: int) -> Scorecard:
    return card(**{name: r[KEYS[name]][:count] for name, r in whole.items.items()})


GOOD = card(right=[1.0] * 80, graded=[0.9] * 80)
POOR = card(right=[0.0] * 80, graded=[0.1] * 80)


def test_who_is_far_behind_has_lost_and_an_equal_has_not():
    race = Race((GOOD,), ((RIGHT, GRADED),))
    assert race.verdict(first(POOR, 20)).lost
    assert not race.verdict(first(GOOD, 20)).lost


def test_nothing_is_lost_without_an_incumbent_or_with_all_items_scored():
    assert not Race((), ((RIGHT, GRADED),)).verdict(first(POOR, 20)).lost
    assert not Race((GOOD,), ((RIGHT, GRADED),)).verdict(POOR).lost


def test_rungs_in_between_are_for_workers_and_end_no_race():
    race = Race((GOOD,), ((RIGHT, GRADED),))
    lost = [race.verdict(first(POOR, items)).lost for items in range(10, 81, 10)]
    assert lost == [True, True, False, True, False, False, False, False]


def test_a_stopped_trial_tells_the_incumbents_score_less_what_it_is_behind():
    rng = np.random.default_rng(0)
    best = card(right=rng.integers(0, 2, 80) * 1.0, graded=rng.random(80))
    seen = first(card(right=rng.integers(0, 2, 80) * 1.0, graded=rng.random(80)), 20)
    race = Race((best,), ((RIGHT, GRADED),))
    (value,) = race.values(seen, race.verdict(seen))
    one = duel(best, seen, (RIGHT, GRADED))
    assert value == pytest.approx(expected(one))
    (exact,) = race.values(POOR, race.verdict(POOR))
    assert exact == pytest.approx(objective([POOR], (RIGHT, GRADED), signal=True))


def test_probabilities_and_rights_are_bounded_and_bits_are_not():
    assert duel(GOOD, first(POOR, 20), (RIGHT, GRADED)).span == [1.0, 1.0]
    one = card(bytes=[-1.0, -2.0, -1.5] * 20)
    assert duel(one, first(one, 20), (BYTES,)).span is None


def test_the_share_of_an_item_of_a_small_task_is_its_span():
    members = {"search": (0,) * 60 + (1,) * 20}
    alike = replace(RIGHT, members=members, by_size=False)
    one = duel(GOOD, first(POOR, 20), (alike,))
    assert one.span == [2.0]
    assert one.incumbent[0].mean() == pytest.approx(1.0)


def test_what_a_figure_of_the_whole_set_may_give_is_added_to_the_margin():
    pairs = [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (0.0, 0.0)] * 20
    best = card(right=[1.0] * 80, pairs=pairs)
    poor = first(card(right=[0.0] * 80, pairs=pairs), 20)
    one = duel(best, poor, (RIGHT, F1))
    assert one.weights == [0.5]
    assert one.beyond == pytest.approx(0.5 * (1 - 2 / 3), abs=0.01)
    assert duel(best, poor, (F1,)) is None
    assert not Race((best,), ((F1,),)).verdict(poor).lost
    assert Race((best,), ((RIGHT, F1),)).verdict(poor).lost


def test_several_objectives_are_lost_to_one_that_is_better_in_all():
    front = (card(right=[1.0] * 80, graded=[0.1] * 80), GOOD)
    race = Race(front, ((RIGHT,), (GRADED,)))
    verdict = race.verdict(first(POOR, 40))
    assert verdict.lost
    assert verdict.by == 1
    assert len(race.values(first(POOR, 40), verdict)) == 2
    mixed = card(right=[0.0] * 80, graded=[0.95] * 80)
    assert not race.verdict(first(mixed, 40)).lost


def test_a_card_with_numbers_missing_is_no_ones_loss():
    bad = replace(first(POOR, 20), scores=(Score("right", "acc,none", None, None, 20, "why"),) * 2)
    assert not Race((GOOD,), ((RIGHT, GRADED),)).verdict(bad).lost


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "maximize"]])
def test_leaders_are_the_best_that_were_not_stopped(directions: list[str]):
    study = optuna.create_study(directions=directions)
    values = [(0.2, 0.9), (0.5, 0.5), (0.5, 0.5), (0.4, 0.4), (0.99, 0.99)]
    for number, told in enumerate(values):
        trial = study.ask()
        trial.set_user_attr("scorecard", card_to_dict(card(right=[float(number)] * 40)))
        if number == 4:
            trial.set_user_attr(STOPPED, {"items": 20, "evidence": 30.0})
        study.tell(trial, told[: len(directions)])

    def numbers(before: int) -> list[int]:
        return [int(one.items["right"]["acc,none"][0]) for one in leaders.before(before)]

    leaders = Leaders(study)
    assert numbers(0) == []
    assert numbers(1) == [0]
    assert numbers(4) == ([1] if len(directions) == 1 else [0, 1])
    late = card(right=[7.0] * 40)
    leaders.add(6, (0.6, 0.6)[: len(directions)], late)
    assert numbers(6) == ([1] if len(directions) == 1 else [0, 1])
    assert numbers(7) == ([7] if len(directions) == 1 else [0, 7])
