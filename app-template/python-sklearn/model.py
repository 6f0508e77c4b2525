"""The model: what an event must contain, how it is trained, how it predicts.

    python -m model      trains, prints the accuracy on held-out rows, writes model.joblib

The data set (569 biopsies of breast tissue, benign or malignant) ships inside scikit-learn.
"""

import os
from pathlib import Path
from typing import Annotated

import joblib
import msgspec
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
FILE = HERE / "model.joblib"
SOURCES = [HERE / "model.py", HERE / "requirements.txt"]

# Anything else is refused before the model sees it: text, null, NaN, negative, absurd.
Measure = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class Biopsy(msgspec.Struct):
    """One event. Field order is the model's column order; unknown fields are ignored."""

    worst_radius: Measure
    worst_texture: Measure
    worst_perimeter: Measure
    worst_area: Measure
    worst_smoothness: Measure
    worst_compactness: Measure
    worst_concavity: Measure
    worst_concave_points: Measure
    worst_symmetry: Measure
    worst_fractal_dimension: Measure


class Diagnosis(msgspec.Struct):
    """One result."""

    prediction: str
    probability: float


def train():
    """Fits the model; returns it with its accuracy on rows it has not seen."""
    data = load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names]
    rows = data.data[:, [names.index(field) for field in Biopsy.__struct_fields__]]
    labels = data.target_names[data.target]
    seen, held_out, seen_labels, held_out_labels = train_test_split(
        rows, labels, test_size=0.25, random_state=0, stratify=labels
    )
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(seen, seen_labels)
    return model, model.score(held_out, held_out_labels)


def save(model):
    """Writes a draft, then renames it: who loads at this moment never sees half a model."""
    draft = FILE.with_suffix(f".{os.getpid()}.draft")
    joblib.dump(model, draft)
    draft.replace(FILE)


def load():
    """Loads the model; trains it first when it is missing or older than its sources."""
    if not FILE.exists() or FILE.stat().st_mtime < max(s.stat().st_mtime for s in SOURCES):
        save(train()[0])
    return joblib.load(FILE)


def predict(model, biopsies: list[Biopsy]) -> list[Diagnosis]:
    """One numpy call, however many rows: 100 cost hardly more than one."""
    rows = np.array([msgspec.structs.astuple(biopsy) for biopsy in biopsies])
    probabilities = model.predict_proba(rows)
    # Six digits: the last bits of a float depend on how many rows are computed together.
    return [
        Diagnosis(str(model.classes_[best]), round(float(row[best]), 6))
        for row, best in zip(probabilities, probabilities.argmax(axis=1))
    ]


if __name__ == "__main__":
    trained, accuracy = train()
    save(trained)
    print(f"accuracy on held-out rows: {accuracy:.3f}; wrote {FILE.name}")
