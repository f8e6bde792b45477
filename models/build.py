"""Builds modules from their configuration: one case per bottom and per trunk."""

from dataclasses import replace

from torch import nn

from models.bottoms.base import Bottom
from models.bottoms.concat import ConcatBottom
from models.bottoms.din import DinBottom
from models.bottoms.dtrn import DTRNBottom
from models.config import (
    AESMConfig,
    BottomConfig,
    ConcatConfig,
    CrossStitchConfig,
    DinConfig,
    DTRNConfig,
    HMoEConfig,
    HTLNetConfig,
    MMoEConfig,
    ModelConfig,
    ParallelDNNConfig,
    PLEConfig,
    SharedBottomConfig,
    STARConfig,
    TrunkConfig,
)
from models.gradients import CoreRule
from models.heads.towers import HeadOutput, TowersHead
from models.inputs import Embedded, ModelInputs
from models.trunks.aesm import AESMTrunk
from models.trunks.base import Context, Trunk, TrunkOutput
from models.trunks.cross_stitch import CrossStitchTrunk
from models.trunks.hmoe import HMoETrunk
from models.trunks.htlnet import HTLNetTrunk
from models.trunks.mmoe import MMoETrunk
from models.trunks.parallel_dnn import ParallelDNNTrunk
from models.trunks.ple import PLETrunk
from models.trunks.shared_bottom import SharedBottomTrunk
from models.trunks.star import STARTrunk


class DenseModel(nn.Module):
    """Everything above the shared embedding: bottom, trunk, head."""

    def __init__(self, bottom: Bottom, trunk: Trunk, head: TowersHead) -> None:
        super().__init__()
        self.bottom = bottom
        self.trunk = trunk
        self.head = head

    def forward(self, embedded: Embedded, context: Context) -> tuple[HeadOutput, TrunkOutput]:
        """Takes the embedded batch and the other information about its rows."""
        output = self.trunk(self.bottom(embedded), replace(context, predict=self.head.predict))
        return self.head(output), output


def build_dense(config: ModelConfig, inputs: ModelInputs) -> DenseModel:
    """Builds bottom, trunk and head; the output width of each is the input width of the next."""
    bottom = build_bottom(config.bottom, inputs)
    trunk = build_trunk(config.trunk, inputs, bottom.out_dim)
    return DenseModel(bottom, trunk, TowersHead(inputs, config.head, trunk.out_dim))


def build_rule(config: ModelConfig, inputs: ModelInputs) -> CoreRule | None:
    """Returns the implementation of the config's `core_rule`, or None if gradients add up."""
    rule = config.core_rule
    return CoreRule(inputs.task_names, rule) if rule else None


def build_bottom(config: BottomConfig, inputs: ModelInputs) -> Bottom:
    match config:
        case ConcatConfig():
            return ConcatBottom(inputs)
        case DinConfig():
            return DinBottom(inputs, config)
        case DTRNConfig():
            return DTRNBottom(inputs, config)


def build_trunk(config: TrunkConfig, inputs: ModelInputs, in_dim: int) -> Trunk:
    match config:
        case SharedBottomConfig():
            return SharedBottomTrunk(inputs, config, in_dim)
        case ParallelDNNConfig():
            return ParallelDNNTrunk(inputs, config, in_dim)
        case CrossStitchConfig():
            return CrossStitchTrunk(inputs, config, in_dim)
        case MMoEConfig():
            return MMoETrunk(inputs, config, in_dim)
        case HMoEConfig():
            return HMoETrunk(inputs, config, in_dim)
        case PLEConfig():
            return PLETrunk(inputs, config, in_dim)
        case STARConfig():
            return STARTrunk(inputs, config, in_dim)
        case AESMConfig():
            return AESMTrunk(inputs, config, in_dim)
        case HTLNetConfig():
            return HTLNetTrunk(inputs, config, in_dim)
