"""Writes tokenizer_json/: tokenizers of the Llama kind and what the tokenizers library makes of text.

Usage: python3 make_tokenizer_json.py [--train]
(pip install tokenizers sentencepiece protobuf; made with 0.23.3 and 0.2.3)

  base.json     BPE of 2,000 pieces, trained with --train on Python's standard library and the
                fragments below; the normalizer form, as Llama 2 and Mistral have it
  tale.json     ../tokenizer.model as transformers' converter writes it: every split of every piece
  forms.json    "fragments" of text; "forms", each a merge patch of base.json and a hash for each of
                10,000 lines; line_of() says how a line is made of fragments, hash_of() what is hashed
"""

import json
import pathlib
import sys

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

HERE = pathlib.Path(__file__).parent
OUT = HERE / "tokenizer_json"
LINES = 10_000

ENGLISH = """It was the best of times, it was the worst of times
Alice was beginning to get very tired of sitting by her sister on the bank
"What's that?" she asked. — “Nothing,” he said; ‘nothing at all’…
The quick brown fox jumps over the lazy dog 1234567890 times (3.14 %)!
unbelievable internationalization antidisestablishmentarianism re-entered
aaaaaaaaaaaa ababababab mississippi hahahahaha zzzzzz thethethe ininin
I'm you're they've we'll it'd HELLO World camelCase snake_case kebab-case"""
CODE = """def f(x):\\n    return x if x is not None else [0] * 10\\n
for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }
#include <vector>\\n#include "text/utf8.h"\\n\\n
\\t\\tif (x == nullptr || *x != '\\\\0') {\\n\\t\\t\\tbreak;\\n\\t\\t}\\n
{"key": [1, 2.5e-3, null, true], "é": "\\\\u00e9"}
SELECT * FROM t WHERE a >= 0x7fff AND b LIKE '%x%';
https://example.org/path?q=1&r=%20#frag <div class="a b">&nbsp;</div>"""
OTHER = """日本語のテキストは空白がない。 中文，测试。这是一个句子 한국어 문장입니다
Ελληνικά και русский язык עברית العربية हिन्दी ไทย
café naïve ÅÄÖ ß ñ cafe\u0301 ﬁ ½ Ⅷ 𝔘𝔫𝔦 \U0010ffff
👍🏽 👨‍👩‍👧‍👦 🇫🇷 😀😀😀 ♥️ ✓ → ∑ € 𠮷"""
ODD = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "        ", "▁", "▁▁", " ▁", "\u00a0", "\u3000", "\u2028",
       "\u200b", "\ufeff", "\0", "\x01", "\x7f", "\x85", "\ufffd", "<s>", "</s>", "<unk>", "<pad>", "[INST]", "[/INST]",
       "<0x0A>", "<0xE2>", "<|im_end|>", "<tool>", "==", "===", "x=", "<", ">", "s>", "</", "INST]", "a", "b", "e", "th", "0"]
FRAGMENTS = sorted({word for text in (ENGLISH, CODE, OTHER) for line in text.split("\n")
                    for part in [line.encode().decode("unicode_escape").encode("latin-1").decode()
                                 if text is CODE and line.isascii() else line]
                    for word in [part, *(" " + w for w in part.split(" ")), *part.split(" ")] if word}) + ODD

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "<|im_end|>"]
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
DECODE = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]


def added(vocabulary, contents):
    new = [content for content in contents if content not in vocabulary]
    return [{"id": vocabulary.get(content) or len(vocabulary) + new.index(content), "content": content,
             "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
            for content in contents]


def forms(base):
    vocabulary = base["model"]["vocab"]
    size = len(vocabulary)
    # Pieces that no merge makes: of known characters, of an unknown one, and of merges that lead elsewhere.
    unreachable = {text: size + i for i, text in enumerate(["zqzq", "ﬁe", "▁the▁", "then▁", "ther", "herth", "ing▁the"])
                   if text not in vocabulary}
    unreachable = {text: size + i for i, text in enumerate(unreachable)}
    own = [token for token in base["added_tokens"]]
    first = {"normalizer": None, "pre_tokenizer": METASPACE}
    return {
        "normalizer": {},
        "first": first,
        "always": {"normalizer": None, "pre_tokenizer": {**METASPACE, "prepend_scheme": "always"}},
        "words": {"normalizer": None, "pre_tokenizer": {**METASPACE, "split": True}},
        "no prefix": {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                      "decoder": {"type": "Sequence", "decoders": DECODE}},
        "never": {"normalizer": None, "pre_tokenizer": {**METASPACE, "prepend_scheme": "never"},
                  "decoder": {"type": "Sequence", "decoders": DECODE}},
        "added": {**first, "added_tokens": own + added(vocabulary, ["<tool>", "==", "\n\n"])},
        "unreachable": {"model": {"vocab": unreachable}},
    }


class Random:
    """A linear congruential generator."""

    def __init__(self, seed):
        self.state = seed

    def below(self, limit):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % limit


def line_of(index):
    random = Random(index)
    return "".join(FRAGMENTS[random.below(len(FRAGMENTS))] for _ in range(random.below(12)))


def hash_of(*lists):
    """FNV-1a of the ids of each list in decimal, a blank behind each, a newline behind each list."""
    value = 0xCBF29CE484222325
    for item in lists:
        text = item if isinstance(item, str) else "".join(f"{i} " for i in item)
        for byte in (text + "\n").encode():
            value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value >> 32:08x}"


