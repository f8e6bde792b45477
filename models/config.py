"""The sections of an experiment that define a model: bottom, trunk, head and objective.

No `nn.Module` and no torch is imported here, because every command imports this file. The docstring of a section is its
row in docs/models.md.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from models.section import ModelSection, Widths


class ConcatConfig(ModelSection):
    """Concatenates features and numerics; each sequence is represented by the mean of its embeddings."""

    kind: Literal["concat"]


class TargetBottom(ModelSection):
    """A bottom that weights behaviours by their relation to a candidate.

    This applies to sequences whose table has the same width as the target's table. Every other sequence is represented
    by the mean of its embeddings.
    """

    kind: str
    target: str
    """The categorical feature of the candidate item."""

    def check_width(self, width: int) -> None:
        """Raises ValueError if the target's embedding cannot have this width. By default all widths are accepted."""


class DinConfig(TargetBottom):
    """Each sequence is represented by a sum of its behaviours, weighted by their relation to the candidate; the weights
    are not normalised (Zhou et al., KDD 2018)."""

    kind: Literal["din"]
    hidden: Widths = [64, 32]
    """Layers of the network that computes the weights."""


class DTRNConfig(TargetBottom):
    """One representation per task. One Transformer serves all behaviours and tasks; a small network computes its
    normalisations from the pair of task and behaviour. The candidate attends to its output. Each feature has one weight
    per task (Liu et al., CIKM 2023)."""

    kind: Literal["dtrn"]
    heads: int = Field(default=2, ge=1)
    """Attention heads; their number must divide the target's width."""
    blocks: int = Field(default=1, ge=1)
    condition_dim: int = Field(default=16, ge=1)
    """Width of the task embedding, the behaviour embedding and the hypernetwork."""
    refine_dim: int = Field(default=32, ge=1)
    """Hidden width of each task's refinement network."""

    def check_width(self, width: int) -> None:
        if width % self.heads:
            raise ValueError(
                f"model.bottom.heads: {self.heads} does not divide the width of {self.target!r}, which is {width}"
            )


BottomConfig = Annotated[ConcatConfig | DinConfig | DTRNConfig, Field(discriminator="kind")]


class SumGradients(ModelSection):
    """The gradients of the tasks add up, as usual."""

    kind: Literal["sum"]


class CoreGradients(ModelSection):
    """Removes the part of each task's gradient that opposes the core task's gradient, then moves the length of the
    gradient towards that of the core task's."""

    kind: Literal["core"]
    core: str | None = None
    """The core task; null: the last task."""
    projection: float = Field(default=1.0, ge=0, le=1)
    """Share of the opposing part that is removed; 1 removes all of it."""
    gamma: float = Field(default=0.1, ge=0, le=1)
    """0 does not change the lengths; 1 makes every gradient as long as the core task's, within `max_ratio`."""
    max_ratio: float = Field(default=10.0, ge=1)
    """The ratio of the two lengths is clipped to this factor and its inverse."""


GradientConfig = Annotated[SumGradients | CoreGradients, Field(discriminator="kind")]


class TrunkSection(ModelSection):
    """Facts that the section of a trunk states in addition to its keys."""

    own_gradients: ClassVar[SumGradients | CoreGradients] = SumGradients(kind="sum")
    """The gradient rule of the trunk's paper, used if the experiment does not name a rule."""
    needs_task_order: ClassVar[bool] = False
    """Whether at least one task must come `after` another."""


class SharedBottomConfig(TrunkSection):
    """One network for all tasks; the scenario is an input. With `hidden: []` the towers read the embedding directly,
    which with the head `product` is ESMM."""

    kind: Literal["shared_bottom"]
    hidden: Widths = [256, 128]
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)


