"""Writes passage.json: the perplexity of passage.txt in float64, by gsa_reference.py.

Usage: python3 make_perplexity.py FOLDER  (pip install numpy sentencepiece)
FOLDER is the Hugging Face folder of tale-10m (bfloat16), from which models/tale-10m.safetensors
was converted. passage.txt is from "The Heart of a Monkey" (Andrew Lang, The Lilac Fairy Book,
1910), a book that the model never saw.

The text is cut into tokens once; each window of them is scored from a fresh state that was fed BOS.
"""

import json
import pathlib
import sys

import numpy as np
import sentencepiece

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import gsa_reference  # noqa: E402


def window_nll(model, window, bos):
    logits, _ = model.forward([bos] + window[:-1])
    largest = logits.max(-1)
    normalizer = largest + np.log(np.exp(logits - largest[:, None]).sum(-1))
    return float((normalizer - logits[np.arange(len(window)), window]).sum())


def main():
    folder = pathlib.Path(sys.argv[1])
    model = gsa_reference.GSA(str(folder))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    text = (HERE / "passage.txt").read_bytes()
    tokens = processor.encode(text)
    out = {"tokens": len(tokens), "bytes": len(text), "windows": []}
    for width in (512, 100):
        total = sum(window_nll(model, tokens[first : first + width], model.cfg["bos_token_id"])
                    for first in range(0, len(tokens), width))
        out["windows"].append({"window": width, "nll": total / len(tokens),
                               "ppl": float(np.exp(total / len(tokens)))})
    (HERE / "passage.json").write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()
