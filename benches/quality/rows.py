"""Rows of results: JSON lines, one for each run that is finished."""
import json
import os


def read(path):
    if not os.path.exists(path):
        return []
    with open(path) as f:
        return [json.loads(line) for line in f]


def add(path, row):
    with open(path, "a") as f:
        f.write(json.dumps(row) + "\n")
