#!/usr/bin/env bash
# The six directions of the default stack, by main.py: bash scripts/avatar/train_directions.sh [NAME ...]
# Each ends as pretrained/avatar/directions/NAME.pth, with its record inside.
source "$(dirname "$0")/../env.sh"

names="${*:-smiling sad angry surprised beard blond_hair}"

# What is the same for all stands in configs/avatar.yml, in the section `editing`. There the change is counted from the plain
# P_t (clip_source), not from the real image: beside it, a P_t that is blurred, as at large t, differs by the edit alone. The
# epochs after the first, each at a fifth of the learning rate (sch_gamma), bring hair, skin and beard back to what they were.

# name -> images, epochs, weight of the L1 term.
settings() {
  case "$1" in
    smiling | angry | surprised) echo 100 2 4 ;;
    sad) echo 100 3 4 ;;
    beard) echo 200 2 2.5 ;;
    blond_hair) echo 180 3 1 ;;
    *) echo "no settings for $1" >&2; return 1 ;;
  esac
}

render_faces 200 200
mkdir -p pretrained/avatar/directions
for name in $names; do
  chosen="$(settings "$name")"
  read -r n_train_img n_iter l1_loss_w <<<"$chosen"
  python main.py --run_train --config avatar.yml --exp "runs/avatar_$name" --edit_attr "avatar_$name" --train_delta_block \
    --n_train_img "$n_train_img" --n_iter "$n_iter" --l1_loss_w "$l1_loss_w" --bs_precompute 25 --do_test 0 --retrain 1
  cp "checkpoint/avatar_${name}_LC_AVATAR_t999_ninv40_ngen40_$((n_iter - 1)).pth" "pretrained/avatar/directions/$name.pth"
done
