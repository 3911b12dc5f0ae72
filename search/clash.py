"""Our packages have common names; say so when another distribution provides one of them too."""

from importlib.metadata import packages_distributions

from search.errors import StudyError

_OURS = ("search", "merge_core", "evals", "studies")


def refuse_clashes() -> None:
    """Stop if another installed distribution shadows one of our packages.

    Raises:
        StudyError: Naming both.
    """
    providers = packages_distributions()
    for name in _OURS:
        others = sorted(set(providers.get(name, [])) - {"outcross"})
        if others:
            raise StudyError(
                [
                    f"the package '{name}' is also provided by {', '.join(others)}; install "
                    "outcross in an environment of its own"
                ]
            )
