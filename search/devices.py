"""Where arithmetic runs: the words of a study file and of the command line."""

import re

import torch


def find_device(word: str, mistakes: list[str]) -> torch.device:
    """The device that a word means; adds what is wrong with it to `mistakes`."""
    available = torch.cuda.is_available()
    if word == "auto":
        return torch.device("cuda" if available else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", word):
        mistakes.append(f"device: '{word}' is unknown; give auto, cpu, cuda or cuda:1")
    elif word.startswith("cuda") and int(word.partition(":")[2] or 0) >= torch.cuda.device_count():
        mistakes.append(f"device: '{word}' is asked for, but this machine has no such device")
    else:
        return torch.device(word)
    return torch.device("cpu")
