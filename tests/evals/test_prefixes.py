"""Headers and units: what requests have in common is found, and only where it pays."""

import random

from evals.prefixes import Group, find_groups


def ids(generator: random.Random, count: int) -> list[int]:
    return [generator.randrange(5, 100) for _ in range(count)]


def headers(groups: tuple[Group, ...]) -> list[list[int]]:
    return sorted(group.header.tolist() for group in groups)


def numbers(groups: tuple[Group, ...]) -> list[int]:
    units = [unit for group in groups for unit in group.units]
    return sorted(request.number for unit in units for request in unit.requests)


def test_the_few_shots_of_each_task_are_its_header():
    generator = random.Random(0)
    shots = [ids(generator, 200), ids(generator, 150)]
    windows = [(h + ids(generator, 10), ids(generator, 3)) for h in shots for _ in range(40)]
    generator.shuffle(windows)
    groups = find_groups(windows, 1000)
    assert headers(groups) == sorted(shots)
    assert numbers(groups) == list(range(80))


def test_the_options_of_an_item_are_one_unit():
    generator = random.Random(1)
    contexts = [ids(generator, 30) for _ in range(5)]
    windows = [(c, ids(generator, 4)) for c in contexts for _ in range(4)]
    (group,) = find_groups(windows, 1000)
    assert len(group.header) == 0
    assert sorted(len(unit.requests) for unit in group.units) == [4] * 5
    # the context once, and three tokens of each option: its last is predicted, not read
    assert {unit.size for unit in group.units} == {30 + 4 * 3}


def test_a_beginning_that_saves_little_is_no_header():
    generator = random.Random(2)
    windows = [([1, 2, 3, *ids(generator, 90)], ids(generator, 4)) for _ in range(50)]
    assert headers(find_groups(windows, 1000)) == [[]]


def test_a_header_ends_before_the_first_predicting_position():
    """Every continuation's first token is predicted from the context's last, in a batch."""
    context = list(range(5, 90))
    windows = [(context, [token]) for token in range(90, 100)] * 3
    groups = find_groups(windows, 1000)
    assert all(len(header) < len(context) for header in headers(groups))
    assert numbers(groups) == list(range(30))


def test_long_requests_lose_their_beginning_as_in_lm_eval():
    (group,) = find_groups([(list(range(10, 30)), [30, 31])], 8)
    (unit,) = group.units
    assert unit.requests[0].tokens.tolist() == [23, 24, 25, 26, 27, 28, 29, 30]
    assert unit.requests[0].first == 6


def test_sharing_never_costs_tokens():
    generator = random.Random(3)
    for _ in range(30):
        stems = [ids(generator, generator.randrange(1, 80)) for _ in range(4)]
        windows = [
            (generator.choice(stems) + ids(generator, generator.randrange(1, 20)), [7])
            for _ in range(generator.randrange(1, 40))
        ]
        groups = find_groups(windows, 1000)
        read = sum(len(g.header) + sum(unit.size for unit in g.units) for g in groups)
        assert read <= sum(len(context) for context, _ in windows)
        assert numbers(groups) == list(range(len(windows)))
