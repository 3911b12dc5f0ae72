"""Who searches: outcross, and the others as their users start them.

Each contestant plays a `Game` and afterwards names the winner that it would have had with a smaller
budget, so that one study gives its whole curve. Settings of others: mergekit 0.1.5
(`mergekit/scripts/evolve.py`, `mergekit/evo/genome.py`), mergenetic 0.1.1 (`end2end*.py` in
`experiments/evolutionary-merging-lm-harness`, `configs/*.yaml`), Optuna 5.0's defaults.
"""

import contextlib
import io
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from landscapes import Landscape
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from scipy.special import logit
from scoring import Scoring
from search_game import SIGNALS, Game, SpentError, Trial, accuracy, front, per_item

from search.dimensions import METHOD
from search.goals import spread
from search.outputs import Outputs, Part, Reader, joined
from search.samplers import UNRACED, choose_sampler, refusal, sampler_for
from search.space import Choice, Dimension, Real, SearchSpace, Values

FINALISTS, BATCH = 8, 4  # what a study has if its file says nothing
_SURE = 5e-4  # as `evals.objective.odds`
_MOST = 4  # trials for each that the budget would pay for in full, at most
Array = np.ndarray[Any, Any]
Winners = Callable[[Game, int], Sequence[Trial]]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way to search.

    Attributes:
        name: In the report.
        play: Spends a game's budget.
        winners: What it would name after so many evaluations: one trial, or a front; none if it
            had nothing yet.
        cannot: Why it can't play on a landscape, or None.
        word: Of a sampler of ours.
    """

    name: str
    play: Callable[[Game, int], None]
    winners: Winners
    cannot: Callable[[Landscape], str | None]
    word: str = ""


# --- outcross ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Protocol:
    """What of outcross's protocol a study follows; the defaults are its own.

    Attributes:
        signal: What candidates are ranked by, one of `SIGNALS`.
        judged: What finalists are ranked by.
        finalists: How many are scored on the select items; 0 takes the best on the search items.
        share: Share of the search items that a candidate is scored on.
        references: Whether the parents and the usual merges are scored first, as a study does.
        racing: Whether candidates that have lost are stopped.
        numbers: Whether orders of layers are written without choices.
    """

    signal: str = "soft"
    judged: str = "soft"
    finalists: int = FINALISTS
    share: float = 1.0
    references: bool = True
    racing: bool = True
    numbers: bool = False


def outcross(word: str, protocol: Protocol = Protocol(), name: str | None = None) -> Contestant:
    """A study of ours under a sampler's word."""
    return Contestant(
        name or f"outcross, {word}",
        lambda game, seed: _study(game, word, seed, protocol),
        protocol_winners(protocol),
        lambda landscape: _refusal(word, _seen(landscape, word, protocol)),
        word,
    )


def starts_alone() -> Contestant:
    """What outcross tries first, and no search: the winner is chosen as it always is."""

    def play(game: Game, _: int) -> None:
        with contextlib.suppress(SpentError):
            for values in game.landscape.built.starts():
                game.look(values)

    return Contestant("starts alone", play, protocol_winners(Protocol()), lambda _: None)


def planned_word(contestant: Contestant, landscape: Landscape, trials: int) -> str:
    """The sampler that a contestant's word means for a budget."""
    if not contestant.word:
        return ""
    many = len(landscape.objectives)
    return choose_sampler(contestant.word, landscape.built, trials, many)[0]


