"""Shapes, values calculated by hand, and properties of the model parts."""

import math

import pytest
import torch
from torch import nn
from torchrec import JaggedTensor, KeyedJaggedTensor

from models.bottoms.concat import ConcatBottom
from models.bottoms.din import DinBottom, TargetAttention
from models.config import DinConfig, TowersConfig
from models.embedding import SharedEmbedding, pool
from models.heads.towers import HeadOutput, TowersHead
from models.inputs import EmbeddingTable, Feature, ModelInputs
from models.losses import task_losses
from models.trunks.base import TrunkOutput
from tests.models.parts import INPUTS, TASKS, embedded


def ids() -> tuple[KeyedJaggedTensor, KeyedJaggedTensor]:
    """Two rows: user 1, 2; tags [1, 3], []; item 5, 6; watched [6, 2], [1, 2, 3]."""
    pooled = KeyedJaggedTensor(["user", "tags"], torch.tensor([1, 2, 1, 3]), lengths=torch.tensor([1, 1, 2, 0]))
    values = torch.tensor([5, 6, 6, 2, 1, 2, 3])
    return pooled, KeyedJaggedTensor(["item", "watched"], values, lengths=torch.tensor([1, 1, 2, 3]))


def test_shared_embedding_equals_plain_lookups() -> None:
    torch.manual_seed(0)
    embedding = SharedEmbedding(INPUTS, torch.device("cpu"))
    weights = {name.split(".")[-2]: value for name, value in embedding.state_dict().items()}
    out = embedding(*ids(), torch.tensor([[0.5], [1.5]]))
    assert list(out.features) == ["user", "item", "tags"]
    torch.testing.assert_close(out.features["user"], weights["user"][[1, 2]])
    torch.testing.assert_close(out.features["item"], weights["item"][[5, 6]])
    torch.testing.assert_close(out.features["tags"], torch.stack([weights["tags"][[1, 3]].mean(0), torch.zeros(2)]))
    watched = torch.stack([torch.cat([weights["item"][[6, 2]], torch.zeros(1, 4)]), weights["item"][[1, 2, 3]]])
    torch.testing.assert_close(out.sequences["watched"], watched)
    assert out.lengths["watched"].tolist() == [2, 3]
    assert out.numerics.tolist() == [[0.5], [1.5]]


def test_one_table_serves_all_features_that_share_it() -> None:
    embedding = SharedEmbedding(INPUTS, torch.device("cpu"))
    names = sorted(name.split(".")[-2] for name in embedding.state_dict())
    assert names == ["item", "tags", "user"]


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("mean", [[2.0, 3.0], [0.0, 0.0], [5.0, 6.0]]), ("sum", [[4.0, 6.0], [0.0, 0.0], [5.0, 6.0]])],
)
def test_pooling_of_jagged_rows(pooling: str, expected: list[list[float]]) -> None:
    rows = JaggedTensor(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), lengths=torch.tensor([2, 0, 1]))
    ids = JaggedTensor(torch.tensor([1, 2, 3]), lengths=rows.lengths())
    feature = Feature("f", "t", "multivalued", pooling=pooling)  # type: ignore[arg-type]
    assert pool(rows, ids, feature).tolist() == expected


def test_features_of_one_table_may_pool_differently() -> None:
    inputs = ModelInputs(
        tables=(EmbeddingTable("t", 5, 2),),
        features=(Feature("a", "t", "multivalued", pooling="mean"), Feature("b", "t", "multivalued", pooling="sum")),
        numerics=0,
        scenarios=(("tab=1",),),
        tasks=TASKS[:1],
        levels=("tab",),
    )
    embedding = SharedEmbedding(inputs, torch.device("cpu"))
    both = KeyedJaggedTensor(["a", "b"], torch.tensor([1, 2, 1, 2]), lengths=torch.tensor([2, 2]))
    out = embedding(both, None, torch.empty(1, 0))
    torch.testing.assert_close(out.features["a"] * 2, out.features["b"])


def test_concat_averages_sequences_and_ignores_padding() -> None:
    bottom, batch = ConcatBottom(INPUTS), embedded()
    out = bottom(batch)
    assert out.shape == (5, bottom.out_dim) == (5, 4 + 4 + 2 + 4 + 1)
    torch.testing.assert_close(out[3, 10:14], batch.sequences["watched"][3].sum(0) / 2)
    assert out[1, 10:14].isfinite().all()


