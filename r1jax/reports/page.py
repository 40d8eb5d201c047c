"""A report as one HTML page that needs nothing beside it: tables, curves, completions to read."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jinja2

from r1jax.reports.table import Cell, Table, text_of
from r1jax.tasks.answers import summary


@dataclass(frozen=True)
class Sample:
    """A completion to read."""

    label: str  # of the model, or the training step
    completion: str
    reward: float
    breakdown: Mapping[str, float] = field(default_factory=dict)

    @property
    def thoughts(self) -> str:
        """What stands before the last </think>; "" where it isn't there."""
        before, closed, _ = self.completion.rpartition("</think>")
        return before.replace("<think>", "", 1).strip() if closed else ""

    @property
    def answer(self) -> str:
        return summary(self.completion)


@dataclass(frozen=True)
class Question:
    """What was asked, and what was answered by several models or at several steps."""

    title: str
    prompt: str
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Page:
    """What a report shows: tables, figures as PNG by name, texts that may hold anything."""

    title: str
    tables: Sequence[Table]
    figures: Mapping[str, bytes]
    questions: Sequence[Question] = ()
    samples: str = ""  # Markdown of a page of its own: completions before and after


_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #8884; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
caption, .note { color: #777; font-size: 12px; text-align: left; caption-side: bottom; }
img { max-width: 100%; background: white; }
details { margin: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
.sample { border-left: 3px solid #8886; margin: .8rem 0; padding-left: .8rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; font-size: 13px; }
.thoughts { color: #777; } .answer { font-weight: 600; }
.reward { font-size: 12px; color: #777; }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for table in tables %}
<h2>{{ table.title }}</h2>
<div class="wide"><table>
{% if table.note %}<caption>{{ table.note }}</caption>{% endif %}
<tr>{% for name in table.header %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in table.rows %}
<tr>{% for cell in row %}<td{% if is_number(cell) %} class="number"{% endif %}>{{ text_of(cell) }}\
</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
{% for name, image in figures.items() %}
<h2>{{ name.replace("_", " ") }}</h2>
<img alt="{{ name }}" src="data:image/png;base64,{{ image }}">
{% endfor %}
{% if questions %}<h2>Completions</h2>{% endif %}
{% for question in questions %}
<details><summary>{{ question.title }}</summary>
<pre>{{ question.prompt }}</pre>
{% for sample in question.samples %}
<div class="sample"><b>{{ sample.label }}</b>
<span class="reward">reward {{ "%g" % sample.reward }}{% for name, value in \
sample.breakdown.items() %}, {{ name }} {{ "%.3g" % value }}{% endfor %}</span>
{% if sample.thoughts %}<pre class="thoughts">{{ sample.thoughts }}</pre>{% endif %}
<pre class="answer">{{ sample.answer }}</pre></div>
{% endfor %}
</details>
{% endfor %}
</body>
</html>
"""
)


def html_page(page: Page) -> str:
    return _PAGE.render(
        title=page.title,
        tables=page.tables,
        figures={name: base64.b64encode(image).decode() for name, image in page.figures.items()},
        questions=page.questions,
        text_of=text_of,
        is_number=lambda cell: isinstance(cell, Cell),
    )
