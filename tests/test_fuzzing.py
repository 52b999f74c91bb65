"""No file, whatever it holds, makes its reader fall over: a short form of the part `fuzz` of reliability.py."""
import numpy as np
import pytest
from fuzzing import examine
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_files import READERS, lay_out
from pycocotools import mask as coco_mask

from network_files.rle import decode_crop


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
        left, top, crop = decode_crop(code)
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
        decode_crop({"size": size, "counts": counts})
