"""Writes vectors.json: what the Python package sentencepiece makes of texts and of ids.

Usage: python3 make_vectors.py  (pip install sentencepiece; made with 0.2.3)

tokenizer.model is that of tale-10m. The other two have other settings, and were trained on 200 KB
of children's books:
  unigram.model    unigram, no bytes, extra blanks removed, user-defined "<sep>" and "▁▁x"
  no_prefix.model  BPE with bytes, no blank in front, "?" for what is unknown, user-defined "<sep>"
"""

import json
import pathlib
import random

import sentencepiece

HERE = pathlib.Path(__file__).parent

PASSAGE = (
    "“Curiouser and curiouser!” cried Alice (she was so much surprised, that for the moment she\n"
    "quite forgot how to speak good English); “now I’m opening out like the largest telescope that\n"
    "ever was! Good-bye, feet!” (for when she looked down at her feet, they seemed to be almost out\n"
    "of sight, they were getting so far off).\n\n"
)

TEXTS = [
    "", " ", "  ", "\n", "a", " a", "a ", "  a  b   c  ", "\t\ttabs\tand\n\n\nlines\r\n",
    "Once upon a time there was a little girl", "Hello, world! It's 3.14% of $5 & #7.",
    "“Quoted,” she said — ‘so’…", "<s>", "</s>", "<unk>", "<pad>", "<s> hi </s>", "<0x41><0xE2>",
    "<sep>a<sep> b", "x  x   x", "▁", "▁▁a ▁", "a\u0000b", "\u0000", "\u0001\u0007\u001b\u007f\u0085",
    "\ufffd", "\ufeffmark", "日本語のテキスト", "中文，测试。", "한국어", "Ελληνικά и русский", "עברית العربية",
    "café naïve ÅÄÖ ß ñ", "cafe\u0301", "👍🏽 👨‍👩‍👧‍👦 🇫🇷 😀", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff", "\u00a0\u2003\u3000 blanks",
    "a" * 300, " " * 300, "ab " * 200, "é" * 100, "UPPER lower 0123456789", PASSAGE * 6,
]
BROKEN = [
    b"\xff", b"\x80", b"a\xe2\x82", b"\xe2\x82\xac\xe2", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
    b"ok \xf0\x9f\x98 no", b"\xf0\x9f\x98\x80\x98", b"\xfe\xfe\xff\xff", b"\xe0\x80\xaf", b"caf\xe9 latin",
]


def random_ids(processor, rng):
    """Bytes that form characters and bytes that do not, blanks, text, control and unknown ids."""
    size = processor.get_piece_size()
    byte_ids = [i for i in range(size) if processor.is_byte(i)]
    blanks = [i for i in range(size) if processor.id_to_piece(i).startswith("▁")]
    alone = [i for i in blanks if processor.id_to_piece(i) == "▁"] or blanks
    special = [i for i in range(size) if processor.is_control(i) or processor.is_unknown(i)]
    ids = []
    for _ in range(rng.randrange(1, 8)):
        kind = rng.randrange(6)
        if kind == 0 and byte_ids:
            character = chr(rng.choice([rng.randrange(0x20, 0x800), rng.randrange(0x800, 0xD800),
                                        rng.randrange(0x10000, 0x110000)]))
            encoded = list(character.encode())
            if rng.randrange(2):
                encoded = encoded[: rng.randrange(len(encoded) + 1)]
            ids += [byte_ids[b] for b in encoded]
        elif kind == 1 and byte_ids:
            ids += rng.choices(byte_ids, k=rng.randrange(1, 4))
        elif kind == 2:
            ids.append(rng.choice(special))
        elif kind == 3:
            ids.append(rng.choice(alone))
        elif kind == 4:
            ids.append(rng.choice(blanks))
        else:
            ids.append(rng.randrange(size))
    return ids


def vectors(path):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    rng = random.Random(path.name)
    encode = []
    for text in [t.encode() for t in TEXTS] + BROKEN:
        ids = processor.encode(text)
        encode.append({"bytes": text.hex(), "ids": ids, "decoded": processor.decode(ids)})
    decode = []
    for _ in range(300):
        ids = random_ids(processor, rng)
        decode.append({"ids": ids, "text": processor.decode(ids)})
    return {"encode": encode, "decode": decode}


def main():
    lines = []
    for path in sorted(HERE.glob("*.model")):
        for kind, cases in vectors(path).items():
            for case in cases:
                lines.append(json.dumps({"model": path.name, "kind": kind, **case}, ensure_ascii=True,
                                        separators=(",", ":")))
    (HERE / "vectors.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
