"""Whatever lm-eval can run gives the numbers of `simple_evaluate`, here on whole sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from plain_lm_eval import plain_model, plain_results
from sklearn.metrics import f1_score

from evals.errors import EvaluationError
from evals.harness import Harness
from evals.items import Counts, Role
from evals.loading import TaskRequest
from evals.objective import objective
from evals.resident import Resident
from evals.scorecard import Scorecard
from evals.settings import Settings
from evals.tasks import open_tasks

MEAN = {"aggregation": "mean", "higher_is_better": True}
ITEMS = 24
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


FIGURES = """
from sklearn.metrics import f1_score

def repeated(responses, documents):
    return [[f"so {d['text']} it {r}" for r in rs] for rs, d in zip(responses, documents)]

def judged(document, results):
    nats, gold = -results[document["gold"]][0], document["gold"]
    return {"kinds": (str(gold), str(int(10 * nats) % 4)), "graded": nats if gold else float("nan")}

def kinds(items):
    return f1_score(*zip(*items), average="weighted")
"""
SAID = """
filter_list:
  - name: repeated
    filter:
      - {function: custom, filter_fn: !function figures.repeated}
      - {function: take_first}
"""
OWN = """
process_results: !function figures.judged
metric_list:
  - {metric: kinds, aggregation: !function figures.kinds, higher_is_better: true}
  - {metric: graded, aggregation: nanmean, higher_is_better: false}
