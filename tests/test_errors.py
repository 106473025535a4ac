"""Wrong calls: TypeError for dtypes (naming the cast), ValueError for shapes and values, each
saying which operation, what was expected and what came; nothing is changed and nothing crashes.
"""

import fastmha as fm
import numpy as np
import pytest
from conftest import Random
from hypothesis import given, settings
from hypothesis import strategies as st

_random = Random(0)
Q, K, V = _random.attention(2, 4, 5, 7, 8, kv_heads=2, value_dim=6)
CU_Q, CU_K = np.array([0, 2, 5]), np.array([0, 3, 7])
PQ, PK, PV = (
    Q[0].transpose(1, 0, 2).copy(),
    K[0].transpose(1, 0, 2).copy(),
    V[0].transpose(1, 0, 2).copy(),
)
X, W, B, R = (_random.normal(*shape) for shape in ((3, 8), (6, 8), (6,), (3, 6)))
LINEAR = fm.Linear(W, B)
SCALE = np.ones(8, np.float32)

WRONG_DTYPES = ["float64", "float16", "int32", "int64", "complex64", "bool", "object", ">f4", "S4"]


def sdpa(q=Q, k=K, v=V, mask=None, **options):
    return fm.scaled_dot_product_attention(q, k, v, mask, **options)


def varlen(q=PQ, k=PK, v=PV, cu_q=CU_Q, cu_k=CU_K, **options):
    return fm.varlen_attention(q, k, v, cu_q, cu_k, **options)


def wrong_array(array, dtype):
    return np.ones(array.shape, dtype) if dtype == "object" else array.astype(dtype)


def zeros(*shape):
    return np.zeros(shape, np.float32)


# ---- dtypes ----

FLOAT_ARGUMENTS = {
    "query": (Q, lambda a: sdpa(q=a)),
    "key": (K, lambda a: sdpa(k=a)),
    "value": (V, lambda a: sdpa(v=a)),
    "alibi_slopes": (Q[0, :, 0, 0], lambda a: sdpa(alibi_slopes=a)),
    "relative_bias": (zeros(4, 3), lambda a: sdpa(relative_bias=a)),
    "out": (np.zeros((2, 4, 5, 6), np.float32), lambda a: sdpa(out=a)),
    "varlen query": (PQ, lambda a: varlen(q=a)),
    "varlen key": (PK, lambda a: varlen(k=a)),
    "varlen value": (PV, lambda a: varlen(v=a)),
    "varlen out": (np.zeros((5, 4, 6), np.float32), lambda a: varlen(out=a)),
    "weight": (W, lambda a: fm.Linear(a)),
    "bias": (B, lambda a: fm.Linear(W, a)),
    "linear x": (X, lambda a: LINEAR(a)),
    "linear residual": (R, lambda a: LINEAR(X, residual=a)),
    "linear out": (R.copy(), lambda a: LINEAR(X, out=a)),
    "layer_norm x": (X, lambda a: fm.layer_norm(a, SCALE)),
    "layer_norm weight": (SCALE, lambda a: fm.layer_norm(X, a)),
    "layer_norm bias": (SCALE, lambda a: fm.layer_norm(X, SCALE, a)),
    "layer_norm residual": (X, lambda a: fm.layer_norm(X, SCALE, residual=a)),
    "rms_norm x": (X, lambda a: fm.rms_norm(a, SCALE)),
    "rms_norm weight": (SCALE, lambda a: fm.rms_norm(X, a)),
    "rms_norm residual": (X, lambda a: fm.rms_norm(X, SCALE, residual=a)),
    "softmax x": (X, lambda a: fm.softmax(a)),
    "gelu x": (X, lambda a: fm.gelu(a)),
    "relu x": (X, lambda a: fm.relu(a)),
    "silu x": (X, lambda a: fm.silu(a)),
}


@pytest.mark.parametrize("dtype", WRONG_DTYPES)
@pytest.mark.parametrize("argument", FLOAT_ARGUMENTS)
def test_wrong_dtype_names_the_cast(argument, dtype):
    array, call = FLOAT_ARGUMENTS[argument]
    with pytest.raises(TypeError, match=r"\.astype\(np\.float32\)") as caught:
        call(wrong_array(array, dtype))
    message = str(caught.value)
    assert argument.split()[-1] in message, message
    assert "float32" in message
    assert np.dtype(dtype).name.rstrip("0123456789") in message or dtype in message, message


