"""The contract of a dataset: what loaders, the check and the evaluation ask of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from dataset_files.problems import Problems


class ObjectCounts(NamedTuple):
    """Objects of a split: all, crowds, the most in one image; and its images without an object to train on.

    Attributes:
        images_without_objects: how many of these training leaves out.
        empty_images: how many are kept to train on as background.
    """

    objects: int
    crowds: int
    most_in_an_image: int
    images_without_objects: int
    empty_images: int = 0


def files_of(*datasets: "InstanceDataset") -> Iterator[Path]:
    """The annotations and images of datasets, which no output may replace."""
    for dataset in datasets:
        yield dataset.source
        yield from (dataset.image_folder / name for name in dataset.image_names())


class ItemPlan(NamedTuple):
    """Which images and objects of a split a dataset offers.

    Attributes:
        images: names of the images that belong to this side of a divided file; None for all.
        keep_empty: train also on images that have no annotation at all; all that they show is background.
        skip_bad: drop what would make results wrong instead of raising; it is noted in `problems` either way.
        exif: how images with an EXIF orientation are read, see `read_image`.
    """

    images: Set[str] | None = None
    keep_empty: bool = False
    skip_bad: bool = False
    exif: str | None = None


EVERYTHING = ItemPlan()


class InstanceDataset(Protocol):
    """Images and instances of one split. Nothing but `transforms` changes once it is built.

    An item is an image, uint8 [3, H, W], and a target: `boxes` float32 [N, 4], x1y1x2y2 in its pixels, `labels` int64
    [N], `masks` InstanceMasks, `image_id` int, `area` float32 [N], `iscrowd` int64 [N].

    Attributes:
        class_names: label -> name.
        category_ids: label -> category id in the annotations and in written results.
        training: whether items are for training: without crowds, and images without objects are left out.
        source: what messages name: the annotation file, or the file or folder that it was converted from.
        problems: what is wrong with the annotations.
        image_folder: the folder that `image_names` are relative to.
        exif: how images with an EXIF orientation are read, see `read_image`.
        collate_fn: items -> (images, targets).
        coco: the ground truth as a COCO object; created on first use.
    """

    class_names: dict[int, str]
    category_ids: dict[int, int]
    training: bool
    source: Path
    problems: Problems
    image_folder: Path
    exif: str | None
    transforms: Callable | None

    @property
    def collate_fn(self) -> Callable[[Sequence[tuple[Tensor, dict[str, Any]]]], tuple]: ...

    @property
    def coco(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Any]]: ...

    def target(self, i: int) -> dict[str, Any]:
        """The target of item i, before the transforms and without opening the image."""

    def image_id(self, i: int) -> int: ...

    def image_names(self) -> list[str]:
        """The file of each image, relative to `image_folder`."""

    def image_path(self, i: int) -> Path: ...

    def get_height_and_width(self, i: int) -> tuple[int, int]:
        """Of image i, from the annotations, without opening it."""

    def counts(self) -> ObjectCounts: ...

    def classes_of_images(self) -> list[list[int]]:
        """The category ids of the objects of each item, in training of those that are trained on."""

    def checksum(self) -> str:
        """A text that changes with the images' names and with any annotation."""

    def objects_per_class(self) -> dict[str, tuple[int, int]]:
        """Class name -> objects that are no crowds, and crowds."""

    def remap_categories(self, class_names: Mapping[int, str], category_ids: Mapping[int, int]) -> "InstanceDataset":
        """Return the dataset with the labels and category ids of another table, matched by name.

        Objects of classes that the table lacks are left out.
        """

    def drop_items(self, items: Sequence[int]) -> "InstanceDataset":
        """Return the dataset without these items; the others close up."""