"""


@pytest.fixture(scope="module")
def tasks(study_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The local tasks over fewer documents, and groups of them; every document gets a role."""
    folder = tmp_path_factory.mktemp("coverage")
    lines = (study_folder / "data/test.jsonl").read_text().splitlines()
    lines, more = lines[:ITEMS], lines[ITEMS : ITEMS + 6]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "few.jsonl").write_text("\n".join(more) + "\n")
    (folder / "train.jsonl").write_text((study_folder / "data/train.jsonl").read_text())
    for path in (study_folder / "tasks").glob("*.yaml"):
        task = yaml.safe_load(path.read_text())
        task["dataset_kwargs"]["data_files"] = {"test": "test.jsonl", "train": "train.jsonl"}
        write(folder, task)
    choice = yaml.safe_load((folder / "tiny_choice.yaml").read_text())
    few = {"data_files": {"test": "few.jsonl"}}
    write(folder, choice | {"task": "tiny_few", "dataset_kwargs": few, "doc_to_text": "{{text}}"})
    inputs = {
        "task": "tiny_inputs",  # as in winogrande: the options are in the context
        "doc_to_text": "gold",
        "doc_to_choice": "{{[query, text]}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", **MEAN}],
    }
    write(folder, choice | inputs | {"process_docs": None, "doc_to_text": "{{gold % 2}}"})
    write(
        folder,
        choice | {"task": "tiny_mutual", "metric_list": [{"metric": "acc_mutual_info", **MEAN}]},
    )
    write(
        folder,
        choice
        | {
            "task": "tiny_pairs",
            "metric_list": [
                {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
                {"metric": "acc", **MEAN},
            ],
        },
    )
    words = yaml.safe_load((folder / "tiny_text.yaml").read_text())
    names = ("word_perplexity", "byte_perplexity")
    write(
        folder,
        words
        | {
            "task": "tiny_words",
            "metric_list": [
                {"metric": name, "aggregation": "weighted_perplexity", "higher_is_better": False}
                for name in names
            ],
        },
    )
    generate = yaml.safe_load((folder / "tiny_generate.yaml").read_text())
    regex = {"function": "regex", "regex_pattern": "([a-z]+)"}
    write(
        folder,
        generate
        | {
            "task": "tiny_extract",
            "filter_list": [
                {"name": "strict", "filter": [regex, {"function": "take_first"}]},
                {"name": "loose", "filter": [{"function": "take_first"}]},
            ],
        },
    )
    whole = {"metric_list": [{"metric": "brier_score"}, {"metric": "acc", **MEAN}]}
    write(folder, choice | {"task": "tiny_brier"} | whole)
    (folder / "figures.py").write_text(FIGURES)
    said = {"task": "tiny_said", "doc_to_target": "so {{text}} it is"}
    said["metric_list"] = [{"metric": name} for name in ("bleu", "chrf", "chrf++", "ter")]
    write(folder, generate | said)
    with (folder / "tiny_said.yaml").open("a") as file:
        file.write(SAID)
    write(folder, choice | {"task": "tiny_own", "metric_list": None})
    with (folder / "tiny_own.yaml").open("a") as file:
        file.write(OWN)
    for name, by_size in (("tiny_group", True), ("tiny_equal", False)):
        group = {
            "group": name,
            "task": ["tiny_choice", {"group": f"{name}_inner", "task": ["tiny_few"]}],
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": by_size}],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(group))
    return folder


def write(folder: Path, task: dict[str, Any]) -> None:
    task = {key: value for key, value in task.items() if value is not None}
    (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))


Score = Callable[..., Scorecard]


@pytest.fixture
def whole(tasks: Path, resident: Resident) -> Score:
    """Score every document of a task but two, which the other roles must have."""

    def score(request: TaskRequest | str, **settings: Any) -> tuple[Scorecard, Harness]:
        asked = TaskRequest(request) if isinstance(request, str) else request
        opened = open_tasks(
            [asked], Counts(None, 1, 1), 0, [tasks], lambda _, text: pytest.fail(text)
        )
        harness = Harness(resident, opened, tuple(Role), Settings(**{"batch_size": 8} | settings))
        return {role: harness.score(role) for role in Role}, harness

    return score


def by_document(cards: dict[Role, Scorecard], harness: Harness, metric: str) -> dict[str, Any]:
    (benchmark,) = harness.benchmarks
    return {
        (str(item.task.task_name), item.document["query"]): value
        for role, card in cards.items()
        for item, value in zip(
            benchmark.items[role], card.items[benchmark.name][metric], strict=True
        )
    }


def theirs(found: dict[str, Any], metric: str) -> dict[str, Any]:
    name, filter_ = metric.split(",")
    return {
        (task, sample["doc"]["query"]): sample[name]
        for task, samples in found["samples"].items()
        for sample in samples
        if sample["filter"] == filter_
    }


def prompts(harness: Harness) -> dict[str, Any]:
    return {
        item.document["query"]: [request.args for request in item.requests]
        for items in harness.benchmarks[0].items.values()
        for item in items
    }


def their_prompts(found: dict[str, Any], name: str) -> dict[str, Any]:
    return {s["doc"]["query"]: [tuple(a) for a in s["arguments"]] for s in found["samples"][name]}


@pytest.mark.filterwarnings("ignore:A single label was found")  # sklearn, of a split of one item
@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("tiny_choice", "acc,none"),
        ("tiny_choice", "acc_norm,none"),
        ("tiny_inputs", "acc,none"),
        ("tiny_mutual", "acc_mutual_info,none"),
        ("tiny_pairs", "mcc,none"),
        ("tiny_exact", "perplexity,none"),
        ("tiny_text", "bits_per_byte,none"),
        ("tiny_words", "word_perplexity,none"),
        ("tiny_generate", "exact_match,none"),
        ("tiny_extract", "exact_match,strict"),
        ("tiny_extract", "exact_match,loose"),
        ("tiny_shots", "acc,none"),
        ("tiny_group", "acc,none"),
        ("tiny_equal", "acc,none"),
    ],
)
def test_every_kind_of_task_gives_lm_evals_results(
    whole: Score, resident: Resident, tasks: Path, name: str, metric: str
):
    cards, harness = whole(TaskRequest(name, metric))
    found = plain_results(resident, tasks, name)
    ours, other = by_document(cards, harness, metric), theirs(found, metric)
    assert len(ours) == len(other) == ITEMS + 6 * (name in ("tiny_group", "tiny_equal"))
    for key, value in ours.items():
        assert value == pytest.approx(other[key], rel=1e-5)
    expected = found["results"][name][metric]
    (benchmark,) = harness.benchmarks
    every = [item for items in benchmark.items.values() for item in items]
    values = [ours[str(item.task.task_name), item.document["query"]] for item in every]
    one = type(benchmark)(
        name, metric, True, 1.0, {Role.SEARCH: tuple(every)}, by_size=benchmark.by_size
    )
    assert one.figure(values, Role.SEARCH) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "metric", "better"),
    [
        ("tiny_said", "bleu,repeated", True),
        ("tiny_said", "chrf,repeated", True),
        ("tiny_said", "chrf++,repeated", True),
        ("tiny_said", "ter,repeated", False),
        ("tiny_brier", "brier_score,none", False),
        ("tiny_own", "graded,none", False),
    ],
)
def test_figures_of_the_whole_set_are_lm_evals(
    whole: Score, resident: Resident, tasks: Path, name: str, metric: str, better: bool
):
    cards, harness = whole(TaskRequest(name, metric))
    (benchmark,) = harness.benchmarks
    every = [item for items in benchmark.items.values() for item in items]
    kept = [value for card in cards.values() for value in card.items[name][metric]]
    expected = plain_results(resident, tasks, name)["results"][name][metric]
    assert 0 < expected != 1
    one = type(benchmark)(name, metric, better, 1.0, {Role.SEARCH: tuple(every)})
    assert one.figure(kept, Role.SEARCH) == pytest.approx(expected, rel=1e-5)
    assert benchmark.higher_is_better == better
    unit = 100 if name == "tiny_said" else 1
    pooled = Scorecard((), {name: {metric: kept}}, 0.0, Role.SEARCH)
    assert objective([pooled], [one]) == pytest.approx(
        (1 if better else -1) * expected / unit, rel=1e-5
    )