def test_din_by_hand() -> None:
    """If the score is the first component of the sequence's embedding, then v = sum of e_j * e_j[0]."""
    attention = TargetAttention(2, [])
    linear = attention.score[-1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]]))
        linear.bias.zero_()
    sequence = torch.tensor([[[2.0, 1.0], [3.0, -1.0], [9.0, 9.0]]])
    out = attention(sequence, torch.tensor([2]), torch.tensor([[1.0, 1.0]]))
    assert out.tolist() == [[2 * 2 + 3 * 3, 2 * 1 - 3 * 1]]


def test_din_ignores_padding_and_empty_sequences_give_zeros() -> None:
    torch.manual_seed(1)
    bottom, batch = DinBottom(INPUTS, DinConfig(kind="din", target="item")), embedded()
    before = bottom(batch)
    batch.sequences["watched"][2, 1:] = 100.0
    batch.sequences["watched"][1] = -100.0
    torch.testing.assert_close(bottom(batch), before)
    assert before[1, 10:14].tolist() == [0, 0, 0, 0]


def head(conversion: str) -> TowersHead:
    return TowersHead(INPUTS, TowersConfig(kind="towers", hidden=[], conversion=conversion), 1)  # type: ignore[arg-type]


def fixed_logits(module: TowersHead, logits: list[float]) -> HeadOutput:
    with torch.no_grad():
        for tower, logit in zip(module.towers.values(), logits, strict=True):
            tower[-1].weight.zero_()
            tower[-1].bias.fill_(logit)
    return module(TrunkOutput(torch.zeros(3, 1, 1)))


def test_product_head_by_hand() -> None:
    predictions = fixed_logits(head("product"), [math.log(3), math.log(1 / 4), 2.5])
    scores = predictions.scores()
    assert scores[0].tolist() == pytest.approx([0.75, 0.75 * 0.2, 2.5])
    assert [part[0, 1].exp().item() for part in predictions.parameters[:2]] == pytest.approx([0.25, 0.85])


def test_direct_head_by_hand() -> None:
    scores = fixed_logits(head("direct"), [math.log(3), math.log(1 / 4), 2.5]).scores()
    assert scores[0].tolist() == pytest.approx([0.75, 0.2, 2.5])


def test_product_head_stays_exact_where_probabilities_round() -> None:
    """P(click) = 1 - 4e-18 rounds to 1 in fp32; its loss for a negative must still be 40, with a gradient."""
    module = head("product")
    predictions = fixed_logits(module, [40.0, 40.0, 0.0])
    labels = torch.zeros(1, 3)
    losses = task_losses(predictions, labels, torch.ones(1), torch.tensor(1.0))
    assert losses.tolist() == pytest.approx([40.0, 40 - math.log(2), 0.0], rel=1e-6)
    losses.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_an_auxiliary_logit_is_added_before_probabilities_are_composed() -> None:
    module = head("product")
    fixed_logits(module, [0.0, 0.0, 1.0])
    extra = torch.tensor([[math.log(3)], [math.log(1 / 4)], [1.5]])
    scores = module(TrunkOutput(torch.zeros(3, 1, 1), logits=extra)).scores()
    assert scores[0].tolist() == pytest.approx([0.75, 0.75 * 0.2, 2.5])


def test_losses_by_hand_leave_out_padding() -> None:
    click, buy = torch.tensor([0.8, 0.4, 0.5]), torch.tensor([0.1, 0.3, 0.5])
    binary = [torch.stack([p, 1 - p], dim=1).log() for p in (click, buy)]
    predictions = HeadOutput(TASKS, (*binary, torch.tensor([[2.0], [1.0], [9.0]])))
    labels = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 3.0], [1.0, 1.0, 1.0]])
    losses = task_losses(predictions, labels, torch.tensor([1.0, 1.0, 0.0]), torch.tensor(2.0))
    expected = [-(math.log(0.8) + math.log(0.6)) / 2, -(math.log(0.9) + math.log(0.3)) / 2, (1.5**2 + 2**2) / 2]
    assert losses.tolist() == pytest.approx(expected)
