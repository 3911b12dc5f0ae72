# pyright: standard
"""From documents to what the model is asked: few-shot examples are drawn as lm-eval draws them."""

from collections.abc import Callable, Mapping
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from evals.errors import EvaluationError
from evals.settings import Settings
from evals.tasks import Subtask, shots

Requests = tuple[Instance, ...]


def build_requests(
    subtask: Subtask, wanted: Mapping[int, str], lm: Any, settings: Settings
) -> dict[int, Requests]:
    """Make the requests of some documents of a task.

    lm-eval draws few-shot examples with one generator that runs over the documents, so a document
    gets others in a subset. Here it runs over the whole set in either case, and only the wanted
    prompts are made; or each item has a generator of its own (`Settings.fewshot_draws`).

    Args:
        subtask: The task and all of its documents.
        wanted: Content hash of each wanted document by position.
        lm: lm-eval's model, for its chat template.
        settings: How to prompt.

    Returns:
        Requests by position.

    Raises:
        EvaluationError: If a prompt can't be made.
    """
    task, template = subtask.task, _template(lm, settings)
    running = settings.fewshot_draws == "lm_eval" and shots(task) > 0
    task.set_fewshot_seed(settings.fewshot_seed)
    made: dict[int, Requests] = {}
    try:
        for at in range(len(subtask.documents)) if running else sorted(wanted):
            document = subtask.documents[at]
            if at in wanted:
                if not running:
                    task.set_fewshot_seed(int(wanted[at][:8], 16) ^ settings.fewshot_seed)
                made[at] = _requests(task, document, at, template, settings)
            else:
                _pass_over(task, document)
    except Exception as error:  # templates and samplers fail in types of their own
        raise EvaluationError(f"task '{task.task_name}': no prompt can be made: {error}") from None
    return made


def _template(lm: Any, settings: Settings) -> Callable[..., str] | None:
    """lm-eval's own function, once the tokenizer is known to have the template that is asked for.

    lm-eval logs a template's name and applies the default one; here the name is applied.
    """
    name = settings.apply_chat_template
    if not name:
        return None
    known = lm.tokenizer.chat_template
    if known is None:
        raise EvaluationError(
            "apply_chat_template: the tokenizer has no chat template to apply; set it to false, or "
            "give the model a template (a study's recipe: chat_template)"
        )
    if isinstance(name, str):
        if not isinstance(known, dict) or name not in known:
            have = ", ".join(known) if isinstance(known, dict) else "one, without a name"
            raise EvaluationError(
                f"apply_chat_template: the tokenizer has no template '{name}'; it has {have}"
            )
        lm.chat_template_args = {**lm.chat_template_args, "chat_template": known[name]}
    return lm.apply_chat_template


def _requests(
    task: ConfigurableTask,
    document: Any,
    at: int,
    template: Callable[..., str] | None,
    settings: Settings,
) -> Requests:
    context = task.fewshot_context(
        document,
        num_fewshot=shots(task),
        system_instruction=settings.system_instruction,
        apply_chat_template=template is not None,
        fewshot_as_multiturn=settings.fewshot_as_multiturn,
        chat_template=template,
        gen_prefix=task.doc_to_prefix(document),
    )
    built = task.construct_requests(
        doc=document,
        ctx=context,
        metadata=(task.task_name, at, task.config.repeats or 1),
        apply_chat_template=template is not None,
        chat_template=template,
    )
    return tuple(built) if isinstance(built, list) else (built,)


def _pass_over(task: ConfigurableTask, document: Any) -> None:
    """Draw a document's examples and forget them, so that the generator stands where it would."""
    sampler = getattr(task, "sampler", None)
    if sampler is None:
        task.fewshot_context(document, num_fewshot=shots(task))
        return
    same = task.fewshot_cfg.split == task.config.test_split  # as in its `fewshot_context`
    sampler.sample(n=shots(task), eval_doc=document if same else None)