def test_a_tasks_own_figure_is_lm_evals(whole: Score, resident: Resident, tasks: Path):
    """Its code makes a figure of all items only; each has its share of it."""
    cards, harness = whole(TaskRequest("tiny_own", "kinds,none"))
    given = theirs(plain_results(resident, tasks, "tiny_own"), "kinds,none")
    items = harness.benchmarks[0].items[Role.SEARCH]
    results = [given["tiny_own", item.document["query"]] for item in items]
    expected = f1_score(*zip(*results, strict=True), average="weighted")
    (score,) = cards[Role.SEARCH].scores
    assert 0 < expected < 1
    assert score.value == pytest.approx(expected)
    assert objective([cards[Role.SEARCH]], harness.benchmarks) == pytest.approx(expected)


@pytest.mark.parametrize("multiturn", [True, False])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chat_templates_and_system_prompts_are_lm_evals(
    whole: Score, resident: Resident, tasks: Path, multiturn: bool, system: str | None
):
    resident.tokenizer.chat_template = CHAT
    arguments = {
        "apply_chat_template": True,
        "fewshot_as_multiturn": multiturn,
        "system_instruction": system,
    }
    cards, harness = whole("tiny_shots", **arguments)
    found = plain_results(resident, tasks, "tiny_shots", **arguments)
    assert prompts(harness) == their_prompts(found, "tiny_shots")
    (_, first) = next(iter(prompts(harness).items()))
    assert ("Be brief." in first[0][0]) == (system is not None)
    assert first[0][0].count("<user>") == (3 if multiturn else 1)
    assert by_document(cards, harness, "acc,none") == theirs(found, "acc,none")


