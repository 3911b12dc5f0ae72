"""How a conversation becomes a prompt: a recipe's `chat_template`, and where models keep theirs."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from merge_core.companions import Companion, read_companion
from merge_core.errors import RecipeError
from merge_core.keys import nearest

AUTO = "auto"
FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
_MORE = "additional_chat_templates/"
_SHORTEST = 20  # characters of a template that is given itself; mergekit's limit

_TURN_BY_TURN = "{%- for turn in messages -%}"
# Well-known prompt formats, each written from its model family's public description.
NAMED: Mapping[str, str] = {
    "chatml": _TURN_BY_TURN
    + "{{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' -}}"
    + "{%- endfor -%}{%- if add_generation_prompt -%}"
    + "{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
    "llama3": "{{- bos_token -}}"
    + _TURN_BY_TURN
    + "{{- '<|start_header_id|>' + turn.role + '<|end_header_id|>\\n\\n' -}}"
    + "{{- turn.content | trim + '<|eot_id|>' -}}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}"
    + "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}",
    "mistral": "{{- bos_token -}}{%- set ns = namespace(system='') -%}"
    + _TURN_BY_TURN
    + "{%- if turn.role == 'system' -%}{%- set ns.system = turn.content + '\\n\\n' -%}"
    + "{%- elif turn.role == 'user' -%}{{- '[INST] ' + ns.system + turn.content + ' [/INST]' -}}"
    + "{%- set ns.system = '' -%}{%- else -%}{{- ' ' + turn.content + eos_token -}}{%- endif -%}"
    + "{%- endfor -%}",
    "alpaca": _TURN_BY_TURN
    + "{%- if turn.role == 'system' -%}{{- turn.content + '\\n\\n' -}}"
    + "{%- elif turn.role == 'user' -%}{{- '### Instruction:\\n' + turn.content + '\\n\\n' -}}"
    + "{%- else -%}{{- '### Response:\\n' + turn.content + eos_token + '\\n\\n' -}}{%- endif -%}"
    + "{%- endfor -%}{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}",
    "exaone": _TURN_BY_TURN
    + "{{- '[|' + turn.role + '|]' + turn.content -}}"
    + "{{- '\\n' if turn.role == 'user' else '[|endofturn|]\\n' -}}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '[|assistant|]' -}}{%- endif -%}",
}
_MARKERS: Mapping[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "exaone": ("[|user|]", "[|assistant|]", "[|endofturn|]"),
}


def read_chat_template(value: object) -> str | None:
    """Check the key `chat_template`: `auto`, a known name, or a template itself.

    Raises:
        RecipeError: If it is none of these.
    """
    if value is None or value in (AUTO, *NAMED):
        return cast("str | None", value)
    if isinstance(value, str) and len(value) >= _SHORTEST and "{" in value:
        return value
    raise RecipeError(
        f"recipe.chat_template: {value!r} is neither a name nor a Jinja template of at least "
        f"{_SHORTEST} characters; {nearest(str(value), (AUTO, *NAMED))}"
    )


def chosen_template(
    wanted: str, parents: Sequence[Mapping[str, Companion]], donor: Mapping[str, Companion]
) -> str | None:
    """The text of the template that a recipe asks for.

    Args:
        wanted: The recipe's `chat_template`.
        parents: What stands beside each parent's weights, in the recipe's order.
        donor: The same of the output's donor, which decides between equals.

    Returns:
        None if `auto` finds no parent that has one.
    """
    if wanted != AUTO:
        return NAMED.get(wanted, wanted)
    votes = Counter(text for files in parents if (text := template_of(files)))
    most = max(votes.values(), default=0)
    tied = [text for text, count in votes.items() if count == most]
    own = template_of(donor)
    return own if own in tied else next(iter(tied), None)


def template_of(files: Mapping[str, Companion]) -> str | None:
    """A model's usual chat template, from where transformers reads it."""
    return templates_of(files).get("default")


def templates_of(files: Mapping[str, Companion]) -> Mapping[str, str]:
    """A model's chat templates by name, as transformers reads them; one alone is the `default`.

    Files win over the tokenizer's configuration; an older one keeps several by name.
    """
    filed = {"default": read_companion(files, FILE)}
    filed |= {
        Path(name).stem: read_companion(files, name) for name in files if name.startswith(_MORE)
    }
    if found := {name: text for name, text in filed.items() if text}:
        return found
    stated = tokenizer_config(files).get("chat_template")
    if isinstance(stated, list):
        return {entry["name"]: entry["template"] for entry in cast("list[Any]", stated)}
    return {"default": stated} if stated else {}


def with_template(files: Mapping[str, Companion], template: str) -> dict[str, Companion]:
    """The same files with this template in both places where readers look for it."""
    kept = {
        name: file
        for name, file in files.items()
        if name != "chat_template.json" and not name.startswith(_MORE)
    }
    config = tokenizer_config(files) | {"chat_template": template}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return kept | {FILE: template, TOKENIZER_CONFIG: text}


def missing_markers(wanted: str, tokens: Mapping[str, int]) -> tuple[str, ...]:
    """Tokens that a named format stands on and that the vocabulary lacks."""
    return tuple(marker for marker in _MARKERS.get(wanted, ()) if marker not in tokens)


def tokenizer_config(files: Mapping[str, Companion]) -> dict[str, Any]:
    """The parsed `tokenizer_config.json`; empty if there is none."""
    text = read_companion(files, TOKENIZER_CONFIG)
    return cast("dict[str, Any]", json.loads(text)) if text else {}
