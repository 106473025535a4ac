"""What is shipped: kernel objects that cannot leak instructions, a small wheel, an import that
needs NumPy alone.
"""

import importlib.metadata
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import fastmha as fm
import pytest

MEGABYTE = 1024 * 1024
PACKAGE = Path(fm.__file__).parent
# What a kernel object may define for others: one table per file and instruction set.
TABLES = {
    f"fastmha_{part}_{isa}"
    for part in ("decode", "gemm", "panel", "rowwise", "short", "top_k")
    for isa in ("generic", "avx2", "avx512")
}


def static_library():
    library = Path(fm.get_cmake_dir()).parents[1] / "libfastmha.a"
    assert library.is_file(), f"{library} is not installed"
    return library


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """{file: {symbol: type}} of every object in the installed static library."""
    folder = tmp_path_factory.mktemp("objects")
    library = static_library()
    names = subprocess.run(
        ["ar", "t", library], capture_output=True, text=True, check=True
    ).stdout.split()
    found = {}
    for name, count in Counter(names).items():  # several members carry the same name
        for number in range(1, count + 1):
            subprocess.run(["ar", "xN", str(number), library, name], cwd=folder, check=True)
            path = folder / f"{number}-{name}"
            (folder / name).rename(path)
            listing = subprocess.run(
                ["nm", "--format=posix", path], capture_output=True, text=True, check=True
            ).stdout
            found[path] = {line.split()[0]: line.split()[1] for line in listing.splitlines()}
    return found


@pytest.fixture(scope="module")
def kernels(members):
    """The objects that define a kernel table."""
    return {
        path: table
        for path, table in members.items()
        if any(table.get(name, "U") != "U" for name in TABLES)
    }


def test_there_is_a_kernel_object_for_every_table(kernels):
    defined = [name for table in kernels.values() for name in TABLES if table.get(name, "U") != "U"]
    assert len(defined) == len(set(defined))
    expected = {
        name for name in TABLES if name.rsplit("_", 1)[1] in {*fm.available_isas(), "generic"}
    }
    assert expected <= set(defined)


def test_kernel_objects_export_one_symbol(kernels):
    """Anything else that is global could replace the same function of another instruction set at
    link time.
    """
    for path, table in kernels.items():
        exported = {name for name, kind in table.items() if kind.isupper() and kind != "U"}
        assert len(exported) == 1, f"{path.name}: {sorted(exported)}"
        assert exported <= TABLES


def test_kernel_objects_have_no_weak_symbols(kernels):
    """An inline function compiled for AVX-512 must not be the copy that the linker keeps for
    everybody.
    """
    for path, table in kernels.items():
        weak = {name for name, kind in table.items() if kind in "WwVvu"}
        assert not weak, f"{path.name}: {sorted(weak)}"


def test_kernel_objects_need_only_plain_c(kernels):
    """No C++ library, no allocation, no exceptions, no threads: those live outside of kernels."""
    allowed = {"memcpy", "memset", "memmove", "logf", "sqrtf", "_GLOBAL_OFFSET_TABLE_"}
    for path, table in kernels.items():
        needed = {name for name, kind in table.items() if kind == "U"} - allowed
        assert not needed, f"{path.name}: {sorted(needed)}"


def test_kernel_objects_have_no_static_initialisers(kernels):
    """Code that runs when the library loads would run AVX-512 instructions on every CPU."""
    for path in kernels:
        sections = subprocess.run(
            ["objdump", "--section-headers", path], capture_output=True, text=True, check=True
        ).stdout
        assert ".init_array" not in sections, path.name
        assert ".ctors" not in sections, path.name


def test_only_kernels_hold_wide_registers(members, kernels):
    """Each instruction set's kernels keep to its registers. Everything else is plain x86-64 (or
    whatever the machine is): it runs before a CPU has been checked.
    """
    forbidden = {"generic": {"ymm", "zmm"}, "avx2": {"zmm"}, "avx512": set()}
    for path, table in members.items():
        isa = "generic"
        if path in kernels:
            (name,) = (name for name in TABLES if table.get(name, "U") != "U")
            isa = name.rsplit("_", 1)[1]
        code = subprocess.run(
            ["objdump", "-d", path], capture_output=True, text=True, check=True
        ).stdout
        assert "<" in code, f"{path.name}: nothing was disassembled"
        found = set(re.findall(r"%([xyz]mm)\d", code))
        assert not found & forbidden[isa], f"{path.name} ({isa}): {sorted(found)}"
        if path in kernels and isa != "generic":  # so that a change of spelling cannot hide them
            assert {"avx2": "ymm", "avx512": "zmm"}[isa] in found, f"{path.name}: {sorted(found)}"


def test_installed_size():
    """Under 10 MB without the demo model, C++ headers and library included."""
    files = [Path(f.locate()) for f in importlib.metadata.files("fastmha") or []]
    sizes = {
        path: path.stat().st_size
        for path in files
        if path.is_file() and path.suffix not in (".safetensors", ".pyc")
    }
    assert sizes, "fastmha is not installed"
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    assert sum(sizes.values()) < 10 * MEGABYTE, largest
    models = [path for path in files if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in models) <= 5 * MEGABYTE, "the demo model"


def test_shipped_files():
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_core.pyi").is_file()
    cmake = Path(fm.get_cmake_dir())
    assert (cmake / "fastmhaConfig.cmake").is_file()
    include = cmake.parents[2] / "include" / "fastmha"
    for header in ("types", "runtime", "linear", "attention", "norm", "sublayer", "fastmha"):
        assert (include / f"{header}.h").is_file(), header


def test_version_is_the_distributions():
    assert fm.__version__ == importlib.metadata.version("fastmha")


def run(code):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )


BLOCKER = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names or top in ("numpy", "fastmha") or top.startswith("_"):
                return None
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocker())
"""


def test_import_needs_numpy_alone():
    """With everything else out of reach the functions and the blocks work."""
    result = run(
        BLOCKER + """
    import numpy as np, fastmha as fm
    x = np.ones((2, 4, 5, 8), np.float32)
    assert np.allclose(fm.scaled_dot_product_attention(x, x, x), 1)
    assert fm.Linear(np.ones((3, 8), np.float32))(x).shape == (2, 4, 5, 3)
    for name in fm.__all__:
        getattr(fm, name)
    block = fm.EncoderBlock(8, 2, 16)
    mine = {name.partition(".")[0] for name in sys.modules}
    print(sorted(mine & set("torch safetensors tokenizers rich typer transformers".split())))
    """
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_import_does_not_load_extras_that_are_there():
    """Even when torch or rich is installed, importing fastmha does not pay for it."""
    code = """
    import sys, fastmha
    mine = {name.partition(".")[0] for name in sys.modules}
    print(sorted(mine & set("torch safetensors tokenizers rich typer transformers".split())))
    """
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_all_names_exist():
    assert len(set(fm.__all__)) == len(fm.__all__)
    for name in (
        "scaled_dot_product_attention", "varlen_attention", "KVCache", "attention_with_kvcache",
        "Linear", "layer_norm",
        "rms_norm", "softmax", "gelu", "relu", "silu", "MultiHeadAttention", "EncoderBlock",
        "DecoderBlock", "Encoder",
        "Decoder", "Transformer", "load", "set_num_threads", "get_num_threads", "isa",
        "available_isas", "info",
        "get_cmake_dir",
    ):  # fmt: skip
        assert name in fm.__all__
        assert hasattr(fm, name)
