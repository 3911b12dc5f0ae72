"""What can be wrong with a recipe or a model folder: one sentence each, with what to do.

MergeError
├── CheckpointError    a parent's folder: files, configuration, tensors
└── RecipeError        what the recipe asks of the parents
    └── NumbersError   its numbers alone: the same recipe with others may do
"""


class MergeError(ValueError):
    """Anything that stops a merge before a tensor is written."""


class CheckpointError(MergeError):
    """A model folder cannot be read as a parent."""


class RecipeError(MergeError):
    """A recipe asks for something that it may not, or that its parents do not have."""


class NumbersError(RecipeError):
    """A method can't merge with the numbers that a recipe gives; with others it may."""
