"""Labelled data sets. A task is a yaml in conf/task; where its source is new, one loader here and one line in SOURCES.

A loader is a function (task, the data set's own split name, hub, cache) -> examples; None where there is no such split.
"""

from __future__ import annotations

SOURCES: dict[str, str] = {  # task.source -> its loader
    "rows": "gpt1cli.tasks.rows:load",
    "story_cloze": "gpt1cli.tasks.story_cloze:load",
    "winograd": "gpt1cli.tasks.pronouns:winograd",
    "dprd": "gpt1cli.tasks.pronouns:dprd",
    "blimp": "gpt1cli.tasks.blimp:load",
    "demo_world": "gpt1cli.tasks.demo:load",
    "file": "gpt1cli.tasks.file:load",
}
