"""fastmha embed as users run it: files and pipes, three formats, interruptions, mistakes."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fastmha as fm
import numpy as np
import pytest
from checkpoints import write_checkpoint
from conftest import Random, assert_same_bits
from fastmha import embed_files, growing_file
from fastmha.embed_files import FORMATS, JsonLinesFile, NpyFile, json_lines, npy_header

FORMS = ["npy", "jsonl", pytest.param("parquet", marks=pytest.mark.parquet)]


@pytest.fixture(autouse=True)
def _needs_pyarrow(request):
    if "parquet" in request.keywords:
        pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(directory, "bert")
    return directory


@pytest.fixture(scope="module")
def model(checkpoint):
    return fm.load(checkpoint)


def varied(count):
    rng = np.random.default_rng(0)
    return [
        " ".join(f"w{n}" for n in rng.integers(3, 97, rng.integers(0, 12))) for _ in range(count)
    ]


def command(*args):
    return [sys.executable, "-m", "fastmha.cli", "embed", *map(str, args)]


def run(*args, stdin="", expect=0, **options):
    stdin = stdin if isinstance(stdin, bytes) else stdin.encode()
    result = subprocess.run(
        command(*args), input=stdin, capture_output=True, timeout=120, **options
    )
    out, err = result.stdout.decode(), result.stderr.decode()
    assert result.returncode == expect, f"status {result.returncode}\n{out}\n{err}"
    assert "Traceback" not in err
    return out, err


def on_terminal(arguments, stdin, width):
    """Run a command whose stderr is a terminal; what was written there."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(width)}
    process = subprocess.run(
        arguments, input=stdin, stdout=subprocess.PIPE, stderr=slave, env=environment, check=False
    )
    os.close(slave)
    seen = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while block := os.read(master, 65536):
            seen += block
    os.close(master)
    return process, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())


def write_lines(file, texts):
    file.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return file


def read(file):
    """Texts (None in .npy) and embeddings."""
    if file.suffix == ".npy":
        return None, np.load(file)
    if file.suffix == ".jsonl":
        entries = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        rows = np.array([entry["embedding"] for entry in entries], np.float32)
        return [entry["text"] for entry in entries], rows
    table = pytest.importorskip("pyarrow.parquet").read_table(file)
    rows = np.array(table["embedding"].to_pylist(), np.float32)
    return table["text"].to_pylist(), rows


def assert_holds(file, texts, model):
    found, rows = read(file)
    assert found in (None, texts)
    assert_same_bits(rows, model.encode(texts))
    assert [other.name for other in file.parent.glob(f"{file.name}.*")] == []


@pytest.mark.parametrize("form", FORMS)
def test_formats(tmp_path, checkpoint, model, form):
    texts = [*varied(40), "", "  ", 'quotes " and \\', "<&> 字 😀 \u2028", "w3\tw4"]
    source, out = write_lines(tmp_path / "texts.txt", texts), tmp_path / f"out.{form}"
    stdout, err = run("--model", checkpoint, source, "-o", out)
    assert (stdout, err) == ("", "")
    assert_holds(out, texts, model)
    _, err = run("--model", checkpoint, source, "-o", out, expect=1)
    assert "exists; --force replaces it" in err
    run("--model", checkpoint, source, source, "-o", out, "--force", "--format", form)
    assert_holds(out, texts * 2, model)


def test_pipes_and_settings(tmp_path, checkpoint, model):
    texts = varied(20)
    piped = "\n".join(texts)  # no line end after the last
    out, _ = run("--model", checkpoint, "--threads", 1, stdin=piped)
    assert [json.loads(line)["text"] for line in out.splitlines()] == texts
    (tmp_path / "a.jsonl").write_text(out)
    assert_holds(tmp_path / "a.jsonl", texts, model)
    out, _ = run("--model", checkpoint, "-", "--normalize", "--prompt", "w9 ", stdin=piped)
    (tmp_path / "b.jsonl").write_text(out)
    expected = model.encode(texts, normalize=True, prompt="w9 ")
    assert_same_bits(read(tmp_path / "b.jsonl")[1], expected)
    assert run("--model", checkpoint, stdin="") == ("", "")
    run("--model", checkpoint, "-o", tmp_path / "none.npy", stdin="")
    assert np.load(tmp_path / "none.npy").shape == (0, 48)