@pytest.mark.parametrize(
    "thing", [None, 3, 3.5, "text", [[1.0, 2.0]], object(), {}, np.float32(1)], ids=repr
)
@pytest.mark.parametrize("argument", FLOAT_ARGUMENTS)
def test_not_an_array(argument, thing):
    _, call = FLOAT_ARGUMENTS[argument]
    optional = ("alibi_slopes", "relative_bias", "out", "bias", "residual")
    if thing is None and argument.split()[-1] in optional:
        call(None)
        return
    if isinstance(thing, np.float32) and argument.split()[-1] == "x":
        return  # NumPy makes scalars of 0-d arrays by itself; taking them back is no mistake
    with pytest.raises(TypeError, match=argument.split()[-1]):
        call(thing)


def test_advice_can_be_followed():
    """A copy made of a wrong `out` would take the result away; a list has no astype()."""
    with pytest.raises(TypeError, match=r"make it before the call: out = np.empty\(\(5, 8\), np"):
        fm.relu(zeros(5, 8), out=[])
    with pytest.raises(TypeError, match=r"cast it: np.asarray\(key_lengths, dtype=np.int64\)"):
        sdpa(key_lengths=[7.0, 7.0])
    with pytest.raises(TypeError, match=r"cast it: key_lengths.astype\(np.int64\)"):
        sdpa(key_lengths=np.array([7.0, 7.0]))


@pytest.mark.parametrize("path", [None, 3, b"model"])
def test_load_wants_a_path(path):
    with pytest.raises(TypeError, match="load: path must be a str or a path, got "):
        fm.load(path)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "uint8", "object"])
