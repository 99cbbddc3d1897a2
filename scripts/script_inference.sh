#!/usr/bin/env bash
# Step 4: edit test images with a direction at several strengths.
# Interval and steps come from the direction's record, everything else from the YAML.
source "$(dirname "$0")/env.sh"

config="avatar.yml"  # a YAML in configs/
guid="avatar_smiling"  # an attribute in utils/text_dic.py, e.g. "smiling" for celeba.yml
direction="smiling"  # an experiment, a file, or a direction that ships: smiling sad angry surprised beard blond_hair
n_test_img=12
min_delta=-1
max_delta=1.5
num_delta=6
gpu="0"

if [ "$config" = "avatar.yml" ]; then render_faces 200 100; fi

CUDA_VISIBLE_DEVICES=$gpu python main.py --run_test \
  --config "$config" \
  --exp "./runs/$guid" \
  --edit_attr "$guid" \
  --manual_checkpoint_name "$direction" \
  --n_test_img "$n_test_img" --bs_test 12 --bs_precompute 25 \
  --delta_interpolation --min_delta "$min_delta" --max_delta "$max_delta" --num_delta "$num_delta" \
  --save_x0 --use_x0_tensor --save_x_origin \
  --sh_file_name "scripts/$(basename "$0")"
