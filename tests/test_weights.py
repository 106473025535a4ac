"""State dicts and safetensors: names, shapes, dtypes, round trips, broken files; nothing changes on
failure."""

import ast
import json
import subprocess
import sys

import fastmha as fm
import numpy as np
import pytest
import torch
from conftest import assert_same_bits
from fastmha.weights import as_float32, read_safetensors, write_safetensors
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from torch import nn

BLOCKS = {
    "attention": lambda seed: fm.MultiHeadAttention(24, 3, seed=seed),
    "attention, kdim and vdim": lambda seed: fm.MultiHeadAttention(
        24, 3, kdim=10, vdim=14, seed=seed
    ),
    "attention, grouped": lambda seed: fm.MultiHeadAttention(24, 6, num_kv_heads=2, seed=seed),
    "feed-forward": lambda seed: fm.FeedForward(24, 40, seed=seed),
    "encoder block": lambda seed: fm.EncoderBlock(24, 3, 40, seed=seed),
    "decoder block, no bias": lambda seed: fm.DecoderBlock(24, 3, 40, bias=False, seed=seed),
    "encoder": lambda seed: fm.Encoder([fm.EncoderBlock(24, 3, 40, seed=seed)], fm.LayerNorm(24)),
    "decoder": lambda seed: fm.Decoder([fm.DecoderBlock(24, 3, 40, seed=seed)]),
    "transformer": lambda seed: fm.Transformer(9, 7, 24, 3, 1, 1, 40, seed=seed),
    "embedding": lambda seed: fm.Embedding(9, 24, seed=seed),
    "linear": lambda seed: fm.Linear.of_size(24, 40, seed=seed),
}


def assert_same_state(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_same_bits(actual[name], expected[name], name)


@pytest.mark.parametrize("build", BLOCKS.values(), ids=BLOCKS)
def test_save_and_load(build, tmp_path):
    block, other = build(0), build(1)
    state = block.state_dict()
    assert {name: array.shape for name, array in state.items()} == block.state_shapes()
    block.save(tmp_path / "block.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["block.safetensors"]
    other.load(tmp_path / "block.safetensors")
    assert_same_state(other.state_dict(), state)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fm.MultiHeadAttention(24, 3), nn.MultiheadAttention(24, 3)),
        (fm.MultiHeadAttention(24, 3, bias=False), nn.MultiheadAttention(24, 3, bias=False)),
        (fm.MultiHeadAttention(24, 3, kdim=8), nn.MultiheadAttention(24, 3, kdim=8)),
        (fm.EncoderBlock(24, 3, 40), nn.TransformerEncoderLayer(24, 3, 40)),
        (fm.DecoderBlock(24, 3, 40), nn.TransformerDecoderLayer(24, 3, 40)),
        (
            fm.DecoderBlock(24, 3, 40, bias=False),
            nn.TransformerDecoderLayer(24, 3, 40, bias=False),
        ),
    ],
    ids=lambda module: type(module).__name__,
)
def test_names_are_torchs_and_weights_go_both_ways(ours, theirs):
    ours.load_state_dict(theirs.state_dict())
    state = ours.state_dict()
    assert_same_state(state, {name: array.numpy() for name, array in theirs.state_dict().items()})
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})


def test_loading_copies(random):
    """Nothing of a block changes when the arrays that it was loaded from, or that it gave out,
    change."""
    block = fm.EncoderBlock(24, 3, 40, seed=0)
    x = random.normal(1, 5, 24)
    state = {name: np.array(array) for name, array in block.state_dict().items()}
    block.load_state_dict(state)
    before = block(x)
    for array in (*state.values(), *block.state_dict().values()):
        array[...] = 7
    assert_same_bits(block(x), before)


def test_read_only_and_strided_arrays_load(random):
    block = fm.Linear.of_size(6, 4, seed=0)
    weight = random.normal(6, 4).T
    bias = random.normal(8)[::2]
    weight.flags.writeable = bias.flags.writeable = False
    block.load_state_dict({"weight": weight, "bias": bias})
    assert_same_bits(block.weight, weight)
    assert_same_bits(block.bias, bias)


def test_everything_wrong_is_listed_and_nothing_changes():
    block = fm.EncoderBlock(24, 3, 40, seed=0)
    before = block.state_dict()
    state = fm.EncoderBlock(24, 3, 40, seed=1).state_dict()
    state["pooler.weight"] = state.pop("linear2.weight")
    del state["norm1.bias"]
    state["linear1.weight"] = state["linear1.weight"].T
    with pytest.raises(ValueError, match="missing") as failure:
        block.load_state_dict(state)
    for piece in (
        "EncoderBlock.load_state_dict",
        "linear2.weight",
        "norm1.bias",
        "unexpected: pooler.weight",
        "linear1.weight: expected shape (40, 24), got (24, 40)",
        "Nothing was changed",
    ):
        assert piece in str(failure.value)
    assert_same_state(block.state_dict(), before)


