"""Make the quickstart family: one base and its experts, real causal LMs of 0.2M parameters.

The models read and write characters. Four tasks, each with its own letters:

    rev cafe=efac     sort DBAC=ABCD     inc most=nptu     max 3817=81 (largest, then smallest)

The base has practised all four, two of them little. Every expert goes on from the base with its
own task, its own number of steps and its own learning rate, because nobody's experts are trained
equally hard; that is what makes equal merging weights wrong. The README has the measurements.

Use as a function, or from a shell: `python -m studies.quickstart.parents FOLDER`.
"""

import json
import random
import shutil
import signal
import string
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

P = ParamSpec("P")
R = TypeVar("R")
PAD, BOS, EOS, UNKNOWN = range(4)
CHARACTERS = ("<pad>", "<s>", "</s>", "<unk>", *string.printable[:95])
NUMBERS = {character: number for number, character in enumerate(CHARACTERS)}
IGNORED = -100  # the target that cross entropy leaves out
_PACKAGED_TASKS = Path(__file__).parent / "tasks"
WORD_LENGTHS = (4, 5)  # at 8 letters 36,864 words: the sealed test items stay a small part


@dataclass(frozen=True, slots=True)
class Task:
    """A word drawn from an alphabet, and what becomes of it."""

    alphabet: str
    answer: Callable[[str], str]


TASKS = {
    "rev": Task("abcdefgh", lambda word: word[::-1]),
    "sort": Task("ABCDEFGH", lambda word: "".join(sorted(word))),
    "inc": Task("mnopqrst", lambda word: "".join(chr(ord(letter) + 1) for letter in word)),
    "max": Task(string.digits, lambda word: max(word) + min(word)),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One question and the only answer that counts."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Training:
    """One training run: which tasks are drawn how often, how long and how hard it trains."""

    name: str
    shares: tuple[tuple[str, float], ...]  # (task, relative share of the items)
    steps: int  # optimizer steps, never seconds: the result must not depend on the machine's load
    rate: float  # peak learning rate
    epsilon: float = 1e-8  # Adam's; a large one stills the weights that hardly have a gradient
    batch: int = 96  # items per step


@dataclass(frozen=True, slots=True)
class Budget:
    """What is trained and how many test items are written; a smaller budget makes fast tests."""

    base: Training
    experts: tuple[Training, ...]
    items: int = 1200  # test items per task


def _mostly(own: str, others: float = 0.05) -> tuple[tuple[str, float], ...]:
    """Shares of 1 for an expert's own task and a little of each other, so that it forgets less."""
    return tuple((task, 1.0 if task == own else others) for task in TASKS)


# The shares put the base where merging matters: done with rev, well into inc, and weak at the
# other two. `sort` is overtrained: it sees nothing else, and the usual epsilon moves every weight.
FULL = Budget(
    Training("base", (("rev", 0.6), ("sort", 0.08), ("inc", 0.2), ("max", 0.12)), 370, 2e-3),
    (
        Training("sort", (("sort", 1.0),), 120, 1e-3),
        Training("inc", _mostly("inc"), 120, 2e-3, epsilon=1e-3),
        Training("max", _mostly("max"), 120, 2e-3, epsilon=1e-3),
    ),
)


def make_parents(
    folder: Path,
    *,
    seed: int = 0,
    budget: Budget = FULL,
    processes: int = 2,
    progress: Callable[[str], None] | None = None,
) -> tuple[Path, ...]:
    """Write the family's models, tasks and test items to `folder`.

    The folder appears whole at the end or not at all. Every training has one thread, and the
    caller's random state and thread count stay as they are.

    Args:
        folder: where `models/<name>/`, `tasks/<task>.yaml` and `data/<task>.jsonl` go; must be
            new or empty.
        seed: of the first weights, the training items and the test items.
        budget: what is trained, and for how long.
        processes: how many experts train at once, each in a process of its own; 0 trains in this
            process, which for a tiny budget saves the start of others. The models are the same.
        progress: called here, in the parent process, with a short line after each step.

    Returns:
        The model folders, the base first.
    """
    folder = folder.absolute()
    _check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        sealed = _write_tasks(draft, budget.items, seed)
        with _trainers(processes) as pool:
            for line in _train_family(draft / "models", budget, sealed, seed, pool):
                if progress:
                    progress(line)
        draft.chmod(0o755)  # mkdtemp makes private folders; a family is an ordinary one
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return tuple(folder / "models" / plan.name for plan in (budget.base, *budget.experts))


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"'{folder}' is not empty; give a new folder, or delete this one to make it again"
        )


def _write_tasks(folder: Path, count: int, seed: int) -> frozenset[str]:
    """Write each task's YAML and test items; return their prompts, which no training may see."""
    for name in ("tasks", "data"):
        (folder / name).mkdir()
    sealed: set[str] = set()
    for task in TASKS:
        name = f"quickstart_{task}"
        items = test_items(task, count, seed)
        sealed.update(item.prompt for item in items)
        lines = [json.dumps({"prompt": item.prompt, "answer": item.answer}) for item in items]
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        shutil.copyfile(_PACKAGED_TASKS / f"{name}.yaml", folder / "tasks" / f"{name}.yaml")
    return frozenset(sealed)


