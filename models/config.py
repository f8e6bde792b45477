"""The sections of an experiment that say what a model is made of: bottom, trunk, head and objective.

No module is imported here, and no torch: every command reads these. A section's docstring is its row in docs/models.md.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from models.section import ModelSection, Widths


class ConcatConfig(ModelSection):
    """Features and numerics side by side; a sequence enters as the mean of its embeddings."""

    kind: Literal["concat"]


class TargetBottom(ModelSection):
    """A bottom that reads behaviours as they relate to a candidate.

    It treats the sequences whose table has the width of the target's; other sequences enter as their mean.
    """

    kind: str
    target: str
    """The categorical feature of the candidate item."""

    def check_width(self, width: int) -> None:
        """Raises ValueError where the target's embedding cannot have this width; a bottom of any width says nothing."""


class DinConfig(TargetBottom):
    """A sequence as a sum weighted by each behaviour's relation to the candidate, weights not normalised (Zhou et al.,
    KDD 2018)."""

    kind: Literal["din"]
    hidden: Widths = [64, 32]
    """Layers of the network that gives the weights."""


class DTRNConfig(TargetBottom):
    """A representation per task: one Transformer for all behaviours and tasks, whose normalisations a small network
    makes from the pair of task and behaviour; attention of the candidate over it; a weight per feature and task (Liu
    et al., CIKM 2023)."""

    kind: Literal["dtrn"]
    heads: int = Field(default=2, ge=1)
    """Of the attention; they divide the target's width."""
    blocks: int = Field(default=1, ge=1)
    condition_dim: int = Field(default=16, ge=1)
    """Width of the embeddings of task and behaviour, and of the hypernetwork."""
    refine_dim: int = Field(default=32, ge=1)
    """Hidden width of each task's refinement."""

    def check_width(self, width: int) -> None:
        if width % self.heads:
            raise ValueError(
                f"model.bottom.heads: {self.heads} heads do not divide the width of {self.target!r} ({width})"
            )


BottomConfig = Annotated[ConcatConfig | DinConfig | DTRNConfig, Field(discriminator="kind")]


class SumGradients(ModelSection):
    """Gradients add up, as everywhere else."""

    kind: Literal["sum"]


class CoreGradients(ModelSection):
    """Every task's gradient is turned away from working against the core task's, then brought near its length."""

    kind: Literal["core"]
    core: str | None = None
    """The core task; null: the last."""
    projection: float = Field(default=1.0, ge=0, le=1)
    """Share of the opposing part that is taken away; 1 takes all of it."""
    gamma: float = Field(default=0.1, ge=0, le=1)
    """0 leaves lengths alone, 1 makes every gradient as long as the core task's."""
    max_ratio: float = Field(default=10.0, ge=1)
    """Lengths are taken to differ by this factor at most."""


GradientConfig = Annotated[SumGradients | CoreGradients, Field(discriminator="kind")]


class TrunkSection(ModelSection):
    """What the sections of trunks say beside their keys."""

    own_gradients: ClassVar[SumGradients | CoreGradients] = SumGradients(kind="sum")
    """The gradient rule of the trunk's paper, used where the experiment names none."""
    needs_task_order: ClassVar[bool] = False
    """Whether at least one task must come `after` another."""


class SharedBottomConfig(TrunkSection):
    """One network for all tasks; the scenario is an input. `hidden: []` leaves the towers alone on the embedding,
    which with the head `product` is ESMM."""

    kind: Literal["shared_bottom"]
    hidden: Widths = [256, 128]
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)


