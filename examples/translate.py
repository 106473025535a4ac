"""Translate with the model that comes along, from Python.

python examples/translate.py            # needs: pip install "fastmha[text]"
"""

import fastmha as fm

SENTENCES = ["我想吃汉堡", "我们昨天去了学校", "他不喜欢咖啡"]


def main():
    model = fm.load(fm.demo_model_path())
    for source, target in zip(SENTENCES, model.translate(SENTENCES, beam_size=4), strict=True):
        print(f"{source}  ->  {target}")

    # The same in ids, with scores: the sum of log-probabilities by length.
    ids, scores = model.generate(model.encode_texts(SENTENCES), return_scores=True)
    for target, score in zip(ids, scores, strict=True):
        print(f"{len(target)} tokens, score {score:.4f}")

    # Where did each word look? The last layer's attention over the source, mean of its heads.
    maps = model.attention(SENTENCES[0])
    strongest = maps.cross[-1].mean(axis=0).argmax(axis=-1)
    for word, place in zip(maps.target, strongest, strict=True):
        print(f"{word:>10} looks at {maps.source[place]}")


if __name__ == "__main__":
    main()