def planned_trials(game: Game, protocol: Protocol) -> int:
    """How many whole trials a budget pays for once references and finalists are paid."""
    size = len(_items(game, protocol))
    others = references(game, protocol) * size + protocol.finalists * len(game.deal.select)
    return max(1, (game.budget - others) // size)


def _items(game: Game, protocol: Protocol) -> Array:
    return game.deal.search[: round(len(game.deal.search) * protocol.share)]


def references(game: Game, protocol: Protocol) -> int:
    """How many models are scored before the first trial."""
    return len(game.landscape.references) if protocol.references else 0


def _study(game: Game, word: str, seed: int, protocol: Protocol) -> None:
    """Batches of trials as `search.searching` runs them, until only the finalists can be paid."""
    game.landscape = _seen(game.landscape, word, protocol)
    space, study = game.landscape.built, _new_study(game)
    most = planned_trials(game, protocol)
    chosen, _ = choose_sampler(word, space, most, len(game.landscape.objectives))
    scoring = Scoring.of(game, protocol, references(game, protocol))
    reader = item_reader(game, protocol.signal)
    with contextlib.suppress(SpentError):
        while len(study.trials) < _MOST * most:  # a finite space ends in recipes seen before
            asked: list[tuple[optuna.Trial, Values]] = []
            begun = time.process_time()
            for _ in range(BATCH):
                history = study.get_trials(deepcopy=False)  # with those of this batch
                number = len(history)
                study.sampler = sampler_for(
                    chosen, space, history, seed, number, batch=BATCH, reader=reader
                )
                trial = study.ask()
                asked.append((trial, suggest(trial, space)))
                key = game.landscape.fingerprint(asked[-1][1])
                trial.set_user_attr("fingerprint", key)
            game.proposing += time.process_time() - begun
            rivals = [] if chosen in UNRACED else scoring.leaders()
            for trial, values in asked:
                study.tell(trial, scoring.look(values, rivals))


def _seen(landscape: Landscape, word: str, protocol: Protocol) -> Landscape:
    """The landscape as a sampler sees it: `cmaes` knows numbers only."""
    numbers = protocol.numbers or word == "cmaes"
    return landscape.numeric if numbers and landscape.numeric else landscape


def item_reader(game: Game, signal: str) -> Reader | None:
    """What a study of ours would read of its trials' items."""
    if signal == "accuracy":
        return None

    items = game.deal.search
    own = [items[one[items]] for one in game.landscape.objectives]
    shares = np.eye(len(own))
    parts = [
        Part(len(one), np.ones(len(one)), share) for one, share in zip(own, shares, strict=True)
    ]

    def read(trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], Outputs] | None:
        whole = [t for t in trials if len(game.trials[t.number].seen) == len(items)]
        if not whole:
            return None
        results = [per_item(game.trials[t.number].results, signal) for t in whole]
        chances = np.array([one[np.concatenate(own)] for one in results], np.float64)
        told = np.array([t.values for t in whole])
        odds = logit(chances.clip(_SURE, 1 - _SURE))
        return whole, joined(parts, odds, told, np.empty((len(whole), 0)))

    return read


def protocol_winners(protocol: Protocol) -> Winners:
    """Whom a protocol names at any moment."""
    return lambda game, spent: _chosen(game, spent, protocol)


def _chosen(game: Game, spent: int, protocol: Protocol) -> Sequence[Trial]:
    """The winner among the finalists of a study that ended here, their evaluations counted."""
    left = spent - protocol.finalists * len(game.deal.select)
    whole = len(_items(game, protocol))
    ended = [one for one in game.trials if one.spent <= left and len(one.seen) == whole]
    known = _distinct(ended)
    if not known:
        return ()
    read = SIGNALS[protocol.signal]
    many = len(game.landscape.objectives) > 1
    scores = [read(game, trial) for trial in known]
    ranked = sorted(range(len(known)), key=lambda at: (-float(np.mean(scores[at])), at))
    if many and protocol.finalists:
        ahead = front(scores)
        members = [scores[at] for at in ahead]
        means = [float(np.mean(one)) for one in members]
        ranked = [ahead[at] for at in spread(members, means, protocol.finalists)]
    finalists = [known[at] for at in ranked[: max(1, protocol.finalists)]]
    if not protocol.finalists:
        return [known[at] for at in front(scores)] if many else finalists[:1]
    items = np.concatenate([finalists[0].seen, game.deal.select])
    pooled = [SIGNALS[protocol.judged](game, trial, items) for trial in finalists]
    if many:
        return [finalists[at] for at in front(pooled)]
    return [finalists[int(np.argmax(pooled))]]


def _distinct(trials: Sequence[Trial]) -> list[Trial]:
    return list({tuple(sorted(trial.values.items())): trial for trial in trials}.values())


