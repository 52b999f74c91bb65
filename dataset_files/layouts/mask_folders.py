"""Read folders of images and of masks in which each instance has its own value, as in Penn-Fudan.

The masks of an image are one file, or one per class in masks/CLASS/, or one per object in masks/IMAGE/. Each image may
also have a folder of its own with images/ and masks/ in it, as in the Data Science Bowl 2018.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from dataset_files.conversion_store import Converted, SplitFiles
from dataset_files.image_files import files_below, images_below, is_image_name, names_in, split_in, split_paths
from dataset_files.layouts.coco_builder import CocoBuilder
from dataset_files.layouts.mask_images import MASK_SUFFIXES, Blurred, instance_crops, read_mask_image

PENN_FUDAN = ("PNGImages", "PedMasks")
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "PNGImages")
MASK_FOLDERS = ("masks", "mask", "PedMasks", "instance_masks", "instances")
ENDINGS = ("", "_mask", "-mask", "_masks", "_instance", "_instances")
ONLY_CLASS = "object"
MOST_CLASSES = 32  # values; masks with more are those of instances


@dataclass
class MaskFolders:
    images: Path
    masks: Path
    one_image: bool = False  # there is only one image, and all masks belong to it whatever their names

    @cached_property
    def image_paths(self) -> list[Path]:
        return images_below(self.images)

    @cached_property
    def masks_by_stem(self) -> dict[Path, dict[str, Path]]:
        """Map folder -> file name without suffix -> path, for all masks below `masks`."""
        found: dict[Path, dict[str, Path]] = {}
        for path in files_below(self.masks):
            if path.suffix.lower() in MASK_SUFFIXES:
                found.setdefault(path.parent, {}).setdefault(path.stem, path)
        return found

    @cached_property
    def class_folders(self) -> list[str]:
        """List the folders in `masks` that stand for classes; [] unless more images have masks there than elsewhere."""
        stems = {path.stem for path in self.image_paths}
        folders = [folder.name for folder in sorted(self.masks_by_stem) if folder.parent == self.masks]
        names = [name for name in folders if name not in stems]
        used = [{name for name in names if self.mask_of(path, Path(name))} for path in self.image_paths]
        own = sum(bool(self.own_masks(path)) for path in self.image_paths)
        return [name for name in names if any(name in of_one for of_one in used)] if sum(map(bool, used)) > own else []

    def class_names(self) -> list[str]:
        return self.class_folders or ["pedestrian" if self.masks.name == PENN_FUDAN[1] else ONLY_CLASS]

    def masks_of(self, image: Path) -> list[tuple[Path, str]]:
        if self.class_folders:
            found = [(self.mask_of(image, Path(name)), name) for name in self.class_folders]
            return [(path, name) for path, name in found if path is not None]
        return [(path, name) for path in self.own_masks(image) for name in self.class_names()]

    def own_masks(self, image: Path) -> list[Path]:
        """Return the mask named like an image, or else all masks in the folder named like the image."""
        if (one := self.mask_of(image)) is not None:
            return [one]
        own = self.masks if self.one_image else self.masks / image.relative_to(self.images).with_suffix("")
        return list(self.masks_by_stem.get(own, {}).values())

    def mask_of(self, image: Path, folder: Path | None = None) -> Path | None:
        """Find the mask named like an image in `masks / folder`; the default is the image's folder below `images`."""
        folder = image.parent.relative_to(self.images) if folder is None else folder
        masks = self.masks_by_stem.get(self.masks / folder, {})
        return next((masks[image.stem + ending] for ending in ENDINGS if image.stem + ending in masks), None)


