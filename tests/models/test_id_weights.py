"""Pooling with weights of ids, against sums computed by hand in plain PyTorch."""

import pytest
import torch
from torchrec import KeyedJaggedTensor

from models.embedding import SharedEmbedding
from models.inputs import EmbeddingTable, Feature, ModelInputs, Task

ROWS = [[(1, 0.5), (2, 2.0)], [], [(3, 0.0), (1, 0.0)], [(2, 0.25)], [(0, 1.0), (0, 3.0), (4, 0.0)]]


@pytest.mark.parametrize("pooling", ["mean", "sum"])
@pytest.mark.parametrize("with_sequence", [False, True])
def test_rows_are_pooled_by_the_weights_of_their_ids(pooling: str, with_sequence: bool) -> None:
    """In its own table, and in the table of a sequence; a feature beside it without weights is pooled as before."""
    features = [
        Feature("tags", "tags", "multivalued", pooling="sum" if pooling == "sum" else "mean", is_weighted=True),
        Feature("plain", "tags", "multivalued"),
    ]
    if with_sequence:
        features.append(Feature("watched", "tags", "sequence", max_length=3))
    inputs = ModelInputs(
        (EmbeddingTable("tags", 5, 3),), tuple(features), 0, (("a",),), (Task("click", "binary"),), ("tab",)
    )
    embedding = SharedEmbedding(inputs, torch.device("cpu"))
    (table,) = embedding.parameters()
    ids = [id_ for row in ROWS for id_, _ in row]
    weights = [weight for row in ROWS for _, weight in row]
    ones = [1.0] * len(ids) * (len(features) - 1)
    batch = KeyedJaggedTensor(
        keys=[feature.name for feature in features],
        values=torch.tensor(ids * len(features), dtype=torch.int32),
        lengths=torch.tensor([len(row) for row in ROWS] * len(features), dtype=torch.int32),
        weights=torch.tensor(weights + ones),
    )
    none = torch.empty(len(ROWS), 0)
    out = embedding(None, batch, none) if with_sequence else embedding(batch, None, none)
    weighted, plain = torch.zeros(len(ROWS), 3), torch.zeros(len(ROWS), 3)
    for i, row in enumerate(ROWS):
        total = sum(weight for _, weight in row)
        for id_, weight in row:
            plain[i] += table[id_].detach() / len(row)
            if weight:
                weighted[i] += weight * table[id_].detach() / (total if pooling == "mean" else 1)
    torch.testing.assert_close(out.features["tags"], weighted)
    torch.testing.assert_close(out.features["plain"], plain)
    assert not out.features["tags"][1:3].any()  # no ids, and only weights of 0
    out.features["tags"].sum().backward()
    expected = torch.zeros(5)
    for row in ROWS:
        for id_, weight in row:
            expected[id_] += weight / (sum(w for _, w in row) or 1) if pooling == "mean" else weight
    assert table.grad is not None
    torch.testing.assert_close(table.grad, expected[:, None].expand(5, 3))