def _new_study(game: Game, sampler: BaseSampler | None = None) -> optuna.Study:
    many = len(game.landscape.objectives)
    return optuna.create_study(directions=[StudyDirection.MAXIMIZE] * many, sampler=sampler)


def _refusal(word: str, landscape: Landscape) -> str | None:
    return refusal(word, landscape.built, objectives=len(landscape.objectives))


# --- Optuna by itself ----------------------------------------------------------------------------


def plain(name: str, make: Callable[[int], BaseSampler]) -> Contestant:
    """A loop as Optuna's tutorial has it: the accuracy is the objective, its best trial wins."""

    def play(game: Game, seed: int) -> None:
        study = _new_study(game, make(seed))
        with contextlib.suppress(SpentError):
            while len(game.trials) < game.budget:
                trial = study.ask()
                done = game.look(suggest(trial, game.landscape.built))
                study.tell(trial, accuracy(game, done))

    return Contestant(name, play, _best, lambda _: None)


def suggest(trial: optuna.Trial, space: SearchSpace) -> Values:
    """Draw a coordinate of every dimension that exists under those before it, in order."""

    def ask(dimension: Dimension) -> Any:
        if isinstance(dimension, Choice):
            return trial.suggest_categorical(dimension.name, dimension.options)
        low, high, log = dimension.low, dimension.high, dimension.log
        if isinstance(dimension, Real):
            return trial.suggest_float(dimension.name, low, high, log=log)
        return trial.suggest_int(dimension.name, dimension.low, dimension.high, log=log)

    return space.draw(ask)


def _best(game: Game, spent: int) -> Sequence[Trial]:
    """The best accuracy on the search items so far; the earliest of equals."""
    known = [trial for trial in game.trials if trial.spent <= spent]
    if not known:
        return ()
    scores = [accuracy(game, trial) for trial in known]
    if len(scores[0]) > 1:
        return [known[at] for at in front(scores)]
    return [known[int(np.argmax([score for (score,) in scores]))]]


# --- mergekit-evolve -----------------------------------------------------------------------------


