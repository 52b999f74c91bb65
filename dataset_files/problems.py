"""Collect the problems of a dataset by kind: their number, and descriptions of the first few.

Readers note problems here instead of stopping at the first one, so that a user can fix all of them at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

NAMED = 3  # described problems per kind
LONGEST = 120  # characters of a value in a message
Found = TypeVar("Found")


class Kind(NamedTuple):
    """A kind of problem.

    Attributes:
        text: the affected items, in the plural.
        wrong: whether it would make results wrong; if not, training drops the affected items and continues.
        stays: whether training keeps the affected items of a harmless kind.
        skippable: whether `--skip-bad` can drop the affected items of a wrong kind. It cannot if a whole file is in
            doubt, as the remaining items would be equally wrong.
    """

    text: str
    wrong: bool = True
    stays: bool = False
    skippable: bool = True


KINDS = {
    # a COCO file as a whole; listed first, since other problems follow from these
    "box format": Kind("annotation files whose boxes are not x, y, width, height", skippable=False),
    "fractions": Kind("annotation files whose coordinates are not pixels", skippable=False),
    "category numbering": Kind("annotation files that number categories in two ways", skippable=False),
    # the lists of a COCO file
    "unused file": Kind(
        "COCO files that are not used; to choose others give --train-json FILE and --val-json FILE", False, stays=True
    ),
    "image folders": Kind(
        "COCO files whose images are in several folders, of which one is used; to choose give --image-folder with "
        "--train-json FILE and --val-json FILE",
        wrong=False,
        stays=True,
    ),
    "category": Kind("invalid categories"),
    "category id": Kind("categories with a repeated id"),
    "category name": Kind(
        "names that several categories share; rename these, or give them different supercategories", skippable=False
    ),
    "image": Kind("invalid images"),
    "image id": Kind("images with a repeated id"),
    "annotation": Kind("invalid annotations"),
    "annotation id": Kind("annotations with a repeated id"),
    "unknown image": Kind("annotations of images that are not in 'images'"),
    "unknown category": Kind("annotations of categories that are not in 'categories'"),
    "unused category": Kind("categories that only group the others or mean background, dropped", False, stays=True),
    # boxes and masks
    "box numbers": Kind("boxes with numbers that are not finite"),
    "odd polygon": Kind("polygons with an odd number of coordinates"),
    "point pairs": Kind("polygons given as pairs of coordinates instead of [x1, y1, x2, y2, ...]"),
    "polygon numbers": Kind("polygons with coordinates beyond any image size"),
    "code size": Kind("run-length codes of another size than their image"),
    "code counts": Kind("invalid run-length codes"),
    "apart": Kind("boxes and masks that hardly overlap"),
    "loose boxes": Kind("annotation files whose boxes fit their masks badly", wrong=False, stays=True),
    "empty box": Kind("boxes without area", wrong=False),
    "box outside": Kind("boxes outside their image", wrong=False),
    "no mask": Kind("objects without a mask", wrong=False),
    "short polygon": Kind("objects with polygons of fewer than three points, which are left out", False, stays=True),
    "far outside": Kind("masks with points far outside their image, which are clipped", False, stays=True),
    # layouts other than COCO's
    "json": Kind("invalid JSON files"),
    "no image": Kind("annotation files without an image file"),
    "embedded": Kind("images that exist only inside their JSON (imageData), read from there", False, stays=True),
    "same image": Kind("images that are annotated in two places, of which the first is used"),
    "outline": Kind("invalid outlines"),
    "track gap": Kind("tracks without a shape in some frames; export them from CVAT again, which adds these shapes"),
    "no class": Kind("objects without a class"),
    "label line": Kind("invalid lines in label files"),
    "shared labels": Kind("label or mask files that several images share; rename the images and their files"),
    "class id": Kind("objects with class numbers beyond 'names'"),
    "colour": Kind("colours in masks that belong to no class"),
    "repeated image": Kind("images that a list names more than once, used once", wrong=False, stays=True),
    "not an area": Kind("shapes without an area (points, lines), which are left out", wrong=False, stays=True),
    "ignored": Kind("shapes labelled as background or to be ignored, which are left out", wrong=False, stays=True),
    "unlabelled": Kind("images without an annotation file, which are left out", wrong=False, stays=True),
    "labels beside": Kind(
        "label files beside their images, used only where the folder of labels has none", False, True
    ),
    "no label image": Kind("label files without an image, which are left out", wrong=False, stays=True),
    "no mask image": Kind("masks without an image, which are left out", wrong=False, stays=True),
    "clipped": Kind("objects that extend outside their image, which are clipped", wrong=False, stays=True),
    "new class": Kind("objects of classes that the list of classes lacks, which are added to it", False, stays=True),
    "two classes": Kind("objects with pixels of several classes, which get the most frequent one", False, stays=True),
    "semantic masks": Kind(
        "folders of masks that look like classes of pixels, not objects; each value of a mask is taken as one object",
        wrong=False,
        stays=True,
    ),
    "assumed encoding": Kind(
        "text files that are not UTF-8; save them as UTF-8 if these characters are wrong", wrong=False, stays=True
    ),
    "single value": Kind("mask images with a single value, taken as one object each", wrong=False, stays=True),
    "blurred edges": Kind("masks of one object with blurred edges, cut at half their value", wrong=False, stays=True),
    "no split": Kind("splits that are named but missing", wrong=False, stays=True),
    # VOC's files
    "xml": Kind("invalid XML files"),
    "class": Kind("objects of classes other than the devkit's twenty"),
    "corners": Kind("boxes whose corners are not the upper left and the lower right one"),
    "masks": Kind("invalid mask images"),
    "blurred masks": Kind(
        "masks with blurred edges, which mix their objects; save masks as PNG, without anti-aliasing, and resize them "
        "with the nearest neighbour"
    ),
    # repaired in COCO files
    "encoding": Kind("annotation files that are not plain UTF-8, decoded", wrong=False, stays=True),
    "text id": Kind("ids that are not whole numbers, replaced by whole numbers", wrong=False, stays=True),
    "renumbered": Kind("annotation ids that are missing, invalid or repeated, renumbered", wrong=False, stays=True),
    "repeated": Kind("annotations that repeat another one exactly, dropped", wrong=False, stays=True),
    "url": Kind("images without a file name, named after their URL or path", wrong=False, stays=True),
    "no size": Kind("images without height and width, read from the image files", wrong=False, stays=True),
    "found elsewhere": Kind("file names that are wrong, found in the image folder", wrong=False, stays=True),
    "ambiguous": Kind("file names that match several files, of which none is used", wrong=False, stays=True),
    "no segmentation": Kind("annotations without a segmentation, used as objects without a mask", False, stays=True),
    "flat polygon": Kind("polygons given as [x, y, ...] instead of [[x, y, ...]], converted", False, stays=True),
    "converted pairs": Kind("polygons given as pairs of coordinates, converted", wrong=False, stays=True),
    "exchanged size": Kind("run-length codes of size width, height instead of height, width, corrected", False, True),
    "no box": Kind("annotations without a box, taken from the mask", wrong=False, stays=True),
    "area": Kind("missing or invalid areas, taken from the mask", wrong=False, stays=True),
    "crowd": Kind("iscrowd values that are not 0 or 1, converted", wrong=False, stays=True),
    # images
    "lfs": Kind("Git LFS pointers instead of images; run `git lfs pull`"),
    "file name": Kind("file names that are folders or lead out of the image folder, which are never opened"),
    "missing": Kind("images that are missing"),
    "empty": Kind("images that are empty files"),
    "unreadable": Kind("images that cannot be opened"),
    "not an image": Kind("files that are not images"),
    "float": Kind("images of floating-point values, whose range is unknown; save them with 8 or 16 bits"),
    "size": Kind("images of another size than annotated"),
    "bomb": Kind("images too large to be opened safely"),
    "exif": Kind(
        "images whose EXIF orientation their size does not confirm, read as stored; --exif apply turns them upright",
        wrong=False,
        stays=True,
    ),
}


@dataclass
class Problems:
    """Problems found so far: the number of each kind, and descriptions of the first few."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str) -> None:
        self.add_all(kind, [example], lambda text: text)

    def add_all(self, kind: str, found: Iterable[Found], describe: Callable[[Found], str]) -> None:
        """Add all of `found`; only the first few are described."""
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
        """List the kinds found that would make results wrong, in the order of KINDS."""
        return [kind for kind in KINDS if kind in self.counts and KINDS[kind].wrong]

    def harmless(self) -> list[str]:
        """List the kinds found that would not make results wrong, in the order of KINDS."""
        return [kind for kind in KINDS if kind in self.counts and not KINDS[kind].wrong]

    def describe(self, kind: str, outcome: str = "") -> str:
        """Describe a kind with its count and examples, in one line."""
        count, examples = self.counts[kind], self.examples[kind]
        more = f"; and {count - len(examples)} more" if count > len(examples) else ""
        return f"{KINDS[kind].text} ({count}){outcome}: {'; '.join(examples)}{more}"

    def unskippable(self) -> list[str]:
        """List the kinds found that stop a run even with `--skip-bad`."""
        return [kind for kind in self.wrong() if not KINDS[kind].skippable]

    def require_none_wrong(self, source: Path, skip_bad: bool = False) -> None:
        """Raise ValueError if a wrong kind was found in `source`; with `skip_bad` only for unskippable ones."""
        if self.unskippable() if skip_bad else self.wrong():
            raise ValueError(f"{source}: {self.summary()}")

    def summary(self) -> str:
        """Describe the first wrong kind in full, and the others by their counts."""
        first, *others = self.wrong()
        rest = "".join(f"; {KINDS[kind].text} ({self.counts[kind]})" for kind in others)
        return f"{self.describe(first)}{rest}"


def printable(text: str) -> str:
    """Return a text as one line, without control characters that would move a terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def shown(value: object) -> str:
    """Format a value from a file as one line of limited length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def leaves_folder(name: str) -> bool:
    """Whether a file name from a dataset might lead out of its folder on any operating system."""
    parts = name.replace("\\", "/").split("/")
    has_drive = len(parts[0]) == 2 and parts[0][1] == ":"
    is_folder = parts[-1] in ("", ".")
    return is_folder or "\0" in name or parts[0] == "" or has_drive or ".." in parts or not is_file_name(name)


def is_file_name(name: str) -> bool:
    """Whether a file system can hold a file of this name."""
    try:
        return len(name.encode()) < 1024
    except UnicodeEncodeError:
        return False
