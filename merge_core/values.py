"""Which value a parameter takes for a tensor: mergekit 0.1.5's precedence.

Source before slice before module before recipe before default; in each, the first setting whose
filter is part of the tensor's name; gradients by depth within the slice.
"""

from dataclasses import dataclass, field
from typing import NoReturn

from merge_core.errors import NumbersError, RecipeError
from merge_core.geometry import TensorRef
from merge_core.keys import nearest
from merge_core.naming import role
from merge_core.recipe import Parameters, Scalar, Setting
from merge_core.registry import SHARE, Bounds, Check, MergeMethod, Parameter

Value = Scalar | tuple[Scalar, ...]
Params = tuple[tuple[str, Value], ...]
"""Resolved parameters of one tensor, in signature order; per-parent ones are tuples."""


@dataclass(frozen=True, slots=True)
class Values:
    """The parameters of one slice, ready to be asked tensor by tensor.

    Attributes:
        method: Whose parameters they are.
        chains: For each parameter in signature order, the settings of its scopes one after the
            other: one chain for each parent, or one for the tensor.
        plain: Whether no filter matters, so that a tensor's value depends on its depth only.
        kept: Values by depth, where they are plain.
        check: The method's, of values that have to go together.
        passed: Values that it let pass.
        scale: What multiplies the merged tensors, by filter.
    """

    method: MergeMethod
    chains: tuple[tuple[tuple[Setting, ...], ...], ...]
    plain: bool
    kept: dict[float, Params] = field(default_factory=dict[float, Params])
    check: Check | None = None
    passed: set[Params] = field(default_factory=set[Params])
    scale: tuple[Setting, ...] = ()

    def factor(self, out: str) -> float:
        """What multiplies a merged tensor, by its name in the output."""
        found = resolve(self.scale, out, 0.0) if self.scale else None
        return 1.0 if found is None else float(found)

    def at(self, out: str, inputs: tuple[TensorRef, ...], depth: float) -> Params:
        """Values for one tensor.

        Args:
            out: Its name in the output: filters of shared parameters look there.
            inputs: The parents' tensors, `(parents,)`: filters of per-parent ones look there.
            depth: Position within the slice, 0 to 1.

        Raises:
            RecipeError: If a value is missing, of the wrong kind or out of bounds.
            NumbersError: If the method can't merge with these numbers.
        """
        if not self.plain:
            return self._resolve(out, inputs, depth)
        if depth not in self.kept:
            self.kept[depth] = self._resolve(out, inputs, depth)
        return self.kept[depth]

    def _resolve(self, out: str, inputs: tuple[TensorRef, ...], depth: float) -> Params:
        resolved: list[tuple[str, Value]] = []
        for parameter, chains in zip(self.method.parameters, self.chains, strict=True):
            if parameter.per_parent:
                value: Value = tuple(
                    self._value(parameter, chain, _asked(out, ref), depth, ref.parent)
                    for chain, ref in zip(chains, inputs, strict=True)
                )
            else:
                value = self._value(parameter, chains[0], out, depth, None)
            resolved.append((parameter.name, value))
        params = tuple(resolved)
        if self.check is not None and params not in self.passed:
            self._judge(self.check, params, out, inputs)
        return params

    def _judge(self, check: Check, params: Params, out: str, inputs: tuple[TensorRef, ...]) -> None:
        models = tuple(ref.parent for ref in inputs)
        if (reason := check(models, **dict(params))) is not None:
            raise NumbersError(f"tensor '{out}': {reason}")
        self.passed.add(params)

    def _value(
        self,
        parameter: Parameter,
        chain: tuple[Setting, ...],
        name: str,
        depth: float,
        model: str | None,
    ) -> Scalar:
        if (value := resolve(chain, name, depth)) is not None:
            return _typed(parameter, value, name, model)
        if parameter.default is None:
            raise RecipeError(
                f"tensor '{name}': merge_method '{self.method.name}' needs '{parameter.name}'"
                + (f" for model '{model}'" if model else "")
                + _given(chain)
            )
        return parameter.default


