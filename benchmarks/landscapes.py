"""Landscapes of the search benchmark: the results of a recipe's items in under a millisecond.

Numbers go through an emulator of real evaluations; layers, of which there are 1,024 recipes,
through the table of all. A choice of method goes through the landscape of the chosen one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from landscape_emulator import Emulator, correct, probability
from landscape_spaces import LAYERS, MODELS, SPACES, TASKS, Space, features, search_space
from scipy.special import expit

from evals.objective import SOFTNESS
from search.baselines import baselines
from search.known import fingerprint
from search.space import Real, SearchSpace, Values

Array = np.ndarray[Any, Any]
TABLES = Path(__file__).parent / "tables"
STEP = 0.12  # nats; gaps of a finite landscape are stored in steps of it, one byte each


class Gaps(Protocol):
    """Gaps of one recipe: an array, or what makes them when they are looked at."""

    def __getitem__(self, items: Any, /) -> Array:
        """Those of some items, `(items, wrong options)`, nats."""
        ...


class Source(Protocol):
    """Where a landscape's gaps come from."""

    def __call__(self, values: Values) -> Gaps:
        """Gaps of a recipe."""
        ...


@dataclass(frozen=True, slots=True)
class Column:
    """One way to read a recipe's gaps, item by item.

    Attributes:
        gaps: Of all items.
        read: From gaps `(items, wrong options)` to `(items,)`.
    """

    gaps: Gaps
    read: Callable[[Array], Array]

    def __getitem__(self, items: Any) -> Array:
        """What some items are, `(items,)`."""
        return self.read(self.gaps[items])


@dataclass(frozen=True, slots=True)
class Results:
    """What one recipe got on every item; `[items]` of a reading gives some, `[:]` all.

    Attributes:
        gaps: In nats.
        scale: Of soft accuracies, nats.
    """

    gaps: Gaps
    scale: float

    @property
    def graded(self) -> Column:
        """Probability of the right option."""
        return Column(self.gaps, probability)

    @property
    def right(self) -> Column:
        """Whether the most probable option is the right one, 0 or 1."""
        return Column(self.gaps, lambda gaps: correct(gaps).astype(np.float32))

    @property
    def soft(self) -> Column:
        """Soft accuracy, as a study measures it against its parents."""
        return Column(self.gaps, lambda gaps: expit(gaps.min(-1) / self.scale))


@dataclass(frozen=True, slots=True)
class Landscape:
    """A space and the results of its recipes.

    Attributes:
        space: As the benchmark describes it.
        built: As a sampler sees it.
        tasks: Number of each item's task, `(items,)`.
        objectives: For each objective which items are its own, `(items,)` bool.
        source: Gives the gaps.
        references: Fingerprints of the models that a study scores before its first trial.
        scale: Of soft accuracies, nats.
        numeric: The same recipes without choices; None where that is no other space.
        judged: The same recipes on items that no deal has, for the judge; None where the judge has
            the items that a deal leaves over.
    """

    space: Space
    built: SearchSpace
    tasks: Array
    objectives: tuple[Array, ...]
    source: Source
    references: tuple[str, ...]
    scale: float
    numeric: "Landscape | None" = None
    judged: "Landscape | None" = None

    def results(self, values: Values) -> Results:
        """What a recipe gets; numbers beyond a range are moved to its end."""
        return Results(self.source(values), self.scale)

    def fingerprint(self, values: Values) -> str:
        """The same for recipes that make the same model."""
        if self.space.recipe is None:
            return " ".join(map(str, values.values()))
        return fingerprint(self.built.decode(values), self.built.depths)


@cache
def landscape(name: str) -> Landscape:
    """One of the benchmark's landscapes that has a table.

    Raises:
        FileNotFoundError: If its table was not made yet.
    """
    space = SPACES[name]
    return assembled(space, search_space(space), _source(space), _items(space))