def test_a_reader_that_leaves(checkpoint, tmp_path):
    source = write_lines(tmp_path / "texts.txt", varied(5000))
    process = subprocess.Popen(
        command("--model", checkpoint, source), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline().startswith(b'{"text": ')
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 0


def test_progress_with_rate_and_time_left(tmp_path, checkpoint, model):
    texts = varied(4000)
    source, out = write_lines(tmp_path / "texts.txt", texts), tmp_path / "out.npy"
    process, seen = on_terminal(command("--model", checkpoint, source, "-o", out), b"", 120)
    assert (process.returncode, process.stdout) == (0, b"")
    assert re.search(r"embedding .*/4000 .*texts/s .*left \d:\d\d:\d\d", seen)
    assert_holds(out, texts, model)
    process, seen = on_terminal(command("--model", checkpoint), b"w3\n" * 50, 120)
    assert process.stdout.count(b"\n") == 50
    assert re.search(r"embedding .*/\?", seen)  # how many there will be is not known


def test_mistakes(tmp_path, checkpoint):
    out = tmp_path / "out.npy"
    for args, message in (
        (["--model", fm.demo_model_path()], "is not an encoder"),
        (["--model", tmp_path / "nowhere"], "is not a directory with a checkpoint"),
        (["--model", checkpoint, "--dtype", "int4"], "dtype must be 'float32', got 'int4'"),
        (["--model", checkpoint, "nothing.txt"], "nothing.txt"),
        (["--model", checkpoint, "--format", "npy"], "stdout takes JSON Lines alone"),
        (["--model", checkpoint, "-o", tmp_path / "out.csv"], "must be one of npy, jsonl, parquet"),
        (["--model", checkpoint, "-o", tmp_path / "nowhere" / "out.npy"], "is not a directory"),
    ):
        stdout, err = run(*args, expect=1)
        assert stdout == ""
        assert message in err
        assert len(err.splitlines()) == 1
    run("--model", checkpoint, "--batch-tokens", 0, expect=2)
    assert not out.exists()


def test_a_line_that_is_not_utf8_stops_it_and_what_is_before_is_kept(tmp_path, checkpoint, model):
    source, out = tmp_path / "texts.txt", tmp_path / "out.npy"
    source.write_bytes(b"w3\nw4\n\xff\nw5\n")
    _, err = run("--model", checkpoint, source, "-o", out, expect=1)
    assert "line 3: not UTF-8" in err
    assert not out.exists()
    write_lines(source, ["w3", "w4", "w6", "w5"])
    _, err = run("--model", checkpoint, source, "-o", out)
    assert "going on after 2 rows" in err
    assert_holds(out, ["w3", "w4", "w6", "w5"], model)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(tmp_path, checkpoint, model, form, stop):
    """No row is lost or there twice, and the file is what it is without a stop."""
    texts = varied(5000)
    source, out = write_lines(tmp_path / "texts.txt", texts), tmp_path / f"out.{form}"
    state = tmp_path / f"{out.name}.partial.json"
    # A job in the background of a shell ignores SIGINT, and so do its children: not this one.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command("--model", checkpoint, "-o", out),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, ours)
    # Two blocks and half of one: it waits for the rest, and cannot end before the signal.
    process.stdin.write("".join(f"{text}\n" for text in texts[:2560]))
    process.stdin.flush()

    def rows_kept():
        return json.loads(state.read_text())["rows"] if state.exists() else 0

    until = time.monotonic() + 120
    while rows_kept() < 2048 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(stop)
    killed = stop == signal.SIGKILL
    assert process.wait(timeout=60) == (-stop if killed else 128 + stop)
    process.stdin.close()
    err = process.stderr.read()
    process.stderr.close()
    arguments = ("--model", checkpoint, source, "-o", out)
    rows = rows_kept()
    assert rows == 2048
    if not killed:
        assert f"stopped; {rows} rows are kept" in err
    with out.with_name(f"{out.name}.partial").open("ab") as partial:
        partial.write(b"half a row")  # as if it had been stopped while it wrote
    _, err = run(*arguments)
    assert f"going on after {rows} rows" in err
    assert_holds(out, texts, model)


def test_a_job_goes_on_with_the_same_input_and_model_only(tmp_path, checkpoint, model):
    source, out = tmp_path / "texts.txt", tmp_path / "out.npy"
    source.write_bytes(b"w3\nw4\nw5\n\xff\n")
    arguments = ("--model", checkpoint, source, "-o", out)
    run(*arguments, expect=1)
    other = tmp_path / "other"
    other.mkdir()
    write_checkpoint(other, "bert", seed=1)
    for changed, message in (
        (["--model", other, source, "-o", out], "made by another model"),
        ([*arguments, "--normalize"], "with other settings"),
        ([*arguments, "--prompt", "w7 "], "with other settings"),
    ):
        assert message in run(*changed, expect=1)[1]
    assert "with other settings" in run(*arguments, "--format", "jsonl", expect=1)[1]
    write_lines(source, ["w3", "w4"])
    assert "holds 3 rows, there are only 2 texts" in run(*arguments, expect=1)[1]
    write_lines(source, ["w3", "w9", "w5", "w6"])
    assert "the first 3 texts are not those" in run(*arguments, expect=1)[1]
    state = out.with_name("out.npy.partial.json")
    kept = state.read_text()
    state.write_text("{")
    assert "is broken" in run(*arguments, expect=1)[1]
    state.write_text(kept)
    partial = out.with_name("out.npy.partial")
    partial.write_bytes(partial.read_bytes()[:-1])
    assert "is shorter than" in run(*arguments, expect=1)[1]
    run(*arguments, "--restart")
    assert_holds(out, ["w3", "w9", "w5", "w6"], model)


def test_one_writer_at_a_time(tmp_path):
    with (
        NpyFile(tmp_path / "a.npy", 4, "x"),
        pytest.raises(BlockingIOError, match="another process is writing"),
    ):
        NpyFile(tmp_path / "a.npy", 4, "x")


@pytest.mark.parametrize("form", FORMS)
def test_stopped_anywhere_between_two_blocks(tmp_path, form):
    """Data behind the last state, or a state that could not be written."""
    random = Random(0)
    blocks = [random.normal(n, 4) for n in (3, 1, 5)]
    texts = [[f"{n} {row}" for row in range(len(block))] for n, block in enumerate(blocks)]
    everything = [text for part in texts for text in part]
    path = tmp_path / f"a.{form}"
    for done in range(3):
        with FORMATS[form](path, 4, "x") as out:
            rest = iter(everything)
            out.check_kept(rest)
            assert out.rows == sum(map(len, blocks[:done]))
            out.append(texts[done], blocks[done])
            if done < 2:  # the next block is there, but does not count
                before = out.state_file.read_bytes()
                out.append(texts[done + 1], blocks[done + 1])
                out.state_file.write_bytes(before)
            else:
                out.finish()
    found, rows = read(path)
    assert found in (None, everything)
    assert_same_bits(rows, np.concatenate(blocks))


@pytest.mark.parametrize("form", FORMS)
def test_from_python(tmp_path, model, form):
    texts = varied(2500)

    def stopping():
        yield from texts[:1500]
        raise ValueError("no more")

    path = tmp_path / f"a.{form}"
    with pytest.raises(ValueError, match="no more"):
        model.encode_to_file(stopping(), path)
    assert not path.exists()
    assert json.loads((tmp_path / f"a.{form}.partial.json").read_text())["rows"] == 1500
    assert model.encode_to_file(iter(texts), path) == 2500
    assert_holds(path, texts, model)
    with pytest.raises(FileExistsError, match="overwrite=True replaces it"):
        model.encode_to_file(texts, str(path))
    assert model.encode_to_file(texts[:3], path, overwrite=True, progress=True) == 3
    assert_holds(path, texts[:3], model)
    with pytest.raises(TypeError, match="must be a str, got int"):
        model.encode_to_file([1], tmp_path / f"b.{form}")


@pytest.mark.parquet
def test_row_groups(tmp_path, monkeypatch):
    """Parquet stores many blocks together: readers take a group at a time."""
    from pyarrow import parquet

    monkeypatch.setattr("fastmha.embed_files.ROW_GROUP", 100)
    texts = varied(330)
    rows = Random(0).normal(330, 4)
    for count in (0, 60, 100, 130, 200, 330):
        path = tmp_path / f"{count}.parquet"
        with FORMATS["parquet"](path, 4, "a") as out:
            for first in range(0, count, 30):
                part = slice(first, min(count, first + 30))
                out.append(texts[part], rows[part])
            out.finish()
        file = parquet.ParquetFile(path)
        groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        assert groups == [100] * (count // 100) + [count % 100] * (count % 100 > 0)
        table = file.read()
        assert table["text"].to_pylist() == texts[:count]
        found = np.array(table["embedding"].to_pylist(), np.float32).reshape(count, 4)
        assert_same_bits(found, rows[:count])


def test_npy_headers():
    for rows in (0, 9, 10**18):
        header = npy_header(rows, 384)
        assert len(header) == 128
        assert header.endswith(b"\n")


def test_json_gives_the_same_float32_back():
    info = np.finfo(np.float32)
    bits = Random(0).rng.integers(0, 2**32, 10_000, dtype=np.uint64).astype(np.uint32)
    numbers = bits.view(np.float32)
    numbers = np.append(numbers[np.isfinite(numbers)], [info.max, info.tiny, 1e-45, -0.0, 0.1])
    rows = numbers.astype(np.float32)[None]
    (line,) = json_lines(["a"], rows).decode().splitlines()
    read = np.array([json.loads(line)["embedding"]], np.float32)
    assert_same_bits(read, rows + np.float32(0))  # JSON's zero has no sign
    with pytest.raises(ValueError, match="NaN or infinity"):
        json_lines(["a"], np.array([[np.nan]], np.float32))
    assert JsonLinesFile is FORMATS["jsonl"]


def test_memory_does_not_grow_with_the_input(tmp_path, checkpoint):
    """150 MB of text in, and no more memory than for a little."""
    code = (
        "from fastmha.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(open('/proc/self/status').read())"
    )
    peaks = []
    for count in (2_000, 75_000):
        source = write_lines(tmp_path / "texts.txt", ["x" * 2000] * count)
        result = subprocess.run(
            [*(sys.executable, "-c", code, "embed", "--model", checkpoint, source),
             *("-o", tmp_path / f"{count}.npy")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        # not ru_maxrss, which remembers the process that this one was forked from
        peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", result.stdout)[1]) / 1024)
        assert len(np.load(tmp_path / f"{count}.npy", mmap_mode="r")) == count
    assert peaks[1] - peaks[0] < 20, peaks


def test_restart_leaves_the_rows_of_another_process(tmp_path: Path) -> None:
    npy, row = embed_files.FORMATS["npy"], np.ones((1, 3), np.float32)
    path = tmp_path / "out.npy"
    with npy(path, 3, "job") as owner:
        owner.append(["a"], row)
        with pytest.raises(BlockingIOError, match="another process is writing"):
            npy(path, 3, "job", restart=True)
        owner.finish()
    assert np.load(path).shape == (1, 3)


def test_a_file_finished_between_open_and_lock_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npy, row = embed_files.FORMATS["npy"], np.ones((1, 3), np.float32)
    path, flock = tmp_path / "out.npy", growing_file.fcntl.flock
    owner = npy(path, 3, "job")
    owner.append(["a"], row)

    def finish_first(stream: object, how: int) -> None:
        owner.finish()
        owner.__exit__()
        flock(stream, how)

    monkeypatch.setattr(growing_file.fcntl, "flock", finish_first)
    with pytest.raises(BlockingIOError, match="finished or replaced"):
        npy(path, 3, "job")
    assert np.load(path).shape == (1, 3)


def test_a_carriage_return_within_a_line_is_text(tmp_path: Path) -> None:
    """As for wc: rows must line up with what other tools count. A byte order mark is no text."""
    from fastmha.lines import Lines

    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbfa\rb\nc\r\n\r\r\nd")
    expected = ["a\rb", "c", "\r", "d"]
    assert list(Lines([], [path])) == expected
    code = "from pathlib import Path; from fastmha.lines import Lines; "
    code += "print(list(Lines([], [Path('-')])))"
    with path.open("rb") as stream:
        piped = subprocess.run(
            [sys.executable, "-c", code], stdin=stream, capture_output=True, text=True
        )
    assert piped.stdout.strip() == str(expected), piped.stderr


def test_one_text_is_not_an_iterable_of_texts(tmp_path: Path, checkpoint: Path) -> None:
    model = fm.load(checkpoint)
    with pytest.raises(TypeError, match=r"encode_stream: texts must be an iterable of str"):
        model.encode_stream("text")
    with pytest.raises(TypeError, match=r"encode_to_file: texts must be an iterable of str"):
        model.encode_to_file("text", tmp_path / "out.npy")
    with pytest.raises(FileNotFoundError, match=r"encode_to_file: .* is not a directory"):
        model.encode_to_file(["text"], tmp_path / "nowhere" / "out.npy")
    assert list(tmp_path.glob("out*")) == []
