"""From configuration to modules: one line a bottom, a trunk and a head."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from models.bottoms.concat import ConcatBottom, ConcatConfig
from models.bottoms.din import DinBottom, DinConfig
from models.heads.towers import Predictions, TowersConfig, TowersHead
from models.inputs import Embedded, ModelInputs
from models.section import ModelSection
from models.trunks.mmoe import MMoEConfig, MMoETrunk
from models.trunks.output import TrunkOutput
from models.trunks.shared_bottom import SharedBottomConfig, SharedBottomTrunk

BottomConfig = Annotated[ConcatConfig | DinConfig, Field(discriminator="kind")]
TrunkConfig = Annotated[SharedBottomConfig | MMoEConfig, Field(discriminator="kind")]
HeadConfig = TowersConfig


class ModelConfig(ModelSection):
    """The experiment's `model` section: bottom, trunk and head, any with any."""

    bottom: BottomConfig = ConcatConfig(kind="concat")
    trunk: TrunkConfig
    head: HeadConfig = TowersConfig(kind="towers")


class DenseModel(nn.Module):
    """Everything above the shared embedding: bottom, trunk, head."""

    def __init__(self, bottom: nn.Module, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.bottom = bottom
        self.trunk = trunk
        self.head = head

    def forward(self, embedded: Embedded, scenarios: Tensor) -> tuple[Predictions, TrunkOutput]:
        """Takes the embedded batch and scenario indices ``(batch, levels)``."""
        output = self.trunk(self.bottom(embedded), scenarios)
        return self.head(output.hidden), output


def build_dense(config: ModelConfig, inputs: ModelInputs) -> DenseModel:
    """Builds bottom, trunk and head, each from the width that the one before it gives."""
    bottom = _build_bottom(config.bottom, inputs)
    trunk = _build_trunk(config.trunk, inputs, bottom.out_dim)
    return DenseModel(bottom, trunk, TowersHead(inputs, config.head, trunk.out_dim))


def _build_bottom(config: BottomConfig, inputs: ModelInputs) -> ConcatBottom | DinBottom:
    match config:
        case ConcatConfig():
            return ConcatBottom(inputs)
        case DinConfig():
            return DinBottom(inputs, config)


def _build_trunk(config: TrunkConfig, inputs: ModelInputs, in_dim: int) -> SharedBottomTrunk | MMoETrunk:
    match config:
        case SharedBottomConfig():
            return SharedBottomTrunk(inputs, config, in_dim)
        case MMoEConfig():
            return MMoETrunk(inputs, config, in_dim)
