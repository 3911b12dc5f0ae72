"""Which value a parameter takes for a tensor: mergekit 0.1.5's precedence.

Source before slice before module before recipe before default; in each, the first setting whose
filter is part of the tensor's name; gradients by depth within the slice.
"""

from dataclasses import dataclass, field

from merge_core.errors import RecipeError
from merge_core.geometry import TensorRef
from merge_core.keys import nearest
from merge_core.naming import role
from merge_core.recipe import Parameters, Scalar, Setting
from merge_core.registry import MergeMethod, Parameter

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
        scale: What multiplies the merged tensors, by filter.
    """

    method: MergeMethod
    chains: tuple[tuple[tuple[Setting, ...], ...], ...]
    plain: bool
    kept: dict[float, Params] = field(default_factory=dict[float, Params])
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
            RecipeError: If a value is missing or is of the wrong kind.
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
        return tuple(resolved)

    def _value(
        self,
        parameter: Parameter,
        chain: tuple[Setting, ...],
        name: str,
        depth: float,
        model: str | None,
    ) -> Scalar:
        if (value := resolve(chain, name, depth)) is not None:
            return _typed(parameter, value, name)
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
) -> Values:
    """Line up what the scopes of one slice say.

    Args:
        method: Whose parameters are asked for.
        sources: What each parent's own scope says, `(parents,)`.
        outer: What slice, module and recipe say, the innermost first.
        scale: What the slice says of the merged tensors.
    """
    chains = tuple(
        tuple(_chain(parameter, (source, *outer)) for source in sources)
        if parameter.per_parent
        else (_chain(parameter, outer),)
        for parameter in method.parameters
    )
    plain = all(s.filter is None for of in chains for chain in of for s in chain)
    return Values(method, chains, plain, scale=scale)


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


def _typed(parameter: Parameter, value: Scalar, name: str) -> Scalar:
    if parameter.kind is bool and value in (True, False):
        return bool(value)
    if parameter.kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if parameter.kind is str and value in parameter.choices:
        return value
    expected = {bool: "true or false", float: "a number", str: "one of its words"}[parameter.kind]
    hint = f"; {nearest(str(value), parameter.choices)}" if parameter.choices else ""
    raise RecipeError(
        f"tensor '{name}': '{parameter.name}' must be {expected}, got {value!r}{hint}"
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
