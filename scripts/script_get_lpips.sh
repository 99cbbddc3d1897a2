#!/usr/bin/env bash
# Step 1: measure the LPIPS curves that t_edit and t_boost are read from.
# The five published datasets, and the default stack, have theirs in utils/lpips_curves/: then this step can be left out.
source "$(dirname "$0")/env.sh"

config="avatar.yml"  # a YAML of configs/; thresholds are those of its section `editing`
guid="avatar_smiling"  # an attribute of utils/text_dic.py, only to mark its t_edit in the plot
n_img=64  # images to measure
n_step=100  # timesteps to measure
gpu="0"

if [ "$config" = "avatar.yml" ]; then render_faces 200 100; fi

CUDA_VISIBLE_DEVICES=$gpu python main.py --lpips \
  --config "$config" \
  --exp ./runs/lpips \
  --edit_attr "$guid" \
  --n_train_img "$n_img" --n_inv_step "$n_step" \
  --sh_file_name "scripts/$(basename "$0")"
