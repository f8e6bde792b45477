"""DTRN: its parts compared with plain layers, and its properties."""

import torch
from torch import nn
from torch.nn.functional import layer_norm

from models.bottoms.dtrn import DTRNBottom, InterestModule
from models.config import DTRNConfig
from models.inputs import EmbeddingTable, Feature, ModelInputs, Task
from models.layers.transformer import ConditionalBlock
from tests.models.parts import INPUTS, SCENARIOS, TASKS, context, embedded, names, trunk

CONFIG = DTRNConfig(kind="dtrn", target="item", condition_dim=4, refine_dim=5)


def randomised(bottom: nn.Module) -> nn.Module:
    """The bottom with random values in place of all initial values."""
    for parameter in bottom.parameters():
        nn.init.normal_(parameter, std=0.3)
    return bottom


def test_it_starts_as_one_plain_transformer_for_all_tasks() -> None:
    torch.manual_seed(0)
    bottom, batch = DTRNBottom(INPUTS, CONFIG), embedded()
    out = bottom(batch)
    assert out.shape == (3, 5, bottom.out_dim) == (3, 5, 4 + 4 + 2 + 4 + 1)
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])
    plain = torch.cat([*batch.features.values()], dim=1)
    torch.testing.assert_close(out[0, :, :10], plain)
    torch.testing.assert_close(out[0, :, 14:], batch.numerics)


def test_it_does_not_change_mmoe_at_the_start() -> None:
    """At step 0, MMoE on DTRN gives the same output for all tasks' representations as for a single representation."""
    torch.manual_seed(0)
    bottom, batch = DTRNBottom(INPUTS, CONFIG), embedded()
    mmoe = trunk("mmoe", bottom.out_dim)
    out = bottom(batch)
    torch.testing.assert_close(mmoe(out, context(SCENARIOS)).hidden, mmoe(out[0], context(SCENARIOS)).hidden)


def test_the_block_matches_the_transformer_of_pytorch() -> None:
    """With gamma 1 and beta 0, compared with nn.TransformerEncoderLayer at positions that are not padding."""
    torch.manual_seed(0)
    block = ConditionalBlock(8, heads=2)
    plain = nn.TransformerEncoderLayer(8, 2, dim_feedforward=32, dropout=0.0, batch_first=True)
    plain.self_attn.in_proj_weight.data.copy_(block.qkv.weight)
    plain.self_attn.in_proj_bias.data.copy_(block.qkv.bias)
    plain.self_attn.out_proj.load_state_dict(block.out.state_dict())
    plain.linear1.load_state_dict(block.feed_forward[0].state_dict())
    plain.linear2.load_state_dict(block.feed_forward[2].state_dict())
    rows, inside = torch.randn(3, 6, 8), torch.arange(6) < torch.tensor([[6], [4], [1]])
    norms = torch.stack([torch.ones(8), torch.zeros(8)]).expand(1, 2, 2, 8)
    expected = plain(rows, src_key_padding_mask=~inside)
    out = block(rows, inside, norms)[0]
    torch.testing.assert_close(out[inside], expected[inside])


def test_conditions_scale_and_shift_the_normalisations() -> None:
    torch.manual_seed(0)
    block, rows, inside = ConditionalBlock(4, heads=1), torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    plain = torch.stack([torch.ones(4), torch.zeros(4)]).expand(2, 2, 4)
    other = torch.stack([plain[0], torch.stack([torch.full((4,), 2.0), torch.full((4,), 5.0)])])
    one, two = block(rows, inside, torch.stack([plain, other]))
    torch.testing.assert_close(two, 2 * one + 5)
    torch.testing.assert_close(one, layer_norm(one, (4,)), atol=1e-4, rtol=1e-4)


def test_tasks_and_behaviours_differ_when_the_hypernetwork_is_not_zero() -> None:
    torch.manual_seed(0)
    module = randomised(InterestModule(["click", "buy", "like"], {"watched": 4, "liked": 4}, 4, CONFIG))
    rows, lengths, target = torch.randn(2, 4, 4), torch.tensor([4, 2]), torch.randn(2, 4)
    out = module({"watched": rows, "liked": rows}, {"watched": lengths, "liked": lengths}, target)
    seen = [out[name][task] for name in ("watched", "liked") for task in range(3)]
    assert all(not torch.allclose(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_padding_and_the_longest_length_have_no_effect() -> None:
    torch.manual_seed(0)
    module = randomised(InterestModule(["click", "buy"], {"watched": 6}, 4, CONFIG.model_copy(update={"blocks": 2})))
    rows, lengths, target = torch.randn(3, 6, 4), torch.tensor([2, 0, 3]), torch.randn(3, 4)
    out = module({"watched": rows}, {"watched": lengths}, target)["watched"]
    for row, length in enumerate(lengths):
        rows[row, length:] = 1e4
    torch.testing.assert_close(module({"watched": rows}, {"watched": lengths}, target)["watched"], out)
    torch.testing.assert_close(module({"watched": rows[:, :3]}, {"watched": lengths}, target)["watched"], out)
    assert (out[:, 1] == 0).all(), "an empty sequence gives zeros"
    assert (out[:, 0] != 0).all()


def test_every_feature_has_one_weight_per_task() -> None:
    torch.manual_seed(0)
    bottom = randomised(DTRNBottom(INPUTS, CONFIG))
    refine = bottom.refine
    features = torch.rand(3, 5, bottom.out_dim) + 0.1
    ratios = refine(features) / features
    first = 0
    for width in (4, 4, 2, 4, 1):
        part = ratios[..., first : first + width]
        torch.testing.assert_close(part, part[..., :1].expand_as(part))
        first += width
    assert not torch.allclose(ratios[0], ratios[1])
    assert ((ratios > 0) & (ratios < 2)).all()


def test_an_additional_task_or_behaviour_adds_one_embedding_to_the_interest_module() -> None:
    def size(tasks: int, behaviours: int) -> int:
        module = InterestModule(names("task", tasks), {f"b{i}": 5 for i in range(behaviours)}, 8, CONFIG)
        return sum(p.numel() for p in module.parameters())

    assert size(4, 2) - size(3, 2) == size(3, 3) - size(3, 2) == CONFIG.condition_dim


def test_a_sequence_of_another_width_is_represented_by_its_mean() -> None:
    inputs = ModelInputs(
        tables=(EmbeddingTable("item", 7, 4), EmbeddingTable("shop", 7, 2)),
        features=(
            Feature("item", "item", "categorical"),
            Feature("watched", "item", "sequence", max_length=3),
            Feature("shops", "shop", "sequence", max_length=3),
        ),
        numerics=0,
        scenarios=(("tab=1",),),
        tasks=(*TASKS[:1], Task("other", "binary")),
        levels=("tab",),
    )
    batch = embedded()
    batch.features = {"item": batch.features["item"]}
    shops = torch.randn(5, 3, 2) * (torch.arange(3) < torch.tensor([[3], [0], [1], [2], [3]])).unsqueeze(2)
    batch.sequences["shops"], batch.lengths["shops"] = shops, batch.lengths["watched"]
    batch.numerics = torch.empty(5, 0)
    out = DTRNBottom(inputs, CONFIG)(batch)
    assert out.shape == (2, 5, 10)
    torch.testing.assert_close(out[1, 3, 8:], shops[3].sum(0) / 2)
