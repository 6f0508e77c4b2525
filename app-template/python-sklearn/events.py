"""Makes events from the real data set, one JSON line each, as `millrace send --json` reads them.

    python events.py --count 20000 --bad 20 --seed 1

A good event is a row of the data set under the key of a patient. Bad events are of four kinds and
spread evenly at random; the app must refuse every one of them. The same arguments print the same
lines.
"""

import argparse
import base64
import itertools
import json
import random
import sys

from sklearn.datasets import load_breast_cancer


def compact(value) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def real_rows() -> list[dict]:
    data = load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names]
    rows = [dict(zip(names, row)) for row in data.data.tolist()]
    return [{n: v for n, v in row.items() if n.startswith("worst_")} for row in rows]


def not_json(row):
    return {"value": " ".join(f"{name}={value}" for name, value in row.items())}


def missing_feature(row):
    return {"value_json": {name: row[name] for name in list(row)[1:]}}


def text_for_a_number(row):
    return {"value_json": {**row, "worst_area": "large"}}


def not_utf8(row):
    latin1 = compact({**row, "clinic": "Zürich"}).encode("latin-1")
    return {"value_base64": base64.b64encode(latin1).decode()}


BAD_KINDS = [not_json, missing_feature, text_for_a_number, not_utf8]


def events(count: int, bad: int, seed: int, patients: int):
    """Yields the lines."""
    rows = real_rows()
    good = [compact(row) for row in rows]  # spelled once, used many times
    dice = random.Random(seed)
    bad_places = set(dice.sample(range(count), bad))
    kinds = itertools.cycle(BAD_KINDS)
    for place in range(count):
        key = f"patient-{dice.randrange(patients)}"
        if place in bad_places:
            yield compact({"key": key, **next(kinds)(dice.choice(rows))}) + "\n"
        else:
            yield f'{{"key":"{key}","value_json":{dice.choice(good)}}}\n'


def main():
    parser = argparse.ArgumentParser(description="Prints events, one JSON line each.")
    parser.add_argument("--count", type=int, default=1000, help="events, the bad ones included")
    parser.add_argument("--bad", type=int, default=0, help="bad events among them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patients", type=int, default=2000, help="distinct keys to draw from")
    options = parser.parse_args()
    if not 0 <= options.bad <= options.count:
        parser.error("--bad must be between 0 and --count")
    if options.patients < 1:
        parser.error("--patients must be at least 1")
    try:
        sys.stdout.writelines(events(**vars(options)))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()


if __name__ == "__main__":
    main()
