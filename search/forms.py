"""Read `slices` that are a hole: one short form for the order of layers.

    {origin: [a, b, merge]}                     each layer from one of these
    {origin: [a, b], per: 4}                    each block of four layers
    {origin: merge, depth: [26, 30]}            up to four of 30 layers left out
    {origin: a, depth: [32, 36], scale: true}   two to six repeated, with a scale for what they add
    {cuts: 3, of: [a, b], overlap: 4}           a frankenmerge of four pieces
    {walk: 1, of: [a, b], scale: true}          Sakana's walk through the layers of all

`merge` is what the recipe's `models` are merged to. `docs/interleaving.md` shows all keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from merge_core.checkpoint import Checkpoint
from merge_core.errors import RecipeError
from merge_core.keys import nearest
from merge_core.writers import Writers, find_writers
from search.cuts import cuts
from search.edits import edits, origin_picks
from search.layouts import LAYERS, MERGE, Form, Layout
from search.numbers import Tell
from search.picks import Place, pick
from search.scales import KINDS, Scales, one_scale
from search.scopes import Scope, labelled
from search.walks import walk

_COMMON = ("depth", "scale", "ends", "encoding")
_KEYS = {
    "origin": ("origin", "per", *_COMMON),
    "cuts": ("cuts", "of", "overlap", *_COMMON),
    "walk": ("walk", "of", "jumps", "overlap", *_COMMON),
}
_MORE = 1.2  # times the parents' depth: published winners grow by up to a fifth
_JUMPS = 4
_NOTHING_MERGED = "there is nothing to merge: give 'models' beside 'slices'"


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a form says, checked as far as it is the same for all forms.

    Attributes:
        data: The form.
        where: Its YAML path.
        origins: Of its layers.
        parents: The opened models.
        merged: The models that `merge` is of, which have equally many layers.
        depths: How many layers each parent has, and `merge`.
        place: Beginning of names, methods, conditions.
        numbers: Whether dimensions shall be numbers.
        tell: Is told every mistake.
    """

    data: Mapping[str, Any]
    where: str
    origins: tuple[str, ...]
    parents: Mapping[str, Checkpoint]
    merged: tuple[str, ...]
    depths: Mapping[str, int]
    place: Place
    numbers: bool
    tell: Tell

    @property
    def spans(self) -> tuple[tuple[str, int], ...]:
        """Each origin with its depth."""
        return tuple((name, self.depths[name]) for name in self.origins)


def is_form(slices: object) -> bool:
    """Whether `slices` is a form, or a choice between forms, and not between lists of slices."""
    if not isinstance(slices, Mapping):
        return False
    options = cast("Mapping[str, Any]", slices).get("choice")
    if options is None:
        return "choice" not in slices
    parts = labelled(options) or []
    return bool(parts) and all(isinstance(part, Mapping) for _, part in parts)


def has_form(slices: object) -> bool:
    """Whether `slices` is a form, or has one where none may stand, which is told there."""
    if is_form(slices):
        return True
    if isinstance(slices, Mapping):
        options = labelled(cast("Mapping[str, Any]", slices).get("choice")) or []
        return any(has_form(part) for _, part in options)
    parts = cast("list[Any]", slices) if isinstance(slices, list) else []
    return any(isinstance(part, Mapping) and kind_of(part) for part in parts)  # pyright: ignore


def kind_of(data: Mapping[str, Any]) -> str | None:
    """The key that makes a mapping a form; None if it is none."""
    return next((key for key in _KEYS if key in data), None)


def read_layout(
    data: Mapping[str, Any], scope: Scope, merged: tuple[str, ...], *, numbers: bool, tell: Tell
) -> Layout | None:
    """Read a form.

    Args:
        data: The form.
        scope: Where it stands.
        merged: The models that the recipe merges; empty where layers are only copied.
        numbers: Whether the sampler knows numbers only.
        tell: Is told every mistake.

    Returns:
        None where the models aren't open, or after a mistake.
    """
    where = scope.where
    kind = kind_of(data)
    if kind is None:
        tell(f"{where}: expected a list of slices, or one of {', '.join(_KEYS)}; got {dict(data)}")
        return None
    for key in data:
        if key not in _KEYS[kind]:
            tell(f"{where}.{key}: unknown key beside '{kind}'; {nearest(str(key), _KEYS[kind])}")
    parents = scope.layers.parents
    if not parents:
        if parents is None:
            tell(f"{where}: needs the models, to count their layers")
        return None
    origins = _origins(data, kind, scope, merged, tell)
    depths = _depths(parents, merged, where, tell)
    encoding = data.get("encoding", "auto")
    if encoding not in ("auto", "choices", "numbers"):
        tell(f"{where}.encoding: expected auto, choices or numbers, got {encoding!r}")
    if not origins or not depths:
        return None
    methods = tuple(method.name for method in scope.methods)
    place = (scope.prefix, methods, scope.under)
    as_numbers = numbers if encoding == "auto" else encoding == "numbers"
    asked = _Asked(data, where, origins, parents, merged, depths, place, as_numbers, tell)
    form = {"origin": _read_origin, "cuts": _read_cuts, "walk": _read_walk}[kind](asked)
    if form is None:
        return None
    layout = Layout(form, origins, depths, _writers(asked), _ends(asked))
    if not layout.dimensions:
        tell(
            f"{where}: one origin and one depth leave nothing to search; give "
            "'depth: [fewest, most]', or a second origin"
        )
        return None
    return layout


