"""What can be wrong with a recipe or a model folder: one sentence each, with what to do.

MergeError
├── CheckpointError    a parent's folder: files, configuration, tensors
└── RecipeError        what the recipe asks of the parents
"""


class MergeError(ValueError):
    """Anything that stops a merge before a tensor is written."""


class CheckpointError(MergeError):
    """A model folder cannot be read as a parent."""


class RecipeError(MergeError):
    """A recipe asks for something that it may not, or that its parents do not have."""
