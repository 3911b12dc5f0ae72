"""One recipe's vocabularies aligned: the output's tokens, and who gives each row to each parent.

The row of a token in a parent is its own if it has the token; else the one that the recipe names
for it; else the base's; else the only owner's; else the mean of all owners'. mergekit 0.1.5 has
the same rule.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import AddedToken

from merge_core.aligned_rows import AlignedRows, Share
from merge_core.chat_templates import TOKENIZER_CONFIG, template_of, tokenizer_config, with_template
from merge_core.checkpoint import Checkpoint, TensorSpec
from merge_core.companions import (
    GENERATION,
    Companion,
    companions,
    without_generation,
    without_spellings,
)
from merge_core.errors import RecipeError
from merge_core.outer import seek_outer
from merge_core.recipe import Recipe
from merge_core.special_ids import moved_generation, moved_ids
from merge_core.token_sources import BASE, UNION, TokenizerBlock, TokenSource
from merge_core.tokens import FILE, Tokens, extended, read_tokens
from merge_core.vocabulary_tensors import vocabulary_length, vocabulary_tensors, with_length

_LARGEST_MULTIPLE = 512


@dataclass(frozen=True, slots=True)
class Aligned:
    """Parents that fit each other's vocabularies.

    Attributes:
        checkpoints: The parents; those whose rows move have derived tensors.
        files: What stands beside the output's weights, by name.
        warnings: What a user should know, one sentence each.
    """

    checkpoints: Mapping[str, Checkpoint]
    files: Mapping[str, Companion]
    warnings: tuple[str, ...]


@dataclass(slots=True)
class Alignment:
    """The work on one recipe with a tokenizer block.

    Attributes:
        recipe: What to merge.
        block: Its tokenizer block.
        checkpoints: The opened models by the names that the recipe uses.
    """

    recipe: Recipe
    block: TokenizerBlock
    checkpoints: Mapping[str, Checkpoint]

    def aligned(self) -> Aligned:
        """All parents in the output's vocabulary, and its tokenizer."""
        tokens = {model: read_tokens(self.checkpoints[model]) for model in self.recipe.references}
        giver = self._giver()
        out = extended(tokens[giver], tuple(self._new_tokens(tokens, tokens[giver])))
        rows = self._rows(out)
        places = {
            m: _places(out, tokens[m], vocabulary_length(self.checkpoints[m]), rows) for m in tokens
        }
        aligned = {
            model: self._aligned(model, rows, places, out, tokens) for model in self.recipe.models
        }
        donor = self.recipe.donor
        config = aligned[donor].config
        if giver != donor:
            config = moved_ids(config, self.checkpoints[giver], tokens[donor], out)
        aligned[donor] = replace(aligned[donor], config=config)
        warnings = self._warnings(tokens, out, giver, places)
        files = self._files(giver, tokens, out)
        return Aligned({**self.checkpoints, **aligned}, files, tuple(warnings))

    def _giver(self) -> str:
        """The model whose tokenizer the output's starts from."""
        if self.block.source == UNION:
            return self.recipe.donor
        if self.block.source != BASE:
            return self.block.source
        if self.recipe.base is None:
            raise RecipeError("recipe.tokenizer.source: 'base' needs base_model; set it")
        return self.recipe.base

    def _new_tokens(
        self, tokens: Mapping[str, Tokens], start: Tokens
    ) -> Iterator[AddedToken | str]:
        """The other parents' tokens, in the recipe's order and then by number; then the block's."""
        seen = set(start.ids)
        for model in self.recipe.models if self.block.source == UNION else ():
            for token in sorted(tokens[model].ids, key=lambda t: tokens[model].ids[t]):
                if token not in seen:
                    seen.add(token)
                    yield tokens[model].added.get(token, self._piece(token))
        for source in self.block.tokens:
            if source.token not in seen:
                known = (t.added[source.token] for t in tokens.values() if source.token in t.added)
                yield next(known, AddedToken(source.token, normalized=False))

    def _piece(self, token: str) -> AddedToken | str:
        """An ordinary piece of another vocabulary.

        mergekit makes it a token that is found inside words, which then splits the donor's texts.
        """
        return AddedToken(token, normalized=False) if self.recipe.compat else token

    def _rows(self, out: Tokens) -> int:
        """Length of the output's matrices. Padding that the parents have is kept."""
        if (multiple := self.block.pad_to_multiple_of) is not None:
            return -(-out.end // multiple) * multiple
        lengths = {vocabulary_length(self.checkpoints[model]) for model in self.recipe.models}
        if self.recipe.compat:
            return out.end
        if len(lengths) == 1 and (length := max(lengths)) >= out.end:
            return length
        multiple = _LARGEST_MULTIPLE
        while any(length % multiple for length in lengths):
            multiple //= 2
        return -(-out.end // multiple) * multiple if multiple >= 8 else out.end

    def _aligned(
        self,
        model: str,
        rows: int,
        places: Mapping[str, torch.Tensor],
        out: Tokens,
        tokens: Mapping[str, Tokens],
    ) -> Checkpoint:
        """One parent with its vocabulary tensors in the output's order."""
        checkpoint = self.checkpoints[model]
        shares = tuple(self._shares(model, places, out, tokens))
        kept, mean_rows = self._padding(model, rows, out, tokens[model])
        if kept.numel():
            shares = (*shares, Share(checkpoint, kept, kept))
        config = with_length(checkpoint.config, rows)
        if _moves_nothing(shares, mean_rows, checkpoint, rows):
            return replace(checkpoint, config=config)
        specs, derived = dict(checkpoint.tensors), dict(checkpoint.derived)
        for name in vocabulary_tensors(checkpoint):
            spec = checkpoint.tensors[name]
            specs[name] = replace(spec, shape=(rows, *spec.shape[1:]))
            derived[name] = self._derivation(checkpoint, specs[name], shares, mean_rows)
        return replace(checkpoint, config=config, tensors=specs, derived=derived)

    def _shares(
        self,
        model: str,
        places: Mapping[str, torch.Tensor],
        out: Tokens,
        tokens: Mapping[str, Tokens],
    ) -> Iterator[Share]:
        """Who gives which of the model's rows; see the rule at the top of the file."""
        named = torch.zeros_like(places[model], dtype=torch.bool)
        for source in self.block.tokens:
            at = out.ids[source.token]
            if source.force or places[model][at] < 0:
                named[at] = True
                if source.model is not None:
                    row = self._row(source, source.model, tokens)
                    giver = self.checkpoints[source.model]
                    yield Share(giver, torch.tensor([at]), torch.tensor([row]))
        open_rows = _real(places[model], out) & ~named
        # mergekit gives rows of zeros to tokens that only a model outside the merge has
        owners = self.recipe.models if self.recipe.compat else tuple(places)
        for givers in ((model,), (self.recipe.base,), owners):
            filled = torch.zeros_like(open_rows)
            for giver in (g for g in givers if g is not None):
                has = open_rows & (places[giver] >= 0)
                if has.any():
                    where = has.nonzero().flatten()
                    yield Share(self.checkpoints[giver], where, places[giver][where])
                    filled |= has
            open_rows &= ~filled

    def _row(self, source: TokenSource, model: str, tokens: Mapping[str, Tokens]) -> int:
        """The row of the giver that a token's source names."""
        take = source.token if source.take is None else source.take
        known = tokens[model].ids
        row = take if isinstance(take, int) else known.get(take, -1)
        if 0 <= row < vocabulary_length(self.checkpoints[model]):
            return row
        what = f"no row {take}" if isinstance(take, int) else f"no token '{take}'"
        raise RecipeError(
            f"recipe.tokenizer.tokens.{source.token}: model '{model}' has {what}; name a model "
            "that has it, or {kind: model_token, model: …, token: …}"
        )

    def _padding(
        self, model: str, rows: int, out: Tokens, own: Tokens
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows without a token: the model's own where it has padding there too, else the mean."""
        empty = torch.ones(rows, dtype=torch.bool)
        empty[torch.tensor(list(out.ids.values()))] = False
        kept = empty.clone()
        if self.block.pad_to_multiple_of is not None or self.recipe.compat:
            kept[:] = False
        kept[vocabulary_length(self.checkpoints[model]) :] = False
        kept[[number for number in own.ids.values() if number < rows]] = False
        return kept.nonzero().flatten(), (empty & ~kept).nonzero().flatten()

    def _derivation(
        self,
        checkpoint: Checkpoint,
        spec: TensorSpec,
        shares: tuple[Share, ...],
        mean_rows: torch.Tensor,
    ) -> AlignedRows:
        givers = (seek_outer(share.of, checkpoint, spec.name) for share in shares)
        fitting = tuple(
            replace(share, tensor=giver.name)
            for share, giver in zip(shares, givers, strict=True)
            if giver is not None and giver.shape[1:] == spec.shape[1:]
        )
        files = self._sources(checkpoint, spec.name)
        return AlignedRows(spec.name, spec.shape, spec.dtype, fitting, mean_rows, files)

    def _sources(self, checkpoint: Checkpoint, name: str) -> tuple[Path, ...]:
        """The files that decide what a row holds, beside the parents' weights."""
        found: list[Path] = []
        for model in self.recipe.references:
            giver = self.checkpoints[model]
            file = companions(giver).get(FILE)
            found += [file] if isinstance(file, Path) else []
            spec = seek_outer(giver, checkpoint, name)
            if spec is not None and (before := giver.derived.get(spec.name)):
                found += before.files
        return tuple(dict.fromkeys(found))

    def _files(
        self, giver: str, tokens: Mapping[str, Tokens], out: Tokens
    ) -> Mapping[str, Companion]:
        """The output's tokenizer, and the donor's generation settings."""
        donor = self.recipe.donor
        before = companions(self.checkpoints[donor])
        files = without_generation(companions(self.checkpoints[giver]))
        if out is not tokens[giver]:
            files = without_spellings(files) | {FILE: out.text} | _token_entries(files, out)
        if GENERATION in before:
            files[GENERATION] = before[GENERATION]
        if giver != donor:
            files |= moved_generation(
                before, companions(self.checkpoints[giver]), tokens[donor], out
            )
            template = template_of(before)
            if template is not None and template_of(files) is None:
                files = with_template(files, template)
        return files

    def _warnings(
        self,
        tokens: Mapping[str, Tokens],
        out: Tokens,
        giver: str,
        places: Mapping[str, torch.Tensor],
    ) -> Iterator[str]:
        for model in self.recipe.models:
            length = vocabulary_length(self.checkpoints[model])
            beyond = [token for token, number in tokens[model].ids.items() if number >= length]
            if beyond:
                yield (
                    f"model '{model}' has {len(beyond)} tokens without a row, such as "
                    f"{beyond[0]!r}: they count as tokens that it lacks"
                )
            pieces = (
                tokens[model].ids.keys() - tokens[model].added.keys() - tokens[giver].ids.keys()
            )
            if self.block.source == UNION and pieces:
                yield (
                    f"{len(pieces)} ordinary pieces of '{model}' are not in '{giver}': they get "
                    f"rows, but texts are still split by the rules of '{giver}'"
                )
        owned = torch.stack([place >= 0 for place in places.values()]).any(0)
        zero = {t.token for t in self.block.tokens}
        bare = [t for t, number in out.ids.items() if not owned[number] and t not in zero]
        if bare:
            yield f"{len(bare)} tokens, such as {bare[0]!r}, are in no parent: their rows are zero"


def _places(out: Tokens, own: Tokens, length: int, rows: int) -> torch.Tensor:
    """For each row of the output the model's own row of the same token, or -1; `(rows,)`."""
    found = torch.full((rows,), -1, dtype=torch.int64)
    pairs = [
        (number, own.ids[token])
        for token, number in out.ids.items()
        if own.ids.get(token, length) < length
    ]
    if pairs:
        at, row = torch.tensor(pairs).T
        found[at] = row
    return found


def _real(like: torch.Tensor, out: Tokens) -> torch.Tensor:
    """Rows that have a token."""
    real = torch.zeros_like(like, dtype=torch.bool)
    real[torch.tensor(list(out.ids.values()))] = True
    return real


def _moves_nothing(
    shares: tuple[Share, ...], mean_rows: torch.Tensor, checkpoint: Checkpoint, rows: int
) -> bool:
    return (
        vocabulary_length(checkpoint) == rows
        and not mean_rows.numel()
        and all(s.of is checkpoint and torch.equal(s.out, s.rows) for s in shares)
        and sum(s.out.numel() for s in shares) == rows
    )


def _token_entries(files: Mapping[str, Companion], out: Tokens) -> dict[str, Companion]:
    """tokenizer_config.json with the new tokens, where it lists the added ones a second time."""
    config = tokenizer_config(files)
    if "added_tokens_decoder" not in config:
        return {}
    flags = ("lstrip", "normalized", "rstrip", "single_word", "special")
    config["added_tokens_decoder"] = {
        str(out.ids[token]): {"content": token} | {flag: getattr(added, flag) for flag in flags}
        for token, added in sorted(out.added.items(), key=lambda item: out.ids[item[0]])
    }
    return {TOKENIZER_CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n"}
