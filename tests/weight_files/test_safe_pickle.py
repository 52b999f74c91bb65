"""Pickled arrays come in as they are, and nothing else does: no file, whatever it holds, makes anything run."""

import collections
import os
import pickle
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train_utils.errors import InputError
from train_utils.weight_files.safe_pickle import is_pickle, read_arrays


def dumped(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def assert_refused(path: Path, *named: str) -> None:
    """One line that names the file; no other exception, and no file made beside it."""
    before = set(path.parent.iterdir())
    with pytest.raises(InputError) as caught:
        read_arrays(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500
    assert all(words in message for words in named), message
    assert set(path.parent.iterdir()) == before


# ------------------------------------------------------------------------------------------------------------ arrays


@given(
    dtype=st.sampled_from(["<f4", ">f4", "<f8", "<f2", "<i8", ">i2", "|u1", "|b1"]),
    shape=st.lists(st.integers(1, 4), max_size=4),
    columns_first=st.booleans(),
    protocol=st.integers(2, 4),
)
@settings(max_examples=60, deadline=None)
def test_arrays_come_in_as_they_are(tmp_path_factory, dtype, shape, columns_first, protocol):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype) * np.array(1, dtype=dtype)
    array = np.asarray(array, order="F" if columns_first else "C")
    content = {"model": {"a.weight": array}, "__author__": "someone"}
    ((name, tensor),) = read_arrays(dumped(tmp_path_factory.mktemp("pickle") / "x.pkl", content, protocol)).items()
    assert name == "a.weight" and tensor.shape == array.shape and tensor.is_contiguous()
    assert tensor.dtype == torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).dtype
    assert np.array_equal(tensor.numpy(), array)


def test_an_ordered_dict_and_other_entries_do_not_disturb(tmp_path):
    arrays = collections.OrderedDict(b=np.ones(2), a=np.zeros(3))
    content = {"model": arrays, "matching_heuristics": True, "n": [1, (2,)]}
    assert list(read_arrays(dumped(tmp_path / "x.pkl", content))) == ["b", "a"]


def test_what_python_2_wrote_comes_in(tmp_path):
    """There bytes are strings of their own kind, which latin1 turns into text."""
    data = struct.pack("<2f", 1.5, -2.25)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I2\ntcnumpy\ndtype\n(U\x02f4I0\n"
        b"I1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\nU" + bytes([len(data)]) + data + b"tb"
    )
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02}U\x05model}U\x01w" + array + b"ss.")
    assert read_arrays(tmp_path / "x.pkl")["w"].tolist() == [1.5, -2.25]