def test_not_strict_takes_what_fits():
    block = fm.EncoderBlock(24, 3, 40, seed=0)
    before, state = block.state_dict(), fm.EncoderBlock(24, 3, 40, seed=1).state_dict()
    del state["self_attn.in_proj_weight"]
    missing, unexpected = block.load_state_dict(state | {"extra": np.ones(1)}, strict=False)
    assert missing == ["self_attn.in_proj_weight"]
    assert unexpected == ["extra"]
    expected = state | {"self_attn.in_proj_weight": before["self_attn.in_proj_weight"]}
    assert_same_state(block.state_dict(), {name: expected[name] for name in before})
    with pytest.raises(ValueError, match=r"linear1\.bias: expected shape \(40,\)"):
        block.load_state_dict({"linear1.bias": np.ones(3, np.float32)}, strict=False)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.complex64, bool])
def test_lossy_dtypes_are_refused(dtype):
    block = fm.Linear.of_size(3, 2, seed=0)
    before = block.state_dict()
    with pytest.raises(TypeError, match=r"weight: expected float32 .* got .*astype\(np\.float32\)"):
        block.load_state_dict({"weight": np.zeros((2, 3), dtype), "bias": np.zeros(2, np.float32)})
    assert_same_state(block.state_dict(), before)


def test_float16_and_bfloat16_are_widened_exactly(tmp_path):
    torch.manual_seed(0)
    tensors = {"half": torch.randn(5, 3).half(), "brain": torch.randn(4, 1, 2).bfloat16()}
    tensors |= {"single": torch.randn(7), "scalar": torch.tensor(2.5), "none": torch.empty(0, 3)}
    save_torch(tensors, tmp_path / "mixed.safetensors")
    read = read_safetensors(tmp_path / "mixed.safetensors")
    for name, tensor in tensors.items():
        assert_same_bits(as_float32(read[name], name), tensor.float().numpy(), name)
        assert_same_bits(as_float32(tensor, name), tensor.float().numpy(), name)


def test_tensors_that_require_grad_load():
    linear = nn.Linear(3, 2)
    ours = fm.Linear.of_size(3, 2)
    ours.load_state_dict(dict(linear.named_parameters()))
    assert_same_bits(ours.weight, linear.weight.detach().numpy())


def test_sharded_checkpoints(tmp_path):
    block = fm.EncoderBlock(24, 3, 40, seed=0)
    state = block.state_dict()
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    other = fm.EncoderBlock(24, 3, 40, seed=1)
    other.load(tmp_path)
    assert_same_state(other.state_dict(), state)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="not an index"):
        other.load(tmp_path)


def broken(content):
    return {
        "empty": b"",
        "header cut off": content[:20],
        "data cut off": content[:-1],
        "more data": content + b"\0",
        "something else": b"PK\x03\x04" + bytes(200),
    }.values()


def test_broken_files_change_nothing(tmp_path):
    block = fm.EncoderBlock(24, 3, 40, seed=0)
    before = block.state_dict()
    file = tmp_path / "block.safetensors"
    fm.EncoderBlock(24, 3, 40, seed=1).save(file)
    for content in broken(file.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"block\.safetensors: broken or not"):
            block.load(file)
        assert_same_state(block.state_dict(), before)
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        block.load(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        block.load(tmp_path)
    save_file({"linear1.bias": np.zeros(40)}, file)
    with pytest.raises(TypeError, match=r"linear1\.bias: expected float32 .* float64"):
        block.load(file)
    assert_same_state(block.state_dict(), before)


def test_failed_writing_leaves_the_old_file(tmp_path):
    file = tmp_path / "block.safetensors"
    write_safetensors(file, {"a": np.ones(3, np.float32)})
    with pytest.raises(OSError, match="nowhere"):
        write_safetensors(tmp_path / "nowhere" / "x", {"a": np.ones(3, np.float32)})
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="folder"):
        write_safetensors(folder, {"a": np.zeros(3, np.float32)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["block.safetensors", "folder"]
    np.testing.assert_array_equal(read_safetensors(file)["a"], 1)


def without(module, code):
    """Run `code` where `module` cannot be imported."""
    block = f"import sys; sys.modules[{module!r}] = None\n"
    return subprocess.run(
        [sys.executable, "-c", block + code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("module", "code", "extra"),
    [
        ("safetensors", "fm.Linear.of_size(2, 2).load('x.safetensors')", "text"),
        ("safetensors.numpy", "fm.Linear.of_size(2, 2).save('x.safetensors')", "text"),
        ("tokenizers", "fm.load(fm.demo_model_path())", "text"),
        ("typer", "from fastmha.cli import main; main()", "cli"),
        ("rich", "from fastmha.cli import main; main()", "cli"),
    ],
)
def test_a_missing_extra_is_named(module, code, extra):
    result = without(module, f"import fastmha as fm\n{code}")
    assert result.returncode == 1
    assert f'pip install "fastmha[{extra}]"' in result.stderr


def test_importing_fastmha_needs_numpy_alone():
    code = (
        "import sys, fastmha\n"
        "own = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(name for name in own if not name.startswith('_')))"
    )
    # -S: without the .pth files of other packages
    paths = [path for path in sys.path if path]
    code = f"import sys; sys.path[:0] = {paths!r}\n" + code
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(ast.literal_eval(result.stdout)) - {"cython_runtime"}  # NumPy's own
    assert loaded == {"fastmha", "numpy"}
