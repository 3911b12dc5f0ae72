"""What a study may choose about scoring: every argument of lm-eval that changes a score."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Settings:
    """Arguments of lm-eval's evaluator and of its Hugging Face model, under lm-eval's names.

    What isn't here can't change a score, or is fixed for good: the softmax is float32 (in bfloat16
    it is off by up to half a nat and makes exact ties), nothing is read from a cache, no task runs
    code that a model writes.

    Attributes:
        batch_size: Sequences per forward pass; one for the whole study, since it moves results.
            `auto` begins high and is lowered for good when memory runs out.
        max_length: Longest sequence in tokens; None takes the model's.
        apply_chat_template: Wrap prompts in the tokenizer's chat template; a name chooses one of
            several.
        system_instruction: System prompt.
        fewshot_as_multiturn: Few-shot examples as turns of a chat; only with a chat template.
        fewshot_seed: Of the generator that draws few-shot examples.
        fewshot_draws: `lm_eval` draws as its evaluator does over the whole set, with one running
            generator, so an item has the prompt that it has there, whatever subset it is scored
            in. `per_item` draws from a generator of the item's own: a prompt doesn't depend on the
            other documents either.
        add_bos_token: Prepend a beginning-of-sequence token; None leaves it to the tokenizer.
        prefix_token_id: What stands before a text without context; None takes BOS, or EOS.
        truncation: Let the tokenizer cut prompts that are too long for a generation.
        think_end_token: A generation counts only from behind it.
        enable_thinking: Passed to the chat template.
        chat_template_args: Further arguments of the chat template.
        torch_seed: Of sampled generations; every candidate gets the same.
    """

    batch_size: int | Literal["auto"] = 32
    max_length: int | None = None
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    fewshot_seed: int = 1234
    fewshot_draws: Literal["lm_eval", "per_item"] = "lm_eval"
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    truncation: bool = False
    think_end_token: str | int | None = None
    enable_thinking: bool | None = None
    chat_template_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    torch_seed: int = 1234

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Those that lm-eval's model takes, beside `batch_size` and `max_length`."""
        return {
            "add_bos_token": self.add_bos_token,
            "prefix_token_id": self.prefix_token_id,
            "truncation": self.truncation,
            "think_end_token": self.think_end_token,
            "enable_thinking": self.enable_thinking,
            "chat_template_args": dict(self.chat_template_args),
        }
