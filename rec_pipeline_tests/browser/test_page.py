"""The page of the service as a person uses it, on what the sample's run made."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from rec_pipeline.engine.artifacts import ArtifactStore
from rec_pipeline.engine.evaluation.report import EvaluationReport
from rec_pipeline_tests.browser.conftest import needs_chromium
from rec_pipeline_tests.fixtures.project import SampleRun
from rec_pipeline_tests.fixtures.waiting import LONG
from rec_pipeline_tests.serving.running import Running, served_sample

TOP_K = 10
SOURCES = re.compile("^(similar users|similar text|what comes next|popular now|popular)$")
REASONS = re.compile('^(Because you liked ".+"|Popular right now|Matches .+)$')

pytestmark = needs_chromium


__all__ = ["served_sample"]


@pytest.fixture
def page(browser: Browser, served_sample: Running) -> Iterator[Page]:
    """The page, opened; at the end nothing has been asked of elsewhere and nothing went wrong in it."""
    asked: list[str] = []
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(LONG * 1000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(served_sample.url)
    yield page
    page.close()
    assert [url for url in asked if not url.startswith(f"{served_sample.url}/")] == []
    assert [text for text in wrong if "status of 422" not in text] == []


def items(page: Page) -> Locator:
    return page.get_by_role("region", name="Recommendations").get_by_role("listitem")


def titles(page: Page) -> list[str]:
    expect(items(page)).to_have_count(TOP_K)
    return items(page).locator(".title").all_inner_texts()


def history(page: Page) -> Locator:
    return page.get_by_role("region", name="History").get_by_role("listitem")


def show(page: Page, user_id: str) -> None:
    page.get_by_label("User", exact=True).fill(user_id)
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("heading", name=f"Recommendations for {user_id}")).to_be_visible()


def test_what_a_picked_user_is_shown_changes_with_a_click(page: Page) -> None:
    page.get_by_label("Some users").get_by_role("button").nth(2).click()
    before = titles(page)
    n_known = history(page).count()

    assert n_known > 0
    assert len(set(before)) == TOP_K
    for item in items(page).all():
        expect(item.locator(".tag").first).to_have_text(SOURCES)
        expect(item.locator(".reason")).to_have_text(REASONS)

    items(page).first.get_by_role("button").click()

    expect(history(page).first).to_contain_text(before[0])
    expect(history(page).first).to_contain_text("just now")
    expect(page.get_by_text("made just now")).to_be_visible()
    assert before[0] not in titles(page)


def test_somebody_typed_whom_nobody_knows_gets_what_is_popular_until_they_click(page: Page) -> None:
    show(page, "somebody/else?")
    expect(page.get_by_text("new to the models")).to_be_visible()
    expect(page.get_by_text("the popular list")).to_be_visible()
    before = titles(page)

    items(page).nth(3).get_by_role("button").click()

    expect(page.get_by_text("made just now")).to_be_visible()
    assert before[3] not in titles(page)
    assert titles(page) != before


def test_taste_in_words_makes_a_list_and_clicks_of_the_session_change_it(page: Page) -> None:
    page.get_by_label("Or somebody new, in words").fill("a heist at sea, dry humour")
    page.get_by_role("button", name="Recommend").click()
    expect(items(page)).to_have_count(TOP_K)
    before = titles(page)

    items(page).nth(1).get_by_role("button").click()

    expect(history(page).first).to_contain_text(before[1])
    expect(items(page).locator(".title").filter(has_text=re.compile(f"^{re.escape(before[1])}$"))).to_have_count(0)
    expect(items(page).locator(".reason").filter(has_text=before[1]).first).to_be_visible()
    assert titles(page) != before


def test_the_generation_and_its_metrics_are_those_of_the_report(page: Page, sample_project: SampleRun) -> None:
    artifacts = ArtifactStore(sample_project.project.folder / "data" / "artifacts")
    version = artifacts.manifest("evaluation_report").version
    report = EvaluationReport.load(artifacts.path("evaluation_report", version))

    expect(page.get_by_label("What is live")).to_contain_text(re.compile(r"generation\s*\d+.*store\s*ok"))
    row = page.get_by_role("row", name=re.compile("^hybrid"))

    expect(row).to_contain_text(f"{report.value('hybrid', 'ndcg@10'):.3f}")


def test_an_id_that_cannot_be_one_is_said_to_be_so_and_the_page_goes_on(page: Page) -> None:
    show(page, "{u1}")
    expect(page.get_by_role("status")).to_contain_text("user_id")

    page.get_by_label("Some users").get_by_role("button").first.click()

    assert len(titles(page)) == TOP_K
    expect(page.get_by_role("status")).to_be_hidden()
