"""D-ExPLoRA: extended DINOv2 pre-training."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from peft import PeftConfig
from torch import nn

from torchgeo_explora.adapt import lora
from torchgeo_explora.augment import MultiCropOptions
from torchgeo_explora.models.backbones.backbone import Backbone
from torchgeo_explora.objectives import DINOv2, DINOv2Options
from torchgeo_explora.tasks.pretraining.base import PretrainingOptions, PretrainingTask
from torchgeo_explora.tasks.pretraining.recipe import (
    BASE_LR,
    FEWEST_STEPS,
    RECIPES,
    SHORT_RUN,
    Recipe,
    give_length,
    short_adapter,
    shortened,
    take_length_back,
)
from torchgeo_explora.tasks.run.adaptation import as_options, plain
from torchgeo_explora.tasks.run.optimizer import Schedule, without_decay
from torchgeo_explora.tasks.run.plan import plan


class ExploraDinoTask(PretrainingTask):
    """Adapt a ViT to unlabelled images with DINOv2's objective and a small delta.

    Khanna et al., *ExPLoRA* (https://arxiv.org/abs/2406.10973). A run of 2,000 or more
    optimizer steps uses the paper's settings, D-[24]-r64 for a ViT-L: one unfrozen
    block, all norms, and LoRA of rank 64 on the queries and values of the other blocks.
    A shorter run uses the recipe for few images, because the paper's settings make
    features worse there. Differences from the authors' code: time is counted in
    optimizer steps, and the learning rate depends on the effective batch, including
    accumulation, so that the size of a micro-batch changes neither.

    Args:
        model: Name of a timm VisionTransformer, a backbone, or its class path.
        recipe: 'paper' keeps all defaults. 'short' is for few images: it changes what
            was left at its default to LoRA of rank 64 on all matrices, a small head
            that is initialised from the first batch, sharper targets, a teacher that
            follows the student more closely and a learning rate set by the length of
            the run and the width of the base. 'auto' is 'paper' until a run starts, and
            takes 'short' for runs of fewer than 2,000 optimizer steps; an adapter that
            has already been trained is kept. If the trainer has no length, 'auto' and
            'short' run for 400 steps or one pass over the images, whichever is more.
            The start-up lines say which recipe is used. Heads that already have the
            recipe's sizes are kept.
        objective: Head, temperatures, teacher, masks and weights of the terms.
        views: Number, size and scale of the crops, and their photometric changes.
        augmentations: Module from (B, C, H, W) in [0, 1] to `Views`, instead of
            *views*.
        base_lr: Learning rate for an effective batch of 1024; the rate in use is this
            times sqrt(effective batch / 1024). If None, that of the recipe: 1e-3 for
            'paper'.
        schedule: Warm-up and end of the learning rate, and AdamW's settings.
        **pretraining: What is trained, and on which images; see `PretrainingOptions`.

    Raises:
        ValueError: If *adapter* is given together with *rank* or *alpha*, *base_lr* is
            not positive, or a size is not a multiple of the patch size.
    """

    letter = 'D'
    ignore = (*PretrainingTask.ignore, 'objective', 'views')
    objective: DINOv2

    def __init__(
        self,
        model: Backbone | str = 'vit_large_patch14_dinov2',
        *,
        recipe: Recipe = 'auto',
        objective: DINOv2Options = DINOv2Options(),
        views: MultiCropOptions = MultiCropOptions(),
        augmentations: nn.Module | None = None,
        base_lr: float | None = None,
        schedule: Schedule = Schedule(),
        **pretraining: Any,
    ) -> None:
        """Build the adapted student, its twin teacher and the head."""
        if recipe not in RECIPES:
            raise ValueError(f'*recipe* is {recipe!r}: choose from {RECIPES}')
        short = short_adapter(pretraining)
        if recipe == 'short' and short:
            pretraining['adapter'] = short
        schedule = as_options(Schedule(), schedule)
        super().__init__(
            PretrainingOptions(
                base_lr=BASE_LR if base_lr is None else base_lr,
                schedule=schedule,
                **pretraining,
            )
        )
        self.recipe, self._reason = recipe, 'as given'
        objective = as_options(DINOv2Options(), objective)
        self._given: tuple[Recipe, DINOv2Options, float | None]
        self._given = recipe, objective, base_lr
        # The adapters that a run may choose from; none if the user described one.
        self._adapters: dict[str, PeftConfig] = {}
        if recipe == 'auto' and short:
            self._adapters = {'short': short, 'paper': lora()}
        self._lengthened = False
        views = as_options(MultiCropOptions(), views)
        self.save_hyperparameters(
            {
                'objective': plain(objective),
                'views': plain(views),
                # That of a recipe is known when a run starts.
                'base_lr': self.options.base_lr if recipe == 'paper' else base_lr,
            }
        )
        student = self.new_student(model)
        extras = student.record.take_extras()
        # MAE's mask token belongs to its decoder.
        decoder = any(name.startswith('decoder_') for name in extras)
        mask_token = None if decoder else extras.get('mask_token')
        if augmentations is None:
            augmentations = views.build(
                *(self.image_size, student.patch_size, self.mean, self.std),
                anchor_size=(
                    self.image_size * objective.gram_scale
                    if objective.anchored
                    else None
                ),
            )
        self.objective = DINOv2(student, augmentations, mask_token, **asdict(objective))

    def setup(self, stage: str) -> None:
        """Choose the length if none is given, and everything that depends on it."""
        recipe, _, _ = self._given
        if stage == 'fit' and recipe != 'paper':
            self._lengthened = give_length(self.trainer)
            steps, _ = plan(self.trainer)
            self._choose_recipe(steps)
        super().setup(stage)

    def teardown(self, stage: str) -> None:
        """Restore the trainer's length as it was given."""
        super().teardown(stage)
        if self._lengthened:
            take_length_back(self.trainer)
            self._lengthened = False

    def _choose_recipe(self, steps: int) -> None:
        """Take the options for a run of *steps* steps, and remember the choice."""
        self.recipe, options, rate = self._given
        self._reason = 'as given'
        if self.recipe == 'auto':
            self.recipe = 'short' if steps < SHORT_RUN else 'paper'
            self._reason = f'{steps} optimizer steps planned, the limit is {SHORT_RUN}'
        if self.recipe == 'short':
            width = self.objective.student.embed_dim
            options, rate = shortened(options, rate, steps, width)
        self.options.base_lr = BASE_LR if rate is None else rate
        self.objective.take(options)
        self._choose_adapter()
        self.objective.to(self.device)
        self.save_hyperparameters(
            {
                'recipe': self.recipe,
                'objective': plain(self.objective.options),
                'base_lr': self.options.base_lr,
            }
        )

    def _choose_adapter(self) -> None:
        """Replace LoRA that has not been trained yet with the recipe's."""
        wanted = self._adapters.get(self.recipe)
        if wanted is None:
            return
        if wanted != self.adaptation.adapter:
            try:
                self.objective.take_adapter(wanted)
            except ValueError as error:
                self._reason += f'; the LoRA stays as it is: {error}'
            else:
                self.adaptation = replace(self.adaptation, adapter=wanted)
        self.save_hyperparameters({'adapter': plain(self.adaptation.adapter)})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the recipe, and what every method checks.

        If no run is about to start, 'auto' becomes the checkpoint's recipe.

        Raises:
            ValueError: If the checkpoint was written with another recipe, or does not
                fit.
        """
        saved = checkpoint.get('hyper_parameters', {}).get('recipe', 'paper')
        if saved in ('paper', 'short') and saved != self.recipe:
            if self.recipe != 'auto':
                raise ValueError(
                    f'the checkpoint was written with recipe {saved}, but this run has'
                    f' recipe {self.recipe} ({self._reason}): set *recipe* to {saved}'
                )
            self._adopt(saved)
        super().on_load_checkpoint(checkpoint)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Load what a run has trained; this process may not know its recipe yet.

        If Lightning forks the processes of a run (`ddp_notebook`), those choose the
        recipe.
        """
        own = {name: tensor.shape for name, tensor in self.state_dict().items()}
        others = (n for n in own.keys() & state_dict if own[n] != state_dict[n].shape)
        if self._given[0] != 'paper' and any(others):
            self._adopt('short')
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _adopt(self, recipe: Recipe) -> None:
        """Take the recipe of the weights that are about to be loaded."""
        self._given = (recipe, *self._given[1:])
        # Settings that depend on the length of a run are chosen when one starts.
        self._choose_recipe(FEWEST_STEPS)

    def delta_metadata(self) -> dict[str, str]:
        """Return what every method stores, and the recipe."""
        return {**super().delta_metadata(), 'recipe': self.recipe}

    def summary(self) -> str:
        """Describe the run that is about to start; name the recipe if it was chosen."""
        if self.recipe == 'paper' and self._reason == 'as given':
            return super().summary()
        return f'{super().summary()}\nrecipe {self.recipe} ({self._reason})'

    def scaled_lr(self, effective_batch: int) -> float:
        """Return base_lr * sqrt(effective batch / 1024)."""
        return self.options.base_lr * math.sqrt(effective_batch / 1024)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the delta and the heads, whose prototypes are frozen at first.

        Weight decay, if any, applies to matrices: norms, biases, LayerScale and the
        prototypes' magnitudes have none.
        """
        heads = [
            head
            for head in (self.objective.head, self.objective.ibot_head)
            if head is not None
        ]
        prototypes = [p for head in heads for p in head.prototypes.parameters()]
        apart = {id(parameter) for parameter in prototypes}
        (group,) = super().parameter_groups()
        group['params'] = [p for p in group['params'] if id(p) not in apart]
        frozen = self.objective.options.freeze_prototypes
        groups = [group, {'params': prototypes, 'still': frozen}]
        if not self.options.schedule.weight_decay:
            # Checkpoints of runs without decay have these two groups.
            return groups
        magnitudes = [head.prototypes.magnitude for head in heads]
        return [part for each in groups for part in without_decay(each, magnitudes)]

    def configure_optimizers(self) -> Any:
        """Plan the run, and give the objective its number of steps."""
        plan = super().configure_optimizers()
        self.objective.steps = self.planned_steps
        return plan
