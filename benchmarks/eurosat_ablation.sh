#!/usr/bin/env bash
# What each setting of the small-data recipe is worth: short runs at 64 px, one change each.
# The last line of a log is `kNN before ... after ...` on the validation split.
#
# Usage: benchmarks/eurosat_ablation.sh [name ...]      (all variants without a name)
set -euo pipefail

declare -A CHANGES=(
  [recipe]=''
  [warm_teacher]='--model.init_args.bottleneck_dim 256 --model.init_args.teacher_temperature [0.04,0.07]'
  [full_jitter]='--model.init_args.strength 1.0'
  [no_jitter]='--model.init_args.strength 0.0'
  [small_locals]='--model.init_args.local_scale [0.05,0.32] --model.init_args.global_scale [0.32,1.0]'
  [alpha_r]='--model.init_args.alpha 16'
  [slow_teacher]='--model.init_args.teacher_momentum [0.994,1.0]'
  [two_blocks]='--model.init_args.unfreeze [-2,-1]'
  [no_lora]='--model.init_args.rank 0 --model.init_args.alpha null'
)
ORDER=(recipe warm_teacher full_jitter small_locals alpha_r two_blocks slow_teacher no_jitter no_lora)

for name in "${@:-${ORDER[@]}}"; do
  # shellcheck disable=SC2086  # a variant is several words
  torchgeo fit --config configs/pretrain/eurosat_rgb_vit_tiny_cpu.yaml \
    --trainer.max_steps 300 --trainer.default_root_dir "outputs/ablation/$name" \
    --trainer.logger.init_args.save_dir outputs/ablation --trainer.logger.init_args.name "$name" \
    --trainer.enable_progress_bar false \
    --model.init_args.image_size 64 --model.init_args.local_size 32 ${CHANGES[$name]} \
    2>&1 | tee "outputs/ablation-$name.log" | grep -E '^(D-|kNN)' | sed "s/^/$name: /"
done
