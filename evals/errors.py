"""What can be wrong with a model or a task before anything is scored."""


class EvaluationError(ValueError):
    """A model can't be built, or a task can't be loaded or split: one sentence, with what to do."""


class NoMemoryError(EvaluationError):
    """Memory ran out in a forward pass; it may do so only while others need it."""