def vectors(tokenizer):
    """For each line: ids with special tokens read as text, what they decode to, ids with special tokens."""
    hashes = []
    for index in range(LINES):
        line = line_of(index)
        tokenizer.encode_special_tokens = True
        ids = tokenizer.encode(line, add_special_tokens=False).ids
        text = tokenizer.decode(ids, skip_special_tokens=True)
        tokenizer.encode_special_tokens = False
        hashes.append(hash_of(ids, text, tokenizer.encode(line, add_special_tokens=False).ids))
    return "".join(hashes)


def train():
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = None
    trainer = trainers.BpeTrainer(
        vocab_size=2000, limit_alphabet=160, show_progress=False, max_token_length=16,
        special_tokens=[AddedToken(t, normalized=False, special=True) for t in SPECIAL] +
        [AddedToken(f"<0x{b:02X}>", normalized=False, special=True) for b in range(256)])
    library = pathlib.Path(json.__file__).parent.parent
    texts = [p.read_text(errors="replace")[:20000] for p in sorted(library.glob("*.py"))[:60]]
    words = [word for text in texts for word in text.replace("    ", "").splitlines()] + FRAGMENTS * 5
    tokenizer.train_from_iterator(words, trainer)
    root = json.loads(tokenizer.to_str())
    root["added_tokens"] = [t for t in root["added_tokens"] if not t["content"].startswith("<0x")]
    return root


def from_sentencepiece():
    """The vocabulary and merges that transformers' converter makes of a sentencepiece model."""
    proto = sentencepiece_model_pb2.ModelProto.FromString((HERE / "tokenizer.model").read_bytes())
    vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces}
    merges = []
    for piece in vocabulary:
        local = [(piece[:i], piece[i:]) for i in range(1, len(piece))
                 if piece[:i] in vocabulary and piece[i:] in vocabulary]
        merges += [(*pair, scores[piece]) for pair in sorted(local, key=lambda p: (vocabulary[p[0]], vocabulary[p[1]]))]
    merges.sort(key=lambda merge: -merge[2])
    return vocabulary, [list(merge[:2]) for merge in merges]


def write(name, root):
    (OUT / name).write_text(json.dumps(root, ensure_ascii=False, separators=(",", ":")) + "\n")


def patched(base, patch):
    """As RFC 7396 says."""
    if not isinstance(patch, dict):
        return patch
    result = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = patched(result.get(key), value)
    return result


def library_tokenizer(root):
    defaults = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                "pre_tokenizer": None, "post_processor": None, "decoder": None}
    return Tokenizer.from_str(json.dumps({**defaults, **root}))


def main():
    if "--train" in sys.argv:
        write("base.json", train())
    base = json.loads((OUT / "base.json").read_text())
    vocabulary, merges = from_sentencepiece()
    controls = [{**token, "id": vocabulary[token["content"]]} for token in base["added_tokens"]
                if token["content"] in ("<unk>", "<s>", "</s>", "<pad>") and token["content"] in vocabulary]
    write("tale.json", {**base, "added_tokens": controls,
                        "model": {**base["model"], "vocab": vocabulary, "merges": merges}})
    result = {"fragments": FRAGMENTS, "forms": {}}
    for name, patch in forms(base).items():
        tokenizer = library_tokenizer(patched(base, patch))
        result["forms"][name] = {"patch": patch, "hashes": vectors(tokenizer)}
    write("forms.json", result)


if __name__ == "__main__":
    main()