def test_a_named_chat_template_is_the_one_that_is_used(whole: Score, resident: Resident):
    """lm-eval writes the name into its log and applies the default template."""
    resident.tokenizer.chat_template = {"default": CHAT, "loud": CHAT.replace("user", "USER!")}
    resident.tokenizer.chat_template["loud"] = (
        "LOUD{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    _, harness = whole("tiny_choice", apply_chat_template="loud")
    assert all(args[0][0].startswith("LOUD") for args in prompts(harness).values())
    with pytest.raises(EvaluationError, match="has no template 'quiet'; it has default, loud"):
        whole("tiny_choice", apply_chat_template="quiet")
    resident.tokenizer.chat_template = None
    with pytest.raises(EvaluationError, match="has no chat template to apply; set it to false, or"):
        whole("tiny_choice", apply_chat_template=True)


@pytest.mark.parametrize(
    ("request_", "arguments"),
    [
        (TaskRequest("tiny_shots", num_fewshot=4), {"num_fewshot": 4}),
        (TaskRequest("tiny_shots"), {"fewshot_random_seed": 7}),
        (
            TaskRequest("tiny_generate", gen_kwargs={"max_gen_toks": 3}),
            {"gen_kwargs": {"max_gen_toks": 3}},
        ),
        (
            TaskRequest("tiny_generate", common_gen_kwargs={"until": ["a"]}),
            {"gen_kwargs": {"until": ["a"]}},
        ),
    ],
    ids=["num_fewshot", "fewshot_seed", "gen_kwargs", "common gen_kwargs"],
)
def test_arguments_of_lm_eval_do_what_they_do_there(
    whole: Score, resident: Resident, tasks: Path, request_: TaskRequest, arguments: dict
):
    seed = {"fewshot_seed": 7} if "fewshot_random_seed" in arguments else {}
    cards, harness = whole(request_, **seed)
    found = plain_results(resident, tasks, request_.task, **arguments)
    assert prompts(harness) == their_prompts(found, request_.task)
    metric = harness.benchmarks[0].metric
    assert by_document(cards, harness, metric) == theirs(found, metric)
    _, untouched = whole(TaskRequest(request_.task))
    assert prompts(untouched) != prompts(harness)


def test_arguments_of_the_model_do_what_they_do_there(
    whole: Score, resident: Resident, tasks: Path
):
    own, _ = whole("tiny_text")
    for arguments in ({"prefix_token_id": 9}, {"add_bos_token": True}, {"max_length": 8}):
        cards, harness = whole("tiny_text", **arguments)
        model = plain_model(resident, **arguments)
        found = plain_results(resident, tasks, "tiny_text", model)
        ours = by_document(cards, harness, "bits_per_byte,none")
        for key, value in theirs(found, "bits_per_byte,none").items():
            assert ours[key] == pytest.approx(value, rel=1e-5)
        if "add_bos_token" not in arguments:  # rolling windows have their own prefix
            assert cards[Role.SEARCH].items != own[Role.SEARCH].items


def test_what_comes_before_the_end_of_thinking_does_not_count(whole: Score):
    generous = {"max_gen_toks": 20, "until": ["\n"]}
    _, harness = whole(TaskRequest("tiny_generate", gen_kwargs=generous))
    texts = [i.requests[0].resps[0] for i in harness.benchmarks[0].items[Role.SEARCH]]
    end = max(set("".join(texts)), key="".join(texts).count)
    _, short = whole(TaskRequest("tiny_generate", gen_kwargs=generous), think_end_token=end)
    cut = [i.requests[0].resps[0] for i in short.benchmarks[0].items[Role.SEARCH]]
    assert cut == [t.split(end)[-1].lstrip() if end in t else t for t in texts]
    assert cut != texts


def test_a_tasks_own_keys_can_be_put_over_it(whole: Score):
    """As in a group's list of tasks in lm-eval: the task's YAML keys, some of them replaced."""
    request = TaskRequest("tiny_shots", arguments={"num_fewshot": 1, "description": "Say: "})
    _, harness = whole(request)
    text = next(iter(prompts(harness).values()))[0][0]
    assert text.startswith("Say: ")
    assert text.count(" is") == 2


def test_a_task_can_be_written_into_the_study(whole: Score, tasks: Path):
    keys = yaml.safe_load((tasks / "tiny_choice.yaml").read_text())
    name = keys.pop("task")
    keys["dataset_kwargs"] = {"data_files": {"test": str(tasks / "test.jsonl")}}
    own, _ = whole(name)
    written, _ = whole(TaskRequest("mine", arguments=keys))
    assert list(written[Role.SEARCH].items["mine"]["acc,none"]) != []
    assert sorted(written[Role.SEARCH].items["mine"]["acc_norm,none"]) == sorted(
        own[Role.SEARCH].items[name]["acc_norm,none"]
    )


def test_a_group_can_be_written_into_the_study(whole: Score):
    group = {"task": ["tiny_choice", "tiny_few"], "aggregate_metric_list": [{"metric": "acc_norm"}]}
    cards, harness = whole(TaskRequest("ours", arguments=group))
    assert harness.benchmarks[0].metric == "acc_norm,none"
    assert sum(card.scores[0].n for card in cards.values()) == ITEMS + 6


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (TaskRequest("tiny_choice", gen_kwargs={"max_gen_toks": 3}), "it generates nothing"),
        (
            TaskRequest("tiny_generate", gen_kwargs={"temprature": 1.0}),
            "a generation has no argument 'temprature'; did you mean 'temperature'?",
        ),
        (
            TaskRequest("tiny_generate", gen_kwargs={"max_gen_toks": 3, "max_new_tokens": 3}),
            "max_gen_toks and max_new_tokens are one",
        ),
    ],
)
def test_arguments_that_can_not_be_meant_are_refused(
    tasks: Path, request_: TaskRequest, message: str
):
    found: list[str] = []
    open_tasks([request_], Counts(4, 2, 2), 0, [tasks], lambda _, text: found.append(text))
    assert message in found[0]


def test_another_name_of_the_limit_is_the_limit(whole: Score):
    """lm-eval keeps the task's own `max_gen_toks`, which then wins over the one that was given."""
    _, harness = whole(TaskRequest("tiny_generate", gen_kwargs={"max_new_tokens": 2}))
    (item, *_) = harness.benchmarks[0].items[Role.SEARCH]
    assert item.requests[0].args[1] == {"until": ["\n"], "do_sample": False, "max_new_tokens": 2}


def test_thinking_is_for_generations(whole: Score, resident: Resident):
    resident.tokenizer.chat_template = CHAT
    with pytest.raises(EvaluationError, match="enable_thinking has a meaning for generations only"):
        whole("tiny_choice", apply_chat_template=True, enable_thinking=True, think_end_token="x")


def test_sampled_texts_are_the_same_for_every_candidate(whole: Score):
    warm = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 8}
    _, harness = whole(TaskRequest("tiny_generate", gen_kwargs=warm))

    def texts() -> list[str]:
        harness.score(Role.SEARCH)
        return [i.requests[0].resps[0] for i in harness.benchmarks[0].items[Role.SEARCH]]

    assert texts() == texts()