@dataclass
class MaskSplit:
    """One split: its folder of images, and its pairs of image and mask folders."""

    source: Path  # the folder that messages name, and that the names of masks are relative to
    image_folder: Path  # the folder that the file names of images are relative to
    parts: list[MaskFolders]

    def seems_right(self) -> bool:
        """Whether any of `parts` has both an image and a mask among the first files of its folders."""
        for part in self.parts:
            masks, images = ([p.name for p in islice(files_below(f, 2), 20)] for f in (part.masks, part.images))
            with_images = any(is_image_name(name) or name.endswith(".npy") for name in images)
            if with_images and any(name.lower().endswith(MASK_SUFFIXES) for name in masks):
                return True
        return False

    def read(self) -> Converted:
        """Convert all images that have masks; ValueError if none has."""
        builder = CocoBuilder(self.image_folder, [name for part in self.parts for name in part.class_names()])
        problems, any_masks = builder.problems, False
        gaps: dict[str, list[bool]] = {}  # file with several objects -> whether each object has a gap
        for part in self.parts:
            masks_of = {path: part.masks_of(path) for path in part.image_paths}
            owners: dict[Path, list[str]] = {m: [] for by_stem in part.masks_by_stem.values() for m in by_stem.values()}
            for path, masks in masks_of.items():
                for mask, _ in masks:
                    owners[mask].append(path.name)
            for path, masks in masks_of.items():
                any_masks = any_masks or bool(masks)
                file_name = path.relative_to(self.image_folder).as_posix()
                if not masks:
                    problems.add("unlabelled", file_name)
                elif all(len(owners[mask]) == 1 for mask, _ in masks):
                    found = self.add_image(builder, file_name, masks)
                    if part.class_folders or part.mask_of(path) is not None:
                        gaps |= found
            for mask in sorted(owners):
                name = mask.relative_to(self.source).as_posix()
                if not owners[mask]:
                    problems.add("no mask image", name)
                elif len(owners[mask]) > 1:
                    problems.add("shared labels", f"{name} of {' and '.join(owners[mask])}")
        if not any_masks:
            raise ValueError(f"{self.source}: no mask is named like an image; expected a.png or a_mask.png for a.jpg")
        problems.add_all("single value", (name for name, of_one in gaps.items() if len(of_one) == 1), str)
        apart = [has_gap for of_one in gaps.values() if 1 < len(of_one) <= MOST_CLASSES for has_gap in of_one]
        if len(apart) > 2 and 2 * sum(apart) > len(apart):
            seen = f"{self.source}: {sum(apart)} of {len(apart)} values lie in several places of their image"
            problems.add("semantic masks", seen)
        return builder.converted()

    def add_image(self, builder: CocoBuilder, file_name: str, masks: list[tuple[Path, str]]) -> dict[str, list[bool]]:
        """Add an image, and an object for each value of each mask.

        Return mask file -> for each of its objects, whether an empty row or column divides the object.
        """
        problems, read, gaps = builder.problems, {}, {}
        for path, class_name in masks:
            name = path.relative_to(self.source).as_posix()
            try:
                read[name] = (read_mask_image(path), class_name)
            except (ValueError, OSError) as error:
                problems.add("masks", f"{name}: {error}")
                return {}
        sizes = {mask.size for mask, _ in read.values()}
        if len(sizes) > 1:
            problems.add("masks", f"{file_name}: its masks differ in size")
            return {}
        image = builder.add_image(file_name, *sizes)
        if image is None:
            return {}
        for name, (mask, class_name) in read.items():
            try:
                crops, is_cut = instance_crops(mask.values, mask.kind == "grey")
            except Blurred as error:
                problems.add("blurred masks", f"{name}: {error}")
                continue
            if is_cut:
                problems.add("blurred edges", name)
            for crop in crops:
                builder.add_object(image, class_name, crops=[crop])
            gaps[name] = [not (pixels.any(axis=0).all() and pixels.any(axis=1).all()) for _, _, pixels in crops]
        return gaps


def find(root: Path) -> list[SplitFiles]:
    """Find the splits of a folder of images and masks."""
    whole = folders_in(root)
    if whole is not None:
        of_images, of_masks = split_paths(whole.images), split_paths(whole.masks)
        parts = {name: MaskFolders(of_images[name], of_masks[name]) for name in of_images if name in of_masks}
        splits = {name: MaskSplit(part.masks, part.images, [part]) for name, part in (parts or {"": whole}).items()}
    else:
        splits = splits_below(root) or ({"": here} if (here := split_at(root)) else {})
    return [
        SplitFiles(name, split.source, split.image_folder, split.read, [split.image_folder])
        for name, split in splits.items()
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
    """Find splits in sub-folders named after a split (train), or else with names that contain one (stage1_train)."""
    exact = {name: split for name, folder in split_paths(root).items() if (split := split_at(folder)) is not None}
    if exact:
        return exact
    found: dict[str, MaskSplit] = {}
    for folder in map(root.joinpath, filter(split_in, names_in(root))):
        name, split = split_in(folder.name), split_at(folder)
        if split is not None and split.seems_right():
            if name in found:
                both = f"{found[name].source.name} and {folder.name}"
                raise ValueError(f"{root}: {both} are both named like a {name} split; rename one, e.g. to 'old'")
            found[name] = split
    return found


def split_at(folder: Path) -> MaskSplit | None:
    """Return the split in a folder that has images/ and masks/, or sub-folders that have them; None otherwise."""
    if (whole := folders_in(folder)) is not None:
        return MaskSplit(whole.masks, whole.images, [whole])
    parts, complete = [], False
    for place in (folder / name for name in names_in(folder) if not name.startswith(".")):
        images, masks = (sub_folder(place, usual) for usual in (IMAGE_FOLDERS, MASK_FOLDERS))
        if images is not None:
            one_image = sum(map(is_image_name, names_in(images))) == 1
            parts.append(MaskFolders(images, masks or place / MASK_FOLDERS[0], one_image))
            complete = complete or masks is not None
    return MaskSplit(folder, folder, parts) if complete else None
