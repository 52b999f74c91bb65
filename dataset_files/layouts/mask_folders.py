"""Read folders of images beside folders of masks with an instance per value: Penn-Fudan's kind.

The masks of an image are one file, or one per class in masks/CLASS/, or one per object in masks/IMAGE/. Each image may
also have a folder of its own with images/ and masks/ in it, as in the Data Science Bowl 2018.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from dataset_files.conversion import Converted, SplitFiles
from dataset_files.image_files import files_below, images_below, is_image_name, names_in, split_folders, split_in
from dataset_files.layouts.coco_builder import CocoBuilder
from dataset_files.layouts.mask_images import (
    MASK_SUFFIXES,
    Blurred,
    MaskImage,
    has_gap,
    instance_crops,
    read_mask_image,
)

PENN_FUDAN = ("PNGImages", "PedMasks")
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "PNGImages")
MASK_FOLDERS = ("masks", "mask", "PedMasks", "instance_masks", "instances")
ENDINGS = ("", "_mask", "-mask", "_masks", "_instance", "_instances")
ONLY_CLASS = "object"
MOST_CLASSES = 32  # values; masks with more are those of instances


@dataclass
class MaskFolders:
    """A folder of images and the folder of their masks.

    Attributes:
        one_image: there is only one image, and all masks belong to it whatever their names.
    """

    images: Path
    masks: Path
    one_image: bool = False

    @cached_property
    def image_paths(self) -> list[Path]:
        return images_below(self.images)

    @cached_property
    def masks_by_stem(self) -> dict[Path, dict[str, Path]]:
        """Map folder -> stem -> mask; other files are ignored."""
        found: dict[Path, dict[str, Path]] = {}
        for path in files_below(self.masks):
            if path.suffix.lower() in MASK_SUFFIXES:
                found.setdefault(path.parent, {}).setdefault(path.stem, path)
        return found

    @cached_property
    def class_names(self) -> list[str]:
        """List the classes that have their own folders; none if more images have masks of another form."""
        stems = {path.stem for path in self.image_paths}
        folders = [folder.name for folder in sorted(self.masks_by_stem) if folder.parent == self.masks]
        names = [name for name in folders if name not in stems]
        used = [{name for name in names if self.mask_of(path, Path(name))} for path in self.image_paths]
        own = sum(bool(self.own_masks(path)) for path in self.image_paths)
        return [name for name in names if any(name in of_one for of_one in used)] if sum(map(bool, used)) > own else []

    def only_class(self) -> str:
        return "pedestrian" if self.masks.name == PENN_FUDAN[1] else ONLY_CLASS

    def masks_of(self, image: Path) -> list[tuple[Path, str]]:
        """List the mask files of an image with their classes."""
        if self.class_names:
            found = [(self.mask_of(image, Path(name)), name) for name in self.class_names]
            return [(path, name) for path, name in found if path is not None]
        return [(path, self.only_class()) for path in self.own_masks(image)]

    def own_masks(self, image: Path) -> list[Path]:
        """Return the one mask that is named like the image, else the masks in a folder that is."""
        one = self.mask_of(image)
        if one is not None:
            return [one]
        own = self.masks if self.one_image else self.masks / self.inner(image) / image.stem
        return list(self.masks_by_stem.get(own, {}).values())

    def mask_of(self, image: Path, folder: Path | None = None) -> Path | None:
        """Find the mask named like an image in `folder` of the masks, by default in the image's own sub-folder."""
        masks = self.masks_by_stem.get(self.masks / (self.inner(image) if folder is None else folder), {})
        return next((masks[image.stem + ending] for ending in ENDINGS if image.stem + ending in masks), None)

    def has_file_per_object(self, image: Path) -> bool:
        return not self.class_names and self.mask_of(image) is None

    def inner(self, image: Path) -> Path:
        return image.parent.relative_to(self.images)


@dataclass
class MaskSplit:
    """One split.

    Attributes:
        source: the folder that messages name, and that the names of masks are relative to.
        image_folder: the folder that the file names of images are relative to.
    """

    source: Path
    image_folder: Path
    parts: list[MaskFolders]

    def seems_right(self) -> bool:
        """Whether a part has both an image and a mask."""
        return any(
            any(name.lower().endswith(MASK_SUFFIXES) for name in first_names(part.masks))
            and any(map(is_image_name, first_names(part.images)))
            for part in self.parts
        )


def find(root: Path) -> list[SplitFiles]:
    """Find the splits of a folder of images and masks; [] if it has another layout.

    Raises:
        ValueError: several folders may be meant for one split.
    """
    found: dict[str, MaskSplit]
    whole = folders_in(root)
    if whole is not None:
        of_images, of_masks = split_folders(whole.images), split_folders(whole.masks)
        parts = {name: MaskFolders(of_images[name], of_masks[name]) for name in of_images if name in of_masks}
        found = {name: of_one(part) for name, part in (parts or {"": whole}).items()}
    else:
        found = splits_below(root)
        if not found and (everything := of_folder(root)) is not None:
            found = {"": everything}
    return [
        SplitFiles(name, split.source, split.image_folder, partial(read_masks, split), [split.image_folder])
        for name, split in found.items()
        if split.seems_right()
    ]


def folders_in(root: Path) -> MaskFolders | None:
    """Find the folders of images and masks in `root`; the case of their names does not matter."""
    images, masks = (sub_folder(root, usual) for usual in (IMAGE_FOLDERS, MASK_FOLDERS))
    return MaskFolders(images, masks) if images and masks else None


