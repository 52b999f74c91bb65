"""Files of every kind that a user may hand over: whole, altered in places, and made up of their language's words."""

import copy
import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from my_dataset_coco import CocoDetection
from my_dataset_voc import VOCInstances
from tests.helpers.fuzzing import Reader
from train_utils.metrics.results_file import score_results_file
from train_utils.weight_files.safe_pickle import TORCH_START
from train_utils.weight_files.weights import read_weight_file, state_dict_of

SIZE = (6, 8)  # height and width of the one picture

# ------------------------------------------------------------------------------------------------------- whole files

POLYGON = [1.0, 1.0, 6.0, 1.0, 6.0, 5.0, 1.0, 5.0]
DISC = np.asfortranarray(np.add.outer(np.arange(-2, 4) ** 2, np.arange(-4, 4) ** 2) < 9, dtype=np.uint8)
PACKED = coco_mask.encode(DISC) | {"counts": coco_mask.encode(DISC)["counts"].decode()}
COUNTS = [8, 3, 3, 3, 31]
INSTANCES = {
    "images": [{"id": 7, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
    "annotations": [
        {"id": i, "image_id": 7, "category_id": 2, "bbox": [1, 1, 5, 4], "area": 20, "iscrowd": int(i == 3),
         "segmentation": segmentation}
        for i, segmentation in enumerate([[POLYGON], PACKED, {"size": [*SIZE], "counts": COUNTS}], start=1)
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}  # fmt: skip
RESULTS = [
    {"image_id": 7, "category_id": 2, "score": 0.5, "bbox": [1, 1, 5, 4], "segmentation": code}
    for code in (PACKED, {"size": [*SIZE], "counts": COUNTS})
]
XML = """<annotation><folder>VOC2012</folder><filename>a.jpg</filename><size><width>8</width><height>6</height>
<depth>3</depth></size><segmented>1</segmented><object><name>dog</name><pose>Left</pose><truncated>1</truncated>
<difficult>0</difficult><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>6</xmax><ymax>5</ymax></bndbox><part><name>head</name>
<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part></object></annotation>"""
CHECKPOINT = {
    "model": {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2, dtype=torch.float64)},
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "args": {"lr": 0.1, "data_path": None, "amp": True}, "epoch": 3, "class_names": {1: "cat"},
}  # fmt: skip


def saved(content: object, as_zip: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=as_zip)
    return file.getvalue()


ZIP, OLD = saved(CHECKPOINT, True), saved(CHECKPOINT, False)
ARRAYS = pickle.dumps({"model": {"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.ones(2, ">f8")}}, protocol=2)


def lay_out(folder: Path) -> None:
    """A data set of each layout, with one picture that all files are about."""
    picture = Image.fromarray(np.full((*SIZE, 3), 90, dtype=np.uint8))
    for name in ("annotations", "train2017", "Annotations", "ImageSets/Segmentation", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    picture.save(folder / "train2017" / "a.png")
    picture.save(folder / "JPEGImages" / "a.jpg")
    (folder / "annotations" / "truth.json").write_text(json.dumps(INSTANCES))
    (folder / "whole_results.json").write_text(json.dumps(RESULTS))
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    for name, number in (("SegmentationObject", 1), ("SegmentationClass", 12)):
        (folder / name).mkdir(exist_ok=True)
        mask = np.zeros(SIZE, dtype=np.uint8)
        mask[1:5, 1:6] = number
        Image.fromarray(mask).save(folder / name / "a.png")


# ----------------------------------------------------------------------------------------------------------- readers


def read_instances(folder: Path) -> None:
    dataset = CocoDetection(folder, "train")
    for i in range(len(dataset)):
        dataset[i]


def read_xml(folder: Path) -> None:
    dataset = VOCInstances(folder)
    for i in range(len(dataset)):
        dataset[i]


def read_results(folder: Path) -> None:
    for kind in ("bbox", "segm"):
        score_results_file(str(folder / "results.json"), str(folder / "annotations" / "truth.json"), [kind])


def read_truth(folder: Path) -> None:
    score_results_file(str(folder / "whole_results.json"), str(folder / "their_truth.json"), ["bbox"])


def read_code(folder: Path) -> None:
    """A code in a results file, whose reader looks at it, and scoring then takes it apart."""
    score_results_file(str(folder / "code.json"), str(folder / "annotations" / "truth.json"), ["segm"])


def read_weights(folder: Path) -> None:
    path = folder / "weights.pth"
    content = read_weight_file(path)
    for tensor in state_dict_of(content, path).values():
        tensor.clone()


# ---------------------------------------------------------------------------------------------------- what they hold

NASTY = [
    0, -1, 2**31, 2**63, 10**30, 1e9, 1e308, float("nan"), float("inf"), -float("inf"), "", "a", "7", "../a.png",
    "/etc/passwd", "a\0b", "\ud800", "猫.png", [], [[]], {}, [10**9, 10**9], [0, 10**18], [-5, 5], [1, 2, 3], [[1, 2]],
    {"size": [10**9, 10**9], "counts": [0, 10**18]}, {"size": [6, 8], "counts": [0, 48]},
    {"size": [6, 8], "counts": "PPPPPPPPPPPPPPPPP0"}, {"size": [6, 8], "counts": "o"}, {"size": [6, 8],
    "counts": [-1, 49]},
]  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers(-3, 100) | st.floats(width=32) | st.text(max_size=6)
VALUES = st.sampled_from(NASTY) | st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["id", "size", "counts", "bbox"]) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: object) -> Iterator[tuple[dict | list, object]]:
    """Every container and key in a JSON value at which something stands."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


@st.composite
def altered_json(draw: st.DrawFn, document: object) -> bytes:
    """A valid document in which some values are others, missing, twice, or where others stand."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(document))
        if not found:
            break
        where, key = found[draw(st.integers(0, len(found) - 1))]
        how = draw(st.sampled_from(["replace", "replace", "delete", "repeat", "swap"]))
        if how == "delete":
            del where[key]
        elif how == "repeat" and isinstance(where, list):
            where.extend(copy.deepcopy(where[key]) for _ in range(draw(st.integers(1, 3))))
        elif how == "swap":
            from_where, from_key = found[draw(st.integers(0, len(found) - 1))]
            where[key] = copy.deepcopy(from_where[from_key]) if from_key in keys_of(from_where) else None
        else:
            where[key] = copy.deepcopy(draw(VALUES))
    return json.dumps(document).encode()


def keys_of(value: dict | list) -> object:
    return value if isinstance(value, dict) else range(len(value))


def weighted(*choices: tuple[int, st.SearchStrategy[bytes]]) -> st.SearchStrategy[bytes]:
    """One of several kinds, each so often."""
    kinds = [kind for times, kind in choices for _ in range(times)]
    return st.integers(0, len(kinds) - 1).flatmap(lambda i: kinds[i])


BYTES = st.binary(max_size=4)
SIGNS = st.text("0123456789-+.eE[]{}<>/\"':,\\NInfaulrts \n", max_size=4).map(str.encode)  # of JSON and XML


@st.composite
def altered_bytes(draw: st.DrawFn, wholes: tuple[bytes, ...], new: st.SearchStrategy[bytes] = BYTES) -> bytes:
    """A valid file with some bytes put in, taken out or changed, or without its end."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 4))] = draw(new)
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.integers(0, 4)) == 0 else bytes(data)


def json_files(document: object) -> st.SearchStrategy[bytes]:
    anything = VALUES.map(lambda value: json.dumps(value).encode())
    deep = st.integers(1, 100_000).flatmap(lambda n: st.sampled_from([b"[" * n, b'{"images":' * n]))
    text = json.dumps(document).encode()
    altered = (12, altered_json(document)), (4, altered_bytes((text,), SIGNS)), (1, altered_bytes((text,)))
    return weighted(*altered, (2, anything), (1, deep), (1, st.binary(max_size=40)))


RUNS = st.lists(st.integers(-2, 50) | st.sampled_from([2**31, 2**32, 2**63, 10**18, 1.5, None]), max_size=8)


@st.composite
def codes(draw: st.DrawFn) -> bytes:
    """A results file of one mask: runs that cover the picture, or not, packed or not."""
    runs = draw(RUNS)
    if draw(st.booleans()):  # cover it
        runs = [max(run, 0) for run in runs if isinstance(run, int) and run < SIZE[0] * SIZE[1]]
        while sum(runs) > SIZE[0] * SIZE[1]:
            runs.pop()
        runs.append(SIZE[0] * SIZE[1] - sum(runs))
    packed = st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=20)
    counts = draw(st.sampled_from([runs, PACKED["counts"]]) | packed)
    size = draw(st.sampled_from([[*SIZE]] * 8 + [[10**9, 10**9], [6, -8], [6], None, [6.0, 8.0]]))
    return json.dumps([RESULTS[0] | {"segmentation": {"size": size, "counts": counts}}]).encode()


XML_TEXTS = SCALARS.map(str) | st.sampled_from(["1e999", "nan", "inf", "-5", "9" * 40, "٣", " 6 ", "dog\ncat", "猫"])
NESTED = b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(12))
BOMBS = (
    b'<!DOCTYPE a [<!ENTITY a "ha">' + NESTED + b"]><annotation><size><width>8</width><height>&m;</height></size>"
    b"</annotation>",
    b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + XML.replace("Left", "&x;").encode(),
    b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + XML.replace("<name>dog", "<name>&x;").encode(),
    b'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">' + XML.encode(),
    b"<a>" * 100_000, b"<annotation>" + b"<object>" * 20_000 + b"</object>" * 20_000 + b"</annotation>",
)  # fmt: skip


@st.composite
def altered_xml(draw: st.DrawFn) -> bytes:
    root = ElementTree.fromstring(XML)
    for _ in range(draw(st.integers(1, 3))):
        elements = list(root.iter())
        element = elements[draw(st.integers(0, len(elements) - 1))]
        how = draw(st.sampled_from(["text", "text", "tag", "empty", "repeat"]))
        if how == "text":
            element.text = draw(XML_TEXTS)
        elif how == "tag":
            element.tag = draw(st.sampled_from(["object", "bndbox", "xmin", "size", "other"]))
        elif how == "empty":
            element.clear()
        else:
            element.extend([copy.deepcopy(element) for _ in range(draw(st.integers(1, 2)))])
    text = ElementTree.tostring(root, encoding="unicode")
    return text.encode("utf-8", "xmlcharrefreplace" if draw(st.booleans()) else "replace")


XML_FILES = weighted(
    (12, altered_xml()), (4, altered_bytes((XML.encode(), *BOMBS[:4]), SIGNS)), (1, altered_bytes((XML.encode(),))),
    (1, st.sampled_from(BOMBS)), (1, st.binary(max_size=40)),
)  # fmt: skip

# Words of the language that pickles are written in, some of them with a claim that their file cannot meet.
WORDS = [
    b"(", b".", b"0", b"2", b"N", b"t", b"R", b"b", b"d", b"e", b"l", b"s", b"u", b"a", b"}", b"]", b")", b"\x81",
    b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"\x8f", b"\x90", b"\x91", b"\x92", b"\x93", b"\x94", b"\x98", b"Q",
    b"P0\n", b"K\x01", b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\0",
    b"G\x7f\xf8\0\0\0\0\0\0", b"q\0", b"h\0", b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"p4000000000\n", b"I1\n",
    b"L5L\n", b"F1.5\n", b"S'a'\n", b"Vb\n", b"U\x01c", b"T\xff\xff\xff\x7f", b"X\x05\0\0\0model",
    b"X\xff\xff\xff\xff", b"B\xff\xff\xff\xff", b"\x8d" + b"\xff" * 7 + b"\x7f", b"\x8e\0\0\0\0\x10\0\0\0",
    b"\x96\0\0\0\0\x10\0\0\0", b"\x95\0\0\0\0\x10\0\0\0", b"\x82\x01", b"\x8c\x01a", b"C\x02ab",
    b"X\x07\0\0\0storage", b"X\x01\0\0\x000", b"X\x03\0\0\0cpu", b"K\0", b"K\x03\x85",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
    b"ctorch\nSize\n", b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n", b"ctorch._utils\n_rebuild_qtensor\n",
    b"cbuiltins\nbytearray\n", b"ctorch.nn.parameter\nParameter\n", b"ctorch\nfloat32\n",
    b"cos\nsystem\nX\x09\0\0\0touch run\x85R", b"cbuiltins\neval\n", b"csubprocess\nPopen\n", b"ios\nsystem\n",
]  # fmt: skip
PROGRAMS = st.lists(st.sampled_from(WORDS), max_size=12).map(lambda words: b"\x80\x02" + b"".join(words) + b".")
HUGE = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQK\0"  # a tensor's beginning


@st.composite
def claims(draw: st.DrawFn) -> bytes:
    """A pickle of one tensor whose storage is there, and whose shape and strides may be anything."""
    numbers = st.lists(st.sampled_from([0, 1, 2, 3, 10**5, 10**9, 2**62, -1]), max_size=3)
    sizes, strides = (b"(" + b"".join(b"L%dL\n" % n for n in draw(numbers)) + b"t" for _ in range(2))
    end = sizes + strides + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x05\0\0\0model}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n" + HUGE + end + b"ss."


@st.composite
def rebuilt_zip(draw: st.DrawFn) -> bytes:
    """torch.save's archive with right check sums around a record that is another, shorter, elsewhere or missing."""
    whole = zipfile.ZipFile(io.BytesIO(ZIP))
    chosen = draw(st.sampled_from(["archive/data.pkl"] * 6 + whole.namelist()))
    inside = whole.read(chosen)
    other = draw(altered_bytes((inside,)) | PROGRAMS | claims() | st.none() | st.just(b"\0" * 200_000))
    file = io.BytesIO()
    kind = draw(st.sampled_from([zipfile.ZIP_STORED] * 5 + [zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name in whole.namelist():
            content = other if name == chosen else whole.read(name)
            if content is not None:
                archive.writestr(name, content)
    return file.getvalue()


OLD_START = OLD[: OLD.index(b"\x80\x02}", len(TORCH_START) + 20)]  # up to the content
WEIGHT_FILES = weighted(
    (10, rebuilt_zip()), (6, altered_bytes((ZIP, OLD, ARRAYS))), (2, PROGRAMS),
    (2, PROGRAMS.map(lambda program: OLD_START + program)),
    (2, PROGRAMS.map(lambda program: ARRAYS[:-1] + program[2:])), (1, st.binary(max_size=60)),
)  # fmt: skip

INSTANCES_TEXT, RESULTS_TEXT = json.dumps(INSTANCES).encode(), json.dumps(RESULTS).encode()
READERS = [
    Reader(
        "annotations (COCO's JSON)", "annotations/instances_train2017.json", INSTANCES_TEXT, json_files(INSTANCES),
        read_instances,
    ),
    Reader("annotations (VOC's XML)", "Annotations/a.xml", XML.encode(), XML_FILES, read_xml),
    Reader("detections (JSON)", "results.json", RESULTS_TEXT, json_files(RESULTS), read_results),
    Reader("ground truth for them (JSON)", "their_truth.json", INSTANCES_TEXT, json_files(INSTANCES), read_truth),
    Reader("run-length codes", "code.json", json.dumps(RESULTS[:1]).encode(), codes(), read_code),
    Reader("checkpoints and weights", "weights.pth", ZIP, WEIGHT_FILES, read_weights),
]  # fmt: skip
