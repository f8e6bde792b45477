"""From configuration to modules: one line a bottom, a trunk and a head."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field
from torch import nn

from models.bottoms.concat import ConcatBottom, ConcatConfig
from models.bottoms.din import DinBottom, DinConfig
from models.bottoms.dtrn import DTRNBottom, DTRNConfig
from models.gradients import CoreGradients, CoreRule
from models.heads.towers import HeadOutput, TowersConfig, TowersHead
from models.inputs import Embedded, ModelInputs
from models.objective import ObjectiveConfig
from models.section import ModelSection
from models.trunks.aesm import AESMConfig, AESMTrunk
from models.trunks.base import Context, Trunk, TrunkOutput
from models.trunks.cross_stitch import CrossStitchConfig, CrossStitchTrunk
from models.trunks.hmoe import HMoEConfig, HMoETrunk
from models.trunks.htlnet import HTLNetConfig, HTLNetTrunk
from models.trunks.mmoe import MMoEConfig, MMoETrunk
from models.trunks.parallel_dnn import ParallelDNNConfig, ParallelDNNTrunk
from models.trunks.ple import PLEConfig, PLETrunk
from models.trunks.shared_bottom import SharedBottomConfig, SharedBottomTrunk
from models.trunks.star import STARConfig, STARTrunk

BottomConfig = Annotated[ConcatConfig | DinConfig | DTRNConfig, Field(discriminator="kind")]
TrunkConfig = Annotated[
    SharedBottomConfig
    | ParallelDNNConfig
    | CrossStitchConfig
    | MMoEConfig
    | HMoEConfig
    | PLEConfig
    | STARConfig
    | AESMConfig
    | HTLNetConfig,
    Field(discriminator="kind"),
]
HeadConfig = TowersConfig


class ModelConfig(ModelSection):
    """The experiment's `model` section: bottom, trunk, head and objective, any with any."""

    bottom: BottomConfig = ConcatConfig(kind="concat")
    trunk: TrunkConfig
    head: HeadConfig = TowersConfig(kind="towers")
    objective: ObjectiveConfig = ObjectiveConfig()

    @property
    def core_rule(self) -> CoreGradients | None:
        """The rule by which gradients meet at the shared embedding, by default the trunk's own; None: they add up."""
        chosen = self.objective.gradients
        if chosen is None and isinstance(self.trunk, HTLNetConfig):
            return CoreGradients(kind="core")
        return chosen if isinstance(chosen, CoreGradients) else None


class DenseModel(nn.Module):
    """Everything above the shared embedding: bottom, trunk, head."""

    def __init__(self, bottom: nn.Module, trunk: Trunk, head: TowersHead) -> None:
        super().__init__()
        self.bottom = bottom
        self.trunk = trunk
        self.head = head

    def forward(self, embedded: Embedded, context: Context) -> tuple[HeadOutput, TrunkOutput]:
        """Takes the embedded batch and what else is known of its rows."""
        output = self.trunk(self.bottom(embedded), replace(context, logit=self.head.logit))
        return self.head(output), output


def build_dense(config: ModelConfig, inputs: ModelInputs) -> DenseModel:
    """Builds bottom, trunk and head, each from the width that the one before it gives."""
    bottom = build_bottom(config.bottom, inputs)
    trunk = build_trunk(config.trunk, inputs, bottom.out_dim)
    return DenseModel(bottom, trunk, TowersHead(inputs, config.head, trunk.out_dim))


def build_rule(config: ModelConfig, inputs: ModelInputs) -> CoreRule | None:
    """What carries out the config's `core_rule`."""
    rule = config.core_rule
    return CoreRule(inputs.task_names, rule) if rule else None


def build_bottom(config: BottomConfig, inputs: ModelInputs) -> ConcatBottom | DinBottom | DTRNBottom:
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
