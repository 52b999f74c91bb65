"""Bad input of every kind, what the scripts are to do with it, and whether they do.

    python -m tests.programs.bad_inputs    # every case through the real scripts, as a Markdown table; half a minute

Each case breaks a tiny dataset of its own, a weight file or an argument, and says how the run must end and what it
must say. The network is a thin one, since nothing here depends on it.
"""

import functools
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.helpers.broken_data import (
    BOX_POLYGON,
    LAUGHS,
    SIZE,
    WEIGHTS,
    Spoil,
    all_of,
    annotation,
    bare_trap,
    bomb,
    code,
    count_from_zero,
    cut_off,
    cut_off_weights,
    edit,
    loop,
    make_coco,
    make_voc,
    masks,
    nothing,
    other_network,
    picture,
    renamed,
    replace_picture,
    saved,
    text,
    trap,
    turned,
    unlink_all,
    voc_file,
    without_the_first,
    xml,
)
from tests.helpers.commands import Outcome, run_thin

TRAIN = ["--device", "cpu", "--min-size", "64", "--max-size", "64", "--rois-per-image", "8", "--proposals", "20"]
TRAIN += ["--batch-size", "4", "--workers", "0", "--pretrain", "False", "--max-steps", "1", "--data-path", "data"]
VALIDATE = ["--device", "cpu", "--workers", "0", "--data-path", "data", "--weights-path"]
PREDICT = ["--device", "cpu", "--weights-path"]


@dataclass
class Case:
    """What is wrong, and how a run must end with it.

    Attributes:
        spoil: breaks what lies in the case's folder, where a good dataset is in `data`.
        status: the run's exit status; 0 for a run that goes on to its end.
        says: what stands in its messages on stderr, each a regular expression; a run that says nothing has none.
        arguments: after those that every run of the script has.
        voc: whether the dataset has VOC's layout.
    """

    name: str
    spoil: Spoil
    status: int
    says: Sequence[str] = ()
    arguments: Sequence[str] = ()
    script: str = "train.py"
    voc: bool = False


def faults_of(outcome: Outcome, case: Case) -> list[str]:
    """In what a run did not end as its case says."""
    found = [] if outcome.code == case.status else [f"exit status {outcome.code} instead of {case.status}"]
    found += ["a traceback"] if "Traceback" in outcome.said else []
    lines = outcome.said.splitlines()
    if case.status == 2:
        found += [] if lines and lines[-1].startswith("error: ") else ["no error on the last line"]
        lines = lines[:-1]
    found += [f"not a warning: {line}" for line in lines if not line.startswith("warning: ")]
    found += [f"does not say: {words}" for words in case.says if not re.search(words, outcome.said)]
    return found + ([f"says: {outcome.said}"] if outcome.said and not case.says else [])


# -------------------------------------------------------------------------------------------------------------- cases

MEND = "fix the data, or pass --skip-bad to drop these$"
SKIP = ["--skip-bad"]
BAD = ["--pretrain", "bad.pth"]
TRAIN_FILE, VAL_FILE = "instances_train2017.json: ", "instances_val2017.json: "
OF_1, OF_5 = r"annotation 10 of image 1 \(1.png\): ", r"annotation 50 of image 5 \(5.png\): "


def with_skipping(name: str, spoil: Spoil, said: str, **others) -> list[Case]:
    """What stops a run, and with --skip-bad does not."""
    source = "" if others.get("voc") else f"{TRAIN_FILE}.*"
    return [
        Case(name, spoil, 2, [f"{source}{said}".replace("LEFT", ""), MEND], **others),
        Case(f"{name}, --skip-bad", spoil, 0, [f"{source}{said}".replace("LEFT", ", left out")], SKIP, **others),
    ]


