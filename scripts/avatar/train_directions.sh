#!/usr/bin/env bash
# The six directions of the default stack, by main.py: bash scripts/avatar/train_directions.sh [NAME ...]
# Each ends as pretrained/avatar/directions/NAME.pth, with the settings it was trained with inside.
source "$(dirname "$0")/../env.sh"

names="${*:-smiling sad angry surprised beard blond_hair}"
bs_train=4
clip_loss_w=1

# The change is counted from the plain P_t, not from the real image: beside it, a P_t that is blurred, as at large t, differs
# by the edit alone. The epochs after the first, each at a fifth of the learning rate, bring hair, skin and beard back to what
# they were.
clip_source=origin
sch_gamma=0.2

# name -> images, epochs, learning rate, weight of the L1 term, LPIPS threshold of t_edit. At 32 pixels a mouth is decided late
# and changes little in LPIPS: the thresholds are far below the 0.33 of photographs.
settings() {
  case "$1" in
    smiling | angry | surprised) echo 100 2 0.2 4 0.005 ;;
    sad) echo 100 3 0.2 4 0.005 ;;
    beard) echo 200 2 0.2 2.5 0.005 ;;
    blond_hair) echo 180 3 0.2 1 0.005 ;;
  esac
}

render_faces 200 200
mkdir -p pretrained/avatar/directions
for name in $names; do
  read -r n_train_img n_iter lr l1_loss_w lpips_edit_th < <(settings "$name")
  python main.py --run_train --config avatar.yml --exp "runs/avatar_$name" --edit_attr "avatar_$name" \
    --train_delta_block --get_h_num 1 --n_inv_step 40 --n_train_step 40 \
    --n_train_img "$n_train_img" --n_iter "$n_iter" --bs_train "$bs_train" --bs_precompute 25 \
    --lr_training "$lr" --scheduler_step_size 1 --sch_gamma "$sch_gamma" \
    --clip_source "$clip_source" --clip_loss_w "$clip_loss_w" --l1_loss_w "$l1_loss_w" \
    --lpips_edit_th "$lpips_edit_th" --do_test 0 --retrain 1
  cp "checkpoint/avatar_${name}_LC_AVATAR_t999_ninv40_ngen40_$((n_iter - 1)).pth" "pretrained/avatar/directions/$name.pth"
done
