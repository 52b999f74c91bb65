"""Divide the images of one annotation file into training and validation, the same way at every start.

The side of an image depends on a hash of its file name and the seed, so that every process divides the images alike.
Copies of one image (Roboflow's names end with `.rf.` and a hash) stay together. An image keeps its side when others are
added, except for a few that are moved so that both sides have images, and images of each class. Adding images may
change which ones are moved, so a checkpoint stores the names of the validation images.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import PurePosixPath

import numpy as np

COPY = re.compile(r"(_(jpe?g|png|bmp|webp|tiff?))?\.rf\.[0-9a-zA-Z]+$", re.IGNORECASE)


def choose_validation(
    names: Sequence[str], classes: Sequence[Sequence[int]], fraction: float, seed: int
) -> tuple[np.ndarray, list[int]]:
    """Mark the images to use for validation, bool [P]. Also list the classes that training or validation lacks.

    A class that occurs in at least two images, not counting copies, is put on both sides if possible. `names` are the
    files of P images, `classes` those that occur in each, and `fraction` is the share for validation, in 0..1.
    """
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(original_of(name), []).append(i)
    position = {stem: hash_fraction(stem, seed) for stem in groups}
    chosen = {stem: position[stem] < fraction for stem in groups}
    if len(groups) > 1:  # so that neither side is empty
        ordered = sorted(groups, key=position.__getitem__)
        chosen[ordered[0]], chosen[ordered[-1]] = True, False
    holders: dict[int, list[str]] = {}
    for stem, members in groups.items():
        for label in {label for i in members for label in classes[i]}:
            holders.setdefault(label, []).append(stem)
    one_sided = []
    for label in sorted(holders, key=lambda label: (len(holders[label]), label)):  # the rarest first
        stems = sorted(holders[label], key=position.__getitem__)
        if len(stems) < 2:
            one_sided.append(label)
        elif not any(chosen[stem] for stem in stems):
            chosen[stems[0]] = True
        elif all(chosen[stem] for stem in stems):
            chosen[stems[-1]] = False
    for label, stems in holders.items():
        if len(stems) >= 2 and len({chosen[stem] for stem in stems}) < 2:
            one_sided.append(label)  # another class needed its images on one side
    validation = np.zeros(len(names), dtype=bool)
    for stem, members in groups.items():
        validation[members] = chosen[stem]
    return validation, sorted(one_sided)


def original_of(name: str) -> str:
    """Return the name that all of Roboflow's copies of an image share: its path without the suffix and `.rf.HASH`."""
    return COPY.sub("", str(PurePosixPath(name).with_suffix("")))


def hash_fraction(stem: str, seed: int) -> float:
    """Return a pseudo-random number in 0..1 that depends only on `stem` and `seed`."""
    return int.from_bytes(sha256(f"{seed} {stem}".encode(errors="surrogatepass")).digest()[:8], "big") / 2**64