CASES = [
    Case("nothing is wrong", nothing, 0),
    # pictures
    *with_skipping("an image is missing", replace_picture(lambda path: None),
        r"images that are missing \(1\)LEFT: data/train2017/1.png \(image 1\)"),
    *with_skipping("an image is an empty file", replace_picture(Path.touch),
        r"empty files \(1\)LEFT: .*1.png \(image 1\)"),
    *with_skipping("a text file instead of an image", replace_picture(lambda path: path.write_text("no picture")),
        r"files that are not images \(1\)LEFT: .*1.png \(image 1\)"),
    Case("PostScript instead of an image", replace_picture(lambda p: picture().save(p, "EPS")), 2,
        [r"files that are not images \(1\): .*1.png", MEND]),
    *with_skipping("a folder instead of an image", replace_picture(Path.mkdir),
        r"cannot be opened \(1\)LEFT: .*1.png \(image 1\)"),
    Case("a link that leads to itself", replace_picture(loop), 2, [r"cannot be opened \(1\): .*1.png", MEND]),
    Case("a truncated image to train on", replace_picture(cut_off), 0,
        ["1.png: cannot be read as an image .*truncated.*; another image replaces it"]),
    Case("a truncated image to evaluate on, train.py", replace_picture(cut_off, "val", "5.png"), 0,
        ["5.png: cannot be read as an image .*truncated.*; it counts as an image without detections"]),
    Case("a truncated image to evaluate on, validation.py", replace_picture(cut_off, "val", "5.png"), 2,
        ["5.png: cannot be read as an image .*truncated"], script="validation.py"),
    Case("a truncated image to evaluate on, validation.py --skip-bad", replace_picture(cut_off, "val", "5.png"), 0,
        ["5.png: cannot be read as an image .*; it counts as an image without detections"], SKIP, "validation.py"),
    Case("a greyscale image", saved(lambda: picture("L")), 0),
    Case("a bilevel image", saved(lambda: picture("1")), 0),
    Case("a palette image", saved(lambda: picture("P")), 0),
    Case("a palette image with transparency", saved(lambda: picture("P"), transparency=3), 0),
    Case("a CMYK image", saved(lambda: picture("CMYK"), "JPEG"), 0),
    Case("a 16-bit greyscale image", saved(lambda: Image.new("I;16", (SIZE, SIZE), 40000)), 0, ["--channels 1"]),
    Case("an image with alpha", saved(lambda: picture("RGBA")), 0),
    Case("a greyscale image with alpha", saved(lambda: picture("LA")), 0),
    Case("a progressive JPEG", saved(picture, "JPEG", progressive=True), 0),
    Case("an EXIF orientation, annotations of the turned image", turned(wide=False), 0),
    Case("an EXIF orientation, annotations of the stored image", turned(wide=True), 0),
    *with_skipping("an image of another size than annotated", saved(lambda: Image.new("RGB", (SIZE + 1, SIZE))),
        r"another size than annotated \(1\)LEFT: .*1.png \(image 1\) is 65x64, annotated 64x64"),
    *with_skipping("a decompression bomb", replace_picture(bomb),
        r"too large to be opened safely \(1\)LEFT: .*1.png \(image 1\)"),
    Case("a file name with blanks", renamed("a b  c.png"), 0),
    Case("a Chinese file name", renamed("照片 一.png"), 0),
    Case("a file in a sub-folder", renamed("more/of these/1.png"), 0),
    *with_skipping("a file name with ../", renamed("../1.png"),
        r"lead out of the image folder, which are never opened \(1\)LEFT: image 1, '../1.png'"),
    *with_skipping("a file name that climbs out of a sub-folder", renamed("a/../../1.png"),
        r"lead out of the image folder.* \(1\)LEFT: image 1, 'a/../../1.png'"),
    *with_skipping("an absolute file name", renamed("OUTSIDE/1.png"), r"lead out .* \(1\)LEFT: image 1, '/.*1.png'"),
    # the file as a whole: nothing can be left out of it
    Case("JSON is truncated", text(lambda t: t[:-300]), 2, [f"{TRAIN_FILE}not readable as JSON .*char"]),
    Case("JSON is truncated, --skip-bad", text(lambda t: t[:-300]), 2, ["not readable as JSON"], SKIP),
    Case("JSON is an empty file", text(lambda t: ""), 2, [f"{TRAIN_FILE}not readable as JSON"]),
    Case("JSON is a list", text(lambda t: "[1, 2]"), 2, [f"{TRAIN_FILE}holds a list, not an object"]),
    Case("JSON is nested too deeply", text(lambda t: '{"a": ' + "[" * 200_000), 2,
        [f"{TRAIN_FILE}not readable as JSON"]),
    Case("JSON has no 'images'", edit(lambda c: c.pop("images")), 2, ["no list 'images'"], SKIP),
    Case("'annotations' in JSON is not a list", edit(lambda c: c.update(annotations={})), 2, ["no list 'annotations'"]),
    Case("JSON has no categories", edit(lambda c: c.update(categories=[])), 2, ["no usable category"], SKIP),
    # entries
    *with_skipping("an annotation lacks its image", edit(lambda c: c["annotations"][0].pop("image_id")),
        r"invalid annotations \(1\)LEFT: annotation 10 lacks the key 'image_id'"),
    Case("an annotation lacks its box", edit(lambda c: c["annotations"][0].pop("bbox")), 0,
        [r"annotations without a box, taken from the mask \(1\)"]),
    Case("an annotation is a number", edit(lambda c: c["annotations"].append(7)), 2,
        ["number 8 of the list is not an object"]),
    *with_skipping("an image lacks its file name", edit(lambda c: c["images"][0].pop("file_name")),
        r"invalid images \(1\)LEFT: image 1 lacks the key 'file_name'"),
    Case("an image lacks its height", edit(lambda c: c["images"][0].pop("height")), 0,
        [r"images without height and width, read from the image files \(1\)"]),
    Case("a category lacks a key", edit(lambda c: c["categories"].append({"id": 3})), 2,
        ["category number 2 .*'name'"]),
    *with_skipping("an image id twice", edit(lambda c: c["images"].append({**c["images"][1], "file_name": "x.png"})),
        r"images with a repeated id \(1\)LEFT: image 2, 'x.png'"),
    Case("an annotation twice", edit(lambda c: c["annotations"].append(c["annotations"][1])), 0,
        [r"annotations that repeat another one exactly, dropped \(1\): annotation 11 of image 1"]),
    Case("two annotations with one id", edit(lambda c: c["annotations"][1].update(id=c["annotations"][0]["id"])), 0,
        [r"annotation ids that are missing, invalid or repeated, renumbered \(\d\)"]),
    Case("a category id twice", edit(lambda c: c["categories"].append({"id": 1, "name": "cow"})), 2,
        ["'ape' and 'cow'"]),
    *with_skipping("an annotation of an unknown image", annotation(image_id=99),
        r"annotations of images that are not in 'images' \(1\)LEFT: annotation 10 of image 99: "),
    *with_skipping("an annotation of an unknown category", annotation(category_id=99),
        rf"categories that are not in 'categories' \(1\)LEFT: {OF_1}99"),
    Case("category ids from 0", all_of(edit(count_from_zero), edit(count_from_zero, "val")), 0),
    Case("no annotations to train on", edit(lambda c: c.update(annotations=[])), 2,
        [f"{TRAIN_FILE}holds no image with a usable object"]),
    Case("no annotations to evaluate on", edit(lambda c: c.update(annotations=[]), "val"), 0),
    # what labelling tools write: repaired with a counted warning, or stopped by a line that names the cause
    Case("export: annotation ids all 0", edit(lambda c: [a.update(id=0) for a in c["annotations"]]), 0,
        [r"annotation ids that are missing, invalid or repeated, renumbered \(8\)"]),
    Case("export: annotation ids as text", edit(lambda c: [a.update(id=f"a{a['id']}") for a in c["annotations"]]), 0,
        [r"renumbered \(8\)"]),
    Case("export: no annotation ids", edit(lambda c: [a.pop("id") for a in c["annotations"]]), 0,
        [r"renumbered \(8\)"]),
    Case("export: no boxes", edit(lambda c: [a.pop("bbox") for a in c["annotations"]]), 0,
        [r"without a box, taken from the mask \(8\)"]),
    Case("export: empty boxes", edit(lambda c: [a.update(bbox=[]) for a in c["annotations"]]), 0,
        [r"without a box, taken from the mask \(8\)"]),
    Case("export: area is null", edit(lambda c: [a.update(area=None) for a in c["annotations"]]), 0,
        [r"missing or invalid areas, taken from the mask \(8\)"]),
    Case("export: area as text", edit(lambda c: [a.update(area="12") for a in c["annotations"]]), 0,
        [r"missing or invalid areas, taken from the mask \(8\)"]),
    Case("export: iscrowd as text", edit(lambda c: [a.update(iscrowd="0") for a in c["annotations"]]), 0,
        [r"iscrowd values that are not 0 or 1, converted \(8\)"]),
    Case("export: image ids as text", edit(lambda c: ([i.update(id=f"{i['id']}") for i in c["images"]],
        [a.update(image_id=f"{a['image_id']}") for a in c["annotations"]])), 0, [r"ids that are not whole numbers"]),
    Case("export: a flat polygon", annotation(segmentation=BOX_POLYGON), 0,
        [r"polygons given as \[x, y, ...\] instead of \[\[x, y, ...\]\], converted \(1\)"]),
    Case("export: points as pairs", annotation(segmentation=[[[4, 8], [28, 8], [28, 48], [4, 48]]]), 0,
        [r"polygons given as pairs of coordinates, converted \(1\)"]),
    Case("export: no height and width", edit(lambda c: [(i.pop("height"), i.pop("width")) for i in c["images"]]), 0,
        [r"images without height and width, read from the image files \(4\)"]),
    Case("export: names with another suffix", edit(lambda c: [i.update(file_name=f"{i['id']}.jpg")
        for i in c["images"]]), 0, [r"file names that are wrong, found in the image folder \(4\)"]),
    Case("export: names with a folder that does not exist", edit(lambda c: [i.update(file_name=f"x/{i['id']}.png")
        for i in c["images"]]), 0, [r"file names that are wrong, found in the image folder \(4\)"]),
    Case("export: names with backslashes", edit(lambda c: [i.update(file_name=f"..\\..\\m\\{i['id']}.png")
        for i in c["images"]]), 0, [r"file names that are wrong, found in the image folder \(4\)"]),
    Case("export: boxes are x1, y1, x2, y2", edit(lambda c: [a.update(bbox=[a["bbox"][0], a["bbox"][1],
        a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]]) for a in c["annotations"]]), 2,
        ["boxes look like x1, y1, x2, y2"]),
    Case("export: boxes are centre and size", edit(lambda c: [a.update(bbox=[a["bbox"][0] + a["bbox"][2] / 2,
        a["bbox"][1] + a["bbox"][3] / 2, *a["bbox"][2:]]) for a in c["annotations"]]), 2, ["boxes look like centre"]),
    Case("export: coordinates are fractions", edit(lambda c: [a.update(bbox=[v / SIZE for v in a["bbox"]],
        segmentation=[[v / SIZE for v in BOX_POLYGON]]) for a in c["annotations"]]), 2, ["fractions"]),
    Case("export: categories from 1, annotations from 0", edit(lambda c: [a.update(category_id=a["category_id"] - 1)
        for a in c["annotations"]]), 2, ["number categories in two ways"]),
    Case("export: every object is a crowd", edit(lambda c: [a.update(iscrowd=1) for a in c["annotations"]]), 2,
        ["8 of 8 objects are crowds", "--crowds-are-objects"]),
    Case("export: the validation split numbers classes differently", edit(lambda c: (
        [k.update(id=3 - k["id"]) for k in c["categories"]],
        [a.update(category_id=3 - a["category_id"]) for a in c["annotations"]]), "val"), 0),
    Case("export: a Git LFS pointer instead of an image", lambda folder: (folder / "data/train2017/1.png").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), 2, ["Git LFS pointers"]),
    # boxes
    *with_skipping("a box with NaN", annotation(bbox=[4, 8, float("nan"), 40]),
        rf"not finite \(1\)LEFT: {OF_1}\[4, 8, nan"),
    Case("a box with infinity", annotation(bbox=[4, 8, float("inf"), 40]), 2,
        [rf"not finite \(1\): {OF_1}\[4, 8, inf", MEND]),
    Case("a box of negative size", annotation(bbox=[28, 8, -24, 40]), 0,
        [rf"boxes without area \(1\), left out: {OF_1}\[28, 8, -24, 40\]"]),
    Case("a box of no size", annotation(bbox=[4, 8, 0, 40]), 0,
        [rf"boxes without area \(1\), left out: {OF_1}\[4, 8, 0"]),
    Case("a box of no size to evaluate on", annotation("val", bbox=[4, 8, 0, 40]), 0,
        [rf"{VAL_FILE}boxes without area \(1\), kept: {OF_5}\[4, 8, 0, 40\]"]),
    Case("a box outside its image", annotation(bbox=[70, 8, 24, 40]), 0,
        [rf"boxes outside their image \(1\), left out: {OF_1}\[70, 8"]),
    # masks
    Case("a polygon of two points alone", annotation(segmentation=[[4, 8, 28, 48]]), 0,
        [rf"objects without a mask \(1\), left out: {OF_1}\[\[4, 8, 28, 48\]\]"]),
    Case("a polygon of two points beside a good one", annotation(segmentation=[[4, 8, 28, 48], BOX_POLYGON]), 0,
        [rf"polygons of fewer than three points, which are left out \(1\): {OF_1}"]),
    *with_skipping("a polygon of odd length", annotation(segmentation=[[*BOX_POLYGON, 5]]),
        rf"odd .*\(1\)LEFT: {OF_1}\[\[4"),
    Case("a polygon with NaN", annotation(segmentation=[[float("nan"), *BOX_POLYGON[1:]]]), 2,
        [rf"{OF_1}\[\[nan", MEND]),
    Case("a polygon with points far outside", annotation(segmentation=[[*BOX_POLYGON, -500, 20]], bbox=[0, 8, 28, 40]),
        0, [rf"points far outside their image, which are clipped \(1\): {OF_1}.*-500"]),
    *with_skipping("a polygon with points a million pixels away", annotation(segmentation=[[*BOX_POLYGON, -1e6, 20]]),
        rf"coordinates beyond any image size \(1\)LEFT: {OF_1}"),
    Case("an empty segmentation", annotation(segmentation=[]), 0,
        [rf"objects without a mask \(1\), left out: {OF_1}\[\]"]),
    Case("an empty segmentation to evaluate on", annotation("val", segmentation=[]), 0,
        [rf"{VAL_FILE}objects without a mask \(1\), kept as crowds: {OF_5}\[\]"]),
    *with_skipping("a run-length code of another size", code([32 * 32], (32, 32)),
        rf"another size than their image \(1\)LEFT: {OF_1}.*\[32, 32\]"),
    *with_skipping("run lengths that do not add up", code([100, 100]),
        rf"invalid run-length codes \(1\)LEFT: {OF_1}.*\[100, 100\]"),
    Case("negative run lengths", code([100, -100, SIZE * SIZE]), 2,
        [rf"invalid run-length codes \(1\): {OF_1}.*-100", MEND]),
    *with_skipping("negative run lengths in a packed code", code("T3TNXm1"),
        rf"invalid run-length codes \(1\)LEFT: {OF_1}.*T3TNXm1"),
    *with_skipping("a packed code with invalid letters", code("!?~"),
        rf"invalid run-length codes \(1\)LEFT: {OF_1}.*!\?~"),
    Case("a packed code that is cut off", code("X7o"), 2, [rf"invalid run-length codes \(1\): {OF_1}.*X7o", MEND]),
    Case("a packed code that does not add up", code("11"), 2, [rf"invalid run-length codes \(1\): {OF_1}", MEND]),
    *with_skipping("a box and a mask that hardly overlap", annotation(bbox=[50, 50, 10, 10]),
        rf"hardly overlap \(1\)LEFT: {OF_1}.*\[50, 50, 10, 10\].*\[4.0, 8.0, 28.0, 48.0\]"),
    # the evaluation split, and both
    Case("a box with NaN to evaluate on", annotation("val", bbox=[4, 8, float("nan"), 40]), 2,
        [rf"{VAL_FILE}.*not finite \(1\): {OF_5}", MEND], script="validation.py"),
    Case("a box with NaN to evaluate on, --skip-bad", annotation("val", bbox=[4, 8, float("nan"), 40]), 0,
        [rf"{VAL_FILE}.*not finite \(1\), left out: {OF_5}"], SKIP, "validation.py"),
    Case("a missing image to evaluate on, --skip-bad", replace_picture(lambda p: None, "val", "5.png"), 0,
        [rf"{VAL_FILE}images that are missing \(1\), left out: data/val2017/5.png"], SKIP, "validation.py"),
    Case("all images are missing", unlink_all, 2,
        [r"missing \(4\): .*1.png .*2.png .*3.png \(image 3\); and 1 more", MEND]),
    Case("all images are missing, --skip-bad", unlink_all, 2,
        [r"missing \(4\), left out", f"error: .*{TRAIN_FILE}holds no image with a usable object"], SKIP),
    Case("two things are wrong", all_of(annotation(bbox=[4, 8, 0, float("nan")]), replace_picture(bomb)), 2,
        [r"warning: .*not finite \(1\)", r"warning: .*safely \(1\)",
         rf"error: .*not finite \(1\): {OF_1}.*safely \(1\); {MEND}"]),
    # VOC
    Case("VOC: nothing is wrong, every object has parts", nothing, 0, voc=True),
    *with_skipping("VOC: an entity bomb", xml(lambda t: LAUGHS + t.replace("dog", "&l11;")),
        r"invalid XML files \(1\)LEFT: Annotations/a.xml: refused, as it declares a document type", voc=True),
    Case("VOC: an external entity",
        xml(lambda t: "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>" + t.replace("dog", "&x;")), 2,
        ["a.xml: refused, as it declares a document type", MEND], voc=True),
    Case("VOC: XML is truncated", xml(lambda t: t[:-40]), 2, ["a.xml: not readable as XML", MEND], voc=True),
    Case("VOC: XML is missing", voc_file("Annotations/a.xml", Path.unlink), 2, ["Annotations/a.xml: not found", MEND],
        voc=True),
    Case("VOC: XML without a size", xml(lambda t: t.replace("width", "wide")), 2, ["a.xml: size/width is None", MEND],
        voc=True),
    Case("VOC: XML without objects to train on", xml(lambda t: re.sub("<object>.*</object>", "", t)), 0, voc=True),
    Case("VOC: XML without objects to evaluate on", xml(lambda t: re.sub("<object>.*</object>", "", t), "e"), 0,
        voc=True),
    Case("VOC: an unknown class", xml(lambda t: t.replace("dog", "unicorn")), 0,
        ["has no class 'unicorn', which the training data have"], voc=True),
    *with_skipping("VOC: reversed corners", xml(lambda t: t.replace("<xmax>28<", "<xmax>3<")),
        r"not the upper left and the lower right one \(1\)LEFT: Annotations/a.xml, object 1: 'dog' has the box 5 9",
        voc=True),
    Case("VOC: a box with NaN", xml(lambda t: t.replace("<xmax>28<", "<xmax>nan<")), 2, ["object 1: 'dog'", MEND],
        voc=True),
    Case("VOC: a box outside its image",
        xml(lambda t: t.replace("<xmin>5<", "<xmin>70<").replace("<xmax>28<", "<xmax>99<")), 0,
        [r"outside their image \(1\), left out: Annotations/a.xml, object 1"], voc=True),
    *with_skipping("VOC: masks are missing", masks(Path.unlink),
        r"invalid mask images \(1\)LEFT: .*SegmentationObject/a.png: not found", voc=True),
    Case("VOC: masks of another size", masks(lambda path: Image.new("P", (9, 8)).save(path)), 2,
        ["SegmentationObject/a.png: is 9x8, but its XML has 64x64", MEND], voc=True),
    Case("VOC: masks in RGB, all black", masks(lambda path: Image.new("RGB", (SIZE, SIZE)).save(path)), 0,
        [r"objects without a mask \(2\), left out"], voc=True),
    Case("VOC: masks that are truncated", masks(lambda path: path.write_bytes(path.read_bytes()[:-90])), 2,
        ["SegmentationObject/a.png: ", MEND], voc=True),
    Case("VOC: masks without the object to train on", masks(without_the_first), 0,
        [r"objects without a mask \(1\), left out: Annotations/a.xml, object 1, 'dog'"], voc=True),
    Case("VOC: masks without the object to evaluate on", masks(without_the_first, "e"), 0,
        [r"objects without a mask \(1\), kept as crowds: Annotations/e.xml, object 1, 'dog'"], voc=True),
    Case("VOC: a list that is not text",
        voc_file("ImageSets/Segmentation/train.txt", lambda path: path.write_bytes(b"\xff\xfe")), 2,
        ["train.txt: not a list of names"], voc=True),
    Case("VOC: an empty list", voc_file("ImageSets/Segmentation/val.txt", lambda path: path.write_text("")), 2,
        ["val.txt: lists no image"], voc=True),
    Case("VOC: a list that leads out of the folder",
        voc_file("ImageSets/Segmentation/train.txt", lambda path: path.write_text("a\n../../b\n")), 2,
        [r"lead out of the image folder.* \(1\): '../../b'", MEND], voc=True),
    # weight files and arguments
    Case("weights with code in them", trap, 2, [r"bad.pth: refused: .* \(it names .*\.mkdir\)"], BAD),
    Case("a bare pickle with code in it", bare_trap, 2, ["bad.pth: refused: it names .*mkdir"], BAD),
    Case("weights with code in them, validation.py", trap, 2, ["bad.pth: refused"], ["--weights-path", "bad.pth"],
        "validation.py"),
    Case("weights with code in them, predict.py", trap, 2, ["bad.pth: refused"], ["--weights-path", "bad.pth"],
        "predict.py"),
    Case("a truncated checkpoint", cut_off_weights, 2, ["bad.pth: broken"], ["--resume", "bad.pth"]),
    Case("a checkpoint of another network", other_network, 2, ["bad.pth: does not fit"], BAD),
    Case("weights that no run can resume from", other_network, 2, ["bad.pth: lacks"], ["--resume", "bad.pth"]),
    Case("weights that do not exist", nothing, 2, ["gone.pth: no such file"], ["--pretrain", "gone.pth"]),
    Case("predicting a file that is not an image", lambda folder: (folder / "x.png").write_text("text"), 2, ["x.png"],
        ["--img-path", "x.png"], "predict.py"),
    Case("a decompression bomb to predict", lambda folder: bomb(folder / "x.png"), 2, ["x.png"],
        ["--img-path", "x.png"], "predict.py"),
    Case("a data folder that does not exist", nothing, 2, ["gone: not found"], ["--data-path", "gone"]),
    Case("a data folder of no known layout", lambda folder: (folder / "odd").mkdir(), 2,
        ["odd: holds no files; expected COCO's JSON, labelme, "],
        ["--data-path", "odd"]),
    Case("fewer classes than the data has", nothing, 2, ["--num-classes is 1"], ["--num-classes", "1"]),
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ running


