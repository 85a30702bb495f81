"""What the comparisons share: running the project's programs, and reading what they say."""
import json
import os
import subprocess


def run(*command, env=None):
    """stdout of a program; its stderr is shown when it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True,
                          env={**os.environ, **(env or {})})
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def run_json(*command):
    return json.loads(run(*command, "--json"))


def table(head, rows):
    """A Markdown table."""
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
