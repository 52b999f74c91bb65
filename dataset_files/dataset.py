"""The interface of a dataset that loaders, the data check and the evaluation rely on."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from dataset_files.problems import Problems
from dataset_files.stored_images import RGB, ImageForm


class ObjectCounts(NamedTuple):
    """Counts of the objects in a split, and of the images without an object to train on."""

    objects: int  # all objects, including crowds
    crowds: int
    most_in_an_image: int  # objects in the image that has the most
    images_without_objects: int  # images without an object to train on, which training leaves out
    empty_images: int = 0  # images without annotations that training keeps as background
    regions: int = 0  # objects of the class `ignore` that are regions; not among `objects`
    without_mask: int = 0  # objects that are used without a mask


def files_of(*datasets: "InstanceDataset") -> Iterator[Path]:
    """Yield the annotation and image files of datasets, which no output may replace."""
    for dataset in datasets:
        yield dataset.source
        yield from (dataset.image_folder / name for name in dataset.image_names())


class ItemPlan(NamedTuple):
    """Options of a dataset: which images and objects of a split it offers, and in which form."""

    images: Set[str] | None = None  # names of the images to use, if one file is divided; None for all
    keep_empty: bool = False  # also train on images without any annotation, as background
    skip_bad: bool = False  # drop invalid images and annotations instead of raising
    form: ImageForm = RGB  # how images are read, see `read_image`


EVERYTHING = ItemPlan()


class InstanceDataset(Protocol):
    """Images and instances of one split. After construction, only `transforms` and `form` may change.

    An item is an image, uint8 [3, H, W], or [C, H, W] as `form` specifies, and a target: `boxes` float32 [N, 4],
    x1y1x2y2 in pixels, `labels` int64 [N], `masks` InstanceMasks, `image_id` int, `area` float32 [N], `iscrowd` int64
    [N]; with --boxes-without-masks, `has_mask` bool [N]; with --ignore-regions, `ignore_regions` InstanceMasks,
    whose pixels are not background.
    """

    class_names: dict[int, str]  # label -> name
    category_ids: dict[int, int]  # label -> category id in the annotations and in written results
    training: bool  # whether the items are for training: no crowds, no images without objects
    source: Path  # the annotation file, or the file or folder it was converted from; messages name it
    problems: Problems  # what is wrong with the annotations
    image_folder: Path  # the folder that `image_names` are relative to
    form: ImageForm  # how images are read, see `read_image`
    transforms: Callable | None

    @property
    def collate_fn(self) -> Callable[[Sequence[tuple[Tensor, dict[str, Any]]]], tuple]: ...  # (images, targets)
    @property
    def coco(self) -> Any: ...  # the ground truth as a COCO object; created on first use
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Any]]: ...
    def target(self, i: int) -> dict[str, Any]: ...  # before the transforms, without opening the image
    def boxes(self, i: int) -> Tensor: ...  # of the objects that can be trained on, [N, 4]; reads no masks
    def image_id(self, i: int) -> int: ...
    def image_names(self) -> list[str]: ...  # relative to `image_folder`
    def image_path(self, i: int) -> Path: ...
    def get_height_and_width(self, i: int) -> tuple[int, int]: ...  # as annotated, without opening the image
    def counts(self) -> ObjectCounts: ...
    def classes_of_images(self) -> list[list[int]]: ...  # category ids of each item's objects (training: usable ones)
    def checksum(self) -> str: ...  # changes with the images' names and with any annotation
    def objects_per_class(self) -> dict[str, tuple[int, int]]: ...  # name -> number of objects, and of crowds

    def remap_categories(self, class_names: Mapping[int, str], category_ids: Mapping[int, int]) -> "InstanceDataset":
        """Return a copy that has the labels and category ids of another class table.

        Classes are matched by name. Objects of classes that the table lacks are left out.
        """

    def drop_items(self, items: Sequence[int]) -> "InstanceDataset":
        """Return a copy without these items; the others are renumbered."""