def run(case: Case, folder: Path) -> Outcome:
    """A case in a folder of its own."""
    (make_voc if case.voc else make_coco)(folder / "data")
    needs_weights = case.script != "train.py" or case.spoil is cut_off_weights
    if needs_weights:
        (folder / WEIGHTS).write_bytes(good_weights())
    case.spoil(folder)
    common = {"train.py": TRAIN, "validation.py": [*VALIDATE, WEIGHTS], "predict.py": [*PREDICT, WEIGHTS]}[case.script]
    outcome = run_thin(folder, case.script, *common, *case.arguments)
    if (folder / "sprung").exists():
        outcome.err += "\nthe trap was sprung"
    return outcome


@functools.lru_cache(maxsize=1)
def good_weights() -> bytes:
    """A checkpoint of the thin network, trained for a step on the good dataset."""
    with tempfile.TemporaryDirectory() as folder:
        make_coco(Path(folder) / "data")
        outcome = run_thin(Path(folder), "train.py", *TRAIN)
        if outcome.code:
            raise RuntimeError(outcome.said)
        return (Path(folder) / "save_weights" / "model_0.pth").read_bytes()


def main() -> int:
    failed = 0
    print("| input | exit | message |\n| --- | --- | --- |")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(case, Path(folder).resolve())
        said = outcome.said.replace(str(Path(folder).resolve()), "").replace("|", "\\|").replace("<", "&lt;")
        lines = [line if len(line) < 400 else f"{line[:400]}..." for line in said.splitlines()]
        print(f"| {case.name} | {outcome.code} | {'<br>'.join(lines) or 'no message'} |", flush=True)
        for fault in faults_of(outcome, case):
            failed += 1
            print(f"FAILED: {case.name}: {fault}", file=sys.stderr)
    print(f"{len(CASES)} cases, {failed} faults", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
