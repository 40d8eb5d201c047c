"""The HTML report: everything in one file, texts as texts, thoughts told apart from answers."""

from html.parser import HTMLParser

from r1jax.reports.page import Page, Question, Sample, html_page
from r1jax.reports.table import Cell, Table


class Tags(HTMLParser):
    """Collects texts by the class of the element they stand in; fails on wrong nesting."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        about = dict(attributes)
        self.sources += [str(about[key]) for key in ("src", "href") if key in about]
        if tag not in ("meta", "img"):
            self.open.append((tag, str(about.get("class"))))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1][1], []).append(data.strip())


def read(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


def test_one_page_with_everything() -> None:
    table = Table("t", "A & B", ["Model", "pass@1"], [["<base>", Cell(12.34, 0.5)]], "note <1>")
    samples = [
        Sample("Base", " <think> <script>alert(1)</script> </think> <answer> 7 </answer>", 1.0),
        Sample("R1", "no tags at all", 0.5, {"format": 0.0, "language": 1 / 3}),
    ]
    page = html_page(Page("a run", [table], {"length": b"png"}, [Question("q1", "1+6?", samples)]))
    tags = read(page)
    assert "<script" not in page
    assert tags.sources == ["data:image/png;base64,cG5n"]
    assert tags.texts["number"] == ["12.3 ± 0.5"]
    assert "<base>" in tags.texts["None"] and "note <1>" in tags.texts["None"]
    assert tags.texts["thoughts"] == ["<script>alert(1)</script>"]
    assert tags.texts["answer"] == ["7", "no tags at all"]
    assert tags.texts["reward"] == ["reward 1", "reward 0.5, format 0, language 0.333"]


def test_an_answer_that_opens_no_thoughts() -> None:
    """R1's template opens <think> itself."""
    sample = Sample("R1", "so it is 7.\n</think>\n\nThe answer is 7.", 1.0)
    assert (sample.thoughts, sample.answer) == ("so it is 7.", "The answer is 7.")
