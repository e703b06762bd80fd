"""The tokenizer: CLIP's byte-level BPE with a small vocabulary of our own.

    python -m train.vocabulary --model DIR         writes DIR/tokenizer

The merges are learnt until every word of the prompt language is one token; any other text falls back
to smaller pieces and in the end to single bytes, so nothing is unencodable.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer
from world import BACKGROUND_WORDS, OBJECT_WORDS, RELATIONS, SIZES, Scene, caption

MAX_TOKENS = 77
# Frequent English words that prompts bring along: one token each costs 384 bytes and saves context.
FREQUENT = "the of with and in at is it its by to from two one three very cute shiny simple style photo drawing".split()


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE, in byte order of GPT-2's table."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def word_counts(samples: int = 20_000) -> Counter[str]:
    rng = random.Random(0)
    counts: Counter[str] = Counter(dict.fromkeys(FREQUENT, 20))
    for _ in range(samples):
        relation = rng.choice([None, *RELATIONS])
        second = rng.choice(OBJECT_WORDS) if relation is not None else None
        size = rng.choice([*SIZES]) if relation is None else "normal"
        scene = Scene(rng.choice(OBJECT_WORDS), rng.choice(BACKGROUND_WORDS), size, relation, second)
        for word in caption(scene, rng).replace(",", " ").replace("-", " ").split():
            counts[word] += 1
    return counts


def learn_merges(counts: Counter[str]) -> list[tuple[str, str]]:
    """Plain BPE: join the most frequent neighbours until each word is one piece."""
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in words.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += counts[word]
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {word: _joined(pieces, best) for word, pieces in words.items()}


def _joined(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def write(folder: Path) -> None:
    """vocab.json and merges.txt, then the files that transformers makes of them."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(word_counts())
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(char + "</w>" for char in alphabet), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS, pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    print(f"{len(vocab)} tokens, {len(merges)} merges in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    write(parser.parse_args().model / "tokenizer")


if __name__ == "__main__":
    main()
