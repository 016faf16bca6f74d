"""Stands in for `ecgfm_hf.hub.cards` where a test is about what is done with a card, not about what it says."""

import re

SECTIONS = ("Intended use", "Limits")
FRONT = "---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: audio-classification\n---\n"


def build_model_card(model_dir, *, evaluation=None, repo_id=None, **details):
    body = "".join(f"\n## {name}\n\nSomething true.\n" for name in SECTIONS)
    return f"{FRONT}\n# {repo_id or 'ECG-FM'}\n{body}" + ("\nIt was evaluated.\n" if evaluation else "")


def card_problems(text):
    return [
        f"section {name!r} is empty or missing"
        for name in SECTIONS
        if not re.search(rf"^## {name}\n+[^#\s]", text, re.MULTILINE)
    ]
