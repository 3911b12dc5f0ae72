"""Keep the libraries' own progress bars, warnings and telemetry out of our output."""

import logging
import os
import warnings


def quiet(verbose: bool = False) -> None:
    """Set the environment and log levels; to be called before transformers is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if verbose:
        return
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    for name in ("lm_eval", "datasets", "transformers", "optuna", "accelerate", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