def test_a_pickle_is_told_from_what_torch_saves(tmp_path):
    tensors = {"a": torch.zeros(2)}
    torch.save(tensors, tmp_path / "new.pkl")
    torch.save(tensors, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    assert not is_pickle(tmp_path / "new.pkl") and not is_pickle(tmp_path / "old.pkl")
    assert is_pickle(dumped(tmp_path / "x.pth", {"model": {"a": np.zeros(2)}}))


# ----------------------------------------------------------------------------------------------------------- refusals


class Call:
    """Pickled, it calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("place", ["alone", "as the model", "as an array", "as a name"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_code_runs(tmp_path, place, protocol):
    trap = Call(os.mkdir, str(tmp_path / "sprung"))
    content = {
        "alone": trap,
        "as the model": {"model": trap},
        "as an array": {"model": {"a": np.zeros(2), "b": trap}},
        "as a name": {"model": {trap: np.zeros(2)}},
    }[place]
    path = dumped(tmp_path / "trap.pkl", content, protocol)
    assert_refused(path, "refused", "mkdir")
    pickle.loads(path.read_bytes()) if place != "as a name" else None
    assert (tmp_path / "sprung").exists() or place == "as a name"  # it was a trap


@pytest.mark.parametrize(
    "function", [eval, exec, getattr, print, open, os.system, subprocess.Popen, np.load, np.zeros, np.array, torch.load]
)
def test_every_other_name_is_refused_by_name(tmp_path, function):
    assert_refused(dumped(tmp_path / "x.pkl", {"model": {"a": Call(function, "1")}}), "refused", function.__name__)


def test_objects_of_classes_are_refused_by_name(tmp_path):
    for content, name in ((Path("x"), "Path"), (torch.zeros(2), "_rebuild_tensor_v2"), (np.float32(1), "scalar")):
        assert_refused(dumped(tmp_path / "x.pkl", {"model": {"a": content}}), "refused", name)


def test_arrays_of_objects_are_refused(tmp_path):
    trap = np.array([Call(os.mkdir, str(tmp_path / "sprung"))], dtype=object)
    assert_refused(dumped(tmp_path / "x.pkl", {"model": {"a": trap}}), "refused", "mkdir")
    assert_refused(dumped(tmp_path / "x.pkl", {"model": {"a": np.array([{}, None], dtype=object)}}), "a ", "O8")
    for array in (np.array(["text"]), np.zeros(2, dtype="f4,i4"), np.zeros(2, dtype="M8[s]"), np.zeros(2, complex)):
        assert_refused(dumped(tmp_path / "x.pkl", {"model": {"a": array}}), "not of numbers")


# The opcodes of an array of one float32: what makes it, its state up to the shape, and the rest of the state.
MAKE = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
DTYPE = b"cnumpy\ndtype\n(U\x02f4I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"


def array_opcodes(shape: bytes = b"(I1\nt", dtype: bytes = DTYPE, data: bytes = b"U\x04\0\0\0\0") -> bytes:
    return b"\x80\x02}U\x05model}U\x01w" + MAKE + b"(I1\n" + shape + dtype + b"I00\n" + data + b"tbss."


@pytest.mark.parametrize(
    "changed",
    [
        dict(shape=b"(L1000000000000L\nt"),
        dict(shape=b"(L4294967296L\nL4294967296L\nt"),
        dict(shape=b"(L1000000000000000000000000L\nt"),
        dict(shape=b"(I-1\nI-1\nt"),
        dict(shape=b"(I2\nt"),
        dict(shape=b"(I0\nt"),
        dict(shape=b"(F1.0\nt"),
        dict(shape=b"(U\x011t"),
        dict(shape=b"N"),
        dict(shape=b"(" + b"I1\n" * 100 + b"t"),
        dict(data=b"N"),
        dict(data=b"(l"),
        dict(data=b"X\x04\0\0\0\xc4\x80\0\0"),  # a letter that latin1 lacks
        dict(dtype=b"N"),
        dict(dtype=b"U\x02f4"),
        dict(dtype=b"cnumpy\ndtype\n(U\x01OtR"),
        dict(dtype=b"cnumpy\ndtype\n((ltR"),
        dict(dtype=b"cnumpy\ndtype\n(U\x02f4tR(I3\nU\x01?tb"),
        dict(dtype=b"cnumpy\ndtype\n(U\x02f4tR(tb"),
    ],
)
def test_arrays_that_claim_what_they_do_not_hold_are_refused(tmp_path, changed):
    path = tmp_path / "x.pkl"
    path.write_bytes(array_opcodes())
    assert read_arrays(path)["w"].tolist() == [0.0]
    path.write_bytes(array_opcodes(**changed))
    assert_refused(path)


@pytest.mark.parametrize("content", [None, 3, [], {}, {"other": {"a": np.ones(1)}}])
def test_other_structures_are_refused(tmp_path, content):
    assert_refused(dumped(tmp_path / "x.pkl", content))


@pytest.mark.parametrize("model", [None, [], "a", {"a": [1.0]}, {"a": {}}, {"a": 3}, {1: np.ones(1)}])
def test_models_of_anything_but_arrays_are_refused(tmp_path, model):
    assert_refused(dumped(tmp_path / "x.pkl", {"model": model}))


@pytest.mark.parametrize(
    "opcodes",
    [
        MAKE + b".",  # an array without a state
        MAKE + b"Na.",  # append to an array
        MAKE + b"U\x01aNs.",  # an item of an array
        MAKE + b"N}U\x0b__setstate__Ns\x86b.",  # attributes of an array
        b"cnumpy.core.multiarray\n_reconstruct\nN}U\x08__code__Ns\x86b.",  # attributes of what builds one
        b"cnumpy\ndtype\n}U\x08__func__Nsb.",
        b"c_codecs\nencode\n(U\x02hiU\x05rot13tR.",
        b"c_codecs\nencode\n(NU\x06latin1tR.",
        b"ccollections\nOrderedDict\n(I3\ntR.",
        b"Pos.system\n.",  # a persistent object
        b"\x82\x01.",  # an extension
        b"(i__builtin__\neval\n.",
        b"R.",
        b"0.",
        b"h\x05.",
        b"",
    ],
)
def test_programs_that_misuse_what_is_allowed_are_refused(tmp_path, opcodes):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02" + opcodes)
    assert_refused(path)
    path.write_bytes(array_opcodes())
    assert read_arrays(path)["w"].tolist() == [0.0]  # nothing was left changed


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    whole = pickle.dumps({"model": {"a": np.ones((2, 3), np.float32), "b": np.zeros(5)}}, 2)
    path = tmp_path / "x.pkl"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        assert_refused(path)


@given(st.integers(0, 10**6), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_a_file_with_a_changed_byte_is_read_or_refused(tmp_path_factory, place, value):
    whole = bytearray(pickle.dumps({"model": {"a": np.ones((2, 3), np.float32)}}, 2))
    whole[place % len(whole)] = value
    path = tmp_path_factory.mktemp("pickle") / "x.pkl"
    path.write_bytes(whole)
    try:
        read_arrays(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ")
