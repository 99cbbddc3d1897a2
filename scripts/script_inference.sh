#!/usr/bin/env bash
# Step 4: edit test images with a direction, over a strip of strengths.
source "$(dirname "$0")/env.sh"

config="avatar.yml"  # a YAML of configs/
guid="avatar_smiling"  # an attribute of utils/text_dic.py, and the name of the experiment
direction="smiling"  # an experiment, a file, or one of the directions that ship: smiling sad angry surprised beard blond_hair
n_test_img=12
min_delta=-1
max_delta=1.5
num_delta=6
gpu="0"

if [ "$config" = "avatar.yml" ]; then render_faces 200 100; fi

# Interval, steps and strength are those that the direction was trained with.
CUDA_VISIBLE_DEVICES=$gpu python main.py --run_test \
  --config "$config" \
  --exp "./runs/$guid" \
  --edit_attr "$guid" \
  --manual_checkpoint_name "$direction" \
  --n_test_img "$n_test_img" --bs_test 12 --bs_precompute 25 \
  --delta_interpolation --min_delta "$min_delta" --max_delta "$max_delta" --num_delta "$num_delta" \
  --save_x0 --use_x0_tensor --save_x_origin \
  --sh_file_name "scripts/$(basename "$0")"