def test_wrong_mask_dtype(dtype):
    with pytest.raises(TypeError, match=r"attn_mask.*(bool|float32)"):
        sdpa(mask=np.ones((5, 7), dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bool", "object", "S1"])
@pytest.mark.parametrize(
    "call",
    [
        lambda a: sdpa(key_lengths=a),
        lambda a: sdpa(query_offset=a),
        lambda a: varlen(cu_q=np.r_[a, a[:1]]),
        lambda a: varlen(query_offset=a),
    ],
)  # fmt: skip
def test_wrong_index_dtype(call, dtype):
    with pytest.raises(TypeError, match="int"):
        call(np.array([0, 1]).astype(dtype))


# ---- shapes and values: (what the message must say, the call) ----


WRONG_VALUES = {
    # ranks and shapes
    "1-D query": (["query", r"\(8,\)"], lambda: sdpa(q=zeros(8))),
    "0-D query": (["query"], lambda: sdpa(q=zeros())),
    "5-D query": (["query", r"\(1, 2, 4, 5, 8\)"], lambda: sdpa(q=Q[None])),
    "5-D everything": (["query"], lambda: sdpa(Q[None], K[None], V[None])),
    "ranks differ": (["key"], lambda: sdpa(k=K[0])),
    "value rank differs": (["value"], lambda: sdpa(v=V[0])),
    "batch differs": (["batch", "2", "1"], lambda: sdpa(k=K[:1])),
    "batch of key and value differ": (["batch", "2", "1"], lambda: sdpa(k=K[:1], v=V[:1])),
    "value batch differs": (["batch", "2", "1"], lambda: sdpa(v=V[:1])),
    "head_dim differs": (["8", "6"], lambda: sdpa(k=K[..., :6])),
    "kv_len differs": (["7", "5"], lambda: sdpa(v=V[:, :, :5])),
    "kv_heads differ": (["2", "1"], lambda: sdpa(v=V[:, :1])),
    "heads not a multiple": (["heads", "3", "2"], lambda: sdpa(q=Q[:, :3])),
    "more kv_heads than heads": (["heads", "1", "2"], lambda: sdpa(q=Q[:, :1])),
    "no kv_heads": (["heads", "4", "0"], lambda: sdpa(k=K[:, :0], v=V[:, :0])),
    # masks
    "mask too long": (["attn_mask", r"\(5, 8\)"], lambda: sdpa(mask=np.ones((5, 8), bool))),
    "mask too short": (["attn_mask", r"\(5, 6\)"], lambda: sdpa(mask=np.ones((5, 6), bool))),
    "mask of wrong heads": (["attn_mask"], lambda: sdpa(mask=np.ones((2, 5, 7), bool))),
    "mask of wrong batch": (["attn_mask"], lambda: sdpa(mask=np.ones((3, 1, 5, 7), bool))),
    "mask of 5 axes": (["attn_mask"], lambda: sdpa(mask=np.ones((1, 1, 1, 5, 7), bool))),
    "empty mask": (["attn_mask"], lambda: sdpa(mask=np.ones((5, 0), bool))),
    # lengths
    "negative length": (["key_lengths", "-1", "7"], lambda: sdpa(key_lengths=[-1, 3])),
    "length too large": (["key_lengths", "8", "7"], lambda: sdpa(key_lengths=[3, 8])),
    "too few lengths": (["key_lengths", "1", "2"], lambda: sdpa(key_lengths=[3])),
    "too many lengths": (["key_lengths", "3", "2"], lambda: sdpa(key_lengths=[3, 3, 3])),
    "2-D lengths": (["key_lengths"], lambda: sdpa(key_lengths=np.array([[3, 3]]))),
    "huge length": (["key_lengths"], lambda: sdpa(key_lengths=np.array([2**63 - 1, 1]))),
    "huge unsigned length": (
        ["key_lengths"],
        lambda: sdpa(key_lengths=np.array([2**64 - 1, 1], np.uint64)),
    ),
    # offsets
    "too few offsets": (["query_offset", "1", "2"], lambda: sdpa(query_offset=[3])),
    "2-D offsets": (["query_offset"], lambda: sdpa(query_offset=np.array([[3, 3]]))),
    "offset beyond int64": (["query_offset"], lambda: sdpa(query_offset=2**70)),
    "offset below int64": (["query_offset"], lambda: sdpa(query_offset=-(2**70))),
    # window
    "negative left": (["window", "-2"], lambda: sdpa(window=(-2, 0))),
    "negative right": (["window", "-7"], lambda: sdpa(window=(0, -7))),
    "one-sided window": (["window"], lambda: sdpa(window=(3,))),
    "three-sided window": (["window"], lambda: sdpa(window=(3, 3, 3))),
    "window beyond int64": (["window"], lambda: sdpa(window=(2**70, 0))),
    # numbers
    "softcap negative": (["softcap", "-1"], lambda: sdpa(softcap=-1.0)),
    "softcap NaN": (["softcap", "nan"], lambda: sdpa(softcap=np.nan)),
    "softcap infinite": (["softcap", "inf"], lambda: sdpa(softcap=np.inf)),
    "scale NaN": (["scale", "nan"], lambda: sdpa(scale=np.nan)),
    "scale infinite": (["scale", "inf"], lambda: sdpa(scale=np.inf)),
    "scale too large for float32": (["scale"], lambda: sdpa(scale=1e60)),
    # ALiBi
    "too few slopes": (["alibi_slopes", r"\(3,\)", "4"], lambda: sdpa(alibi_slopes=zeros(3))),
    "slopes per kv head": (["alibi_slopes", r"\(2,\)"], lambda: sdpa(alibi_slopes=zeros(2))),
    "slopes transposed": (["alibi_slopes", r"\(4, 2\)"], lambda: sdpa(alibi_slopes=zeros(4, 2))),
    "slopes 3-D": (["alibi_slopes"], lambda: sdpa(alibi_slopes=zeros(2, 4, 1))),
    "slopes 0-D": (["alibi_slopes"], lambda: sdpa(alibi_slopes=zeros())),
    # relative bias
    "relative bias of too few heads": (
        ["relative_bias", r"\(4, an odd number\)", r"\(2, 3\)"],
        lambda: sdpa(relative_bias=zeros(2, 3)),
    ),
    "relative bias without a middle": (
        ["relative_bias", "-R to R", r"\(4, 6\)"],
        lambda: sdpa(relative_bias=zeros(4, 6)),
    ),
    "relative bias of nothing": (
        ["relative_bias", r"\(4, 0\)"],
        lambda: sdpa(relative_bias=zeros(4, 0)),
    ),
    "relative bias 1-D": (["relative_bias", "2 axes"], lambda: sdpa(relative_bias=zeros(5))),
    "relative bias 3-D": (["relative_bias", "2 axes"], lambda: sdpa(relative_bias=zeros(2, 4, 5))),
    "relative bias NaN": (
        ["relative_bias must be finite", "nan", "head 0", "window"],
        lambda: sdpa(relative_bias=zeros(4, 5) + np.float32(np.nan)),
    ),
    "relative bias -inf": (
        ["relative_bias must be finite", "-inf", "window"],
        lambda: sdpa(relative_bias=zeros(4, 5) - np.float32(np.inf)),
    ),
    "relative bias too large": (
        [r"at most 2\.3e38", "3e\\+38"],
        lambda: sdpa(relative_bias=zeros(4, 5) + np.float32(3e38)),
    ),
    # out
    "out of query's shape": (
        ["out", r"\(2, 4, 5, 6\)", r"\(2, 4, 5, 8\)"],
        lambda: sdpa(out=zeros(2, 4, 5, 8)),
    ),
    "out of wrong rank": (["out", r"\(4, 5, 6\)"], lambda: sdpa(out=zeros(4, 5, 6))),
    "out with gaps": (["out", "contiguous"], lambda: sdpa(out=zeros(2, 4, 5, 12)[..., ::2])),
    "out in Fortran order": (
        ["out", "contiguous"],
        lambda: sdpa(out=np.asfortranarray(zeros(2, 4, 5, 6))),
    ),
    # varlen
    "varlen 2-D query": (["query"], lambda: varlen(q=PQ[0])),
    "varlen 4-D query": (["query"], lambda: varlen(q=PQ[None])),
    "varlen heads": (["heads", "3", "2"], lambda: varlen(q=PQ[:, :3])),
    "varlen head_dim": (["8", "5"], lambda: varlen(k=PK[..., :5])),
    "varlen key rows": (["7", "6"], lambda: varlen(v=PV[:6])),
    "cu_seqlens start": (["cu_seqlens_q", "0", "1"], lambda: varlen(cu_q=[1, 2, 5])),
    "cu_seqlens end short": (["cu_seqlens_q", "4", "5"], lambda: varlen(cu_q=[0, 2, 4])),
    "cu_seqlens end long": (["cu_seqlens_q", "6", "5"], lambda: varlen(cu_q=[0, 2, 6])),
    "cu_seqlens fall": (["cu_seqlens_q"], lambda: varlen(cu_q=[0, 6, 5])),
    "cu_seqlens negative": (["cu_seqlens_k"], lambda: varlen(cu_k=[0, -3, 7])),
    "cu_seqlens_k end": (["cu_seqlens_k", "6", "7"], lambda: varlen(cu_k=[0, 3, 6])),
    "cu_seqlens huge": (["cu_seqlens_q"], lambda: varlen(cu_q=np.array([0, 2**62, 5]))),
    "cu_seqlens empty": (["cu_seqlens_q"], lambda: varlen(cu_q=[])),
    "cu_seqlens 2-D": (["cu_seqlens_q"], lambda: varlen(cu_q=np.array([[0, 2, 5]]))),
    "cu_seqlens counts differ": (["cu_seqlens"], lambda: varlen(cu_k=[0, 7])),
    "cu_seqlens_k left out": (["cu_seqlens"], lambda: varlen(cu_k=None)),
    "varlen offsets": (["query_offset"], lambda: varlen(query_offset=[1, 2, 3])),
    "varlen slopes": (["alibi_slopes"], lambda: varlen(alibi_slopes=zeros(3, 4))),
    "varlen relative bias": (
        ["varlen_attention: relative_bias", r"\(3, 5\)"],
        lambda: varlen(relative_bias=zeros(3, 5)),
    ),
    "varlen out": (["out", r"\(5, 4, 6\)"], lambda: varlen(out=zeros(5, 4, 8))),
    "varlen window": (["window"], lambda: varlen(window=(-2, 0))),
    "varlen softcap": (["softcap"], lambda: varlen(softcap=-1.0)),
    # linear
    "1-D weight": (["weight"], lambda: fm.Linear(B)),
    "3-D weight": (["weight"], lambda: fm.Linear(zeros(1, 6, 8))),
    "bias of wrong length": (["bias", "6", "5"], lambda: fm.Linear(W, B[:5])),
    "2-D bias": (["bias"], lambda: fm.Linear(W, B[None])),
    "unknown activation": (
        ["activation", "tanhh", "relu"],
        lambda: fm.Linear(W, activation="tanhh"),
    ),
    "unknown dtype": (["dtype", "float8"], lambda: fm.Linear(W, dtype="float8")),
    "x of wrong features": (["8", "7"], lambda: LINEAR(X[:, :7])),
    "0-D x": (["x"], lambda: LINEAR(zeros())),
    "residual of wrong shape": (["residual", r"\(2, 6\)"], lambda: LINEAR(X, residual=R[:2])),
    "residual of wrong rank": (["residual"], lambda: LINEAR(X, residual=R[0])),
    "linear out shape": (["out", r"\(3, 5\)"], lambda: LINEAR(X, out=zeros(3, 5))),
    # norms
    "layer_norm weight": (["weight", "8", "7"], lambda: fm.layer_norm(X, SCALE[:7])),
    "layer_norm 2-D weight": (["weight"], lambda: fm.layer_norm(X, SCALE[None])),
    "layer_norm bias": (["bias", "8", "7"], lambda: fm.layer_norm(X, SCALE, SCALE[:7])),
    "layer_norm residual": (["residual"], lambda: fm.layer_norm(X, SCALE, residual=X[:2])),
    "layer_norm eps": (["eps", "-1"], lambda: fm.layer_norm(X, SCALE, eps=-1.0)),
    "layer_norm eps NaN": (["eps", "nan"], lambda: fm.layer_norm(X, SCALE, eps=np.nan)),
    "layer_norm 0-D": (["x"], lambda: fm.layer_norm(zeros(), SCALE)),
    "rms_norm weight": (["weight", "8", "7"], lambda: fm.rms_norm(X, SCALE[:7])),
    "rms_norm residual": (["residual"], lambda: fm.rms_norm(X, SCALE, residual=X[:2])),
    "rms_norm eps": (["eps"], lambda: fm.rms_norm(X, SCALE, eps=-1.0)),
    "softmax 0-D": (["x"], lambda: fm.softmax(zeros())),
    "gelu approximate": (["approximate", "tan"], lambda: fm.gelu(X, approximate="tan")),
    # threads
    "no threads": (["num_threads", "0"], lambda: fm.set_num_threads(0)),
    "negative threads": (["num_threads", "-3"], lambda: fm.set_num_threads(-3)),
    "too many threads": (["num_threads"], lambda: fm.set_num_threads(10**6)),
    "threads beyond int64": (["num_threads"], lambda: fm.set_num_threads(2**70)),
}


def operation_of(name):
    for start, operation in (
        (("varlen", "cu_seqlens"), "varlen_attention"),
        (("layer_norm",), "layer_norm"), (("rms_norm",), "rms_norm"), (("softmax 0",), "softmax"),
        (("gelu",), "gelu"), (("no threads", "negative threads", "too many threads", "threads"),
        "set_num_threads"),
        (("1-D weight", "3-D weight", "bias of", "2-D bias", "unknown", "x of", "0-D x",
        "residual", "linear"), "Linear"),
    ):  # fmt: skip
        if name.startswith(start):
            return operation
    return "attention"


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_shapes_and_values(name):
    words, call = WRONG_VALUES[name]
    with pytest.raises(ValueError, match="(?i)" + operation_of(name)) as caught:
        call()
    for word in words:
        assert caught.match(word)


WRONG_TYPES = {
    "window number": (["window", "int"], lambda: sdpa(window=5)),
    "window text": (["window", "str"], lambda: sdpa(window="ab")),
    "window floats": (["window", "float"], lambda: sdpa(window=(1.5, 2))),
    "offset float": (["query_offset", "float"], lambda: sdpa(query_offset=1.5)),
    "offset text": (["query_offset", "str"], lambda: sdpa(query_offset="3")),
    "offset None": (["query_offset", "None"], lambda: sdpa(query_offset=None)),
    "lengths number": (["key_lengths", "int"], lambda: sdpa(key_lengths=3)),
    "lengths text": (["key_lengths"], lambda: sdpa(key_lengths="33")),
    "softcap text": (["softcap", "str"], lambda: sdpa(softcap="3")),
    "softcap None": (["softcap", "None"], lambda: sdpa(softcap=None)),
    "scale text": (["scale", "str"], lambda: sdpa(scale="1")),
    "scale array": (["scale"], lambda: sdpa(scale=np.ones(3))),
    "scale complex": (["scale", "complex"], lambda: sdpa(scale=1j)),
    "is_causal None": (["is_causal", "None"], lambda: sdpa(is_causal=None)),
    "is_causal text": (["is_causal", "str"], lambda: sdpa(is_causal="no")),
    "return_lse array": (["return_lse"], lambda: sdpa(return_lse=np.ones(2))),
    "mask list": (["attn_mask", "list"], lambda: sdpa(mask=[[True] * 7] * 5)),
    "cu_seqlens number": (["cu_seqlens_q", "int"], lambda: varlen(cu_q=5)),
    "cu_seqlens None": (["cu_seqlens_q", "None"], lambda: varlen(cu_q=None)),
    "threads float": (["num_threads", "float"], lambda: fm.set_num_threads(2.0)),
    "threads text": (["num_threads", "str"], lambda: fm.set_num_threads("2")),
    "threads None": (["num_threads", "None"], lambda: fm.set_num_threads(None)),
    "eps text": (["eps", "str"], lambda: fm.layer_norm(X, SCALE, eps="small")),
    "activation number": (["activation", "int"], lambda: fm.Linear(W, activation=3)),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_wrong_types(name):
    words, call = WRONG_TYPES[name]
    with pytest.raises(TypeError) as caught:
        call()
    for word in words:
        assert caught.match(word)


def test_lists_of_different_lengths_in_one_another():
    """NumPy speaks of setting an array element with a sequence."""
    nested, message = [[1], [2, 3]], "must be integers, got .* of different lengths in one another"
    block, mha = fm.EncoderBlock(8, 2, 16), fm.MultiHeadAttention(8, 2)
    x = zeros(2, 3, 8)
    for operation, call in {
        "scaled_dot_product_attention: key_lengths": lambda: sdpa(key_lengths=nested),
        "varlen_attention: cu_seqlens_q": lambda: varlen(cu_q=nested),
        "multi_head_attention: key_lengths": lambda: mha(x, key_lengths=nested),
        "EncoderBlock: key_lengths": lambda: block(x, key_lengths=nested),
        "EncoderBlock: cu_seqlens": lambda: block(x[0], cu_seqlens=nested),
    }.items():
        with pytest.raises(ValueError, match=f"^{operation} {message}"):
            call()


def test_blocks_and_stacks_speak_for_themselves():
    """Errors named MultiHeadAttention and its query, of which the caller knows nothing."""
    encoder_block, decoder_block = fm.EncoderBlock(8, 2, 16), fm.DecoderBlock(8, 2, 16)
    x = zeros(2, 3, 8)
    for block in (encoder_block, fm.Encoder([encoder_block])):
        name = type(block).__name__
        with pytest.raises(TypeError, match=rf"^{name}: x must be float32, .*x\.astype"):
            block(x.astype(np.float64))
        with pytest.raises(ValueError, match=f"^{name}: x must have 8 features on its last axis"):
            block(zeros(2, 3, 7))
    for block in (decoder_block, fm.Decoder([decoder_block])):
        name = type(block).__name__
        with pytest.raises(TypeError, match=rf"^{name}: x must be float32, .*x\.astype"):
            block(x.astype(np.float64), x)
        with pytest.raises(ValueError, match=f"^{name}: x must have 8 features on its last axis"):
            block(zeros(2, 3, 7), x)
        with pytest.raises(TypeError, match=rf"^{name}: memory must be float32, .*memory\.astype"):
            block(x, x.astype(np.float64))
        for shape in ((2, 3, 7), (2, 3, 9)):
            with pytest.raises(ValueError, match=f"^{name}: memory must have 8 features on its"):
                block(x, zeros(*shape))
        for options in ({}, {"key_lengths": [1, 3]}):
            with pytest.raises(ValueError, match=f"^{name}: x holds 2 sequences, memory 1"):
                block(x, x[:1], **options)
        with pytest.raises(ValueError, match=f"^{name}: memory_lengths must lie in 0 .. 3, got 4"):
            block(x, x, memory_lengths=[3, 4])
        with pytest.raises(
            TypeError, match=rf"^{name}: key_lengths must be integers, got NoneType"
        ):
            block(x, x, key_lengths=[None, 3])


@pytest.mark.parametrize("kind", [fm.DecoderBlock, fm.Decoder])
def test_a_memory_of_another_width_with_a_cache(kind):
    """Errors named Linear and its x."""
    block = fm.DecoderBlock(8, 2, 16)
    block = block if kind is fm.DecoderBlock else fm.Decoder([block])
    cache, name = block.new_cache(2, 4), kind.__name__
    for memory, error in ((zeros(2, 3, 7), ValueError), (np.zeros((2, 3, 8)), TypeError)):
        with pytest.raises(error, match=f"^{name}: memory must "):
            block(zeros(2, 1, 8), memory, cache=cache)
        with pytest.raises(error, match=rf"^{name}\.join: memory must "):
            block.join(cache, memory)


def test_attention_with_what_is_no_array():
    """'list' object has no attribute 'ndim'."""
    mha, x = fm.MultiHeadAttention(8, 2), zeros(2, 3, 8)
    for name, call in {
        "query": lambda junk: mha(junk),
        "key": lambda junk: mha(x, junk),
        "value": lambda junk: mha(x, x, junk),
    }.items():
        with pytest.raises(TypeError, match=f"^MultiHeadAttention: {name} must be a NumPy array"):
            call([1])
        with pytest.raises(
            TypeError, match=rf"^MultiHeadAttention: {name} must be float32, .*cast"
        ):
            call(x.astype(np.float64))
        with pytest.raises(ValueError, match=f"^MultiHeadAttention: {name} must have 8 features"):
            call(zeros(2, 3, 7))


def test_a_dtype_that_numpy_cannot_parse():
    """It reads text with commas as Python, and raises a SyntaxError."""
    with pytest.raises(ValueError, match="Linear: dtype must be 'float32', got ','"):
        fm.Linear(W, dtype=",")


def test_lengths_and_offsets_per_batch_need_a_batch():
    """Three-dimensional inputs are one sequence: an array with two entries does not fit."""
    for options in (
        {"key_lengths": [3, 3]},
        {"query_offset": [1, 2]},
        {"alibi_slopes": zeros(2, 4)},
        {"relative_bias": zeros(2, 3)},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            sdpa(Q[0], K[0], V[0], **options)


# ---- out is left alone ----


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_lengths": [9, 9]},
        {"window": (-2, 0)},
        {"softcap": -1.0},
        {"v": V[:, :, :5]},
        {"mask": np.ones((5, 8), bool)},
    ],
)
def test_out_is_untouched_after_an_error(wrong):
    out = np.full((2, 4, 5, 6), 7, np.float32)
    with pytest.raises(ValueError, match="attention"):
        sdpa(out=out, **wrong)
    assert (out == 7).all()


def test_read_only_out():
    for call, shape in (
        (sdpa, (2, 4, 5, 6)),
        (varlen, (5, 4, 6)),
        (lambda out: LINEAR(X, out=out), (3, 6)),
    ):
        out = zeros(*shape)
        out.flags.writeable = False
        with pytest.raises(ValueError, match=r"out.*(read-only|writeable)"):
            call(out=out)
        assert not out.any()


def test_out_that_overlaps_itself():
    """A broadcast array is read-only in NumPy; as_strided makes a writeable one whose rows are the
    same memory.
    """
    row = zeros(6)
    out = np.lib.stride_tricks.as_strided(row, (2, 4, 5, 6), (0, 0, 0, 4))
    with pytest.raises(ValueError, match="out"):
        sdpa(out=out)


def test_out_that_overlaps_an_input():
    square = _random.attention(2, 4, 7, 7, 8)
    for position in range(3):
        before = [a.copy() for a in square]
        for view in (square[position], square[position][:, :, ::-1]):
            with pytest.raises(ValueError, match=r"out.*(memory|overlap)"):
                fm.scaled_dot_product_attention(*square, out=view)
        for now, then in zip(square, before, strict=True):
            np.testing.assert_array_equal(now, then)
    # Columns of one matrix lie between each other but share nothing: that must work.
    fused = np.zeros((2, 7, 4, 4, 8), np.float32)
    parts = [fused[:, :, i].transpose(0, 2, 1, 3) for i in range(4)]
    for view, array in zip(parts, square, strict=False):
        view[...] = array
    out = fm.scaled_dot_product_attention(*parts[:3], out=parts[3])
    np.testing.assert_array_equal(out, fm.scaled_dot_product_attention(*square))

    mask = zeros(2, 4, 7, 7)
    overlapping = mask.reshape(-1)[: 2 * 4 * 7].reshape(2, 4, 7, 1)
    with pytest.raises(ValueError, match=r"out.*(memory|overlap)"):
        fm.scaled_dot_product_attention(
            square[0], square[1], square[2][..., :1], mask, out=overlapping
        )


def test_linear_out_that_overlaps():
    """A residual may be updated in place, since each element is read before it is written; x may
    not.
    """
    square = fm.Linear(_random.normal(8, 8))
    x = X.copy()
    with pytest.raises(ValueError, match=r"out.*(memory|overlap)"):
        square(x, out=x)
    np.testing.assert_array_equal(x, X)


REFUSED = object()


def attempt(call, word=""):
    """The result of a call, or REFUSED when it raised a TypeError or ValueError that says why."""
    try:
        return call()
    except (TypeError, ValueError) as error:
        message = str(error)
    assert len(message) > 10
    assert word in message
    return REFUSED


@pytest.mark.parametrize("offset", [2**62, -(2**62), 2**63 - 1, -(2**63)])
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"window": (3, 3)}, {"window": (2**62, 2**62)}]
)
def test_offsets_at_the_end_of_int64(offset, options):
    """Positions near 2^63 must not overflow: a clear refusal, or what the formula says."""
    wanted = {
        "is_causal": offset > 0,
        "window": "window" not in options or options["window"][0] > 3,
    }
    out = attempt(lambda: sdpa(query_offset=offset, **options), "query_offset")
    if out is REFUSED:
        return
    sees_all = wanted["window"] and (wanted["is_causal"] or "is_causal" not in options)
    if options.get("window") == (2**62, 2**62):
        return  # visibility sits on a knife's edge here; not crashing is what counts
    np.testing.assert_array_equal(out, sdpa() if sees_all else np.zeros_like(out))


