"""A process that does one thing: the first embedding, from nothing.

    python -P bench/first_embedding.py WHO CHECKPOINT PREPARED

loads all-MiniLM-L6-v2 as users of WHO do, embeds one text, and prints a JSON object: when that was
done on the clock that all processes share, the process's largest memory until then in bytes, and
the embedding. PREPARED is what `startup.py` has converted the checkpoint to. Nothing is imported
here that WHO does not need.
"""

import sys
import time

TEXT = "A cat sleeps on the warm stones of the wall."


def tokenized(checkpoint):
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{checkpoint}/tokenizer.json")
    tokenizer.no_padding()
    return np.array([tokenizer.encode(TEXT).ids], np.int64)


def pooled(states):
    import numpy as np

    mean = states.mean(1)[0]
    return mean / np.sqrt(mean @ mean)


def fastmha(checkpoint, prepared):
    import fastmha as fm

    return fm.load(checkpoint).encode([TEXT])[0]


def torch(checkpoint, prepared):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModel.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        states = model(**tokenizer([TEXT], return_tensors="pt")).last_hidden_state
    return pooled(states.numpy())


def onnxruntime(checkpoint, prepared):
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(prepared, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": tokenized(checkpoint).astype(np.int32)})[0][0]


def openvino(checkpoint, prepared):
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(prepared, "CPU", settings)
    return compiled([tokenized(checkpoint)])[0][0]


def ctranslate2(checkpoint, prepared):
    import ctranslate2
    import numpy as np

    encoder = ctranslate2.Encoder(prepared, device="cpu", compute_type="float32")
    states = encoder.forward_batch(tokenized(checkpoint).tolist()).last_hidden_state
    return pooled(np.asarray(states))


def numpy(checkpoint, prepared):
    """No model: what all of them need, and the weights read once."""
    import numpy as np

    tokenized(checkpoint)
    np.fromfile(f"{checkpoint}/model.safetensors", np.uint8)


def peak_bytes():
    """Of this program: what getrusage says counts its parent's, too, from before it began."""
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def main():
    who, checkpoint, prepared = sys.argv[1:]
    embedding = globals()[who](checkpoint, prepared)
    at = time.monotonic()
    import json

    values = None if embedding is None else [float(value) for value in embedding]
    print(json.dumps({"at": at, "bytes": peak_bytes(), "embedding": values}))


if __name__ == "__main__":
    main()
