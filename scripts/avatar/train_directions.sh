#!/usr/bin/env bash
# The directions of the default stack, by main.py: bash scripts/avatar/train_directions.sh [NAME ...]
# Each ends as pretrained/avatar/directions/NAME.pth, with its record inside.
source "$(dirname "$0")/../env.sh"

names="${*:-smiling sad angry surprised beard blond_hair glasses}"

# What is the same for all is in configs/avatar.yml, in the section `editing`. What differs was found by trials: above
# all the weight of the L1 loss, which trades success against the labels kept.
# name -> images, learning rate, weight of the L1 loss.
settings() {
  case "$1" in
    smiling | surprised) echo 200 0.4 2 ;;
    sad) echo 150 0.4 5 ;;
    angry) echo 150 0.4 4 ;;
    beard) echo 200 0.3 4 ;;
    blond_hair) echo 200 0.4 0.8 ;;
    glasses) echo 200 0.3 6 ;;
    *) echo "no settings for $1" >&2; return 1 ;;
  esac
}

render_faces 200 200
mkdir -p pretrained/avatar/directions
for name in $names; do
  chosen="$(settings "$name")"
  read -r n_train_img lr_training l1_loss_w <<<"$chosen"
  python main.py --run_train --config avatar.yml --exp "runs/avatar_$name" --edit_attr "avatar_$name" --train_delta_block \
    --n_train_img "$n_train_img" --lr_training "$lr_training" --l1_loss_w "$l1_loss_w" --bs_precompute 25 \
    --do_test 0 --retrain 1
  cp "checkpoint/avatar_${name}_LC_AVATAR_t999_ninv40_ngen40_1.pth" "pretrained/avatar/directions/$name.pth"
done
