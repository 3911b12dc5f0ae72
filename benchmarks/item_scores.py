"""Real scores of a few items at a time, for searches that look at a quarter of them.

The live model and the merge are a study's own; only the requests are put together here: an item is
one row of its prompt and its three options, which don't see each other.

    PYTHONPATH=.:benchmarks python benchmarks/item_scores.py CACHE

compares with the harness.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from landscape_items import OPTIONS
from landscapes import Array

from evals.items import Role
from merge_core.apply import apply
from merge_core.recipe import Recipe
from search.bench import Bench
from studies.quickstart.parents import BOS, NUMBERS


@dataclass(frozen=True, slots=True)
class Items:
    """All items as rows of tokens: BOS, prompt, and each option but for its last token.

    Attributes:
        ids: `(items, tokens)`, the right option first.
        places: Of tokens in their own text, `(items, tokens)`.
        seen: What each token sees, `(items, 1, tokens, tokens)` bool.
        before: Which token comes before each of the options', `(items, options, letters)`.
        answers: Those, 0 where an option is shorter, `(items, options, letters)`.
        counted: 1, and 0 where an option is shorter, `(items, options, letters)`.
    """

    ids: torch.Tensor
    places: torch.Tensor
    seen: torch.Tensor
    before: torch.Tensor
    answers: torch.Tensor
    counted: torch.Tensor

    def some(self, wanted: Array) -> "Items":
        """Some of them."""
        parts = (getattr(self, name) for name in Items.__slots__)
        return Items(*(part[torch.from_numpy(wanted)] for part in parts))


def read_items(bench: Bench) -> Items:
    """The items of a bench's search, in order of its tasks."""
    documents = [item.document for b in bench.harness.benchmarks for item in b.items[Role.SEARCH]]
    heads = [[BOS, *_numbers(document["prompt"])] for document in documents]
    options = [[_numbers(one) for one in _options(document)] for document in documents]
    letters = max(len(one) for row in options for one in row)
    tokens = max(map(len, heads)) + OPTIONS * (letters - 1)
    shape = (len(documents), OPTIONS, letters)
    ids, places = (torch.zeros(len(documents), tokens, dtype=torch.long) for _ in range(2))
    seen = torch.eye(tokens, dtype=torch.bool).repeat(len(documents), 1, 1, 1)
    before, answers = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
    counted = torch.zeros(shape)
    for at, (head, row) in enumerate(zip(heads, options, strict=True)):
        stem = end = len(head)
        ids[at, :stem], places[at, :stem] = torch.tensor(head), torch.arange(stem)
        seen[at, 0, :stem, :stem].copy_(torch.ones(stem, stem).tril())
        for option, answer in enumerate(row):
            count = len(answer) - 1
            part = slice(end, end + count)
            ids[at, part], places[at, part] = torch.tensor(answer[:-1]), stem + torch.arange(count)
            seen[at, 0, part, :stem] = True
            seen[at, 0, part, part] = torch.ones(count, count).tril().bool()
            before[at, option, : count + 1] = torch.tensor([stem - 1, *range(end, end + count)])
            answers[at, option, : count + 1] = torch.tensor(answer)
            counted[at, option, : count + 1] = 1
            end += count
    return Items(ids, places, seen, before, answers, counted)


@torch.inference_mode()
def item_gaps(recipe: Recipe, bench: Bench, items: Items, wanted: Array) -> Array:
    """Nats by which the right option of items leads each wrong one, `(wanted, options - 1)`.

    Raises:
        ValueError: If the model's numbers are none.
    """
    plan = bench.study.plan(recipe)
    bench.harness.rewire(plan.config)
    apply(plan, bench.workbench)
    some = items.some(wanted)
    model: Any = bench.harness.lm.model
    logits = model(
        input_ids=some.ids, position_ids=some.places, attention_mask=some.seen, use_cache=False
    ).logits.log_softmax(-1)
    rows = torch.arange(len(wanted))[:, None, None]
    nats = (logits[rows, some.before, some.answers] * some.counted).sum(-1)
    if not nats.isfinite().all():
        raise ValueError(f"{recipe}: scores that are no numbers")
    return (nats[:, :1] - nats[:, 1:]).clip(-60, 60).numpy()


def _numbers(text: str) -> list[int]:
    return [NUMBERS[letter] for letter in text]


def _options(document: dict[str, Any]) -> list[str]:
    right = document["options"][document["label"]]
    return [right, *(one for one in document["options"] if one != right)]


def main() -> None:
    """Print the largest difference to the harness over the starts of every order, and the time."""
    import time

    from order_spaces import ORDERS
    from real_merges import Pool, order_bench, real_landscape
    from tabulate_landscapes import gaps

    from merge_core.recipe import to_dict

    folder = Path(sys.argv[1])
    bench = order_bench(Pool(folder))
    items = read_items(bench)
    for name in ORDERS:
        built = real_landscape(name, folder).built
        recipes = [built.decode(values) for values in built.starts()]
        spent, most = [0.0, 0.0, 0.0], 0.0
        for recipe in recipes:
            begun = time.process_time()
            real = gaps(to_dict(recipe), bench).astype(np.float32)
            spent[0] += time.process_time() - begun
            for at, part in ((1, np.arange(len(real))), (2, np.arange(0, len(real), 4))):
                begun = time.process_time()
                found = item_gaps(recipe, bench, items, part)
                spent[at] += time.process_time() - begun
                most = max(most, float(np.abs(found - real[part]).max()))
        told = ", ".join(f"{1e3 * one / len(recipes):.0f}" for one in spent)
        print(f"{name}: differ by at most {most:.4f} nats; ms: harness, all, a quarter: {told}")


if __name__ == "__main__":
    main()