# ---- junk of every kind ----

shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)
junk_arrays = st.builds(
    lambda shape, dtype, fill: np.full(shape, fill, dtype),
    shapes,
    st.sampled_from(
        ["float32", "float32", "float32", "float64", "int64", "bool", "object", "float16", "U3"]
    ),
    st.sampled_from([0, 1]),
)
junk = st.one_of(
    junk_arrays, junk_arrays, st.none(), st.booleans(), st.integers(), st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3), st.lists(st.integers(-5, 5), max_size=4), st.tuples(st.integers(),
    st.none()),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2), st.just(object()),
    st.just(np.float32), st.just(len),
    st.sampled_from([Q, K, V, PQ, PK, PV, X, W, B, R, SCALE]),
)  # fmt: skip
CALLS = {
    "sdpa": (
        lambda **o: fm.scaled_dot_product_attention(o.pop("query"), o.pop("key"), o.pop("value"),
        **o),
        {"query": Q, "key": K, "value": V},
        ["attn_mask", "is_causal", "scale", "key_lengths", "query_offset", "window",
        "alibi_slopes", "relative_bias", "softcap",
         "return_weights", "return_lse", "out"],
    ),
    "varlen": (
        fm.varlen_attention,
        {"query": PQ, "key": PK, "value": PV, "cu_seqlens_q": CU_Q, "cu_seqlens_k": CU_K},
        ["is_causal", "scale", "query_offset", "window", "alibi_slopes", "relative_bias", "softcap",
        "return_weights", "return_lse", "out"],
    ),
    "Linear": (fm.Linear, {"weight": W}, ["bias", "activation", "dtype"]),
    "linear": (LINEAR, {"x": X}, ["residual", "out"]),
    "layer_norm": (fm.layer_norm, {"x": X, "weight": SCALE}, ["bias", "eps", "residual"]),
    "rms_norm": (fm.rms_norm, {"x": X, "weight": SCALE}, ["eps", "residual"]),
    "softmax": (fm.softmax, {"x": X}, []),
    "gelu": (fm.gelu, {"x": X}, ["approximate"]),
    "relu": (fm.relu, {"x": X}, []),
    "silu": (fm.silu, {"x": X}, []),
}  # fmt: skip