def sub_folder(root: Path, usual: tuple[str, ...]) -> Path | None:
    names = {name.lower(): name for name in names_in(root)}
    present = [root / names[name.lower()] for name in usual if name.lower() in names]
    return next((folder for folder in present if folder.is_dir()), None)


def splits_below(root: Path) -> dict[str, MaskSplit]:
    """Find the splits that have their own folders, named after them or with their names as a word (stage1_train)."""
    exact = {name: of_folder(folder) for name, folder in split_folders(root).items()}
    found = {name: split for name, split in exact.items() if split is not None}
    if found:
        return found
    for folder in sorted(path for path in map(root.joinpath, names_in(root)) if split_in(path.name)):
        name, split = split_in(folder.name), of_folder(folder)
        if split is not None and split.seems_right():
            if name in found:
                both = f"{found[name].source.name} and {folder.name}"
                raise ValueError(f"{root}: {both} are both named like a {name} split; rename one, e.g. to 'old'")
            found[name] = split
    return found


def of_one(part: MaskFolders) -> MaskSplit:
    return MaskSplit(part.masks, part.images, [part])


def of_folder(folder: Path) -> MaskSplit | None:
    """Return the split in a folder: in its images/ and masks/, or in those of each of its sub-folders; else None."""
    whole = folders_in(folder)
    if whole is not None:
        return of_one(whole)
    parts, complete = [], False
    for place in sorted(folder / name for name in names_in(folder) if not name.startswith(".")):
        images, masks = (sub_folder(place, usual) for usual in (IMAGE_FOLDERS, MASK_FOLDERS))
        if images is not None:
            one_image = sum(map(is_image_name, names_in(images))) == 1
            parts.append(MaskFolders(images, masks or place / MASK_FOLDERS[0], one_image))
            complete = complete or masks is not None
    return MaskSplit(folder, folder, parts) if complete else None


def first_names(folder: Path) -> list[str]:
    return [path.name for path, _ in zip(files_below(folder, 2), range(20))]


def read_masks(split: MaskSplit) -> Converted:
    """Read all images that have masks.

    Raises:
        ValueError: no image has a mask.
    """
    classes = [name for part in split.parts for name in part.class_names or [part.only_class()]]
    builder = CocoBuilder(split.image_folder, classes)
    singles: list[str] = []
    apart: list[bool] = []  # of each value of a mask with several
    any_masks = False
    for part in split.parts:
        owners: dict[Path, list[str]] = {path: [] for masks in part.masks_by_stem.values() for path in masks.values()}
        for path in part.image_paths:
            for mask, _ in part.masks_of(path):
                owners[mask].append(path.name)
        for path in part.image_paths:
            masks = part.masks_of(path)
            any_masks = any_masks or bool(masks)
            if any(len(owners[mask]) > 1 for mask, _ in masks):
                continue
            if masks:
                singles += add_masks(builder, path, masks, part, split, apart)
            else:
                builder.problems.add("unlabelled", path.relative_to(split.image_folder).as_posix())
        for mask in sorted(owners):
            name = mask.relative_to(split.source).as_posix()
            if not owners[mask]:
                builder.problems.add("no mask image", name)
            elif len(owners[mask]) > 1:
                builder.problems.add("shared labels", f"{name} of {' and '.join(owners[mask])}")
    if not any_masks:
        raise ValueError(f"{split.source}: no mask is named like an image; expected a.png or a_mask.png for a.jpg")
    builder.problems.add_all("single value", singles, str)
    if len(apart) > 2 and 2 * sum(apart) > len(apart):
        seen = f"{split.source}: {sum(apart)} of {len(apart)} values lie in several places of their image"
        builder.problems.add("semantic masks", seen)
    return builder.converted()


def add_masks(
    builder: CocoBuilder,
    path: Path,
    masks: list[tuple[Path, str]],
    part: MaskFolders,
    split: MaskSplit,
    apart: list[bool],
) -> list[str]:
    """Add an image and an object per value of its masks.

    Args:
        apart: extended by whether each value lies in several places.

    Returns:
        The names of masks with a single value, where that may be several objects.
    """
    file_name = path.relative_to(split.image_folder).as_posix()
    read: list[tuple[MaskImage, str, str]] = []
    for mask_path, class_name in masks:
        name = mask_path.relative_to(split.source).as_posix()
        try:
            read.append((read_mask_image(mask_path), class_name, name))
        except (ValueError, OSError) as error:
            builder.problems.add("masks", f"{name}: {error}")
            return []
    if len({mask.size for mask, _, _ in read}) > 1:
        builder.problems.add("masks", f"{file_name}: its masks differ in size")
        return []
    image = builder.add_image(file_name, read[0][0].size)
    if image is None:
        return []
    singles = []
    for mask, class_name, name in read:
        try:
            crops, is_cut = instance_crops(mask.values, mask.kind == "grey")
        except Blurred as error:
            builder.problems.add("blurred masks", f"{name}: {error}")
            continue
        if is_cut:
            builder.problems.add("blurred edges", name)
        if len(crops) == 1 and not part.has_file_per_object(path):
            singles.append(name)
        if 1 < len(crops) <= MOST_CLASSES and not part.has_file_per_object(path):
            apart += [has_gap(pixels) for _, _, pixels in crops]
        for crop in crops:
            builder.add_object(image, class_name, crops=[crop])
    return singles
