import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from rec_pipeline.engine.embeddings.encoder import OnProgress, Vectors
from rec_pipeline.engine.store.generation import Generation
from rec_pipeline.serving.http import guards
from rec_pipeline.serving.http.protocol import HurriedProtocol
from rec_pipeline.serving.http.rates import Rates
from rec_pipeline_tests.fixtures.project import Project
from rec_pipeline_tests.fixtures.waiting import LONG, wait_until
from rec_pipeline_tests.serving.running import Running, running

Publish = Callable[[], Generation]


@pytest.fixture
def service(publish_lists: Publish, config: dict[str, Any]) -> Iterator[Running]:
    publish_lists()
    with running(config) as service:
        yield service


class PlantedEncoder:
    """Reads words into the planted space, of 3 numbers, in which items are even or odd."""

    model_id = "planted"
    embedding_dim = 3

    def encode(self, texts: Sequence[str], on_progress: OnProgress | None = None) -> Vectors:
        del on_progress
        return np.array([[1, 0, 0] if "even" in text else [0, 1, 0] for text in texts], dtype=np.float32)


def ids(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [item["id"] for item in response.json()["items"]]


def test_a_user_is_answered_with_titles_sources_and_reasons(service: Running) -> None:
    answer = service.client.get("/recommendations/u007", params={"top_k": 5, "explain": True}).json()

    assert len(answer["items"]) == 5
    assert (answer["source"], answer["degraded"], answer["left_out"]) == ("cache", False, {})
    assert answer["items"][0]["title"].startswith('Ægir "Løve"')
    assert answer["items"][0]["reason"].startswith("Because you liked")
    assert answer["items"][0].keys() >= {"id", "title", "score", "sources", "reason"}


def test_a_click_is_known_to_the_next_answer_and_counts_once(service: Running) -> None:
    before = ids(service.client.get("/recommendations/u010"))
    event = {"user_id": "u010", "item_id": before[0], "event_type": "click", "event_id": "e1"}

    first = service.client.post("/events", json=event)
    again = service.client.post("/events", json={"events": [event, event]})
    after = service.client.get("/recommendations/u010", params={"explain": True})

    assert (first.status_code, first.json()) == (202, {"recorded": 1, "duplicates": 0, "forgotten": 0})
    assert again.json() == {"recorded": 0, "duplicates": 2, "forgotten": 0}
    assert before[0] not in ids(after)
    assert after.json()["source"] == "generated"
    assert sum(after.json()["items"][0]["shares"].values()) == pytest.approx(1, abs=0.01)
    history = service.client.get("/users/u010/history").json()
    first_item, second_item = history["items"][:2]
    assert (first_item["id"], first_item["is_live"], second_item["is_live"]) == (before[0], True, False)
    assert 0 <= first_item["age_s"] < 60
    assert second_item["age_s"] is None
    assert history["is_known"]


def test_a_session_is_answered_by_items_and_by_words(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    by_items = service.client.post(
        "/recommendations", json={"items": ["i001", "i005"], "top_k": 4, "exclude": ["i003"]}
    )
    assert {int(item[1:]) % 2 for item in ids(by_items)} == {1}
    assert "i003" not in ids(by_items)

    monkeypatch.setattr(service.recommender.service.live, "_make_encoder", PlantedEncoder)
    by_words = service.client.post("/recommendations", json={"text": "even ones", "top_k": 4})

    assert {int(item[1:]) % 2 for item in ids(by_words)} == {0}


def test_similar_items_are_of_the_same_kind_and_an_unknown_one_is_not_found(service: Running) -> None:
    found = service.client.get("/items/i004/similar", params={"top_k": 5})

    assert {int(item[1:]) % 2 for item in ids(found)} == {0}
    assert "i004" not in ids(found)
    missing = service.client.get("/items/nowhere/similar")
    assert missing.status_code == 404
    assert missing.headers["content-type"] == "application/problem+json"


def test_trending_is_the_live_popular_list(service: Running, store: "redis.Redis") -> None:
    answer = service.client.get("/trending", params={"top_k": 3}).json()

    assert answer["source"] == "popular"
    assert answer["generation"] == int(store.hget("recommendations_meta:current", "gen") or 0)


REFUSED = [
    ("GET", "/recommendations/u1?top_k=0", None, 422),
    ("GET", "/recommendations/u1?top_k=101", None, 422),
    ("GET", "/recommendations/a%09b", None, 422),
    ("GET", "/recommendations/%7Bu%7D", None, 422),
    ("GET", "/recommendations/u1?exclude=%7B", None, 422),
    ("GET", "/nowhere", None, 404),
    ("DELETE", "/trending", None, 405),
    ("POST", "/recommendations", b"{", 422),
    ("POST", "/recommendations", b'{"surprise": 1}', 422),
    ("POST", "/recommendations", b'{"user_id": "\\ud800"}', 422),
    ("POST", "/recommendations", b"[" * 50_000, 400),
    ("POST", "/events", b'{"user_id": "u1", "item_id": "i1", "event_type": "stare"}', 422),
    ("POST", "/events", b'{"user_id": "u1", "item_id": "i1", "event_type": "click", "served": {"a": 1}}', 422),
    ("POST", "/events", b'{"user_id": "u1", "item_id": "i1", "event_type": "click", "timestamp": "now"}', 422),
    ("POST", "/events", b" " * 70_000, 413),
]


def test_s11_what_cannot_be_answered_is_a_problem(service: Running) -> None:
    for method, path, body, status in REFUSED:
        headers = {"content-type": "application/json"} if body else {}

        refused = service.client.request(method, path, content=body, headers=headers)

        assert refused.status_code == status, (path, body)
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json().keys() == {"type", "title", "status", "detail"}
        assert "Traceback" not in refused.text


def test_s11_a_body_without_a_stated_length_is_cut_off_too(service: Running) -> None:
    refused = service.client.post("/events", content=(b" " * 1000 for _ in range(100)))

    assert refused.status_code == 413


def drip(service: Running, begin: bytes, drop: bytes) -> bytes:
    """Send the beginning of a request and then next to nothing until the service hangs up; return what came back."""
    received, is_over = b"", False

    def hung_up() -> bool:
        nonlocal received, is_over
        with suppress(TimeoutError):
            part = connection.recv(1 << 16)
            received, is_over = received + part, not part
        connection.sendall(drop)
        return is_over

    with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as connection:
        connection.sendall(begin)
        connection.settimeout(0.05)
        with suppress(ConnectionError):
            wait_until(hung_up)
    return received


def test_s11_a_client_that_hardly_sends_anything_is_not_waited_for(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HurriedProtocol, "patience_seconds", 0.5)
    post = b"POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"

    drip(service, b"", b"")
    drip(service, b"GET /trending HTTP/1.1\r\n", b"X-A: b\r\n")
    asked = drip(service, b"GET /trending HTTP/1.1\r\nHost: a\r\n\r\nGET /tr", b"e")
    monkeypatch.setattr(guards, "REQUEST_SECONDS", 0.5)
    answer = drip(service, post, b" ")

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert asked.startswith(b"HTTP/1.1 200 ")


def test_s11_ten_megabytes_are_refused_and_not_kept(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HurriedProtocol, "patience_seconds", 2)
    head = b"POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n"

    answer = drip(service, head, b" " * 10_000)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert service.client.get("/trending").status_code == 200


def test_s11_a_client_that_asks_too_often_is_told_when_to_come_back(
    publish_lists: Publish, config: dict[str, Any]
) -> None:
    publish_lists()
    with running(config, rates=Rates(0.5)) as service:
        statuses = [service.client.get("/trending") for _ in range(2)]
        health = service.client.get("/health/ready")
        page = service.client.get("/")

    assert [answer.status_code for answer in statuses] == [200, 429]
    assert statuses[1].headers["content-type"] == "application/problem+json"
    assert statuses[1].headers["retry-after"] in {"1", "2"}
    assert (health.status_code, page.status_code) == (200, 429)


def test_a_client_that_pauses_may_ask_again_and_others_were_never_held_up() -> None:
    now = 0.0
    rates = Rates(10, clock=lambda: now)

    greedy = [rates.wait_seconds("a") for _ in range(25)]
    now = 1.0

    assert [wait > 0 for wait in greedy] == [False] * 20 + [True] * 5
    assert greedy[-1] == pytest.approx(0.1)
    assert [rates.wait_seconds("a") > 0 for _ in range(11)] == [False] * 10 + [True]
    assert rates.wait_seconds("b") == 0


def test_s11_headers_beyond_all_measure_are_refused(service: Running) -> None:
    refused = service.client.get("/trending", headers={"X-Long": "x" * 9000})

    assert refused.status_code == 431
    assert refused.headers["content-type"] == "application/problem+json"


def test_s11_with_a_token_only_health_page_and_description_are_open(
    publish_lists: Publish, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    publish_lists()
    token = "hunter2"  # noqa: S105 - of this test
    with (
        running(config, token) as service,
        httpx.Client(base_url=service.url, timeout=LONG, trust_env=False) as stranger,
    ):
        wrong = stranger.get("/recommendations/u007", headers={"Authorization": "Bearer hunter3"})
        open_paths = [
            stranger.get(path).status_code for path in ("/", "/health/live", "/health/ready", "/openapi.json")
        ]
        closed = [
            stranger.get(path).status_code for path in ("/recommendations/u007", "/metrics", "/status", "/trending")
        ]
        allowed = service.client.get("/recommendations/u007")

    assert (wrong.status_code, allowed.status_code) == (401, 200)
    assert wrong.headers["www-authenticate"] == "Bearer"
    assert open_paths == [200] * 4
    assert closed == [401] * 4
    assert "hunter2" not in caplog.text


def test_metrics_and_health_say_how_it_is(service: Running) -> None:
    for user in ("u001", "u001", "stranger"):
        service.client.get(f"/recommendations/{user}")
    text = service.client.get("/metrics").text

    assert re.search(r'rec_answer_seconds_count\{source="cache"\} 2', text)
    assert re.search(r'rec_answer_seconds_count\{source="popular"\} 1', text)
    assert re.search(r"rec_generation_age_seconds [1-9e.\-0]+", text)
    assert "rec_store_up 1" in text
    assert service.client.get("/health/ready").json()["status"] == "ok"
    assert service.client.get("/status").json()["n_items"] == 40


def test_a_service_that_loads_its_text_encoder_answers_and_is_not_ready(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_loaded = threading.Event()
    live = service.recommender.service.live
    monkeypatch.setattr(live, "_make_encoder", is_loaded.wait)

    preparation = live.prepare()
    while_loading = service.client.get("/health/ready")
    answer = service.client.get("/recommendations/u001")
    is_loaded.set()
    with pytest.raises(AttributeError):  # what is loaded is no encoder, and that is no reason to wait
        preparation.result(LONG)

    assert (while_loading.status_code, while_loading.json()["status"]) == (503, "loading the text encoder")
    assert answer.status_code == 200
    assert service.client.get("/health/ready").status_code == 200


def test_s11_no_origin_is_allowed_in_and_the_page_needs_nothing_from_elsewhere(service: Running) -> None:
    page = service.client.get("/", headers={"Origin": "https://elsewhere.example"})
    parts = [page.text] + [service.client.get(f"/static/{name}").text for name in ("page.js", "page.css", "icon.svg")]

    assert "access-control-allow-origin" not in page.headers
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", "".join(parts))


def test_s11_schemathesis_finds_nothing(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.recommender.service.live, "_make_encoder", PlantedEncoder)
    schema = schemathesis.openapi.from_asgi("/openapi.json", service.app)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) == 10
    for operation in operations:
        for mode in GenerationMode:
            explore(operation, mode, service.url)


def explore(operation: Any, mode: GenerationMode, url: str) -> None:
    @hypothesis_settings(
        max_examples=8, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: schemathesis.Case) -> None:
        # Which event types and categories there are, and that no event lies in the future, no schema can say.
        excluded = [positive_data_acceptance] if operation.path.startswith(("/events", "/recommendations")) else []
        case.call_and_validate(base_url=url, excluded_checks=excluded)

    with suppress(Unsatisfiable):  # a route without parameters cannot be asked wrongly
        one()


def test_s06_s07_the_command_listens_on_loopback_shows_no_password_and_ends_on_sigterm(project: Project) -> None:
    process = project.start("serve", "--port", "18090", REC_REDIS_URL="redis://:hunter2@127.0.0.1:1")
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        port = f"{int(url.rpartition(':')[2]):04X}"
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert [address for address in listening if address.endswith(f":{port}")] == [f"0100007F:{port}"]
        assert httpx.get(f"{url}/health/ready", timeout=LONG, trust_env=False).json()["bundle"] == ""
        assert httpx.get(f"{url}/recommendations/u1", timeout=LONG, trust_env=False).status_code == 503
        assert not any("hunter2" in line for line in project.processes().values())
        process.terminate()
        assert process.wait(LONG) == 0
    finally:
        process.kill()
        stdout, stderr = process.communicate()
    assert "hunter2" not in stdout + stderr
