"""Tokenizers with more tokens: every old number stays, every reader sees the same new ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from merge_core.errors import CheckpointError
from merge_core.tokens import Tokens, extended

TEXT = "the cat sat on the mat, the other cat sat on the other mat"


def tokens_of(made: Tokenizer) -> Tokens:
    added = {token.content: token for token in made.get_added_tokens_decoder().values()}
    return Tokens(made.get_vocab(with_added_tokens=True), added, made.to_str())


def trained(kind: str) -> Tokenizer:
    """A tokenizer of one kind with two special tokens behind its vocabulary."""
    match kind:
        case "bpe":
            made, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(vocab_size=60)
        case "wordpiece":
            made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"])
        case _:
            made = Tokenizer(models.Unigram())
            trainer = trainers.UnigramTrainer(
                vocab_size=40, unk_token="<unk>", special_tokens=["<unk>"]
            )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator([TEXT] * 20, trainer)
    made.add_special_tokens([AddedToken("<|a|>", special=True), AddedToken("<|b|>", special=True)])
    return made


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_more_tokens_leave_the_old_ones_alone(kind):
    before = trained(kind)
    tokens = tokens_of(before)
    more = [AddedToken("<|new|>", special=True, lstrip=True), "zebra", AddedToken("plain")]
    after = extended(tokens, more)
    assert {token: after.ids[token] for token in tokens.ids} == tokens.ids
    assert [after.ids[t] for t in ("<|new|>", "zebra", "plain")] == [
        tokens.end,
        tokens.end + 1,
        tokens.end + 2,
    ]
    read = Tokenizer.from_str(after.text)
    assert read.get_vocab(with_added_tokens=True) == after.ids
    assert read.encode(TEXT).ids == before.encode(TEXT).ids
    assert read.encode("<|new|><|b|>").ids == [tokens.end, tokens.ids["<|b|>"]]
    assert after.added["<|new|>"].special
    assert after.added["<|new|>"].lstrip
    assert not after.added["plain"].special


def test_a_piece_never_splits_a_text_that_was_one_before():
    """Added tokens are found inside words; a piece of the vocabulary is not."""
    before = trained("bpe")
    after = Tokenizer.from_str(extended(tokens_of(before), ["he"]).text)
    assert after.encode(TEXT).ids == before.encode(TEXT).ids


def test_nothing_more_is_nothing_changed():
    tokens = tokens_of(trained("bpe"))
    assert extended(tokens, []) is tokens


def test_numbers_with_a_hole():
    data = json.loads(trained("bpe").to_str())
    data["model"]["vocab"]["far"] = 500
    tokens = tokens_of(Tokenizer.from_str(json.dumps(data)))
    assert extended(tokens, [AddedToken("<|new|>")]).ids["<|new|>"] == 501


def test_a_kind_that_cannot_hold_the_numbers_is_refused():
    tokens = tokens_of(trained("unigram"))
    holed = replace(tokens, ids={**tokens.ids, "far": 500})
    with pytest.raises(CheckpointError, match=r"'far' should get number 500 but .* 'Unigram'"):
        extended(holed, [AddedToken("<|new|>")])


@pytest.mark.parametrize(
    "name", ["GPT2Tokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer", "TokenizersBackend"]
)
def test_transformers_sees_the_same_numbers(name, tmp_path: Path):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator([TEXT] * 20, trainer)
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    after = extended(tokens_of(made), [AddedToken("<|new|>", special=True), "Ġzebra"])
    (tmp_path / "tokenizer.json").write_text(after.text)
    config = {"tokenizer_class": name, "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.get_vocab().items() >= after.ids.items()  # GPT-NeoX's adds a padding of its own
    assert read("<|new|>")["input_ids"] == [after.ids["<|new|>"]]
    assert read(TEXT)["input_ids"] == made.encode(TEXT).ids


def test_the_tiny_models_tokenizer():
    after = extended(tokens_of(tokenizer().backend_tokenizer), [AddedToken("<|x|>"), "é"])
    assert (after.ids["<|x|>"], after.ids["é"]) == (100, 101)
    assert Tokenizer.from_str(after.text).encode("é<|x|>").ids == [1, 101, 100]
