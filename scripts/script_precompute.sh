#!/usr/bin/env bash
# Step 2: invert the images once; training and inference reuse the latents.
# (Optional: they also invert images without latents themselves.)
source "$(dirname "$0")/env.sh"

config="avatar.yml"  # a YAML in configs/; its section `editing` has the number of steps
n_img=100  # number of images per split
gpu="0"

if [ "$config" = "avatar.yml" ]; then render_faces 200 100; fi

CUDA_VISIBLE_DEVICES=$gpu python main.py --just_precompute \
  --config "$config" \
  --exp ./runs/precompute \
  --n_precomp_img "$n_img" \
  --bs_precompute 25 \
  --do_train 1 --do_test 1 \
  --sh_file_name "scripts/$(basename "$0")"
