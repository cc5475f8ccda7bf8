from html.parser import HTMLParser

import pandas as pd

from rec_pipeline.engine.evaluation.rendering import Plot, Section, to_html, to_markdown

TABLE = pd.DataFrame({"metric": ["ndcg@10", "a|b"], "<hybrid>": ["0.5 [0.4, 0.6]", "-"]})
SECTIONS = [
    Section("First & best", ["A **bold** `word`."], ["a point"], TABLE, [Plot('Says "so".', b"\x89PNG")]),
    Section("Second"),
]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_balanced_escaped_and_loads_nothing() -> None:
    page = to_html("A < B", SECTIONS)

    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.seen}
    sources = [attributes["src"] for _, attributes in tags.seen if "src" in attributes]
    assert sources == ["data:image/png;base64,iVBORw=="]
    assert "http" not in page
    assert "url(" not in page
    assert "<title>A &lt; B</title>" in page
    assert "<th>&lt;hybrid&gt;</th>" in page
    assert "<strong>bold</strong> <code>word</code>" in page
    assert "<td>0.5<small>[0.4, 0.6]</small></td>" in page


def test_markdown_has_headings_points_and_a_table_whose_cells_cannot_break_it() -> None:
    text = to_markdown("Title", SECTIONS)

    assert text == (
        "# Title\n\n## First & best\n\nA **bold** `word`.\n\n- a point\n\n"
        "| metric | <hybrid> |\n| --- | ---: |\n| ndcg@10 | 0.5 [0.4, 0.6] |\n| a\\|b | - |\n\n"
        "## Second\n"
    )