def assembled(space: Space, built: SearchSpace, source: Source, items: int) -> Landscape:
    """A landscape of a space whose results are known from somewhere, on so many items."""
    tasks = np.repeat(np.arange(len(TASKS)), items // len(TASKS))
    chosen = [[TASKS.index(task) for task in names] for names in space.objectives]
    return Landscape(
        space,
        built,
        tasks,
        tuple(np.isin(tasks, one) for one in chosen),
        source,
        _references(space, built),
        _scale(),
    )


def _references(space: Space, built: SearchSpace) -> tuple[str, ...]:
    if space.recipe is None:  # the four models, and their average, which is none of the space
        return (*(" ".join([model] * (LAYERS + 1)) for model in MODELS), "average")
    return tuple(fingerprint(recipe, built.depths) for recipe in baselines(built).values())


@cache
def _scale() -> float:
    """As a study has it from its parents' margins on its items."""
    parent = _finite(TABLES / "layers.npz")
    margins = [parent(dict.fromkeys(range(LAYERS + 1), model))[:].min(-1) for model in MODELS]
    return float(np.median(np.abs(margins))) / SOFTNESS


def load_emulator(file: Path) -> Emulator:
    """Read an emulator's table."""
    with np.load(file) as table:
        parts = {name: table[name].astype(np.float32) for name in Emulator.__slots__}
    return Emulator(**parts)


def save_emulator(emulator: Emulator, file: Path) -> None:
    """Write an emulator's table: patterns take two bytes a number.

    Points and shares keep four: neighbours' shares nearly cancel, so rounding them would tell.
    """
    parts = {name: getattr(emulator, name) for name in Emulator.__slots__}
    parts["patterns"] = parts["patterns"].astype(np.float16)
    np.savez_compressed(file, **parts)


def save_table(gaps: Array, file: Path) -> None:
    """Write a finite landscape's table; a sign is kept however small the gap."""
    away = np.sign(gaps) * np.ceil(np.abs(gaps.astype(np.float32)) / STEP)
    np.savez_compressed(file, steps=away.clip(-127, 127).astype(np.int8))


def _source(space: Space) -> Source:
    if space.recipe is None:
        return _finite(TABLES / f"{space.name}.npz")
    if len(space.parts) > 1:
        parts = {method: _source(SPACES[part]) for method, part in space.parts.items()}
        return _chosen(parts)
    part = next(iter(space.parts.values()), space.name)
    return _emulated(SPACES[part])


def _emulated(space: Space) -> Source:
    emulator = load_emulator(TABLES / f"{space.name}.npz")
    base = _finite(TABLES / "layers.npz")(dict.fromkeys(range(LAYERS + 1), "base"))[:]
    reals = [d for d in search_space(space).dimensions if isinstance(d, Real)]
    low = np.array([d.low for d in reals], np.float32)
    width = np.array([d.high for d in reals], np.float32) - low
    names = [d.name for d in reals]
    weights = np.array([d.parameter == "weight" for d in reals])

    def gaps(values: Values) -> Array:
        numbers = np.array([values[name] for name in names], np.float32)
        point = ((numbers - low) / width).clip(0, 1)
        if not point[weights].any():
            return base  # nothing is added to it: the one recipe that is known for certain
        return emulator.gaps(features(space, point[None])[0]).reshape(-1, 2)

    return gaps


def _finite(file: Path) -> Source:
    with np.load(file) as table:
        steps = table["steps"]

    def gaps(values: Values) -> Array:
        place = 0
        for model in values.values():
            place = place * len(MODELS) + MODELS.index(str(model))
        return steps[place].astype(np.float32) * STEP

    return gaps


def _chosen(parts: Mapping[str, Source]) -> Source:
    def gaps(values: Values) -> Gaps:
        return parts[str(values["merge_method"])](values)

    return gaps


def _items(space: Space) -> int:
    part = next(iter(space.parts.values()), space.name)
    with np.load(TABLES / f"{part}.npz") as table:
        return table["steps"].shape[1] if "steps" in table else len(table["mean"]) // 2
