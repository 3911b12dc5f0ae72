"""What outcross could do instead: CMA-ES that begins at the usual recipe, under other signals.

No sampler of the product; these contestants say what a change of it would be worth.
"""

import contextlib
from collections.abc import Mapping

import numpy as np
from cmaes import CMA
from contestants import Contestant, Protocol, numbers, protocol_winners, references
from landscapes import Landscape
from scoring import Scoring
from search_game import Game, SpentError

_SIGMA = 0.14  # of each range; 1/6 of a density's, as mergekit-evolve has it
_GENERATIONS = 200


def usual_start(protocol: Protocol, name: str) -> Contestant:
    """CMA-ES around equal weights and densities of 1, the parents looked at first.

    Args:
        protocol: How candidates are scored and the winner is chosen.
        name: In the report.
    """

    def play(game: Game, seed: int) -> None:
        reals = numbers(game.landscape.built, None)
        low = np.array([d.low for d in reals])
        width = np.array([d.high for d in reals]) - low
        level = 1 / len(game.landscape.built.models)
        usual = np.array([level if d.parameter == "weight" else 1.0 for d in reals])
        box = np.tile([0.0, 1.0], (len(reals), 1))
        search = CMA(mean=(usual - low) / width, sigma=_SIGMA, seed=seed + 1, bounds=box)
        scoring = Scoring.of(game, protocol, references(game, protocol))
        with contextlib.suppress(SpentError):
            for start in game.landscape.built.starts() if protocol.references else ():
                scoring.look(start, ())
            for _ in range(_GENERATIONS):
                rivals, told = scoring.leaders(), list[tuple[np.ndarray, float]]()
                for _ in range(search.population_size):
                    point = search.ask()
                    values = dict(
                        zip([d.name for d in reals], (low + width * point).tolist(), strict=True)
                    )
                    told.append((point, -scoring.look(values, rivals)[0]))
                search.tell(told)

    return Contestant(name, play, protocol_winners(protocol), _cannot)


def _cannot(landscape: Landscape) -> str | None:
    whole = not landscape.built.has_choices and len(landscape.objectives) == 1
    return None if whole else "numbers and one objective only"


def proposals() -> Mapping[str, Contestant]:
    """By name."""
    kinds = {"soft": Protocol()}
    return {
        name: usual_start(kind, name)
        for name, kind in ((f"proposal: {told}", kind) for told, kind in kinds.items())
    }
