"""One form for recipes that make the same model, so that no model is scored twice.

`canonical(recipe).fingerprint` is equal for recipes whose outputs are equal but for float32's
rounding of the largest term: both write the same tensors to within 2e-6 of the tensor's largest
element before they are rounded to the output's dtype. (Where a rule changes no arithmetic, they
are equal bit for bit. Where votes on a sign cancel exactly, as of two opposite task vectors,
rounding may decide them.) Numbers are compared to 12 digits. What `config.json` and the tokenizer
of the output are taken from is not looked at: in a study they are the same for every candidate.

The rules, each proved in `tests/merge_core/test_canonical.py`:

- Settings that can't matter are dropped: defaults, what another hides, gradients and filters whose
  values are all the same, `int8_mask`; numbers stand with their model, wherever they stood.
- Density 1 drops nothing: DARE, DELLA and Breadcrumbs are task arithmetic, or TIES with signs.
- A parent of weight 0 is left out, unless random masks of later parents count places.
- One parent agrees with itself about signs, and its weight cancels where it is normalised.
- Weights are divided by their sum where the method does so; a common factor cancels in TIES.
- Lambda is part of the weights.
- base + sum w_i (x_i - base) is sum w_i x_i + (1 - sum w_i) base: task arithmetic is linear.
- SLERP and NuSLERP at an end, and passthrough, are linear too; the order of a sum is the names'.
- Slices that go on where the one before ended, with the same numbers, are one slice.

Where slices have methods of their own, the rules look at each slice alone. What multiplies a
merged slice stays as it is: it follows a rounding to the output's dtype, so no weight can say it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from merge_core.recipe import Module, Parameters, Recipe, Scalar, Setting, Slice, Source
from merge_core.registry import Base, MergeMethod, Parameter, find_method
from merge_core.slices import merge_inputs

Chain = tuple[Setting, ...]
"""The settings of one parameter in the order in which they are tried; empty: nowhere given."""

_WITHOUT_DROPPING = {
    **dict.fromkeys(("dare_linear", "della_linear", "breadcrumbs"), "task_arithmetic"),
    **dict.fromkeys(("dare_ties", "della", "breadcrumbs_ties"), "ties"),
}
_WITHOUT_SIGNS = {
    "dare_ties": "dare_linear",
    "della": "della_linear",
    "breadcrumbs_ties": "breadcrumbs",
}
_SIGNED = ("ties", *_WITHOUT_SIGNS)
_SUMS = ("linear", "task_arithmetic", "dare_linear", "della_linear", "breadcrumbs")
_RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")  # masks count the parents' places
_FAMILY = ("ties", "task_arithmetic", *_WITHOUT_DROPPING)
_SCALE = Parameter("scale", float, per_parent=False, default=1.0, range=None)
_DIGITS = 12
_TINY = 1e-8
_SAME = 1e-11


@dataclass(frozen=True, slots=True)
class _Input:
    """A parent of a cut, with all that is said of it."""

    model: str
    layers: tuple[int, int] | None
    chains: Mapping[str, Chain]


@dataclass(frozen=True, slots=True)
class _Cut:
    """A slice with everything that the scopes around it say written into it."""

    module: str
    inputs: tuple[_Input, ...]
    base: Source | None
    shared: Mapping[str, Chain]
    scale: Chain = ()


@dataclass(frozen=True, slots=True)
class _Form:
    method: str
    cuts: tuple[_Cut, ...]


def canonical(recipe: Recipe, depth: int | None = None) -> Recipe:
    """The recipe that stands for all that make the same model.

    Args:
        recipe: Any recipe that can be merged. One that computes as mergekit does (`compat`) is
            only written in one way: its rules for special cases are other ones.
        depth: How many layers the models have, if that is known: a slice of all of them is then
            the same as none.

    Returns:
        A recipe that makes the same weights.

    Raises:
        RecipeError: If its method is unknown.
    """
    if len(recipe.methods) == 1:
        return _close(_whole(_joined(_ruled(_open(recipe), recipe)), depth), recipe)
    forms = [_ruled(form, recipe) for form in _opened_alone(recipe)]
    same = [_Form(method, cuts) for method, cuts in _neighbours(forms)]
    if len(same) == 1:
        return _close(_whole(_joined(same[0]), depth), recipe)
    return _together([_close(_joined(form), recipe) for form in same], recipe)


def _ruled(form: _Form, recipe: Recipe) -> _Form:
    for rule in () if recipe.compat else _RULES:
        form = rule(form)
    return form


# Opening: every number is written where it is used.


def _open(recipe: Recipe) -> _Form:
    (word,) = recipe.methods
    cuts = [_open_cut(find_method(word), module, part, recipe) for module, part in _slices(recipe)]
    return _Form(word, tuple(cuts))


def _opened_alone(recipe: Recipe) -> list[_Form]:
    """Each slice by its own method."""
    words = [part.method or recipe.method for _, part in _slices(recipe)]
    return [
        _Form(word, (_open_cut(find_method(word), module, part, recipe),))
        for word, (module, part) in zip(words, _slices(recipe), strict=True)
    ]


def _slices(recipe: Recipe) -> list[tuple[Module, Slice]]:
    modules = recipe.modules or (Module("", recipe.slices),)
    return [(module, part) for module in modules for part in module.slices]


def _neighbours(forms: Iterable[_Form]) -> list[tuple[str, tuple[_Cut, ...]]]:
    """Slices of one method that stand side by side."""
    groups = groupby(forms, key=lambda form: form.method)
    return [(method, tuple(cut for form in run for cut in form.cuts)) for method, run in groups]


def _open_cut(method: MergeMethod, module: Module, part: Slice, recipe: Recipe) -> _Cut:
    inputs = merge_inputs(method, part, recipe.base)
    outer = (part.parameters, module.parameters, recipe.parameters)
    known = [p for p in method.parameters if p.name != "int8_mask"]
    opened = tuple(
        _Input(
            source.model,
            source.layers,
            {p.name: _chain(p, (source.parameters, *outer)) for p in known if p.per_parent},
        )
        for source in inputs.sources
    )
    shared = {p.name: _chain(p, outer) for p in known if not p.per_parent}
    return _Cut(module.name, opened, inputs.base, shared, _factors(part))


def _factors(part: Slice) -> Chain:
    """What multiplies the slice; nothing where that is 1."""
    settings = tuple(replace(s, value=_written(s.value)) for s in part.scale)
    chain = _chain(_SCALE, ((("scale", settings),),))
    return chain[:-1] if chain[-1] == Setting(None, 1.0) else chain


def _chain(parameter: Parameter, scopes: Iterable[Parameters]) -> Chain:
    """What the scopes say, the innermost first, then the default; without what never matters."""
    said = [s for scope in scopes for name, found in scope if name == parameter.name for s in found]
    if parameter.default is not None:
        said.append(Setting(None, parameter.default))
    kept: list[Setting] = []
    for setting in said:
        hidden = any(k.filter is None or k.filter in (setting.filter or "") for k in kept)
        if not hidden:
            kept.append(Setting(setting.filter, _value(parameter, setting.value)))
    while len(kept) > 1 and kept[-1].filter is None and kept[-2].value == kept[-1].value:
        del kept[-2]
    return tuple(kept)


def _value(parameter: Parameter, value: Scalar | tuple[Scalar, ...]) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, tuple):
        typed = tuple(_typed(parameter, one) for one in value)
        return typed[0] if len(set(typed)) == 1 else typed
    return _typed(parameter, value)


def _typed(parameter: Parameter, value: Scalar) -> Scalar:
    if parameter.kind is bool:
        return bool(value)
    if isinstance(value, str):
        return value
    number = float(value)
    # Beyond it nothing changes.
    return min(number, 1.0) if parameter.name == "density" else number


# Rules: each turns a form into one that makes the same model, or gives it back.


def _passthrough(form: _Form) -> _Form:
    """One model, scaled, is a sum of one."""
    if form.method != "passthrough" or any(len(cut.inputs) != 1 for cut in form.cuts):
        return form
    cuts = [
        _linear(cut, [replace(i, chains={"weight": i.chains["scale"]}) for i in cut.inputs])
        for cut in form.cuts
    ]
    return _Form("linear", tuple(cuts))


def _nothing_dropped(form: _Form) -> _Form:
    """Density 1 everywhere keeps all, whatever else is said about dropping."""
    if form.method not in (*_WITHOUT_DROPPING, "ties") or not _each(form, _full):
        return form
    method = _WITHOUT_DROPPING.get(form.method, form.method)
    keep = {p.name for p in find_method(method).parameters} - {"density", "rescale"}
    full = {"density": _flat(1.0)} if method == "ties" else {}
    cuts = [
        replace(
            cut,
            inputs=tuple(replace(i, chains=_only(i.chains, keep) | full) for i in cut.inputs),
            shared=_only(cut.shared, keep),
        )
        for cut in form.cuts
    ]
    return _Form(method, tuple(cuts))


def _full(cut: _Cut) -> bool:
    return all(
        one == 1.0
        for i in cut.inputs
        for s in i.chains["density"]
        for one in (s.value if isinstance(s.value, tuple) else (s.value,))
    )


def _silent_parents(form: _Form) -> _Form:
    """A parent of weight 0 adds nothing and has no vote; where all are, the base is left."""
    if form.method != "linear" and form.method not in _FAMILY:
        return form
    if form.method in _FAMILY and form.cuts and _each(form, _silent):
        return _base_alone(form)
    return replace(form, cuts=tuple(_heard(form.method, cut) for cut in form.cuts))


def _silent(cut: _Cut) -> bool:
    return cut.base is not None and all(_is_zero(i.chains["weight"]) for i in cut.inputs)


def _heard(method: str, cut: _Cut) -> _Cut:
    silent = [_is_zero(i.chains["weight"]) for i in cut.inputs]
    last = max((at for at, none in enumerate(silent) if not none), default=0)
    early = method not in _RANDOM
    kept = [
        i
        for at, (i, none) in enumerate(zip(cut.inputs, silent, strict=True))
        if not none or at == last or (at < last and not early)
    ]
    return replace(cut, inputs=tuple(kept))


def _is_zero(chain: Chain) -> bool:
    return bool(chain) and chain[-1].filter is None and all(s.value == 0.0 for s in chain)


def _base_alone(form: _Form) -> _Form:
    cuts = [
        _linear(cut, [_Input(cut.base.model, cut.base.layers, {"weight": _flat(1.0)})])
        for cut in form.cuts
        if cut.base
    ]
    return _Form("linear", tuple(cuts))


def _one_parent(form: _Form) -> _Form:
    """It agrees with itself about signs, and its weight cancels where it is normalised."""
    if form.method not in _FAMILY or not _each(form, lambda cut: len(cut.inputs) == 1):
        return form
    if not _each(form, lambda cut: _calm(cut) or bool(_numbers(cut, "weight", nonzero=True))):
        return form
    cuts = tuple(cut if _calm(cut) else _weighted(cut, [1.0], calm=True) for cut in form.cuts)
    method = _WITHOUT_SIGNS.get(form.method, form.method)
    if method == "ties" and _each(form, _full):
        method = "task_arithmetic"
    known = {p.name for p in find_method(method).parameters}
    cuts = tuple(
        replace(
            cut,
            inputs=tuple(replace(i, chains=_only(i.chains, known)) for i in cut.inputs),
            shared=_only(cut.shared, known),
        )
        for cut in cuts
    )
    return _Form(method, cuts)


def _normalised(form: _Form) -> _Form:
    """Weights over their sum; where signs decide who counts, a common factor cancels."""
    if form.method not in (*_SUMS, *_SIGNED, "nuslerp"):
        return form
    return replace(form, cuts=tuple(_normalised_cut(form.method, cut) for cut in form.cuts))


def _normalised_cut(method: str, cut: _Cut) -> _Cut:
    weights = _numbers(cut, "weight")
    if weights is None or (method != "nuslerp" and _scalar(cut, "normalize") is not True):
        return cut
    signed = method in _SIGNED
    total = sum(abs(w) for w in weights) if signed else sum(weights)
    least = 1e-6 if method == "nuslerp" else _TINY
    if abs(total) < 2 * least:
        return cut
    if abs(total - 1) < _SAME:  # rounding again would not end
        total = 1.0
    return _weighted(cut, [w / total for w in weights], calm=method in _SUMS)


def _lambda_in_weights(form: _Form) -> _Form:
    if form.method not in _FAMILY:
        return form
    return replace(form, cuts=tuple(_scaled(form.method, cut) for cut in form.cuts))


def _scaled(method: str, cut: _Cut) -> _Cut:
    scale, weights = _scalar(cut, "lambda"), _numbers(cut, "weight")
    if not isinstance(scale, float) or weights is None or not (_calm(cut) or scale == 0.0):
        return cut
    if method in _SIGNED and scale < 0:  # it would turn the votes
        return cut
    scaled = _weighted(cut, [w * scale for w in weights])
    return replace(scaled, shared=dict(scaled.shared) | {"lambda": _flat(1.0)})


def _sum_of_models(form: _Form) -> _Form:
    """Task arithmetic is linear, with what the weights leave to one for the base."""
    if form.method != "task_arithmetic" or not _each(form, _plain_sum):
        return form
    return _Form("linear", tuple(_with_base(cut) for cut in form.cuts))


def _plain_sum(cut: _Cut) -> bool:
    plain = _calm(cut) and _scalar(cut, "lambda") == 1.0
    return plain and cut.base is not None and _numbers(cut, "weight") is not None


def _with_base(cut: _Cut) -> _Cut:
    weights = _numbers(cut, "weight") or []
    left = 1 - sum(weights)
    inputs = list(cut.inputs)
    if cut.base and abs(left) > _SAME:
        inputs.append(_Input(cut.base.model, cut.base.layers, {"weight": _flat(left)}))
    return _linear(cut, inputs)


def _ends_of_arcs(form: _Form) -> _Form:
    """A spherical interpolation that stays at an end is that model."""
    if form.method not in ("slerp", "nuslerp"):
        return form
    ends = [_end(form.method, cut) for cut in form.cuts]
    if any(end is None for end in ends):
        return form
    cuts = [
        _linear(cut, [replace(end, chains={"weight": _flat(1.0)})])
        for cut, end in zip(form.cuts, ends, strict=True)
        if end
    ]
    return _Form("linear", tuple(cuts))


def _end(method: str, cut: _Cut) -> _Input | None:
    if len(cut.inputs) != 2:
        return None
    if method == "slerp":
        place = _scalar(cut, "t")
    else:
        weights = _numbers(cut, "weight")
        place = weights[1] if weights and abs(sum(weights) - 1) < _TINY else None
    return cut.inputs[int(place)] if place in (0.0, 1.0) else None


def _sorted_sum(form: _Form) -> _Form:
    if form.method != "linear":
        return form
    form = replace(form, cuts=tuple(_heard("linear", cut) for cut in form.cuts))
    cuts = [
        _linear(cut, sorted(cut.inputs, key=lambda i: (i.model, i.layers or (0, 0))))
        if _calm(cut)
        else replace(cut, inputs=tuple(sorted(cut.inputs, key=lambda i: i.model)))
        for cut in form.cuts
    ]
    return _Form("linear", tuple(cuts))


_RULES: tuple[Callable[[_Form], _Form], ...] = (
    _passthrough,
    _nothing_dropped,
    _normalised,
    _lambda_in_weights,
    _silent_parents,
    _one_parent,
    _normalised,
    _lambda_in_weights,
    _sum_of_models,
    _ends_of_arcs,
    _sorted_sum,
)


# What the rules share.


def _each(form: _Form, holds: Callable[[_Cut], bool]) -> bool:
    return all(holds(cut) for cut in form.cuts)


def _flat(value: Scalar) -> Chain:
    return (Setting(None, value),)


def _only(chains: Mapping[str, Chain], names: set[str]) -> dict[str, Chain]:
    return {name: chain for name, chain in chains.items() if name in names}


def _scalar(cut: _Cut, name: str) -> Scalar | None:
    """A shared parameter that is the same for all tensors."""
    return _same(cut.shared.get(name, ()))


def _same(chain: Chain) -> Scalar | None:
    if len(chain) != 1 or chain[0].filter is not None or isinstance(chain[0].value, tuple):
        return None
    return chain[0].value


def _numbers(cut: _Cut, name: str, *, nonzero: bool = False) -> list[float] | None:
    """A parameter of the parents, `(parents,)`, if each is one number for all tensors."""
    found = [_same(i.chains[name]) for i in cut.inputs]
    numbers = [float(one) for one in found if one is not None]
    if len(numbers) < len(found) or (nonzero and 0.0 in numbers):
        return None
    return numbers


def _calm(cut: _Cut) -> bool:
    """Whether nothing is normalised."""
    return _scalar(cut, "normalize") is False


def _weighted(cut: _Cut, weights: list[float], *, calm: bool = False) -> _Cut:
    inputs = tuple(
        replace(i, chains=dict(i.chains) | {"weight": _flat(w)})
        for i, w in zip(cut.inputs, weights, strict=True)
    )
    shared = dict(cut.shared) | ({"normalize": _flat(False)} if calm else {})
    return replace(cut, inputs=inputs, shared=shared)


def _linear(cut: _Cut, inputs: Iterable[_Input]) -> _Cut:
    """A sum of models as it stands."""
    weighed = tuple(replace(i, chains=_only(i.chains, {"weight"})) for i in inputs)
    return _Cut(cut.module, weighed, None, {"normalize": _flat(False)}, cut.scale)


# Closing: back to a recipe, with what all slices share said once.


def _joined(form: _Form) -> _Form:
    """Slices that go on where the one before ended, with the same numbers, as one."""
    cuts: list[_Cut] = []
    for cut in form.cuts:
        if cuts and _goes_on(cuts[-1], cut):
            last = cuts[-1]
            inputs = tuple(
                replace(i, layers=_span(i.layers, o.layers))
                for i, o in zip(last.inputs, cut.inputs, strict=True)
            )
            base = last.base and cut.base
            if last.base and cut.base:
                base = replace(last.base, layers=_span(last.base.layers, cut.base.layers))
            cuts[-1] = replace(last, inputs=inputs, base=base)
        else:
            cuts.append(cut)
    return replace(form, cuts=tuple(cuts))


def _whole(form: _Form, depth: int | None) -> _Form:
    """A slice of all layers of all its models needs no ranges, unless it is multiplied."""
    ranges = {place for cut in form.cuts for _, place in _places(cut)}
    if depth is None or len(form.cuts) != 1 or ranges != {(0, depth)}:
        return form
    (cut,) = form.cuts
    if cut.scale:  # `models` can't say it
        return form
    base = replace(cut.base, layers=None) if cut.base else None
    return replace(form, cuts=(replace(cut, inputs=_unplaced(cut), base=base),))


def _goes_on(one: _Cut, other: _Cut) -> bool:
    chains = [*one.shared.values(), *(c for i in one.inputs for c in i.chains.values())]
    bare = [replace(cut, inputs=_unplaced(cut), base=None) for cut in (one, other)]
    pairs = zip(_places(one), _places(other), strict=False)
    return (
        not any(isinstance(s.value, tuple) for chain in chains for s in chain)
        and bare[0] == bare[1]
        and [m for m, _ in _places(one)] == [m for m, _ in _places(other)]
        and all(a and b and a[1] == b[0] for (_, a), (_, b) in pairs)
    )


def _unplaced(cut: _Cut) -> tuple[_Input, ...]:
    return tuple(replace(i, layers=None) for i in cut.inputs)


def _places(cut: _Cut) -> list[tuple[str, tuple[int, int] | None]]:
    base = [(cut.base.model, cut.base.layers)] if cut.base else []
    return [*((i.model, i.layers) for i in cut.inputs), *base]


def _span(one: tuple[int, int] | None, other: tuple[int, int] | None) -> tuple[int, int] | None:
    return (one[0], other[1]) if one and other else None


def _close(form: _Form, recipe: Recipe) -> Recipe:
    method = find_method(form.method)
    bases = {cut.base.model if cut.base else None for cut in form.cuts}
    base = bases.pop() if len(bases) == 1 else None
    everywhere = _common(form.cuts)
    modules = tuple(
        Module(
            name,
            tuple(
                _close_cut(method, cut, base, everywhere) for cut in form.cuts if cut.module == name
            ),
        )
        for name in dict.fromkeys(cut.module for cut in form.cuts)
    )
    parameters = _said(method, everywhere)
    return replace(
        recipe,
        method=form.method,
        slices=() if recipe.modules else modules[0].slices,
        modules=modules if recipe.modules else (),
        base=base,
        parameters=parameters,
        dtype=None if recipe.dtype in ("float32", "float64") else recipe.dtype,
        out_dtype=recipe.out_dtype or recipe.dtype,
    )


def _together(parts: Sequence[Recipe], recipe: Recipe) -> Recipe:
    """One recipe of parts that have methods of their own; each slice says all that it has."""

    def said(part: Recipe, one: Slice) -> Slice:
        own = tuple(sorted((*part.parameters, *one.parameters)))
        return replace(one, base=one.base or part.base, parameters=own, method=part.method)

    modules = tuple(
        Module(
            stated.name,
            tuple(
                said(part, one)
                for part in parts
                for module in part.modules or (Module("", part.slices),)
                for one in module.slices
                if module.name == stated.name
            ),
        )
        for stated in recipe.modules or (Module("", ()),)
    )
    first = parts[0]
    return replace(
        first,
        slices=() if recipe.modules else modules[0].slices,
        modules=modules if recipe.modules else (),
        base=None,
        parameters=(),
    )


def _common(cuts: tuple[_Cut, ...]) -> dict[str, Chain]:
    first: Mapping[str, Chain] = cuts[0].shared
    return {
        name: chain
        for name, chain in first.items()
        if all(cut.shared.get(name) == chain for cut in cuts)
    }


def _close_cut(
    method: MergeMethod, cut: _Cut, base: str | None, everywhere: Mapping[str, Chain]
) -> Slice:
    sources = [Source(i.model, i.layers, _said(method, i.chains)) for i in cut.inputs]
    listed = any(source.model == cut.base.model for source in sources) if cut.base else True
    if cut.base and not listed and (cut.base.layers or method.base is not Base.REQUIRED):
        sources.append(Source(cut.base.model, cut.base.layers))
    own = {name: chain for name, chain in cut.shared.items() if name not in everywhere}
    stated = cut.base.model if cut.base and base is None else None
    return Slice(tuple(sources), stated, _said(method, own), scale=cut.scale)


def _said(method: MergeMethod, chains: Mapping[str, Chain]) -> Parameters:
    """What must be said: what isn't the default."""
    said: list[tuple[str, Chain]] = []
    for name, chain in chains.items():
        parameter = method.parameter(name)
        default = parameter.default if parameter else None
        written = tuple(replace(s, value=_written(s.value)) for s in chain)
        if chain and not (default is not None and written == _flat(_written_one(default))):
            said.append((name, written))
    return tuple(sorted(said))


def _written(value: Scalar | tuple[Scalar, ...]) -> Scalar | tuple[Scalar, ...]:
    return tuple(map(_written_one, value)) if isinstance(value, tuple) else _written_one(value)


def _written_one(value: Scalar) -> Scalar:
    if isinstance(value, bool | str):
        return value
    return float(f"{value:.{_DIGITS - 1}e}") + 0.0  # -0 is 0
