#!/usr/bin/env bash
# The six directions of the default stack, by main.py: bash scripts/avatar/train_directions.sh [NAME ...]
# Each ends as pretrained/avatar/directions/NAME.pth, with the settings it was trained with inside.
source "$(dirname "$0")/../env.sh"

names="${*:-smiling sad angry surprised beard blond_hair}"
n_train_img=100
bs_train=4
clip_loss_w=1

# name -> learning rate, weight of the L1 term, LPIPS threshold of t_edit. At 32 pixels a mouth is decided late and changes
# little in LPIPS: the thresholds are far below the 0.33 of photographs, higher for what is larger than a mouth.
settings() {
  case "$1" in
    smiling) echo 0.1 3 0.005 ;;
    sad) echo 0.05 5 0.005 ;;
    angry | surprised) echo 0.1 4 0.005 ;;
    beard | blond_hair) echo 0.2 1.5 0.015 ;;
  esac
}

render_faces 200 200
mkdir -p pretrained/avatar/directions
for name in $names; do
  read -r lr l1_loss_w lpips_edit_th < <(settings "$name")
  python main.py --run_train --config avatar.yml --exp "runs/avatar_$name" --edit_attr "avatar_$name" \
    --train_delta_block --get_h_num 1 --n_inv_step 40 --n_train_step 40 \
    --n_train_img "$n_train_img" --bs_train "$bs_train" --bs_precompute 25 \
    --lr_training "$lr" --clip_loss_w "$clip_loss_w" --l1_loss_w "$l1_loss_w" \
    --lpips_edit_th "$lpips_edit_th" --do_test 0 --retrain 1
  cp "checkpoint/avatar_${name}_LC_AVATAR_t999_ninv40_ngen40_0.pth" "pretrained/avatar/directions/$name.pth"
done
