#!/usr/bin/env bash
# Step 2: invert the images once; training and inference find the latents again.
# (They invert what is missing by themselves: this step is for doing it ahead.)
source "$(dirname "$0")/env.sh"

config="avatar.yml"  # a YAML of configs/; the number of steps is that of its section `editing`
n_img=100  # images of the training set, and of the test set
gpu="0"

if [ "$config" = "avatar.yml" ]; then render_faces 200 100; fi

CUDA_VISIBLE_DEVICES=$gpu python main.py --just_precompute \
  --config "$config" \
  --exp ./runs/precompute \
  --n_precomp_img "$n_img" \
  --bs_precompute 25 \
  --sh_file_name "scripts/$(basename "$0")"
