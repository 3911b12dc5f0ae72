# pyright: standard
"""Requests in, responses out: each kind of request by its quickest way that equals lm-eval's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from evals.activations import Keys
from evals.likelihood import Gate, LikelihoodScorer
from evals.memory import SEQUENCES, BatchSize
from evals.prefixes import Window

Asked = tuple[Instance, tuple[Window, ...]]
"""A request with its token windows; none for a generation."""


@dataclass(frozen=True, slots=True)
class Practice:
    """How requests came to be answered, so that another process can go on in the same way.

    The quick and the plain way round differently, and so do batches of other sizes: which one is
    taken was decided by the first candidate that was scored and by what memory held, and would be
    decided otherwise by another candidate on another day.

    Attributes:
        sequences: Sequences per forward pass.
        gates: For each kind of request whether contexts are shared, and a sentence that says why.
    """

    sequences: int
    gates: Mapping[str, tuple[bool, str]]

    def joined(self, other: "Practice") -> "Practice":
        """What holds for both: the smaller batches, and decisions in the order they were taken."""
        sequences = min(self.sequences, other.sequences)
        return Practice(sequences, {**other.gates, **self.gates})


_Key = tuple[str, tuple[int, ...]]
"""A kind of request and the identities of the requests."""


@dataclass(frozen=True, slots=True)
class Part:
    """Where requests belong.

    Attributes:
        role: Whose items ask them.
        share: Of that role's items; of the memory for hidden states they get as much.
    """

    role: str = ""
    share: float = 1.0


class Answering:
    """Answers the same requests for one candidate after another.

    Args:
        lm: lm-eval's model, whose weights change between candidates.
        batch_size: Sequences per forward pass, or `auto`: as many as memory holds.
    """

    def __init__(self, lm: Any, batch_size: int | str) -> None:
        self._lm = lm
        automatic = batch_size == "auto"
        self._size = BatchSize(SEQUENCES if automatic else int(batch_size), automatic)
        self._gates: dict[str, Gate] = {}
        self._scorers: dict[_Key, tuple[Sequence[Asked], LikelihoodScorer]] = {}
        self._roles: dict[_Key, str] = {}

    @property
    def ways(self) -> tuple[str, ...]:
        """How log-likelihoods were computed and why, a sentence for each set of requests."""
        return tuple(dict.fromkeys(scorer.way for _, scorer in self._scorers.values()))

    @property
    def practice(self) -> Practice:
        """What was found out so far."""
        decided = {
            kind: (gate.shares, gate.way)
            for kind, gate in self._gates.items()
            if gate.shares is not None
        }
        return Practice(self._size.sequences, decided)

    def adopt(self, practice: Practice) -> None:
        """Go on as another process began; nothing is decided anew for the kinds it knows."""
        if self._size.automatic:
            self._size.sequences = practice.sequences
        for kind, (shares, way) in practice.gates.items():
            gate = self._gates.setdefault(kind, Gate())
            gate.shares, gate.way = shares, way

    @property
    def size(self) -> int:
        """Sequences per forward pass, as it is now."""
        return self._size.sequences

    def forget(self) -> None:
        """Give back the memory of hidden states kept for the next candidate."""
        for _, scorer in self._scorers.values():
            scorer.forget()

    @property
    def left_out(self) -> int:
        """Layers that the last candidates of each set of requests did not have to run, at most."""
        return max((scorer.left_out for _, scorer in self._scorers.values()), default=0)

    def respond(
        self,
        kind: str,
        asked: Sequence[Asked],
        layers: Keys | None = None,
        part: Part | None = None,
    ) -> Sequence[Any]:
        """The model's responses as lm-eval's tasks expect them, in the requests' order.

        Args:
            kind: lm-eval's type of request.
            asked: The requests.
            layers: What stands for the weights before the layers and in each layer, if known;
                layers that are as they were are not run again for log-likelihoods.
            part: Where the requests belong; default all that are asked under one role.
        """
        if not kind.startswith("loglikelihood"):
            return self._generate(kind, [request for request, _ in asked])
        answers = iter(self._scorer(kind, asked, part or Part()).score(layers))
        grouped = [[next(answers) for _ in windows] for _, windows in asked]
        if kind == "loglikelihood_rolling":
            return [sum(likelihood for likelihood, _ in answer) for answer in grouped]
        return [answer for (answer,) in grouped]

    def _generate(self, kind: str, requests: list[Instance]) -> list[Any]:
        def work(sequences: int) -> list[Any]:
            self._lm.batch_size_per_gpu = sequences
            return getattr(self._lm, kind)(requests, disable_tqdm=True)

        return self._size.attempt(work)

    def _scorer(self, kind: str, asked: Sequence[Asked], part: Part) -> LikelihoodScorer:
        """The plan for these requests, made the first time that they are asked."""
        key = kind, tuple(id(request) for request, _ in asked)
        if key not in self._scorers:
            windows = [window for _, parts in asked for window in parts]
            # The requests are kept too, so that no other ever gets the same id.
            self._scorers[key] = (
                asked,
                LikelihoodScorer(
                    self._lm, windows, self._size, self._gates.setdefault(kind, Gate()), part.share
                ),
            )
            self._roles[key] = part.role
        for other, (_, scorer) in self._scorers.items():
            if other[0] == kind and self._roles[other] != part.role:  # its turn is over
                scorer.forget()
        return self._scorers[key][1]
