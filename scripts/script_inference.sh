#!/usr/bin/env bash
# Step 4: edit test images with a direction, over a strip of strengths.
source "$(dirname "$0")/env.sh"

config="avatar.yml"  # a YAML of configs/
guid="avatar_smiling"  # the attribute: gives the prompts, and by them t_edit
direction="smiling"  # an experiment, a file, or one of the directions that ship: smiling sad angry surprised beard blond_hair
inv_step=40
train_step=40
test_step=40
n_test_img=12
min_delta=-1
max_delta=1.5
num_delta=6
lpips_edit_th=0.005  # as in training; 0.33 for the real models
t_addnoise=0  # quality boosting below this timestep
gpu="0"

if [ "$config" = "avatar.yml" ]; then render_faces 200 100; fi

CUDA_VISIBLE_DEVICES=$gpu python main.py --run_test \
  --config "$config" \
  --exp "./runs/$guid" \
  --edit_attr "$guid" \
  --train_delta_block --get_h_num 1 \
  --manual_checkpoint_name "$direction" \
  --n_test_img "$n_test_img" --bs_test 12 --bs_precompute 25 \
  --n_inv_step "$inv_step" --n_train_step "$train_step" --n_test_step "$test_step" \
  --hs_coeff_delta_h 1.0 \
  --delta_interpolation --min_delta "$min_delta" --max_delta "$max_delta" --num_delta "$num_delta" \
  --lpips_edit_th "$lpips_edit_th" \
  --user_defined_t_addnoise "$t_addnoise" \
  --save_x0 --use_x0_tensor --save_x_origin \
  --sh_file_name "scripts/$(basename "$0")"
