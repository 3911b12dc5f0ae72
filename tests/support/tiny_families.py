"""One tiny random model of any family of transformers, written as a model folder.

A family's own configuration class says which of the small sizes it knows; a few families need a
word more. Nothing here is a table of names: names are what the tests are about.
"""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# What the fast tests show: the families that people merge, and one of each odd form.
DENSE = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3"),
    *("olmo", "olmo2", "olmo3", "gpt_neox", "gpt2", "gptj", "gpt_bigcode", "falcon", "granite"),
    *("stablelm", "cohere", "cohere2", "smollm3", "opt", "bloom", "mpt", "starcoder2", "glm"),
    *("glm4", "exaone4", "ernie4_5", "nemotron", "persimmon", "helium", "seed_oss", "apertus"),
)
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "deepseek_v3", "gpt_oss")
STATEFUL = ("mamba", "falcon_mamba", "rwkv", "lfm2", "falcon_h1", "granitemoehybrid")
ENCODERS = ("bert", "roberta", "distilbert", "electra")
ENCODER_DECODERS = ("t5", "bart")

_SIZES = {
    "vocab_size": 104,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("head_dim", "d_kv", "v_head_dim", "q_lora_rank", "kv_lora_rank"), 8),
    **dict.fromkeys(("n_positions", "max_seq_len"), 128),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "state_size": 8,
    "mamba_n_heads": 8,
    "embedding_size": 32,
}
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_PART_DEPTHS = ("encoder_layers", "decoder_layers", "num_decoder_layers")
# Where the sizes above contradict each other, or a family needs a word of its own.
_ROTATED = {"head_dim": 4, "num_key_value_heads": 4}
_MORE: dict[str, dict[str, object]] = {
    **dict.fromkeys(("deepseek_v3", "axk1", "youtu", "longcat_flash"), _ROTATED),
    **dict.fromkeys(("glm_moe_dsa", "glm4_moe_lite", "deepseek_v32", "axk2"), _ROTATED),
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "dots1": {"n_shared_experts": 1},
    "gpt_neo": {"attention_types": [[["global"], 3]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm3": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba"]},
    "zaya": {"num_experts_per_tok": 1},
}
# Hybrids that attend in every fourth layer only.
_FOUR = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")

# Families of transformers 5.23's causal mapping that are not shown, and why.
REFUSED = {
    "hrm_text": "its layers are run several times; the stated depth counts the runs",
    "nemotron_h": "states its layers as a pattern, not as a number",
    "xlm": "numbers attention, feed-forward and norms apart",
}
UNBUILT = (
    *("blt", "cohere_compass_text", "dbrx", "dots3_note", "dots3_note_text", "emu3", "fuyu"),
    *("gemma3", "gemma3n", "gemma3n_text", "gemma4", "gemma4_assistant", "gemma4_text"),
    *("gemma4_unified", "gemma4_unified_assistant", "git", "got_ocr2"),
    *("kimi_linear", "llama4", "mllama", "moss_transcribe_diarize", "musicgen"),
    *("musicgen_melody", "phi4_multimodal", "qwen3_5", "qwen3_5_moe", "qwen4_exp"),
    *("qwen4_exp_text", "reformer", "roc_bert", "xlstm", "zamba", "cpmant"),
)
# Merged on disk only: stored in another form than they live in.
NOT_LIVE = ("bailing_hybrid", "deepseek_v4", "inkling2_text", "olmo_hybrid")


def family_config(family: str, layers: int = 3, **more: object):
    """A configuration two digits wide."""
    known = CONFIG_MAPPING[family]
    keys = set(known().to_dict()) | set(known.attribute_map)
    depths = dict.fromkeys((*_DEPTHS, *_PART_DEPTHS), layers)
    sizes = {key: size for key, size in (_SIZES | depths).items() if key in keys}
    return known(**(sizes | _MORE.get(family, {}) | more))


def build_family(
    family: str, seed: int = 0, layers: int | None = None, **more: object
) -> PreTrainedModel:
    """A model with random weights, in float32."""
    torch.manual_seed(seed)
    layers = layers or (4 if family in _FOUR else 3)
    model = auto_class(family).from_config(
        family_config(family, layers, **more), dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases are constant when they are new
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def write_family_model(folder: Path, family: str, seed: int = 0, **options) -> Path:
    """Write it; the folder has no tokenizer."""
    build_family(family, seed, **options).save_pretrained(folder)
    return folder


def load_family(folder: Path, family: str) -> PreTrainedModel:
    """Load it as transformers does, and check that it found every tensor and no other."""
    model, report = auto_class(family).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    problems = {key: report[key] for key in report if key.endswith("_keys") and report[key]}
    assert not problems, problems
    return model.eval()


@torch.inference_mode()
def family_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of two short texts, `(2, 6, vocabulary)`."""
    tokens = torch.tensor([[1, 20, 33, 7, 50, 9], [1, 9, 9, 14, 88, 3]])
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    found = model(input_ids=tokens, **more).logits
    assert torch.isfinite(found).all()
    return found


def auto_class(family: str):
    """The class of transformers that loads the family with a language-modelling head."""
    if family in ENCODERS:
        return AutoModelForMaskedLM
    return AutoModelForSeq2SeqLM if family in ENCODER_DECODERS else AutoModelForCausalLM
