"""Drop categories that are not classes (headings such as Roboflow's, background), and make equal names distinct."""

from collections import Counter
from collections.abc import Iterable

from dataset_files.problems import Problems

BACKGROUND = ("_background_", "__background__", "__ignore__")


def unused_categories(entries: list, used: Iterable[int]) -> list[int]:
    """Return the ids of categories that no annotation uses and that are not classes: headings and background.

    A heading is the supercategory of all other categories. Any other unused category stays, since a split may lack a
    class. If no category would be left, all stay.

    Args:
        entries: a COCO file's list "categories", not yet validated.
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


def tell_apart(names: dict[int, str], entries: list, problems: Problems) -> None:
    """Add the supercategory to names that several categories share; note those that are still equal.

    Classes of different splits are matched by name, so two classes of one name would be merged.

    Args:
        names: category id -> name; changed in place.
        entries: the file's list "categories".
    """
    shared = {name for name, count in Counter(names.values()).items() if count > 1}
    for entry in entries if shared else ():
        key = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(key, int) and names.get(key, "") in shared and entry.get("supercategory"):
            names[key] = f"{names[key]} ({entry['supercategory']})"
    for name, count in Counter(names.values()).items():
        if count > 1:
            ids = ", ".join(str(key) for key, other in names.items() if other == name)
            problems.add("category name", f"'{name}', ids {ids}")