def _origins(
    data: Mapping[str, Any], kind: str, scope: Scope, merged: tuple[str, ...], tell: Tell
) -> tuple[str, ...]:
    key = "origin" if kind == "origin" else "of"
    where = f"{scope.where}.{key}"
    if key not in data and not merged:
        tell(f"{where}: is missing; name the models to take layers from")
        return ()
    stated: Any = data.get(key, [*merged, MERGE])
    names = _words(stated)
    if not names or len(set(map(str, names))) < len(names):
        tell(f"{where}: expected models to take layers from, each once, got {stated!r}")
        return ()
    known = (*(scope.layers.parents or ()), *((MERGE,) if merged else ()))
    wrong = [name for name in names if name not in known]
    for name in wrong:
        hint = _NOTHING_MERGED if name == MERGE else nearest(str(name), known)
        tell(f"{where}: '{name}' is no model; {hint}")
    return () if wrong else tuple(str(name) for name in names)


def _depths(
    parents: Mapping[str, Checkpoint], merged: tuple[str, ...], where: str, tell: Tell
) -> dict[str, int]:
    """How many layers each parent has; those that are merged must have as many."""
    several = [name for name, parent in parents.items() if len(parent.layout.stacks) != 1]
    if several:
        tell(
            f"{where}: model '{several[0]}' has several stacks of layers; their order can't be "
            "searched: write slices under 'modules'"
        )
        return {}
    found = {name: parent.layout.depth for name, parent in parents.items()}
    unequal = {found[name] for name in merged if name in found}
    if len(unequal) > 1:
        told = ", ".join(f"'{name}' {found[name]}" for name in merged if name in found)
        tell(f"{where}: models that are merged need equally many layers; they have {told}")
        return {}
    return found | ({MERGE: unequal.pop()} if unequal else {})