class ParallelDNNConfig(TrunkSection):
    """A separate network for each task in each finest scenario; nothing is shared above the embedding."""

    kind: Literal["parallel_dnn"]
    hidden: Widths = Field(default=[256, 128], min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class CrossStitchConfig(TrunkSection):
    """One network per task; learned scalars mix them after every layer; the scenario is an input (Misra et al., CVPR
    2016)."""

    kind: Literal["cross_stitch"]
    hidden: Widths = Field(default=[256, 128], min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)
    own: float = Field(default=0.9, gt=0, le=1)
    """Initial share of a task's own network; the other networks share the rest evenly."""


class MMoEConfig(TrunkSection):
    """Experts that all tasks share, and one gate per task; experts and gates read the scenario (Ma et al., KDD
    2018)."""

    kind: Literal["mmoe"]
    experts: int = Field(default=8, ge=1)
    hidden: Widths = Field(default=[256, 128], min_length=1)
    """Layers of each expert."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)


class HMoEConfig(TrunkSection):
    """One model per task: experts for all scenarios, and a gate and a tower for each finest scenario; a row also uses
    the towers of the other scenarios, without training them (Li et al., CIKM 2020)."""

    kind: Literal["hmoe"]
    experts: int = Field(default=8, ge=1)
    hidden: Widths = Field(default=[256, 128], min_length=1)
    """Layers of each expert."""
    tower: Widths = Field(default=[64], min_length=1)
    """Layers of each scenario's tower."""
    dropout: float = Field(default=0.0, ge=0, lt=1)


class PLEConfig(TrunkSection):
    """A fixed assignment of specific and shared experts: one layer per scenario level, then `levels` levels over the
    tasks with a shared stream (Tang et al., RecSys 2020)."""

    kind: Literal["ple"]
    specific: int = Field(default=2, ge=1)
    """Specific experts per scenario in its layer, and per task in every level."""
    shared: int = Field(default=2, ge=1)
    """Shared experts per layer or level."""
    levels: int = Field(default=2, ge=1)
    """Number of levels over the tasks."""
    hidden: Widths = Field(default=[128], min_length=1)
    """Layers of each expert, in every level."""
    dropout: float = Field(default=0.0, ge=0, lt=1)


class STARConfig(TrunkSection):
    """Normalisation with the moments of each finest scenario; the weights of a scenario are multiplied by shared
    weights, and likewise for the tasks; an auxiliary network (Sheng et al., CIKM 2021)."""

    kind: Literal["star"]
    hidden: Widths = Field(default=[256, 128], min_length=1)
    """Layers of the star over the scenarios."""
    task_hidden: Widths = Field(default=[64], min_length=1)
    """Layers of the star over the tasks."""
    auxiliary: int = Field(default=32, ge=1)
    """Width of the auxiliary network's hidden layer."""
    momentum: float = Field(default=0.1, gt=0, le=1)
    """Momentum of a scenario's moving moments for a batch with many of its rows; few rows move them less."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)


class AESMConfig(TrunkSection):
    """Layers for each scenario level and then for the tasks; in each layer a row selects its specific and shared
    experts (Zou et al., SIGIR 2022)."""

    kind: Literal["aesm"]
    experts: int = Field(default=8, ge=1)
    """Number of experts per layer."""
    hidden: Widths = Field(default=[128], min_length=1)
    """Layers of each expert."""
    scenario_layers: int = Field(default=1, ge=1)
    """Number of layers per level of the scenario tree."""
    task_layers: int = Field(default=1, ge=1)
    top_specific: int = Field(default=1, ge=1)
    top_shared: int = Field(default=1, ge=1)
    noise: float = Field(default=0.1, ge=0)
    """Standard deviation of the gates' noise at the first step."""
    noise_steps: int | None = Field(default=1000, ge=1)
    """Steps over which the noise falls to zero; null: it stays constant."""
    noise_in_mixture: bool = False
    """Whether the noise also affects the mixture weights, as in the paper's text, or only the selection, as in the
    authors' code."""
    specific_weight: float = Field(default=0.1, ge=0)
    shared_weight: float = Field(default=0.1, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)


class HTLNetConfig(TrunkSection):
    """One tower per task; a task reads the representations and the predicted labels of all tasks that it comes `after`,
    and its gradients do not flow back into them (Tang et al., RecSys 2024)."""

    own_gradients: ClassVar[SumGradients | CoreGradients] = CoreGradients(kind="core")
    needs_task_order: ClassVar[bool] = True

    kind: Literal["htlnet"]
    hidden: Widths = Field(default=[256, 128], min_length=1)
    """Layers of each tower."""
    label_dim: int = Field(default=10, ge=1)
    fusion_dim: int = Field(default=32, ge=1)
    """Width of the fused representations and of the fused labels of the earlier tasks."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the drawn labels: near 0 they are almost hard labels; high, they carry almost no information."""
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
    """One network per task. `product` trains P(task) = P(after) × P(task | after) over all rows, as ESMM; `direct`
    trains P(task) itself."""

    kind: Literal["towers"]
    hidden: Widths = [64]
    dropout: float = Field(default=0.0, ge=0, lt=1)
    conversion: Literal["product", "direct"] = "product"


class ObjectiveConfig(ModelSection):
    """Weights of the tasks, and the rule that combines their gradients at the shared embedding."""

    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """Fixed: each task's own `weight`. Uncertainty: that `weight` times a factor that is learned with the model."""
    gradients: GradientConfig | None = None
    """Null: the rule of the trunk's own paper, which is `core` for htlnet and `sum` for all other trunks."""


class ModelConfig(ModelSection):
    """The experiment's `model` section: bottom, trunk, head and objective, in any combination."""

    bottom: BottomConfig = ConcatConfig(kind="concat")
    trunk: TrunkConfig
    head: TowersConfig = TowersConfig(kind="towers")
    objective: ObjectiveConfig = ObjectiveConfig()

    @property
    def core_rule(self) -> CoreGradients | None:
        """The rule that combines gradients at the shared embedding, by default the trunk's own; None: they add up."""
        chosen = self.objective.gradients
        if chosen is None:
            chosen = self.trunk.own_gradients
        return chosen if isinstance(chosen, CoreGradients) else None
