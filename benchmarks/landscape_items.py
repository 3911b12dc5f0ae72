"""Multiple-choice items for the quickstart's family: the right answer and two tempting wrong ones.

Random near misses are too easy: half of all merges would get 95 % right. So the wrong options are
the near misses that the parents themselves find most probable, as in HellaSwag's adversarial
filtering (Zellers et al. 2019): one is the base's favourite, the other that of the experts.
"""

import json
import random
from pathlib import Path

import torch
import yaml
from transformers import LlamaForCausalLM

from studies.quickstart.parents import BOS, NUMBERS, PAD, TASKS, Item, test_items

OPTIONS = 3
_ANSWERS = {"rev": "abcdefgh", "sort": "ABCDEFGH", "inc": "nopqrstu", "max": "0123456789"}


def write_tasks(folder: Path, models: Path, count: int, seed: int, first: int = 0) -> None:
    """Write one lm-eval task and its items for each of the four tasks, unless they are there.

    The items are of those that the parents' training left out.

    Args:
        folder: Gets `<task>.yaml` and `<task>.jsonl`.
        models: Folder of the parents.
        count: Items of each task; with those before the first at most 1,200.
        seed: Of the options' order; the items are those of build seed 0.
        first: Place of the first one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parents = [LlamaForCausalLM.from_pretrained(models / name) for name in ("base", *_EXPERTS)]
    for task in TASKS:
        file, chance = folder / f"{task}.jsonl", random.Random(f"{seed}/options/{task}")
        if not file.exists():
            items = test_items(task, 1200, 0)[first : first + count]
            lines = [json.dumps(_document(task, item, parents, chance)) for item in items]
            file.write_text("\n".join(lines) + "\n", "utf-8")
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(_task(file, task)), "utf-8")


_EXPERTS = ("sort", "inc", "max")


def _document(
    task: str, item: Item, parents: list[LlamaForCausalLM], chance: random.Random
) -> dict[str, object]:
    wrong = _near_misses(item.answer, _ANSWERS[task])
    nats = torch.stack([_likelihoods(model, item.prompt, wrong) for model in parents])
    first = int(nats[0].argmax())
    experts = nats[1:].logsumexp(0)
    experts[first] = -torch.inf
    options = [item.answer, wrong[first], wrong[int(experts.argmax())]]
    chance.shuffle(options)
    return {"prompt": item.prompt, "options": options, "label": options.index(item.answer)}


def _near_misses(answer: str, alphabet: str) -> list[str]:
    """All answers with two neighbours exchanged or one character another."""
    swapped = [
        answer[:at] + answer[at + 1] + answer[at] + answer[at + 2 :]
        for at in range(len(answer) - 1)
    ]
    changed = [
        answer[:at] + letter + answer[at + 1 :] for at in range(len(answer)) for letter in alphabet
    ]
    return [text for text in dict.fromkeys(swapped + changed) if text != answer]


@torch.inference_mode()
def _likelihoods(model: LlamaForCausalLM, prompt: str, answers: list[str]) -> torch.Tensor:
    """Log-likelihood of each answer after the prompt, in nats; all are equally long."""
    rows = [[BOS, *(NUMBERS[letter] for letter in prompt + answer)] for answer in answers]
    ids = torch.tensor(rows)
    assert not (ids == PAD).any()
    length = len(answers[0])
    logits = model(input_ids=ids[:, :-1]).logits[:, -length:].log_softmax(-1)
    return logits.gather(-1, ids[:, -length:, None]).sum((1, 2))


def _task(file: Path, task: str) -> dict[str, object]:
    return {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_choice": "options",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
