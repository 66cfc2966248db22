"""Pages from texts that nobody has looked at: what a log says stays text, in HTML and in Markdown."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from oellm_autoexp.rendering import html, markdown
from oellm_autoexp.rendering.document import (
    COLOURS,
    Bar,
    Block,
    Code,
    Details,
    Heading,
    Paragraph,
    Swatch,
    Table,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=http://evil.example/x.png onerror=alert(1)>",
    "</title></style></pre><h1>x",
    "| a | b |\n|---|---|",
    "[click](http://evil.example) ![x](http://evil.example/x.png) <http://evil.example>",
    "# x",
    "- x",
    "1. x",
    "12) x",
    "> x",
    "=== x",
    "```\nx\n```",
    "&lt;b&gt; &amp; \\",
    "**x** __x__ ~~x~~ `x`",
    "-",
    "  x  \n\n y\r\u2028z",
    "$x$ @all",
    "http://evil.example www.evil.example",
    "\ud800\x00\x1b[31m",
]
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=60))


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def blocks(text: str) -> list[Block]:
    """Everything that a page can hold, all of it saying `text`."""
    bar = Bar(pieces=[("hang", 0.0, 0.5, text)], text=text)
    table = Table(header=[text, "b", "c"], rows=[[text, bar, Swatch(kind="hang", text=text)]], right=(1,))
    inner: list[Block] = [Heading(text=text), Paragraph(text=text), Code(text=text), table, bar]
    return [*inner, Details(summary=text, blocks=inner, unfolded=True)]


def shape(text: str) -> list[str]:
    return Reader(html.page(text, blocks(text))).tags


def visible(text: str) -> str:
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", " ", text).strip()


@settings(max_examples=200, deadline=None)
@given(texts)
def test_in_html_no_text_becomes_markup(text: str) -> None:
    """Whatever is said, the tags are those of a page that says `x`, and the text can be read in it."""
    page = html.page(text, blocks(text))
    assert shape(text) == shape("x")
    page.encode()
    if text.strip() and text.isprintable():
        assert text in Reader(page).texts


@settings(max_examples=50, deadline=None)
@given(texts)
def test_a_page_asks_nothing_of_the_network(text: str) -> None:
    """No address is loaded, no script is run, and the browser is told so."""
    found = Reader(html.page(text, blocks(text)))
    assert not {"script", "link", "img", "iframe", "a", "object", "base"} & set(found.tags)
    assert not {"src", "href", "style", "action"} & {name for name, _ in found.attributes}
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in found.attributes


MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@settings(max_examples=200, deadline=None)
@given(texts)
@example("\\")
@example("a\\|b")
def test_in_markdown_no_text_becomes_markup(text: str) -> None:
    """In a paragraph and in a cell it reads as it was, in one line."""
    said = visible(text)
    alone = Reader(MARKDOWN.render(markdown.page("t", [Paragraph(text=text)])))
    assert alone.tags == ["h1", "p"] if said else ["h1"]
    assert "".join(alone.texts).strip("\n").split("\n")[1:] == ([said] if said else [])
    table = Table(header=["h"], rows=[[f"{text}!"]])
    cell = Reader(MARKDOWN.render(markdown.page("t", [table])))
    assert cell.tags == ["h1", "table", "thead", "tr", "th", "tbody", "tr", "td"]
    assert "".join(cell.texts).replace("\n", "").endswith(visible(f"{text}!"))


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="`~x\n ", max_size=40))
def test_code_in_markdown_ends_where_it_ends(text: str) -> None:
    """Fences within it do not end it."""
    found = Reader(MARKDOWN.render(markdown.page("t", [Code(text=text), Paragraph(text="after")])))
    assert found.tags == ["h1", "pre", "code", "p"]


def test_addresses_in_markdown_are_no_links_where_these_are_made_of_text() -> None:
    """GitHub makes links of what looks like one; a backslash within it prevents that."""
    assert markdown.text("http://x www.x") == "http\\://x www\\.x"


def test_a_bar_is_drawn_in_proportion() -> None:
    """Pieces lie where their time was, in the colour of their part."""
    bar = Bar(pieces=[("queue", 0.0, 0.25, "q"), ("productive", 0.25, 1.0, "p")], text="q, p")
    page = html.page("t", [bar])
    assert '<rect class="queue" x="0.00" width="250.00" height="10"><title>q</title></rect>' in page
    assert '<rect class="productive" x="250.00" width="750.00" height="10">' in page
    assert all(f".{kind} " in page for kind in COLOURS)
    assert "q, p" in markdown.page("t", [bar])
