"""Collect the problems of a dataset by kind: their number, and descriptions of the first few.

Readers note problems here instead of stopping at the first one, so that a user can fix all of them at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

NAMED = 3  # described problems per kind
LONGEST = 120  # characters of a value in a message
Found = TypeVar("Found")

# Kinds of problems by consequence: kind -> the affected items, in the plural.

# A whole file is in doubt. `--skip-bad` cannot drop it, as the remaining items would be equally wrong.
DOUBTFUL = {
    "box format": "annotation files whose boxes are not x, y, width, height",
    "fractions": "annotation files whose coordinates are not pixels",
    "category numbering": "annotation files that number categories in two ways",
    "category name": "names that several categories share; rename these, or give them different supercategories",
}
# Results would be wrong. A run stops, unless `--skip-bad` drops the items.
WRONG = {
    # the lists of a COCO file
    "category": "invalid categories",
    "category id": "categories with a repeated id",
    "image": "invalid images",
    "image id": "images with a repeated id",
    "annotation": "invalid annotations",
    "annotation id": "annotations with a repeated id",
    "unknown image": "annotations of images that are not in 'images'",
    "unknown category": "annotations of categories that are not in 'categories'",
    # boxes and masks
    "box numbers": "boxes with numbers that are not finite",
    "odd polygon": "polygons with an odd number of coordinates",
    "point pairs": "polygons given as pairs of coordinates instead of [x1, y1, x2, y2, ...]",
    "polygon numbers": "polygons with coordinates beyond any image size",
    "code size": "run-length codes of another size than their image",
    "code counts": "invalid run-length codes",
    "apart": "boxes and masks that hardly overlap",
    # layouts other than COCO's
    "json": "invalid JSON files",
    "no image": "annotation files without an image file",
    "same image": "images that are annotated in two places, of which the first is used",
    "outline": "invalid outlines",
    "track gap": "tracks without a shape in some frames; export them from CVAT again, which adds these shapes",
    "no class": "objects without a class",
    "label line": "invalid lines in label files",
    "shared labels": "label or mask files that several images share; rename the images and their files",
    "class id": "objects with class numbers beyond 'names'",
    "colour": "colours in masks that belong to no class",
    "xml": "invalid XML files",
    "class": "objects of classes other than the devkit's twenty",
    "corners": "boxes whose corners are not the upper left and the lower right one",
    "masks": "invalid mask images",
    "blurred masks": "masks with blurred edges, which mix their objects; save masks as PNG, without anti-aliasing, and "
    "resize them with the nearest neighbour",
    # images
    "lfs": "Git LFS pointers instead of images; run `git lfs pull`",
    "file name": "file names that are folders or lead out of the image folder, which are never opened",
    "missing": "images that are missing",
    "empty": "images that are empty files",
    "unreadable": "images that cannot be opened",
    "not an image": "files that are not images",
    "float": "images that 8-bit RGB cannot hold; give --channels N to read their N channels as stored",
    "channels": "images of another number of channels than --channels",
    "values": "images whose values are of another type than those of the others",
    "form": "images that cannot be read as stored (--channels)",
    "size": "images of another size than annotated",
    "bomb": "images too large to be opened safely",
}
# Harmless: training drops the items and continues.
DROPPED = {
    "empty box": "boxes without area",
    "box outside": "boxes outside their image",
    "no mask": "objects without a mask",
}
# Harmless: the items are used, or deliberately not.
KEPT = {
    # COCO files
    "unused file": "COCO files that are not used; to choose others give --train-json FILE and --val-json FILE",
    "image folders": "COCO files whose images are in several folders, of which one is used; to choose give "
    "--image-folder with --train-json FILE and --val-json FILE",
    "unused category": "categories that only group the others or mean background, dropped",
    "loose boxes": "annotation files whose boxes fit their masks badly",
    "short polygon": "objects with polygons of fewer than three points, which are left out",
    "far outside": "masks with points far outside their image, which are clipped",
    # layouts other than COCO's
    "embedded": "images that exist only inside their JSON (imageData), read from there",
    "repeated image": "images that a list names more than once, used once",
    "not an area": "shapes without an area (points, lines), which are left out",
    "ignored": "shapes labelled as background or to be ignored, which are left out",
    "unlabelled": "images without an annotation file, which are left out",
    "other json": "JSON files without annotations, which are left out",
    "labels beside": "label files beside their images, used only where the folder of labels has none",
    "no label image": "label files without an image, which are left out",
    "no mask image": "masks without an image, which are left out",
    "clipped": "objects that extend outside their image, which are clipped",
    "new class": "objects of classes that the list of classes lacks, which are added to it",
    "two classes": "objects with pixels of several classes, which get the most frequent one",
    "semantic masks": "folders of masks that look like classes of pixels, not objects; each value of a mask is taken "
    "as one object",
    "assumed encoding": "text files that are not UTF-8; save them as UTF-8 if these characters are wrong",
    "single value": "mask images with a single value, taken as one object each",
    "blurred edges": "masks of one object with blurred edges, cut at half their value",
    "no split": "splits that are named but missing",
    # repaired in COCO files
    "encoding": "annotation files that are not plain UTF-8, decoded",
    "text id": "ids that are not whole numbers, replaced by whole numbers",
    "renumbered": "annotation ids that are missing, invalid or repeated, renumbered",
    "repeated": "annotations that repeat another one exactly, dropped",
    "url": "images without a file name, named after their URL or path",
    "no size": "images without height and width, read from the image files",
    "found elsewhere": "file names that are wrong, found in the image folder",
    "ambiguous": "file names that match several files, of which none is used",
    "no segmentation": "annotations without a segmentation, used as objects without a mask",
    "flat polygon": "polygons given as [x, y, ...] instead of [[x, y, ...]], converted",
    "converted pairs": "polygons given as pairs of coordinates, converted",
    "exchanged size": "run-length codes of size width, height instead of height, width, corrected",
    "no box": "annotations without a box, taken from the mask",
    "area": "missing or invalid areas, taken from the mask",
    "crowd": "iscrowd values that are not 0 or 1, converted",
    # images
    "deep": "images of 16-bit grey, read as 8-bit RGB; --channels 1 keeps all of their values",
    "exif": "images whose EXIF orientation their size does not confirm, read as stored; --exif apply turns them "
    "upright",
}
KINDS = DOUBTFUL | WRONG | DROPPED | KEPT


@dataclass
class Problems:
    """Problems found so far: the number of each kind, and descriptions of the first few."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def together(cls, *parts: "Problems") -> "Problems":
        """Combine the problems of all parts in a new collection."""
        whole = cls()
        for part in parts:
            whole.update(part)
        return whole

    def add(self, kind: str, example: str) -> None:
        self.add_all(kind, [example], str)

    def add_all(self, kind: str, found: Iterable[Found], describe: Callable[[Found], str]) -> None:
        """Add a problem for each of `found`. Only the first few are passed to `describe`."""
        all_found = list(found)
        if all_found:
            self.counts[kind] = self.counts.get(kind, 0) + len(all_found)
            examples = self.examples.setdefault(kind, [])
            examples += [printable(describe(one)) for one in all_found[: NAMED - len(examples)]]

    def update(self, other: "Problems") -> None:
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            examples = self.examples.setdefault(kind, [])
            examples += other.examples[kind][: NAMED - len(examples)]

    def wrong(self) -> list[str]:
        """List the kinds of found problems that would make results wrong, in the order of KINDS."""
        return [kind for kind in DOUBTFUL | WRONG if kind in self.counts]

    def harmless(self) -> list[str]:
        """List the kinds of found problems that would not make results wrong, in the order of KINDS."""
        return [kind for kind in DROPPED | KEPT if kind in self.counts]

    def blocking(self, skip_bad: bool) -> list[str]:
        """List the kinds of found problems that stop a run; with `skip_bad`, only those that cannot be skipped."""
        return [kind for kind in self.wrong() if not skip_bad or kind in DOUBTFUL]

    def describe(self, kind: str, outcome: str = "") -> str:
        """Describe the problems of one kind in one line, with their count and examples."""
        count, examples = self.counts[kind], self.examples[kind]
        more = f"; and {count - len(examples)} more" if count > len(examples) else ""
        return f"{KINDS[kind]} ({count}){outcome}: {'; '.join(examples)}{more}"

    def require_none_wrong(self, source: Path, skip_bad: bool = False) -> None:
        """Raise ValueError if `source` has problems that stop a run; see `blocking`."""
        if self.blocking(skip_bad):
            raise ValueError(f"{source}: {self.summary()}")

    def summary(self) -> str:
        """Describe the first kind in `wrong` with examples, and the other kinds in it by their counts."""
        first, *others = self.wrong()
        return self.describe(first) + "".join(f"; {KINDS[kind]} ({self.counts[kind]})" for kind in others)


def printable(text: str) -> str:
    """Return a text as one line, without control characters that would move a terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def shown(value: object) -> str:
    """Format a value from a file as one line of limited length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def leaves_folder(name: str) -> bool:
    """Whether a file name from a dataset must not be opened: it may lead out of its folder, or cannot name a file."""
    parts = name.replace("\\", "/").split("/")
    has_drive = len(parts[0]) == 2 and parts[0][1] == ":"
    is_folder = parts[-1] in ("", ".")
    return is_folder or "\0" in name or parts[0] == "" or has_drive or ".." in parts or not is_file_name(name)


def is_file_name(name: str) -> bool:
    """Whether a name can be encoded in UTF-8 and is short enough for a path."""
    try:
        return len(name.encode()) < 1024
    except UnicodeEncodeError:
        return False