def read_values(
    method: MergeMethod,
    sources: tuple[Parameters, ...],
    outer: tuple[Parameters, ...],
    scale: tuple[Setting, ...] = (),
    *,
    judge: bool = True,
) -> Values:
    """Line up what the scopes of one slice say.

    Args:
        method: Whose parameters are asked for.
        sources: What each parent's own scope says, `(parents,)`.
        outer: What slice, module and recipe say, the innermost first.
        scale: What the slice says of the merged tensors.
        judge: Whether to refuse what the method can't merge with.
    """
    chains = tuple(
        tuple(_chain(parameter, (source, *outer)) for source in sources)
        if parameter.per_parent
        else (_chain(parameter, outer),)
        for parameter in method.parameters
    )
    plain = all(s.filter is None for of in chains for chain in of for s in chain)
    return Values(method, chains, plain, check=method.check if judge else None, scale=scale)


def resolve(settings: tuple[Setting, ...], name: str, depth: float) -> Scalar | None:
    """The value of the first setting that matches a tensor's name, its gradient taken at a depth.

    Args:
        settings: What the scopes say about one parameter, the innermost first.
        name: The tensor's name.
        depth: Position within the slice, 0 to 1.

    Returns:
        None if no setting matches.
    """
    for setting in settings:
        if setting.filter is None or setting.filter in name:
            return _at_depth(setting.value, depth)
    return None


def _chain(parameter: Parameter, scopes: tuple[Parameters, ...]) -> tuple[Setting, ...]:
    """All settings that can matter: none after the first without a filter."""
    chain: list[Setting] = []
    for scope in scopes:
        for setting in next((found for key, found in scope if key == parameter.name), ()):
            chain.append(setting)
            if setting.filter is None:
                return tuple(chain)
    return tuple(chain)


def _given(chain: tuple[Setting, ...]) -> str:
    """Which groups of tensors have a value, where some do and what to write for all others."""
    groups = ", ".join(dict.fromkeys(f"'{one.filter}'" for one in chain if one.filter))
    if not groups:
        return ""
    return (
        f': there are values for {groups} alone; give one for all other tensors too, with "*" at '
        "the end of 'by', or an entry without a filter"
    )


def _asked(out: str, ref: TensorRef) -> str:
    """Where a parent's filters look; embeddings that stand for a tied head count as the head."""
    return out if role(out) == "head" else ref.name


def _typed(parameter: Parameter, value: Scalar, name: str, model: str | None) -> Scalar:
    if parameter.kind is bool and value in (True, False):
        return bool(value)
    if parameter.kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        bounds = parameter.bounds
        if bounds is not None and not bounds.least <= value <= bounds.most:
            _refuse_number(parameter.name, bounds, value, name, model)
        return float(value)
    if parameter.kind is str and value in parameter.choices:
        return value
    expected = {bool: "true or false", float: "a number", str: "one of its words"}[parameter.kind]
    hint = f"; {nearest(str(value), parameter.choices)}" if parameter.choices else ""
    if parameter.kind is float and isinstance(value, bool):
        hint = f"; write {float(value):g}, which is what mergekit takes it for"
    raise RecipeError(
        f"tensor '{name}': '{parameter.name}' must be {expected}, got {value!r}{hint}"
    )


def _refuse_number(
    parameter: str, bounds: Bounds, value: float, name: str, model: str | None
) -> NoReturn:
    whose = f" of model '{model}'" if model else ""
    percent = bounds == SHARE and 2 <= value <= 100
    raise RecipeError(
        f"tensor '{name}': '{parameter}'{whose} must be {bounds.words}, got {value:g}"
        + (f"; for {value:g} % write {value / 100:g}" if percent else "")
    )


def _at_depth(value: Scalar | tuple[Scalar, ...], depth: float) -> Scalar:
    """A gradient's value: numbers are interpolated, anything else is picked."""
    if not isinstance(value, tuple):
        return value
    place = depth * (len(value) - 1)
    low = min(int(place), len(value) - 1)
    high = min(low + 1, len(value) - 1)
    left, right = value[low], value[high]
    if isinstance(left, bool | str) or isinstance(right, bool | str):
        return left
    return left + (right - left) * (place - low)
