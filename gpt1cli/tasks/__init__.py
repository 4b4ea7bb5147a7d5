"""Labelled data sets. A task is a yaml in conf/task; a new source is one loader here and one line in SOURCES.

A loader is a function (task, the data set's own split name, hub, cache) -> examples, or None if there is no such split.
"""

from __future__ import annotations

SOURCES: dict[str, str] = {  # task.source -> its loader
    "rows": "gpt1cli.tasks.sources.rows:load",
    "story_cloze": "gpt1cli.tasks.sources.story_cloze:load",
    "winograd": "gpt1cli.tasks.sources.pronouns:load_winograd",
    "dprd": "gpt1cli.tasks.sources.pronouns:load_dprd",
    "blimp": "gpt1cli.tasks.sources.blimp:load",
    "demo_world": "gpt1cli.tasks.sources.demo:load",
    "file": "gpt1cli.tasks.sources.file:load",
}
