"""The promises of events.py: the asked-for numbers, and bad events that the app really refuses."""

import base64
import json

import pytest

import events


def value_of(event) -> bytes:
    """The bytes that `millrace send --json` makes of an event."""
    if "value_base64" in event:
        return base64.b64decode(event["value_base64"], validate=True)
    if "value_json" in event:
        return json.dumps(event["value_json"], separators=(",", ":")).encode()
    return event["value"].encode()


def test_exactly_the_bad_events_are_refused(client):
    lines = list(events.events(count=400, bad=20, seed=3, patients=50))
    assert len(lines) == 400
    keys, refused = set(), []
    for place, line in enumerate(lines):
        event = json.loads(line)
        keys.add(event["key"])
        status = client.post("/process", content=value_of(event)).status_code
        assert status in (200, 422)
        if status == 422:
            refused.append(place)
    assert len(refused) == 20
    assert refused[0] < 100 and refused[-1] > 300, "spread through"
    assert 40 < len(keys) <= 50


@pytest.mark.parametrize("kind", events.BAD_KINDS)
def test_each_bad_kind_is_refused(client, kind):
    value = value_of(kind(events.real_rows()[0]))
    assert client.post("/process", content=value).status_code == 422


def test_the_same_seed_prints_the_same_lines():
    def lines(seed):
        return list(events.events(count=100, bad=5, seed=seed, patients=10))

    assert lines(1) == lines(1) != lines(2)
