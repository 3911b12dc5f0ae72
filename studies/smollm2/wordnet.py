"""Reads the nouns of WordNet 3.0 (Fellbaum, 1998): which words name one kind of thing only.

A line of the noun file is `offset file-number type words-in-hex word id word id ... | gloss`;
the file number says which kind of thing the noun is (lexnames(5WN) of the WordNet manual).
"""

from collections.abc import Iterator
from pathlib import Path

# The label is the word the model has to say, so each is one token; the number is WordNet's file.
KINDS: dict[str, int] = {
    "animal": 5,
    "plant": 20,
    "food": 13,
    "person": 18,
    "object": 6,
    "substance": 27,
    "action": 4,
}


def words_by_kind(folder: Path) -> dict[str, tuple[str, ...]]:
    """Returns for each kind the first words of its synsets, in the order of WordNet.

    Kept are plain lower-case words of 4 to 13 letters all of whose senses lie in one noun file.
    """
    synsets = tuple(_synsets(folder))
    files: dict[str, set[int]] = {}
    for number, words in synsets:
        for word in words:
            files.setdefault(word.lower(), set()).add(number)
    return {
        kind: tuple(
            dict.fromkeys(
                words[0]
                for number, words in synsets
                if number == wanted and _plain(words[0]) and len(files[words[0]]) == 1
            )
        )
        for kind, wanted in KINDS.items()
    }


def _synsets(folder: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields (file number, words) of every noun synset; the package splits the file in two."""
    for name in ("data.noun1", "data.noun2"):
        for line in (folder / name).read_text("utf-8").splitlines():
            if line and not line.startswith("  "):
                fields = line.split()
                count = int(fields[3], 16)
                yield int(fields[1]), tuple(fields[4 : 4 + 2 * count : 2])


def _plain(word: str) -> bool:
    return word.isascii() and word.isalpha() and word.islower() and 4 <= len(word) <= 13
