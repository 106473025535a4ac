"""safetensors files as they are found: shards and their index, dtypes, broken files, no pickles."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_same_bits
from fastmha.tensors import Tensors
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5, np.float32),
    "flags": np.array([True, False, True]),
}


def rewrite(file, change):
    """Change the header of a safetensors file, a str, and leave the data."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = change(content[8 : 8 + length].decode()).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


def write_index(directory, names):
    index = {"metadata": {}, "weight_map": names}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_every_tensor_as_it_is(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        tensors = Tensors(path)
        assert set(tensors) == set(ARRAYS)
        assert len(tensors) == len(ARRAYS)
        assert "nothing" not in tensors
        for name, array in ARRAYS.items():
            assert tensors.shape(name) == array.shape
            assert tensors[name].dtype == array.dtype
            assert type(tensors[name]) is np.ndarray
            np.testing.assert_array_equal(tensors[name], array)
    assert (tensors.dtype("a"), tensors.dtype("b")) == ("F32", "I64")
    with pytest.raises(ValueError, match="read-only"):
        tensors["a"][0, 0] = 1


def test_bfloat16_becomes_float32(tmp_path):
    tensor = torch.randn(5, 3).bfloat16()
    save_torch({"a": tensor}, tmp_path / "model.safetensors")
    assert_same_bits(Tensors(tmp_path)["a"], tensor.float().numpy())


def test_a_dtype_without_counterpart(tmp_path):
    save_torch({"a": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    tensors = Tensors(tmp_path)
    with pytest.raises(TypeError, match=r"a: NumPy has no counterpart of the dtype F8_E4M3"):
        tensors["a"]


def test_data_that_is_not_aligned(tmp_path):
    """Old writers did not pad the header."""
    file = tmp_path / "model.safetensors"
    save_file({"a": ARRAYS["a"]}, file)
    for spaces in range(1, 5):
        rewrite(file, lambda header: header + " ")
        array = Tensors(tmp_path)["a"]
        assert array.flags.aligned, spaces
        assert_same_bits(array, ARRAYS["a"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"F32"', '"F64"'),  # mislabelled: another width
        ('"F32"', '"F16"'),
        ('"F32"', '"F33"'),
        ("[2,3]", "[2,4]"),
        ("[2,3]", "[-2,3]"),
        ("[0,24]", "[0,20]"),
        ("[0,24]", "[8,32]"),
        ("[0,24]", "[0,99999999999]"),
        ("{", "["),
        ('"dtype"', '"type"'),
    ],
)
def test_headers_that_do_not_fit_the_data(tmp_path, old, new):
    file = tmp_path / "model.safetensors"
    save_file({"a": ARRAYS["a"]}, file)
    rewrite(file, lambda header: header.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"model\.safetensors: broken or not a safetensors file"):
        Tensors(tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 8, 30, -1])
def test_truncated_files(tmp_path, cut):
    file = tmp_path / "model.safetensors"
    save_file(ARRAYS, file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"model\.safetensors: broken or not a safetensors file"):
        Tensors(tmp_path)


def test_shards(tmp_path):
    (tmp_path / "part").mkdir()
    save_file({"a": ARRAYS["a"]}, tmp_path / "1.safetensors")
    save_file({"b": ARRAYS["b"]}, tmp_path / "part" / "2.safetensors")
    write_index(tmp_path, {"a": "1.safetensors", "b": "part/2.safetensors"})
    tensors = Tensors(tmp_path)
    np.testing.assert_array_equal(tensors["a"], ARRAYS["a"])
    np.testing.assert_array_equal(tensors["b"], ARRAYS["b"])
    assert tensors.file("b") == tmp_path / "part" / "2.safetensors"


def test_a_link_to_a_shard_is_followed(tmp_path):
    """As in the cache of huggingface_hub, where every file of a snapshot is a link."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file({"a": ARRAYS["a"]}, tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot" / "1.safetensors").symlink_to(tmp_path / "blobs" / "0123")
    write_index(tmp_path / "snapshot", {"a": "1.safetensors"})
    np.testing.assert_array_equal(Tensors(tmp_path / "snapshot")["a"], ARRAYS["a"])


@pytest.mark.parametrize(
    "shard",
    ["../1.safetensors", "part/../../1.safetensors", "/etc/1.safetensors", "..\\1.sa", "C:"],
)
def test_shards_outside_the_directory(tmp_path, shard):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file({"a": ARRAYS["a"]}, tmp_path / "1.safetensors")
    write_index(inside, {"a": shard})
    with pytest.raises(ValueError, match=r"a: .* points outside the directory"):
        Tensors(inside)


def test_an_index_that_does_not_fit(tmp_path):
    save_file({"a": ARRAYS["a"], "b": ARRAYS["b"]}, tmp_path / "1.safetensors")
    write_index(tmp_path, {"a": "1.safetensors", "c": "1.safetensors"})
    with pytest.raises(ValueError, match=r"1\.safetensors: .* missing: c; unexpected: b"):
        Tensors(tmp_path)
    write_index(tmp_path, {"a": "2.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"2\.safetensors: no such"):
        Tensors(tmp_path)
    write_index(tmp_path, {"a": "pytorch_model.bin"})
    with pytest.raises(ValueError, match=r"'pytorch_model\.bin' is not a \.safetensors file"):
        Tensors(tmp_path)


def test_pickles_are_never_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors and no model"):
        Tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FileNotFoundError, match=r"only pytorch_model\.bin: .*save_pretrained"):
        Tensors(tmp_path)
