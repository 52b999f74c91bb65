"""Recognise categories that are no classes: a heading that groups the others, as Roboflow writes it, and background."""

from collections.abc import Iterable

BACKGROUND = ("_background_", "__background__", "__ignore__")


def unused_categories(entries: list, used: Iterable[int]) -> list[int]:
    """The ids of categories that no annotation uses and that are no class.

    That is the category that all others name as their supercategory, and those called background. A category that is
    only unused stays: a split may lack a class. So does the last one.

    Args:
        entries: a COCO file's list "categories", which may hold anything.
        used: the category ids of its annotations.
    """
    valid = [e for e in entries if isinstance(e, dict) and type(e.get("id")) is int and isinstance(e.get("name"), str)]
    if len(valid) < 2 or len({e["id"] for e in valid}) < len(entries):
        return []
    used = set(used)
    dropped = []
    for entry in (e for e in valid if e["id"] not in used):
        others = [e for e in valid if e is not entry and e["name"] not in BACKGROUND]
        groups_the_others = bool(others) and all(e.get("supercategory") == entry["name"] for e in others)
        if groups_the_others or entry["name"] in BACKGROUND:
            dropped.append(entry["id"])
    return dropped if len(dropped) < len(valid) else []
