#!/usr/bin/env bash
# Step 1: measure the LPIPS curves from which t_edit and t_boost are chosen.
# Not needed for the five published datasets and the default stack, whose curves are in utils/lpips_curves/.
source "$(dirname "$0")/env.sh"

config="avatar.yml"  # a YAML in configs/; its section `editing` has the thresholds
edit_attr="avatar_smiling"  # only to mark its t_edit in the plot: an attribute in utils/text_dic.py, e.g. "smiling" for celeba.yml
n_img=64  # number of images
n_step=100  # number of timesteps
gpu="0"

if [ "$config" = "avatar.yml" ]; then render_faces 200 100; fi

CUDA_VISIBLE_DEVICES=$gpu python main.py --lpips \
  --config "$config" \
  --exp ./runs/lpips \
  --edit_attr "$edit_attr" \
  --n_train_img "$n_img" \
  --n_inv_step "$n_step" \
  --sh_file_name "scripts/$(basename "$0")"
