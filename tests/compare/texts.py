#!/usr/bin/env python3
"""Plain texts for perplexity and calibration, from packages that carry them.

  texts.py austen FOLDER OUT    FOLDER: where the Debian package r-cran-janeaustenr was unpacked
                                (apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb FOLDER)
  texts.py wiki FOLDER OUT      FOLDER: where the wheel gensim 4.4.0 was unpacked
  texts.py questions TEXT OUT   TEXT: one of these texts


austen writes OUT/austen.txt, the six novels in the package's order, OUT/persuasion.txt, which is held out for
testing, and OUT/austen-train.txt, the other five. wiki writes OUT/wiki-train.txt and OUT/wiki-test.txt, its last
tenth. questions writes OUT/NAME-questions.jsonl for `prune eval --questions`: 500 passages of 48 words, each with its own next
12 words and with those of three other passages. Nothing is fetched.
"""
import bz2
import gzip
import json
import pathlib
import random
import re
import struct
import sys
import zlib
from xml.etree import ElementTree


class R:
    """The part of R's XDR serialisation that holds character vectors and lists."""

    def __init__(self, data):
        self.data, self.at, self.references = data, 0, []
        assert data[:2] == b"X\n", data[:8]
        self.at = 2
        version, _, _ = self.integers(3)
        if version == 3:
            length = self.integers(1)[0]
            self.at += length

    def integers(self, n):
        values = struct.unpack_from(f">{n}i", self.data, self.at)
        self.at += 4 * n
        return values

    def item(self):
        flags = self.integers(1)[0]
        kind, attributes, tag = flags & 255, flags & 0x200, flags & 0x400
        if kind in (254, 253, 242, 241):  # NULL and the well-known environments
            return None
        if kind == 255:
            return self.references[(flags >> 8) - 1 if flags >> 8 else self.integers(1)[0] - 1]
        if kind == 1:
            self.references.append(self.item())
            return self.references[-1]
        if kind == 2:
            pairs = []
            while kind == 2:
                if attributes:
                    self.item()
                name = self.item() if tag else None
                pairs.append((name, self.item()))
                flags = self.integers(1)[0]
                kind, attributes, tag = flags & 255, flags & 0x200, flags & 0x400
            return dict(pairs)
        if kind == 9:
            length = self.integers(1)[0]
            if length < 0:
                return None
            text = self.data[self.at:self.at + length]
            self.at += length
            return text.decode("utf-8", "replace")
        length = self.integers(1)[0]
        if kind in (10, 13):
            value = list(self.integers(length))
        elif kind == 14:
            value = list(struct.unpack_from(f">{length}d", self.data, self.at))
            self.at += 8 * length
        elif kind in (16, 19):
            value = [self.item() for _ in range(length)]
        else:
            raise ValueError(f"R type {kind} at byte {self.at}")
        if attributes:
            names = (self.item() or {}).get("names")
            if names:
                value = dict(zip(names, value))
        return value


def austen(folder):
    index = next(pathlib.Path(folder).rglob("janeaustenr/data/Rdata.rdx"))
    database = index.with_suffix(".rdb").read_bytes()
    where = R(gzip.decompress(index.read_bytes())).item()["variables"]
    novels = {}
    for name, (offset, length) in where.items():
        novels[name] = R(zlib.decompress(database[offset + 4:offset + length])).item()
    return {name: "\n".join(lines) + "\n" for name, lines in novels.items()}


def wiki(folder):
    files = sorted(pathlib.Path(folder).rglob("test_data/enwiki-*-shortened.bz2"))
    pages = []
    for file in files:
        text = bz2.decompress(file.read_bytes()).decode()
        for raw in re.findall(r"<text[^>]*>(.*?)</text>", text, re.S):
            raw = ElementTree.fromstring(f"<t>{raw}</t>").text or ""
            for pattern in (r"<!--.*?-->", r"<ref[^>]*/>", r"<ref.*?</ref>", r"<math.*?</math>", r"\{\|.*?\|\}"):
                raw = re.sub(pattern, "", raw, flags=re.S)
            for _ in range(4):
                raw = re.sub(r"\{\{[^{}]*\}\}", "", raw)
            raw = re.sub(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]", "", raw)
            raw = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1", raw)
            raw = re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", raw)
            raw = re.sub(r"<[^>]+>|'{2,}", "", raw)
            raw = re.sub(r"\n{3,}", "\n\n", raw).strip()
            if len(raw) > 500:
                pages.append(raw)
    whole = "\n\n".join(pages)
    cut = whole.index("\n\n", len(whole) * 9 // 10)
    return {"wiki-train": whole[:cut], "wiki-test": whole[cut:].strip()}


def questions(path, count=500, before=48, after=12):
    words = pathlib.Path(path).read_text().split()
    length = before + after
    starts = random.Random(0).sample(range(len(words) // length), count)
    passages = [words[length * s:length * (s + 1)] for s in starts]
    draw = random.Random(1)
    for i, passage in enumerate(passages):
        others = draw.sample([j for j in range(count) if j != i], 3)
        choices = [" ".join(passages[j][before:]) for j in [i] + others]
        order = draw.sample(range(4), 4)
        yield {"prompt": " ".join(passage[:before]), "choices": [choices[j] for j in order], "answer": order.index(0)}


def main():
    what, folder, out = sys.argv[1:]
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if what == "questions":
        name = f"{pathlib.Path(folder).stem}-questions.jsonl"
        (out / name).write_text("".join(json.dumps(q) + "\n" for q in questions(folder)))
        print(name)
        return
    if what == "austen":
        novels = austen(folder)
        texts = {
            "austen": "".join(novels.values()),
            "persuasion": novels["persuasion"],
            "austen-train": "".join(t for n, t in novels.items() if n != "persuasion"),
        }
    else:
        texts = wiki(folder)
    for name, text in texts.items():
        (out / f"{name}.txt").write_text(text)
        print(f"{name}.txt: {len(text)} characters")


main()
