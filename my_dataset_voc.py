"""Dataset of the segmentation lists of Pascal VOC's devkit; its items are (image, target).

The annotations are converted to COCO's form once and stored (layouts/voc_files.py). From then on, the dataset works as
for COCO.
"""

from pathlib import Path

from dataset_files.conversion_store import open_split_index
from dataset_files.dataset import EVERYTHING, ItemPlan
from dataset_files.layouts.voc_files import find_voc_folder, voc_split
from my_dataset_coco import CocoDetection
from transforms import Transform


class VOCInstances(CocoDetection):
    """Images and instances of one image list of the devkit; see `CocoDetection`.

    Labels and category ids are 1..20, in the devkit's order. Training lists ("train.txt", "trainval.txt") leave out
    difficult objects, objects without a mask, and images in which no object is left. Other lists keep these
    objects as crowds, which the metrics neither reward nor penalise.

    Args:
        voc_root: the folder VOC{year}, the VOCdevkit that holds it, or the folder that holds the VOCdevkit.
        txt_name: a list in ImageSets/Segmentation.

    Raises:
        FileNotFoundError: the list or the devkit is missing.
        ValueError: a file cannot be used, or would make results wrong; the message names it.
    """

    def __init__(
        self,
        voc_root: str | Path,
        year: str = "2012",
        txt_name: str = "train.txt",
        transforms: Transform | None = None,
        *,
        plan: ItemPlan = EVERYTHING,
    ):
        split = voc_split(find_voc_folder(voc_root, year), txt_name)
        super().__init__(open_split_index(split), split.name, transforms, plan=plan)
