"""The promises that app.py makes to Millrace, and model.py to the app."""

import asyncio
import base64
import json
import os
import socket

import httpx
import pytest

import app
import events
import model

ROWS = events.real_rows()
GOOD = json.dumps(ROWS[0]).encode()
BAD = {
    "empty": b"",
    "not JSON": b"worst_radius=1",
    "cut short": GOOD[:-1],
    "two values": GOOD + GOOD,
    "not an object": b"[1]",
    "missing feature": json.dumps({k: v for k, v in ROWS[0].items() if k != "worst_area"}).encode(),
    "text for a number": json.dumps({**ROWS[0], "worst_area": "large"}).encode(),
    "null for a number": json.dumps({**ROWS[0], "worst_area": None}).encode(),
    "NaN": json.dumps({**ROWS[0], "worst_area": float("nan")}).encode(),
    "out of range": json.dumps({**ROWS[0], "worst_area": 1e300}).encode(),
    "not UTF-8": json.dumps({**ROWS[0], "x": "é"}, ensure_ascii=False).encode("latin-1"),
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "very deep": GOOD[:-1] + b',"x":' + b"[" * 100_000,
}


def batch(client, *items):
    """Sends the items; returns each one's answer by id."""
    response = client.post("/process-batch", content=json.dumps({"items": items}).encode())
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert len(results) == len(items)
    return {result["id"]: result for result in results}


def test_a_good_event_is_answered_with_prediction_and_probability(client):
    response = client.post("/process", content=GOOD)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert answer["prediction"] == "malignant" and 0.5 < answer["probability"] <= 1


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_event_is_refused_for_good(client, kind):
    response = client.post("/process", content=BAD[kind])
    error = response.json()["error"]
    assert response.status_code == 422
    assert error["code"] == "BAD_INPUT" and error["message"] and error["retryable"] is False


def test_a_bad_event_in_a_batch_fails_alone(client):
    items = [
        {"id": kind, "value_base64": base64.b64encode(value).decode()}
        for kind, value in BAD.items()
    ]
    items.insert(3, {"id": "good", "value": GOOD.decode()})
    items.insert(5, {"id": "none", "value": None})
    answers = batch(client, *items)
    assert answers.pop("good")["status"] == "ok"
    assert answers.pop("none") == {"id": "none", "status": "filter"}
    for kind in BAD:
        assert answers[kind]["status"] == "fail", kind
        assert answers[kind]["error"]["code"] == "BAD_INPUT", kind


def test_single_and_batch_give_the_same_bytes_for_every_row(client):
    values = [json.dumps(row) for row in ROWS[: app.BATCH_EVENTS_MAX]]
    answers = batch(client, *({"id": str(n), "value": value} for n, value in enumerate(values)))
    for n, value in enumerate(values):
        [output] = answers[str(n)]["outputs"]
        assert client.post("/process", content=value.encode()).content == output["value"].encode()


def test_one_connection_serves_request_after_request(client):
    sockets = set()
    for content, status in ((GOOD, 200), (b"bad", 422), (GOOD, 200)):
        response = client.post("/process", content=content)
        assert response.status_code == status
        sockets.add(response.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(sockets) == 1


def test_a_client_that_leaves_does_no_harm(client):
    with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
        leaving.sendall(b"POST /process HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
    assert client.post("/process", content=GOOD).status_code == 200


def test_unknown_headers_and_members_are_ignored(client):
    value = json.dumps({**ROWS[0], "clinic": "Zürich", "more": [1, {"a": None}]})
    plain = client.post("/process", content=GOOD).content
    headers = {"Millrace-Mode": "shadow", "Millrace-New": "1", "Content-Type": "text/plain"}
    assert client.post("/process", content=value.encode(), headers=headers).content == plain
    item = {"id": "a", "value": value, "new": 1, "key_base64": "AP8=", "headers": [["x", None]]}
    assert batch(client, item)["a"]["outputs"][0]["value"].encode() == plain


def test_an_event_without_a_value_is_filtered(client):
    response = client.post("/process", headers={"Millrace-Tombstone": "true"})
    assert (response.status_code, response.content) == (204, b"")


def test_an_empty_batch_is_answered_and_a_broken_one_refused(client):
    assert batch(client) == {}
    for body in (b"", b"{}", b'{"items":[{"value":"no id"}]}', b"\xff"):
        assert client.post("/process-batch", content=body).status_code == 422


def test_too_much_is_refused_with_413_and_the_app_stays_healthy(client):
    for path in ("/process", "/process-batch"):
        response = client.post(path, content=b" " * (app.BODY_BYTES_MAX + 1))
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "TOO_LARGE"
    items = [{"id": str(n), "value": "{}"} for n in range(app.BATCH_EVENTS_MAX + 1)]
    assert client.post("/process-batch", json={"items": items}).status_code == 413
    assert len(batch(client, *items[:-1])) == app.BATCH_EVENTS_MAX
    assert client.get("/healthz").status_code == 200


def test_the_app_says_what_it_can_do(client):
    assert client.get("/.well-known/millrace").json() == {
        "contract": "1",
        "modes": ["reply"],
        "requests": ["single", "batch"],
        "content": ["raw"],
        "max_batch": 200,
        "idempotent": True,
    }


def test_other_paths_and_methods_are_refused(client):
    assert client.post("/other").status_code == 404
    assert client.get("/process").status_code == 405


def answers_in_parallel(values):
    async def ask():
        transport = httpx.ASGITransport(app.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            posts = [client.post("/process", content=value) for value in values]
            return [response.content for response in await asyncio.gather(*posts)]

    return asyncio.run(ask())


def test_parallel_requests_share_calls_and_are_not_mixed(client, monkeypatch):
    values = [json.dumps(row).encode() for row in ROWS[:64]]
    alone = [client.post("/process", content=value).content for value in values]
    assert len(set(alone)) > 32
    sizes = []
    predict = model.predict
    monkeypatch.setattr(
        model, "predict", lambda m, rows: sizes.append(len(rows)) or predict(m, rows)
    )
    assert answers_in_parallel(values) == alone
    assert sum(sizes) == 64 and len(sizes) < 64


def test_a_shared_call_that_fails_is_repeated_alone(client, monkeypatch):
    values = [json.dumps(row).encode() for row in ROWS[:8]]
    alone = [client.post("/process", content=value).content for value in values]
    predict = model.predict

    def only_alone(classifier, rows):
        assert len(rows) == 1
        return predict(classifier, rows)

    monkeypatch.setattr(model, "predict", only_alone)
    assert answers_in_parallel(values) == alone


def test_the_model_is_good_and_training_is_repeatable():
    (first, accuracy), (second, _) = model.train(), model.train()
    assert accuracy > 0.95
    assert (first[-1].coef_ == second[-1].coef_).all()


def test_the_model_is_trained_when_missing_or_older_than_its_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "FILE", tmp_path / "model.joblib")
    model.load()
    written = model.FILE.stat().st_mtime_ns
    model.load()
    assert model.FILE.stat().st_mtime_ns == written
    os.utime(model.FILE, (0, 0))
    model.load()
    assert model.FILE.stat().st_mtime_ns >= written
    assert [file.name for file in tmp_path.iterdir()] == ["model.joblib"]