@settings(max_examples=1500)
@given(data=st.data(), name=st.sampled_from([*CALLS, "sdpa", "sdpa", "varlen"]))
def test_junk_never_crashes(data, name):
    """Whatever comes, an answer or a TypeError or ValueError that says something."""
    function, required, optional = CALLS[name]
    changed = data.draw(
        st.lists(st.sampled_from([*required, *optional]), min_size=1, max_size=3, unique=True)
    )
    arguments = {key: value.copy() for key, value in required.items()}
    for key in changed:
        arguments[key] = data.draw(junk)
        if key == "out" and isinstance(arguments[key], np.ndarray):
            arguments[key] = arguments[key].copy()
    attempt(lambda: function(**arguments))


@settings(max_examples=200)
@given(arguments=st.lists(junk, min_size=4, max_size=6), data=st.data())
def test_junk_in_the_cache(arguments, data):
    sizes = [
        data.draw(st.integers(-2, 4)) if data.draw(st.booleans()) else a for a in arguments[:4]
    ]
    attempt(lambda: fm.KVCache(*sizes))
    cache = fm.KVCache(2, 2, 4, 8, 6)
    query = Q[:, :, :1]
    for call in (
        lambda: cache.append(*arguments[:2]),
        lambda: cache.reorder(arguments[0]),
        lambda: fm.attention_with_kvcache(query, cache, *arguments[:2]),
        lambda: fm.attention_with_kvcache(*arguments[:4]),
    ):
        before = cache.lengths.copy()
        if attempt(call) is REFUSED:
            np.testing.assert_array_equal(cache.lengths, before)


@pytest.mark.parametrize("name", ["relative_bias", "alibi_slopes"])
def test_out_that_shares_memory_with_what_is_added_to_the_scores(name):
    """Kernels read it while they write."""
    memory = np.zeros(Q[..., :6].size, np.float32)
    out = memory.reshape(*Q.shape[:3], 6)
    added = memory[:20].reshape(4, 5) if name == "relative_bias" else memory[:4]
    with pytest.raises(ValueError, match="out must not share memory with an input"):
        sdpa(out=out, **{name: added})
    with pytest.raises(ValueError, match="out must not share memory with an input"):
        varlen(out=memory[: len(PQ) * 4 * 6].reshape(len(PQ), 4, 6), **{name: added})
    cache = fm.KVCache(2, 2, 8, 8, 6)
    with pytest.raises(ValueError, match="out must not share memory with an input"):
        fm.attention_with_kvcache(Q, cache, K[:, :, :5], V[:, :, :5], out=out, **{name: added})
    np.testing.assert_array_equal(cache.lengths, [0, 0])
