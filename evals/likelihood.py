"""Log-likelihoods of fixed requests, for one candidate after another: lm-eval's numbers, sooner.

What requests have in common is computed once per candidate: the few-shot header of a task, the
context of an item. Logits are made only where a token is predicted. Where a family doesn't allow
that, or the two ways don't agree on a few requests, lm-eval's own way is taken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from evals.activations import Activations, Keys
from evals.batches import Section, lay_out
from evals.families import refusal
from evals.forward import run
from evals.memory import BatchSize
from evals.prefixes import Group, Window, find_groups

Answer = tuple[float, bool]
"""A log-likelihood in nats, and whether greedy decoding would give the continuation."""

_SAMPLED = 8  # requests that are scored both ways
# What two ways of computing the same may differ by: nats, and nats per nat.
_TOLERANCE = {torch.float32: (1e-3, 1e-5), torch.float16: (0.1, 0.02), torch.bfloat16: (0.5, 0.05)}


@dataclass(slots=True)
class Gate:
    """Whether contexts may be shared; requests of one kind share what was found out.

    Attributes:
        shares: None until the two ways have been compared.
        way: A sentence that says how requests are scored and why.
    """

    shares: bool | None = None
    way: str = "not scored yet"

    def close(self, reason: str) -> None:
        """Have requests scored the plain way."""
        self.shares, self.way = False, f"one request at a time, as lm-eval does: {reason}"


class LikelihoodScorer:
    """Scores fixed requests under whatever weights the model holds.

    Args:
        lm: lm-eval's model.
        windows: The requests' token ids.
        size: Sequences per forward pass.
        gate: What is known of the model's family already.
        share: Of the memory for hidden states.
    """

    def __init__(
        self,
        lm: Any,
        windows: Sequence[Window],
        size: BatchSize,
        gate: Gate | None = None,
        share: float = 1.0,
    ) -> None:
        self._gate = gate or Gate()
        self._lm, self._windows, self._size = lm, windows, size
        self._groups = find_groups(windows, lm.max_length)
        self._longest = min(max((len(c) + len(a) for c, a in windows), default=1), lm.max_length)
        self._activations = Activations(lm.model, share=share)
        self._resumes: bool | None = None  # whether starting above the bottom was seen to be exact
        self._laid: tuple[int, tuple[Section, ...]] | None = None
        if (reason := refusal(lm, self._longest)) is not None:
            self._gate = Gate()  # its own: a window may be too short for these requests only
            self._gate.close(reason)

    @property
    def way(self) -> str:
        """How requests are scored and why; known after the first score."""
        return self._gate.way

    def score(self, layers: Keys | None = None) -> list[Answer]:
        """Log-likelihoods in the windows' order.

        Args:
            layers: What stands for the candidate's weights before the layers and in each layer,
                so that layers that are as they were need not be run again; None runs all.
        """
        if not self._windows:
            return []
        if self._gate.shares is None:
            self._compare()
        return self._shared(layers) if self._gate.shares else self._plain(self._windows)

    @property
    def left_out(self) -> int:
        """Layers that the last candidate did not have to run."""
        return self._activations.start

    @property
    def held(self) -> int:
        """Bytes of hidden states kept for the next candidate."""
        return self._activations.bytes

    def forget(self) -> None:
        """Give back the memory of kept hidden states."""
        self._activations.clear()

    def _shared(self, layers: Keys | None) -> list[Answer]:
        def work(size: int) -> list[Answer]:
            sections = self._sections(size)
            self._activations.begin(layers if self._resumes is not False else None)
            if self._activations.start and self._resumes is None:
                self._check_resuming(sections)
            return gather(len(self._windows), *run(self._lm.model, sections, self._activations))

        return self._size.attempt(work)

    def _check_resuming(self, sections: Sequence[Section]) -> None:
        """Run the first batches from the bottom too; a family may pass on more than one state."""
        part = [replace(sections[0], batches=sections[0].batches[:2])]
        with self._activations.whole():
            _, expected, _ = run(self._lm.model, part)
        try:
            _, found, _ = run(self._lm.model, part, self._activations)
            self._resumes = bool(np.array_equal(found, expected, equal_nan=True))
        except Exception:  # whatever a family needs of the layers that were left out
            self._resumes = False
        if not self._resumes:
            self._activations.clear()
            self._activations.begin(None)

    def _sections(self, size: int) -> tuple[Section, ...]:
        """The layout for a size; made anew only when memory ran out."""
        if self._laid is None or self._laid[0] != size:
            self._activations.clear()
            self._laid = size, self._lay_out(self._groups, size)
        return self._laid[1]

    def _lay_out(self, groups: Sequence[Group], size: int) -> tuple[Section, ...]:
        vocabulary = self._lm.model.get_output_embeddings().weight.shape[0]
        return lay_out(groups, size * self._longest, vocabulary, self._lm.device)

    def _plain(self, windows: Sequence[Window]) -> list[Answer]:
        return plain(self._lm, windows, self._size)

    def _compare(self) -> None:
        """Score some requests both ways; sharing is used from now on if they agree."""
        chosen = _spread(self._windows)
        asked = [self._windows[i] for i in chosen]
        theirs = self._plain(asked)
        if not all(math.isfinite(value) for value, _ in theirs):
            return  # a broken candidate says nothing about the family
        try:
            ours = self._trial(asked)
        except Exception as error:  # whatever a family does with a mask that it doesn't expect
            self._gate.close(f"sharing fails with {type(error).__name__}: {error}")
            return
        agree, reason = _agree(ours, theirs, self._lm.model.dtype)
        if agree:
            self._gate.shares, self._gate.way = True, f"contexts shared: {reason}"
        else:
            self._gate.close(reason)

    def _trial(self, windows: Sequence[Window]) -> list[Answer]:
        groups = find_groups(windows, self._lm.max_length)
        return gather(len(windows), *run(self._lm.model, self._lay_out(groups, 1)))


def plain(lm: Any, windows: Sequence[Window], size: BatchSize) -> list[Answer]:
    """lm-eval's own way."""
    # It wants the text beside the ids, as the key of a cache that is never on here.
    flat = [(None, *window) for window in windows]

    def work(sequences: int) -> list[Answer]:
        lm.batch_size_per_gpu = sequences
        return lm._loglikelihood_tokens(flat, disable_tqdm=True)

    return size.attempt(work)


