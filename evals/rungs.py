"""Which rungs a study can afford: each has batches of its own, less full than those of all items.

After a rung a race may end, and the rungs of one candidate may be answered by several workers.

A pass costs about as much as 64 tokens more would, since it reads every weight: rungs at 1/8, 1/4
and 1/2 made 26 passes of 11 on 450 short items of SmolLM2-135M, which took 1.20 times the seconds;
tokens and passes foretell 1.19. With more or longer items passes are full and rungs cost nothing.
"""

from collections.abc import Sequence

from evals.answering import Asked
from evals.harness import Harness
from evals.items import Role
from evals.likelihood import LikelihoodScorer
from evals.memory import BatchSize
from evals.racing import RUNGS, rung_ends

EIGHTHS = tuple(eighth / 8 for eighth in range(1, 9))
CHOICES = (EIGHTHS, RUNGS, (1 / 4, 1 / 2, 1.0), (1 / 4, 1.0), (1 / 2, 1.0))
_PASS = 64  # tokens
_TEXTS = 64 * _PASS  # a batch of generations takes a pass for each token that it makes, some 64

MOST = 0.05
"""What rungs may cost, of the time that a candidate takes in one go."""


def affordable(
    harness: Harness, choices: Sequence[Sequence[float]] = CHOICES, most: float = MOST
) -> tuple[float, ...]:
    """The first rungs that cost little enough; one rung of all items if none do.

    It looks at the plans alone, so it is the same on every machine that makes the same plans.

    Args:
        harness: Whose search items they are; give it the answer as `harness.shares`.
        choices: Rungs as shares of the items, the most wanted first.
        most: What they may cost.
    """
    fitting = (tuple(one) for one in choices if overhead(harness, one) <= most)
    return next(fitting, (1.0,))


def overhead(harness: Harness, shares: Sequence[float]) -> float:
    """What scoring the search items in rungs costs beyond one go, as a share of that.

    Generations are counted by their batches, each as long as another.
    """
    return _work(harness, shares) / _work(harness, (1.0,)) - 1


def _work(harness: Harness, shares: Sequence[float]) -> float:
    every = [benchmark.items[Role.SEARCH] for benchmark in harness.benchmarks]
    starts, total = [0] * len(every), 0.0
    for ends in rung_ends([len(items) for items in every], shares):
        kinds: dict[str, list[Asked]] = {}
        for items, start, end in zip(every, starts, ends, strict=True):
            for item in items[start:end]:
                for request, windows in zip(item.requests, item.windows, strict=True):
                    kinds.setdefault(request.request_type, []).append((request, windows))
        total += sum(_work_of(harness, kind, asked) for kind, asked in kinds.items())
        starts = list(ends)
    return total


def _work_of(harness: Harness, kind: str, asked: Sequence[Asked]) -> float:
    size = harness.answering.size
    if not kind.startswith("loglikelihood"):
        return -(-len(asked) // size) * _TEXTS
    windows = [window for _, parts in asked for window in parts]
    plan = LikelihoodScorer(harness.lm, windows, BatchSize(size, False))
    tokens, passes = plan.work
    return tokens + _PASS * passes
