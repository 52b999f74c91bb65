"""Read folders of images beside folders of masks with an instance per value: Penn-Fudan's kind.

The masks of an image are one file, or one per class in masks/CLASS/, or one per object in masks/IMAGE/.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dataset_files.image_files import files_below, images_below, is_image_name, names_in, split_folders
from dataset_files.layouts.coco_builder import CocoBuilder
from dataset_files.layouts.conversion import Converted, SplitFiles
from dataset_files.layouts.mask_images import MASK_SUFFIXES, MaskImage, find_mask, instance_crops, read_mask_image

PENN_FUDAN = ("PNGImages", "PedMasks")
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "PNGImages")
MASK_FOLDERS = ("masks", "mask", "PedMasks", "instance_masks", "instances")
ENDINGS = ("", "_mask", "-mask", "_masks", "_instance", "_instances")
ONLY_CLASS = "object"


@dataclass
class MaskFolders:
    """Where the images and the masks of one split are."""

    images: Path
    masks: Path

    def class_names(self) -> list[str]:
        """The classes that have folders of their own in `masks`; none where the folders are those of images."""
        stems = {path.stem for path in images_below(self.images)}
        folders = [name for name in sorted(names_in(self.masks)) if (self.masks / name).is_dir()]
        return [name for name in folders if name not in stems and not name.startswith(".")]

    def only_class(self) -> str:
        return "pedestrian" if self.masks.name == PENN_FUDAN[1] else ONLY_CLASS


def find(root: Path) -> list[SplitFiles]:
    """The splits of a folder of images and masks; [] if it is of another layout."""
    whole = folders_in(root)
    if whole is None:
        found = {split: folders_in(folder) for split, folder in split_folders(root).items()}
    else:
        of_images, of_masks = split_folders(whole.images), split_folders(whole.masks)
        found = {name: MaskFolders(of_images[name], of_masks[name]) for name in of_images if name in of_masks}
        found = found or {"": whole}
    return [
        SplitFiles(split, folders.masks, folders.images, partial(read_masks, folders), partial(input_files, folders))
        for split, folders in found.items()
        if folders is not None and has_masks(folders.masks) and any(map(is_image_name, first_names(folders.images)))
    ]


def folders_in(root: Path) -> MaskFolders | None:
    """The folder of images and the folder of masks in `root`, whatever the case of their names."""
    names = {name.lower(): name for name in names_in(root) if (root / name).is_dir()}
    images, masks = (
        next((root / names[name.lower()] for name in usual if name.lower() in names), None)
        for usual in (IMAGE_FOLDERS, MASK_FOLDERS)
    )
    return MaskFolders(images, masks) if images and masks else None


def first_names(folder: Path) -> list[str]:
    return [path.name for path, _ in zip(files_below(folder, 2), range(20))]


def has_masks(folder: Path) -> bool:
    return any(name.lower().endswith(MASK_SUFFIXES) for name in first_names(folder))


def input_files(folders: MaskFolders) -> list[Path]:
    """The folder of images, for its listing, and all masks."""
    return [folders.images, *files_below(folders.masks)]


def read_masks(folders: MaskFolders) -> Converted:
    """All images that have masks."""
    names = folders.class_names()
    builder = CocoBuilder(folders.images, names or [folders.only_class()])
    singles: list[str] = []
    any_masks = False
    for path in images_below(folders.images):
        relative = path.relative_to(folders.images)
        masks = masks_of(folders, relative, names)
        if not masks:
            builder.problems.add("unlabelled", relative.as_posix())
            continue
        any_masks = True
        add_masks(builder, relative.as_posix(), masks, folders, singles)
    if not any_masks:
        raise ValueError(f"{folders.masks}: no mask is named like an image; expected a.png or a_mask.png for a.jpg")
    builder.problems.add_all("single value", singles, str)
    return builder.converted()


def masks_of(folders: MaskFolders, image: Path, classes: list[str]) -> list[tuple[Path, str]]:
    """The mask files of an image, given relative to the folder of images, with their classes."""
    if classes:
        found = [(find_mask(folders.masks / name, image.stem, ENDINGS), name) for name in classes]
        return [(path, name) for path, name in found if path is not None]
    one = find_mask(folders.masks / image.parent, image.stem, ENDINGS)
    if one is not None:
        return [(one, folders.only_class())]
    own = folders.masks / image.parent / image.stem
    return [(own / n, folders.only_class()) for n in sorted(names_in(own)) if n.lower().endswith(MASK_SUFFIXES)]


def add_masks(
    builder: CocoBuilder, file_name: str, masks: list[tuple[Path, str]], folders: MaskFolders, singles: list[str]
) -> None:
    """Add an image and an object per value of its masks; the names of masks with a single value go to `singles`."""
    read: list[tuple[MaskImage, str, str]] = []
    for path, class_name in masks:
        name = path.relative_to(folders.masks).as_posix()
        try:
            read.append((read_mask_image(path), class_name, name))
        except (ValueError, OSError) as error:
            builder.problems.add("masks", f"{name}: {error}")
            return
    if len({mask.size for mask, _, _ in read}) > 1:
        builder.problems.add("masks", f"{file_name}: its masks differ in size")
        return
    image = builder.add_image(file_name, read[0][0].size)
    if image is None:
        return
    own_file_each = masks[0][0].parent.name == Path(file_name).stem
    for mask, class_name, name in read:
        crops = instance_crops(mask.values)
        if len(crops) == 1 and not own_file_each:
            singles.append(name)
        for crop in crops.values():
            builder.add_object(image, class_name, crops=[crop])