class ParallelDNNConfig(TrunkSection):
    """A network for each task in each finest scenario; nothing is shared above the embedding."""

    kind: Literal["parallel_dnn"]
    hidden: Widths = Field(default=[256, 128], min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class CrossStitchConfig(TrunkSection):
    """A network per task, mixed by scalars after every layer; the scenario is an input (Misra et al., CVPR 2016)."""

    kind: Literal["cross_stitch"]
    hidden: Widths = Field(default=[256, 128], min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)
    own: float = Field(default=0.9, gt=0, le=1)
    """Initial share of a task's own network; the others share the rest evenly."""


class MMoEConfig(TrunkSection):
    """Experts for all, a gate per task; both read the scenario (Ma et al., KDD 2018)."""

    kind: Literal["mmoe"]
    experts: int = Field(default=8, ge=1)
    hidden: Widths = Field(default=[256, 128], min_length=1)
    """Layers of each expert."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)


class HMoEConfig(TrunkSection):
    """A model per task: experts, and a gate and a tower for each finest scenario; a row listens to the towers of the
    other scenarios without training them (Li et al., CIKM 2020)."""

    kind: Literal["hmoe"]
    experts: int = Field(default=8, ge=1)
    hidden: Widths = Field(default=[256, 128], min_length=1)
    """Layers of each expert."""
    tower: Widths = Field(default=[64], min_length=1)
    """Layers of each scenario's tower."""
    dropout: float = Field(default=0.0, ge=0, lt=1)


class PLEConfig(TrunkSection):
    """Specific and shared experts fixed by hand: one layer per scenario level, then `levels` over the tasks with a
    shared stream (Tang et al., RecSys 2020)."""

    kind: Literal["ple"]
    specific: int = Field(default=2, ge=1)
    """Experts of each scenario in its layer, and of each task in every level."""
    shared: int = Field(default=2, ge=1)
    levels: int = Field(default=2, ge=1)
    """Levels over the tasks."""
    hidden: Widths = Field(default=[128], min_length=1)
    """Layers of each expert, in every level."""
    dropout: float = Field(default=0.0, ge=0, lt=1)


class STARConfig(TrunkSection):
    """Normalisation with the moments of each finest scenario, weights of a scenario times weights of all, the same
    again over the tasks, an auxiliary network (Sheng et al., CIKM 2021)."""

    kind: Literal["star"]
    hidden: Widths = Field(default=[256, 128], min_length=1)
    """Layers of the star over the scenarios."""
    task_hidden: Widths = Field(default=[64], min_length=1)
    """Layers of the star over the tasks."""
    auxiliary: int = Field(default=32, ge=1)
    """Width of the auxiliary network's hidden layer."""
    momentum: float = Field(default=0.1, gt=0, le=1)
    """Of the moving moments that the normalisation uses in evaluation."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)


class AESMConfig(TrunkSection):
    """Layers for each scenario level and then for the tasks; in each a row selects its specific and shared experts
    (Zou et al., SIGIR 2022)."""

    kind: Literal["aesm"]
    experts: int = Field(default=8, ge=1)
    """Experts per layer."""
    hidden: Widths = Field(default=[128], min_length=1)
    """Layers of each expert."""
    scenario_layers: int = Field(default=1, ge=1)
    """Layers per level of the scenario tree."""
    task_layers: int = Field(default=1, ge=1)
    top_specific: int = Field(default=1, ge=1)
    top_shared: int = Field(default=1, ge=1)
    noise: float = Field(default=0.1, ge=0)
    """Standard deviation of the gates' noise at the first step."""
    noise_steps: int | None = Field(default=1000, ge=1)
    """Steps over which the noise falls to nothing; null: it stays."""
    noise_in_mixture: bool = False
    """The paper's text has the noise in the gate itself, the authors' code in the selection alone."""
    specific_weight: float = Field(default=0.1, ge=0)
    shared_weight: float = Field(default=0.1, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)


class HTLNetConfig(TrunkSection):
    """A tower per task; a task reads the representations and the predicted labels of all tasks that it comes `after`,
    cut from their gradients (Tang et al., RecSys 2024)."""

    own_gradients: ClassVar[SumGradients | CoreGradients] = CoreGradients(kind="core")
    needs_task_order: ClassVar[bool] = True

    kind: Literal["htlnet"]
    hidden: Widths = Field(default=[256, 128], min_length=1)
    """Layers of each tower."""
    label_dim: int = Field(default=10, ge=1)
    fusion_dim: int = Field(default=32, ge=1)
    """Width of what is fused from the earlier tasks, once for representations and once for labels."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the drawn labels: low is nearly a hard label, high nearly none."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)


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


class TowersConfig(ModelSection):
    """A network per task. `product` trains P(task) = P(after) × P(task | after) over all rows, as ESMM; `direct`
    trains P(task) itself."""

    kind: Literal["towers"]
    hidden: Widths = [64]
    dropout: float = Field(default=0.0, ge=0, lt=1)
    conversion: Literal["product", "direct"] = "product"


HeadConfig = TowersConfig


class ObjectiveConfig(ModelSection):
    """Weights of the tasks, and the rule by which their gradients meet at the shared embedding."""

    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """Fixed: each task's own `weight`. Uncertainty: times a factor that is learned with the model."""
    gradients: GradientConfig | None = None
    """Null: the rule of the trunk's own paper, `core` for htlnet and `sum` for all others."""


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
        if chosen is None:
            chosen = self.trunk.own_gradients
        return chosen if isinstance(chosen, CoreGradients) else None
