"""Parameters that say nothing to a method, though recipes for mergekit carry them.

mergekit reads past whatever its method doesn't declare, and declares for `task_arithmetic` what
that method never uses. Such recipes are merged, as mergekit merges them, with a note; what could
have changed a result there, or anywhere, stays an error.
"""

from collections.abc import Sequence

# Its only effect in mergekit is on memory, and mergekit-evolve writes it into every recipe.
_SILENT = "int8_mask"
# embed_slerp is of mergekit's first versions; 0.1.5 doesn't know it.
_ANYWHERE = ("normalize", "rescale", "embed_slerp")
_OF_TASK_ARITHMETIC = "density"


def passed_over(name: str, methods: Sequence[str]) -> str | None:
    """What to say of a parameter that none of the methods has.

    Returns:
        A note, empty where there is nothing to tell; None where it is a mistake.
    """
    if name == _SILENT:
        return ""
    if name == _OF_TASK_ARITHMETIC and set(methods) == {"task_arithmetic"}:
        return (
            "parameter 'density' does nothing with merge_method 'task_arithmetic', as in mergekit: "
            "all elements are kept; 'ties', 'dare_linear' and others drop some"
        )
    if name not in _ANYWHERE:
        return None
    words = "' or '".join(methods)
    return f"parameter '{name}' does nothing with merge_method '{words}' and is passed over"
