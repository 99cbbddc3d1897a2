#!/usr/bin/env bash
# Step 3: learn a direction. Its checkpoint is checkpoint/<exp>_LC_<category>_t999_ninv<n>_ngen<n>_<epoch>.pth.
source "$(dirname "$0")/env.sh"

config="avatar.yml"  # a YAML of configs/; its section `editing` has steps, images, epochs, learning rate, loss and thresholds
guid="avatar_smiling"  # an attribute of utils/text_dic.py; also the experiment's name
gpu="0"

if [ "$config" = "avatar.yml" ]; then render_faces 200 100; fi

CUDA_VISIBLE_DEVICES=$gpu python main.py --run_train \
  --config "$config" \
  --exp "./runs/$guid" \
  --edit_attr "$guid" \
  --train_delta_block \
  --n_test_img 8 --bs_test 8 --bs_precompute 25 \
  --save_x0 --use_x0_tensor --save_x_origin \
  --sh_file_name "scripts/$(basename "$0")"