def _read_origin(asked: _Asked) -> Form | None:
    lengths = {depth for _, depth in asked.spans}
    if len(lengths) > 1:
        told = ", ".join(f"'{name}' {depth}" for name, depth in asked.spans)
        asked.tell(
            f"{asked.where}.origin: its models need equally many layers; they have {told}: "
            "write 'cuts', whose borders are shares of each model's depth"
        )
        return None
    length = lengths.pop()
    size = _whole(asked, "per", 1, 1, length, "layer")
    blocks = -(-length // size)
    picks = origin_picks(asked.origins, blocks, asked.place, numbers=asked.numbers, between=MERGE)
    depth = _budget(asked, (length, length), (1, 4 * length))
    scaled = _scaled(asked, "true or false beside 'origin'")
    if scaled and depth[1] <= length:
        asked.tell(f"{asked.where}.scale: no layer is repeated; leave it out, or raise 'depth'")
    scale = one_scale(f"{asked.place[0]}scale", *asked.place[1:], "scale") if scaled else None
    return edits(picks, size, length, depth, asked.place, numbers=asked.numbers, scale=scale)


def _read_cuts(asked: _Asked) -> Form | None:
    borders = _whole(asked, "cuts", 1, 1, 64)
    return _pieces(asked, borders, _overlap(asked, (0, 4)), counted=False)


def _read_walk(asked: _Asked) -> Form | None:
    repetitions = _whole(asked, "walk", 1, 1, 8)
    if asked.numbers:
        for key in ("jumps", "overlap"):
            if key in asked.data:
                asked.tell(f"{asked.where}.{key}: is of the walk as choices; leave it out")
        depth = _budget(asked, *_near(asked))
        return walk(repetitions, asked.spans, depth, asked.place, _scales(asked))
    if repetitions > 1:
        asked.tell(
            f"{asked.where}.walk: repetitions are of the walk as numbers (encoding: numbers); as "
            "choices it goes back by 'overlap' at each of its 'jumps'"
        )
    jumps = _whole(asked, "jumps", _JUMPS, 1, 64)
    return _pieces(asked, jumps, _overlap(asked, (-4, 4)), counted=True)


def _pieces(asked: _Asked, borders: int, overlap: tuple[int, int], *, counted: bool) -> Form:
    return cuts(
        borders,
        overlap,
        asked.spans,
        _budget(asked, *_near(asked)),
        asked.place,
        numbers=asked.numbers,
        between=MERGE,
        counted=counted,
        scales=_scales(asked),
    )


def _near(asked: _Asked) -> tuple[tuple[int, int], tuple[int, int]]:
    """The usual budget, around the depth of the parents, and the widest."""
    depths = [depth for _, depth in asked.spans]
    usual = (max(1, round(0.8 * min(depths))), max(max(depths), int(_MORE * max(depths))))
    return usual, (1, 4 * max(depths))


def _budget(asked: _Asked, usual: tuple[int, int], widest: tuple[int, int]) -> tuple[int, int]:
    """The fewest and the most layers of the output."""
    match asked.data.get("depth"):
        case None:
            return usual
        case int() as depth if not isinstance(depth, bool) and widest[0] <= depth <= widest[1]:
            return depth, depth
        case [int() as low, int() as high] if widest[0] <= low <= high <= widest[1]:
            return low, high
        case other:
            asked.tell(
                f"{asked.where}.depth: expected the number of layers or [fewest, most], from "
                f"{widest[0]} to {widest[1]}, got {other!r}"
            )
            return usual


def _overlap(asked: _Asked, usual: tuple[int, int]) -> tuple[int, int]:
    match asked.data.get("overlap"):
        case None:
            return usual
        case int() as most if not isinstance(most, bool) and most >= 0:
            return (0 if usual[0] == 0 else -most), most
        case [int() as low, int() as high] if low <= high:
            return low, high
        case other:
            asked.tell(
                f"{asked.where}.overlap: expected a number of layers or [smallest, largest] "
                f"(below 0 leaves layers out), got {other!r}"
            )
            return usual


def _whole(
    asked: _Asked, key: str, usual: int, low: int, high: int, word: str | None = None
) -> int:
    value = asked.data.get(key, usual)
    if word is not None and value == word:
        return usual
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        also = f"'{word}' or " if word else ""
        asked.tell(
            f"{asked.where}.{key}: expected {also}a whole number from {low} to {high}, "
            f"got {value!r}"
        )
        return usual
    return value


def _scales(asked: _Asked) -> Scales | None:
    kinds = "true (one for each kind of jump), layers (one for each layer that is jumped to)"
    stated = _scaled(asked, f"{kinds} or false", "layers")
    if stated is False:
        return None
    prefix, methods, under = asked.place
    names = list(KINDS if len(asked.origins) > 1 else KINDS[:2])
    if stated == "layers":
        names = [f"{name}.{layer}" for name, depth in asked.spans for layer in range(depth)]
    numbers = {name: one_scale(f"{prefix}scale.{name}", methods, under) for name in names}
    return Scales(numbers, stated == "layers")


def _scaled(asked: _Asked, expected: str, *words: str) -> bool | str:
    """What is said of scales; false after a mistake. A number is none of them, though 1 == True."""
    stated: Any = asked.data.get("scale", False)
    if isinstance(stated, bool) or stated in words:
        return stated
    number = isinstance(stated, int | float | Mapping)
    why = "; the scales themselves are searched, so no number is given" if number else ""
    asked.tell(f"{asked.where}.scale: expected {expected}, got {stated!r}{why}")
    return False


def _writers(asked: _Asked) -> dict[str, Writers]:
    """What the scales multiply, of each origin."""
    if asked.data.get("scale", False) is False:
        return {}
    merged = [name for name in asked.merged if name in asked.parents]
    merged = merged if MERGE in asked.origins else []
    copied = [name for name in asked.origins if name != MERGE]
    found: dict[str, Writers] = {}
    for name in dict.fromkeys((*copied, *merged)):
        try:
            found[name] = find_writers(asked.parents[name])
        except RecipeError as error:
            asked.tell(f"{asked.where}.scale: {error}")
    of_merge = {name: found[name] for name in merged if name in found}
    return _with_merge(found, copied, of_merge, asked) if of_merge else found


def _with_merge(
    found: dict[str, Writers], copied: list[str], merged: dict[str, Writers], asked: _Asked
) -> dict[str, Writers]:
    """A merged layer's are those of the models that it is of; the first one stands for them."""
    first, *others = merged
    for name in others:
        if merged[name] != merged[first]:
            asked.tell(
                f"{asked.where}.scale: what layers write with is named otherwise in '{name}' than "
                f"in '{first}'; leave '{MERGE}' out of its models, or the scale"
            )
    if "passthrough" in asked.place[1]:
        asked.tell(
            f"{asked.where}.scale: '{MERGE}' by passthrough is one model as it is; write that "
            f"model instead of '{MERGE}'"
        )
    kept = {name: found[name] for name in (*copied, first) if name in found}
    return kept | {MERGE: merged[first]}


def _words(stated: Any) -> list[Any]:
    """One or several; none where it is neither."""
    if isinstance(stated, str):
        return [stated]
    return cast("list[Any]", stated) if isinstance(stated, list) else []


def _ends(asked: _Asked) -> Any:
    """Where the tensors outside the layers come from: a word, or several to choose from."""
    stated: Any = asked.data.get("ends", LAYERS)
    words, known = _words(stated), (LAYERS, *asked.depths)
    if not words or not all(word in known for word in words) or len(set(words)) < len(words):
        told = f"expected some of {', '.join(known)}, each once, got {stated!r}"
        if MERGE in words and MERGE not in known:
            told = f"'{MERGE}' is no model; {_NOTHING_MERGED}"
        asked.tell(f"{asked.where}.ends: {told}")
        words = [LAYERS]
    prefix, methods, under = asked.place
    options = tuple(str(word) for word in words)
    return pick(f"{prefix}ends", options, methods, under, numbers=asked.numbers, between=MERGE)