def gather(count: int, numbers: Any, chances: Any, greedy: Any) -> list[Answer]:
    """Sum each window's tokens, in float64."""
    sums = np.bincount(numbers, weights=chances, minlength=count)
    missed = np.bincount(numbers, weights=~greedy, minlength=count)
    return [(float(total), not misses) for total, misses in zip(sums, missed, strict=True)]


def _spread(windows: Sequence[Window]) -> list[int]:
    """The longest request and others from all over, some of them neighbours that share."""
    longest = max(range(len(windows)), key=lambda i: len(windows[i][0]) + len(windows[i][1]))
    step = max(1, 2 * len(windows) // _SAMPLED)
    starts = range(0, len(windows), step)
    pairs = [i for start in starts for i in (start, start + 1) if i < len(windows)]
    return sorted({longest, *pairs[:_SAMPLED]})


def _agree(
    ours: Sequence[Answer], theirs: Sequence[Answer], dtype: torch.dtype
) -> tuple[bool, str]:
    fixed, share = _TOLERANCE.get(dtype, _TOLERANCE[torch.bfloat16])
    apart = [abs(one - other) for (one, _), (other, _) in zip(ours, theirs, strict=True)]
    near = [d <= fixed + share * abs(other) for d, (other, _) in zip(apart, theirs, strict=True)]
    largest = max(apart)
    reason = f"{len(ours)} requests scored both ways differ by at most {largest:.1e} nats"
    return all(near), reason if all(near) else f"{reason}, more than {fixed:g}"
