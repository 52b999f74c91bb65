"""No file, whatever it holds, makes its reader fall over: a short form of the part `fuzz` of reliability.py."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from network_files.masks.rle import decode_crops
from tests.helpers.fuzzing import examine
from tests.helpers.made_up_files import READERS, lay_out
from train_utils.errors import InputError
from train_utils.weight_files.weights import read_weight_file, state_dict_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_file_is_read_or_refused_in_one_line_that_names_it(tmp_path, reader):
    lay_out(tmp_path)
    counts = examine(reader, tmp_path, examples=150)
    assert counts["accepted"] and counts["refused"]  # else it would show nothing


PACKED = st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12) | st.binary(max_size=8)


@given(PACKED | st.lists(st.integers(0, 9), max_size=9), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
def test_a_code_decodes_as_by_pycocotools_or_is_refused(counts, height, width):
    code = {"size": [height, width], "counts": counts}
    if isinstance(counts, list):
        counts = [*counts, max(0, height * width - sum(counts))]
        code = coco_mask.frPyObjects(code | {"counts": counts}, height, width)
    try:
        left, top, crop = decode_crops([code])[0]
    except ValueError:
        return
    plane = np.zeros((height, width), dtype=np.uint8)
    plane[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    assert np.array_equal(plane, coco_mask.decode(code))


@pytest.mark.parametrize(
    "size, counts",
    [
        ([10**9, 10**9], "0"),  # as many pixels as no picture has
        ([6, 8], "P"),  # the number goes on, and the code ends
        ([6, 8], b"\xff"),  # no character of a code
        ([6, 8], "PPPPPPPPPPP1"),  # a number of 60 bits
        ([6, 8], "O`1"),  # a run of -1
        ([6, 8], "0`1`1"),  # runs that add up to more
        ([6, 8], "猫"),
        ([6, 8], ""),
    ],
)
def test_a_code_that_is_none_is_refused(size, counts):
    with pytest.raises(ValueError):
        decode_crops([{"size": size, "counts": counts}])


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def archive(program: bytes, kind: int = zipfile.ZIP_STORED) -> bytes:
    """torch.save's archive with another pickle in it."""
    file, whole = io.BytesIO(), zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(3)})))
    with zipfile.ZipFile(file, "w", kind) as changed:
        for name in whole.namelist():
            changed.writestr(name, program if name.endswith("data.pkl") else whole.read(name))
    return file.getvalue()


@pytest.mark.parametrize(
    "content, told",
    [
        (saved({"a": torch.zeros(1).expand(10**9, 10**9)}), "not the bytes for it"),
        (archive(b"\x80\x02}." + bytes(10**7), zipfile.ZIP_DEFLATED), "compressed"),
        (archive(b"\x80\x02cbuiltins\nbytearray\nJ\0\0\0\x40\x85R."), "it names builtins.bytearray"),
        (archive(b"\x80\x02}cos\nsystem\nX\x09\0\0\0touch run\x85Rs."), "it names os.system"),
        (b"\x80\x02}r\xff\xff\xff\x03.", "memo index 67108863"),  # half a gigabyte for a table of them
        (b"\x80\x05\x96\0\0\0\x40\0\0\0\0.", "bytearray8"),
        (saved({"model": {"a": torch.zeros(1)}, "args": {"x": torch.zeros(1).to_sparse()}}), "sparse"),
        (saved({1: torch.zeros(1)}), "holds no state dict"),
        (saved({"model": {"a": torch.zeros(1), 2: torch.zeros(1)}}), "holds no state dict"),
    ],
    ids=range(9),
)
def test_weights_that_ask_for_more_than_they_hold_are_refused_before_it_is_given(tmp_path, content, told):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match=told) as caught:
        state_dict_of(read_weight_file(path), path)
    assert tracemalloc.get_traced_memory()[1] < 5e7
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_what_training_scripts_save_is_read(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    content = {"model": {"a": parameter, "b": torch.zeros(4).view(2, 2).t()}, "epoch": 3, "size": torch.Size([1, 2])}
    content |= {"dtype": torch.float16, "names": ("a", b"b", None), "set": {1.5}, "list": [[True], {1: 2j}]}
    for kind in (True, False):
        torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=kind)
        assert str(read_weight_file(tmp_path / "weights.pth")) == str(content)