def mergekit_evolve(method: str | None = None) -> Contestant:
    """CMA-ES as `mergekit-evolve` starts it: `cma.fmin2` without bounds or a seed of its own.

    x0: weights 1/models, densities 1; sigma0 1/6; the package's population, 4 + 3 ln d; absolute
    values of weights, those of densities cut at 1. The objective is the metric on the first
    `limit` rows, the sum of several tasks; the best ever seen is the result.

    Args:
        method: Which one, where the space has a choice of them; it can't search that.
    """

    def play(game: Game, seed: int) -> None:
        import cma

        reals = numbers(game.landscape.built, method)
        models = len(game.landscape.built.models)
        x0 = [1 / models if d.parameter == "weight" else 1.0 for d in reals]

        def cost(points: list[Array]) -> list[float]:
            return [-sum(accuracy(game, game.look(_folded(reals, p, method)))) for p in points]

        # `seed` for a benchmark that can be redone; mergekit-evolve gives none.
        options = {"maxfevals": game.budget // len(game.deal.search), "seed": seed + 1}
        options |= {"verbose": -9, "verb_log": 0, "verb_disp": 0}
        with contextlib.suppress(SpentError), contextlib.redirect_stdout(io.StringIO()):
            cma.fmin2(None, x0, 1 / 6, options=options, parallel_objective=cost)

    def winners(game: Game, spent: int) -> Sequence[Trial]:
        known = [trial for trial in game.trials if trial.spent <= spent]
        if not known:
            return ()
        return [known[int(np.argmax([sum(accuracy(game, trial)) for trial in known]))]]

    told = f" ({method})" if method else ""
    return Contestant(f"mergekit-evolve{told}", play, winners, lambda one: _whole(one, method))


def _folded(reals: Sequence[Real], point: Array, method: str | None) -> Values:
    """mergekit-evolve's decoding; a landscape has no values beyond its ranges, so they end it."""
    pairs = zip(reals, np.abs(point), strict=True)
    folded = {d.name: float(np.clip(value, d.low, d.high)) for d, value in pairs}
    return folded | ({METHOD: method} if method else {})


def numbers(space: SearchSpace, method: str | None) -> list[Real]:
    """The numbers that a method has."""
    known = space.dimensions if method is None else space.active({METHOD: method})
    return [d for d in known if isinstance(d, Real)]


def _whole(landscape: Landscape, method: str | None) -> str | None:
    if landscape.space.recipe is None or "slices" in landscape.space.recipe:
        return "has no layer plan to search"
    several = len(landscape.built.methods) > 1
    if several != (method is not None):
        return "takes one method" if several else "the space has one method"
    return None


# --- mergenetic ----------------------------------------------------------------------------------


def mergenetic(population: int, method: str | None = None) -> Contestant:
    """pymoo's GA as mergenetic's experiments start it; NSGA-II for several objectives.

    Genes in [0, 1], integers from 0 to 10 over ten at the start, SBX() and PM() with pymoo's
    defaults, no duplicates, population 10 (its configs and its command line) or 25 (notebooks).

    Args:
        population: Size of it.
        method: Which one, where the space has a choice of them.
    """

    def play(game: Game, seed: int) -> None:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.algorithms.soo.nonconvex.ga import GA
        from pymoo.core.problem import ElementwiseProblem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.sampling.rnd import IntegerRandomSampling
        from pymoo.optimize import minimize

        reals, many = numbers(game.landscape.built, method), len(game.landscape.objectives)

        class Problem(ElementwiseProblem):
            def _evaluate(self, x: Array, out: dict[str, Any], *_: Any, **__: Any) -> None:
                values = _folded(reals, x / (10 if many == 1 else 1), method)
                out["F"] = [-share for share in accuracy(game, game.look(values))]

        if many == 1:
            problem = Problem(n_var=len(reals), n_obj=1, xl=0, xu=10)
            algorithm = GA(
                pop_size=population,
                sampling=IntegerRandomSampling(),
                crossover=SBX(),
                mutation=PM(),
                eliminate_duplicates=True,
            )
        else:
            problem = Problem(n_var=len(reals), n_obj=many, xl=0, xu=1)
            algorithm = NSGA2(pop_size=population, eliminate_duplicates=True)
        with contextlib.suppress(SpentError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minimize(problem, algorithm, ("n_iter", 10_000), seed=seed, verbose=False)

    told = f" ({method})" if method else ""
    name = f"mergenetic, {population}{told}"
    return Contestant(name, play, _best, lambda one: _whole(one, method))


# --- all of them ---------------------------------------------------------------------------------

WORDS = ("composite", "tpe", "cmaes", "catcma", "gp", "nsgaii", "evolution", "qmc", "random")
METHODS = ("task_arithmetic", "ties")  # of those in the space, which both others have


def contestants() -> Mapping[str, Contestant]:
    """By name; ours first."""
    every = [
        outcross("auto"),
        *(outcross(word) for word in WORDS),
        mergekit_evolve(),
        *(mergekit_evolve(method) for method in METHODS),
        mergenetic(10),
        mergenetic(25),
        *(mergenetic(10, method) for method in METHODS),
        plain("Optuna's TPE", lambda seed: TPESampler(seed=seed)),
        plain("random", lambda seed: RandomSampler(seed=seed)),
    ]
    return {one.name: one for one in every}


def ablations() -> Mapping[str, Contestant]:
    """Ours with one thing different each time, by name."""
    kinds = {
        "right or wrong only": Protocol("accuracy", "accuracy"),
        "probability": Protocol("probability", "probability"),
        "winner by right or wrong": Protocol(judged="accuracy"),
        "no finalists": Protocol(finalists=0),
        "4 finalists": Protocol(finalists=4),
        "half the search items": Protocol(share=0.5),
        "a quarter of the search items": Protocol(share=0.25),
        "no racing": Protocol(racing=False),
        "no references": Protocol(references=False),
    }
    words = ("auto", "tpe")
    every = [
        outcross(word, kind, f"{word}, {name}") for word in words for name, kind in kinds.items()
    ]
    every += [outcross("composite", Protocol(numbers=True), "composite, numbers"), starts_alone()]
    return {one.name: one for one in every}