@contextmanager
def _trainers(processes: int) -> Generator[Executor, None, None]:
    if processes == 0:
        yield _InThisProcess()
        return
    # 'spawn': a forked child would inherit torch's thread pool in an unknown state
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _end_on_interrupt)
    try:
        yield pool
    finally:  # after an error the experts that have not begun need not begin
        pool.shutdown(cancel_futures=True)


class _InThisProcess(Executor):
    """An executor that has finished each job by the time it is submitted."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        future: Future[R] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _end_on_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback: the parent's is enough


def _train_family(
    models: Path, budget: Budget, sealed: frozenset[str], seed: int, pool: Executor
) -> Iterator[str]:
    """Train the base, then the experts, and yield a line about each."""
    base = models / budget.base.name
    yield f"base: {budget.base.steps} steps on {', '.join(TASKS)}"
    pool.submit(_train_and_save, budget.base, None, base, sealed, seed).result()
    jobs = {
        pool.submit(_train_and_save, plan, base, models / plan.name, sealed, seed): plan
        for plan in sorted(budget.experts, key=lambda plan: -plan.steps)  # short ones fill the gaps
    }
    for done, job in enumerate(as_completed(jobs), start=1):
        job.result()
        yield f"expert {jobs[job].name}: {jobs[job].steps} steps ({done} of {len(jobs)} experts)"


def _train_and_save(
    plan: Training, start: Path | None, folder: Path, sealed: frozenset[str], seed: int
) -> None:
    """Train one model, from new weights or from those in `start`, and write it to `folder`."""
    with _quiet_and_alone():
        model = _new_model(seed) if start is None else _load_model(start)
        _train(model, plan, sealed, seed)
        model.save_pretrained(folder)  # pyright: ignore[reportUnknownMemberType]
        _make_tokenizer().save_pretrained(folder)  # pyright: ignore[reportUnknownMemberType]


@contextmanager
def _quiet_and_alone() -> Generator[None, None, None]:
    """One thread, random state of its own, no progress bars; all of it undone at the end."""
    threads, bars = torch.get_num_threads(), transformers_logging.is_progress_bar_enabled()
    torch.set_num_threads(1)  # sums in one order: the same weights in every run
    transformers_logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
            yield
    finally:
        torch.set_num_threads(threads)
        if bars:
            transformers_logging.enable_progress_bar()


def _train(model: LlamaForCausalLM, plan: Training, sealed: frozenset[str], seed: int) -> None:
    """AdamW with warm-up and linear decay; the loss is on the answers only."""
    optimizer = torch.optim.AdamW(
        model.parameters(), plan.rate, (0.9, 0.98), plan.epsilon, 0.01, foreach=True
    )
    for step, (ids, targets) in enumerate(_batches(plan, sealed, seed)):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * min(1.0, (step + 1) / 30) * (1 - step / plan.steps)
        logits = _scores(model, ids)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        optimizer.zero_grad()


def _scores(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """(items, length) token numbers to (items, length, vocabulary) logits."""
    return model(input_ids=ids).logits


def _batches(plan: Training, sealed: frozenset[str], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One pair of inputs and targets per step, never with a sealed item."""
    chance = random.Random(f"{seed}/train/{plan.name}")
    tasks = [task for task, _ in plan.shares]
    shares = [share for _, share in plan.shares]
    for _ in range(plan.steps):
        items: list[Item] = []
        while len(items) < plan.batch:
            item = _draw(chance.choices(tasks, shares)[0], chance)
            if item.prompt not in sealed:
                items.append(item)
        yield _tensors(items)


def _tensors(items: Iterable[Item]) -> tuple[Tensor, Tensor]:
    """Inputs and next-token targets, each (items, longest - 1), padded on the right.

    Only answers and their end have a target. There is no attention mask: a causal model cannot
    look at the padding to its right.
    """
    pairs = [(_encode(item.prompt), _encode(item.answer)) for item in items]
    rows = [[BOS, *prompt, *answer, EOS] for prompt, answer in pairs]
    wanted = [[IGNORED] * (len(prompt) + 1) + [*answer, EOS] for prompt, answer in pairs]
    return _padded(rows, PAD)[:, :-1], _padded(wanted, IGNORED)[:, 1:]


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def _encode(text: str) -> list[int]:
    return [NUMBERS[character] for character in text]


def test_items(task: str, count: int, seed: int) -> tuple[Item, ...]:
    """`count` different items, the same ones for the same seed."""
    chance = random.Random(f"{seed}/test/{task}")
    items: dict[str, Item] = {}
    while len(items) < count:
        item = _draw(task, chance)
        items[item.prompt] = item
    return tuple(items.values())


def _draw(task: str, chance: random.Random) -> Item:
    word = "".join(chance.choices(TASKS[task].alphabet, k=chance.randint(*WORD_LENGTHS)))
    return Item(f"{task} {word}=", TASKS[task].answer(word))


def _new_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    config = LlamaConfig(
        vocab_size=len(CHARACTERS),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config)


def _load_model(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder)  # pyright: ignore[reportUnknownMemberType]


def _make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; BOS in front, as in training, because lm-eval adds none of its own."""
    tokenizer = Tokenizer(WordLevel(NUMBERS, unk_token=CHARACTERS[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=CHARACTERS[PAD],
        bos_token=CHARACTERS[BOS],
        eos_token=CHARACTERS[EOS],
        unk_token=CHARACTERS[UNKNOWN],
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    make_parents(Path(sys.argv[1]), progress=lambda line: print(line, file=sys.stderr, flush=True))
